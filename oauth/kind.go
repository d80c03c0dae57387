package oauth

// Kind is what went wrong, in one word, for people and alerts. What may be done next is decided by the Outcome alone.
type Kind string

// Kinds of failure.
const (
	KindInvalidGrant    Kind = "invalid_grant"    // the code or refresh token is not valid (any more), or not without the operator
	KindInvalidClient   Kind = "invalid_client"   // the client id, its secret or key, or the way it authenticates
	KindInvalidScope    Kind = "invalid_scope"    // a scope
	KindInvalidRequest  Kind = "invalid_request"  // the form of the request
	KindRateLimited     Kind = "rate_limited"     // too many requests
	KindProviderChanged Kind = "provider_changed" // 3xx, 404, 405, 410, a 403 of no OAuth code: no such endpoint here any more
	KindProviderFailed  Kind = "provider_failed"  // 5xx and other failures of its own
	KindUnreachable     Kind = "unreachable"      // nothing was sent
	KindNoAnswer        Kind = "no_answer"        // sent, and no whole answer came
	KindBadAnswer       Kind = "bad_answer"       // a success that is none: no usable token in it
	KindRefused         Kind = "refused"          // anything else
)

// Kind says what went wrong.
func (e *Error) Kind() Kind {
	switch {
	case e.Outcome == InvalidGrant:
		return KindInvalidGrant
	case e.Outcome == NotSent:
		return KindUnreachable
	case e.Outcome == Unknown && e.Status == 0:
		return KindNoAnswer
	case e.Outcome == Unknown && e.Status/100 == 2 && e.Code == "":
		return KindBadAnswer
	case e.Outcome == Unknown:
		return KindProviderFailed
	case e.Status == 429:
		return KindRateLimited
	case e.Status/100 == 3, e.Status == 404, e.Status == 405, e.Status == 410:
		return KindProviderChanged
	}
	if wantsOperator(e.Code) {
		return KindInvalidGrant
	}
	switch e.Code {
	case "invalid_client", "unauthorized_client":
		return KindInvalidClient
	case "invalid_scope":
		return KindInvalidScope
	case "invalid_request", "unsupported_grant_type", "invalid_target":
		return KindInvalidRequest
	case "access_denied":
		return KindRefused
	case "":
		switch e.Status {
		case 401:
			return KindInvalidClient
		case 400, 415, 422:
			return KindInvalidRequest
		}
	}
	if e.Status == 403 {
		return KindProviderChanged
	}
	return KindRefused
}
