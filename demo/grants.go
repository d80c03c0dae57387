package demo

import "time"

// Grant and token types beyond RFC 6749.
const (
	grantDevice     = "urn:ietf:params:oauth:grant-type:device_code"
	grantJWT        = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// mint issues a token that nobody consents to. proven is whether the client has shown that it may have one.
func (p *Provider) mint(c Client, proven bool, want []string, now time.Time, ttl time.Duration) (t issued, code string) {
	scopes := p.allowedLocked(want)
	switch {
	case !proven && c.Key != nil:
		return t, "invalid_grant"
	case !proven:
		return t, "unauthorized_client"
	case len(scopes) == 0:
		return t, "invalid_scope"
	}
	return p.ledger.single(c.ID, scopes, now, ttl), ""
}

// proves reports whether assertion is a JWT of the client's own (RFC 7523 §2.1): it trusts no other issuer.
func (p *Provider) proves(c Client, assertion, base string, now time.Time) bool {
	_, ok := p.verify(c, assertion, base, now)
	return ok
}

// trade is a token exchange (RFC 8693 §2.1). An actor is a JWT that the client signed.
func (p *Provider) trade(c Client, params map[string]string, base string, want []string, now time.Time, ttl time.Duration) (t issued, code string) {
	use := Use{Audience: params["audience"], Resource: params["resource"]}
	if params["subject_token_type"] != typeAccessToken || params["requested_token_type"] != "" && params["requested_token_type"] != typeAccessToken {
		return t, "invalid_request"
	}
	if actor := params["actor_token"]; actor != "" || params["actor_token_type"] != "" {
		claims, ok := p.verify(c, actor, base, now)
		if !ok || params["actor_token_type"] != typeJWT {
			return t, "invalid_request"
		}
		use.Actor = claims.Subject
	}
	return p.ledger.trade(params["subject_token"], want, use, now, ttl)
}
