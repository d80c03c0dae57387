package oauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"wayleave/secret"
)

// Outcome says what a failed call means for the code or refresh token it carried. The zero value is the one that
// promises least.
type Outcome int

const (
	// Unknown: it may have been spent. Timeouts, resets, 5xx, unreadable answers.
	Unknown Outcome = iota
	// NotSent: nothing left this machine; it is certainly unspent.
	NotSent
	// Refused: the provider refused the call for another reason than the token, which is unspent: a rate limit, a wrong
	// client, a scope, or an endpoint that is not there any more.
	Refused
	// InvalidGrant: the provider says that this code or refresh token is not valid (RFC 6749 §5.2). Nothing but a parsed
	// error code in a 400, 401, 403 or 2xx answer counts as saying so.
	InvalidGrant
)

func (o Outcome) String() string {
	switch o {
	case NotSent:
		return "not sent"
	case Refused:
		return "refused"
	case InvalidGrant:
		return "invalid grant"
	default:
		return "outcome unknown"
	}
}

// Error is a failed call. Its text never holds an answer's body, a token, or anything the other side wrote but an error
// code.
type Error struct {
	Outcome Outcome
	// Status is the HTTP status; 0 when no whole answer came.
	Status int
	// Rotated is the refresh token of an answer that was of no use otherwise. It replaces the one that was sent.
	Rotated secret.Text
	// Code is the error code, translated to RFC 6749 §5.2 where Config.ErrorCodes says how; empty when there was none.
	Code string
	// RetryAfter is how long the provider asks us to wait; 0 when it does not say. At most a day.
	RetryAfter time.Duration
	// Hint is the next step for an operator.
	Hint string
	// Err is the cause when it was not an answer: a network error, a deadline.
	Err error

	at place
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: ", e.at)
	switch {
	case e.Status != 0 && e.Code != "":
		fmt.Fprintf(&b, "status %d, %s", e.Status, e.Code)
	case e.Status != 0:
		fmt.Fprintf(&b, "status %d", e.Status)
	default:
		b.WriteString(e.Outcome.String())
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, ": %s", e.Hint)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Causes of our own making.
var (
	errBroken    = errors.New("the connection broke before a whole answer came")
	errTooLarge  = errors.New("the answer is larger than any token answer")
	errNotJSON   = errors.New("the answer is not a JSON object")
	errNoToken   = errors.New("the answer has no access token")
	errBadToken  = errors.New("the answer holds an access token with white space or control characters")
	errNoBearer  = errors.New("the answer holds a token that is no access token")
	errNoRefresh = errors.New("there is no refresh token")
	errNoKey     = errors.New("there is no client key to sign with: set client_key_file")
	errNoRequest = errors.New("the request cannot be built")
)

const hintUnknown = "what was sent may have been spent: try again"

// safeCause keeps of a transport error what cannot quote the other side: net/http repeats the bytes of a malformed
// answer in its errors, and url.Error repeats the address.
func safeCause(err error) error {
	var (
		op      *net.OpError
		dns     *net.DNSError
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		errno   syscall.Errno
		timeout net.Error
	)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return context.DeadlineExceeded
	case errors.As(err, &op) && op.Op == "dial":
		return op
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &verify):
		return verify
	case errors.As(err, &unknown):
		return unknown
	case errors.As(err, &name):
		return name
	case errors.As(err, &errno):
		return fmt.Errorf("%w: %w", errBroken, errno)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", errBroken, io.ErrUnexpectedEOF)
	}
	return errBroken
}

// hint names the settings that usually explain an answer of the endpoint that key configures.
func (c Config) hint(key string, status int, code string) string {
	tokens := key == "token_url" || key == "refresh_url"
	connected := c.NeedsOperator() // else there is nothing to connect, and no refresh token that could be dead
	style, format, scope := or(c.AuthStyle, AuthNone), or(c.TokenFormat, FormatForm), or(c.RefreshScope, ScopeOmit)
	switch {
	case status >= 500:
		return "the provider failed, and what was sent may have been spent: try again later"
	case status == 429:
		return "the provider limits this client: wait; if it lasts for hours, check user_agent and token_headers"
	case status >= 300 && status < 400:
		return fmt.Sprintf("redirects are not followed with secrets: set %s to the final address", key)
	case status == 404 || status == 405 || status == 410:
		return fmt.Sprintf("provider changed? there is no such endpoint at %s any more", key)
	case !connected && (code == "invalid_grant" || wantsOperator(code)):
		return "the provider gives this client no token: check its secret or key, assertion.issuer, assertion.subject and assertion.audience, this machine's clock, and what the provider lets the client do"
	case code == "invalid_grant":
		return "the code or refresh token is not valid (any more): connect again"
	case code == "invalid_scope":
		return fmt.Sprintf("check the scopes, and refresh_scope (now %s)", scope)
	case code == "invalid_target":
		return "check resource, and the audience and resource of the exchange"
	case code == "unsupported_grant_type":
		return fmt.Sprintf("check grant_type (now %s): the provider does not know it for this client", or(c.GrantType, GrantCode))
	case code == "access_denied":
		return "the consent was refused: start again and agree"
	case code == "expired_token":
		return "nobody agreed in time: start again"
	case wantsOperator(code):
		return "the provider wants the operator to log in again: connect again"
	case code == "use_dpop_nonce" || code == "invalid_dpop_proof":
		return "the provider binds this client's tokens to a key (DPoP, RFC 9449), which the gate does not do: register a client whose tokens are bearer tokens"
	case code == "unsupported_token_type":
		return "the provider does not revoke tokens of this kind: withdraw the consent on the provider's own page"
	case code == "invalid_request" && !connected:
		return fmt.Sprintf("check token_format (now %s), token_params and scopes", format)
	case code == "invalid_request":
		return fmt.Sprintf("check token_format (now %s), refresh_scope (now %s) and token_params; or connect again: some providers say so of a dead refresh token", format, scope)
	case code == "invalid_client" || code == "unauthorized_client" || status == 401 && code == "":
		client := fmt.Sprintf("check client_id, the client's secret or key, auth_style (now %s), and with a key assertion.audience and this machine's clock", style)
		if c.RegistrationURL != "" {
			client += "; if the provider has forgotten a client that registered itself there, register another: wayleave provider discover ADDRESS --register"
		}
		if code == "unauthorized_client" && tokens && connected {
			client += "; if they are right, connect again: some providers say so of a dead refresh token, and error_codes: {unauthorized_client: invalid_grant} tells the gate"
		}
		return client
	case code != "" && tokens && !connected:
		return fmt.Sprintf("look %s up in the provider's documentation", code)
	case code != "" && tokens:
		return fmt.Sprintf("look %s up in the provider's documentation; if it means that the refresh token is dead, connect again and write error_codes: {%s: invalid_grant}", code, code)
	case status == 403:
		return fmt.Sprintf("provider changed, or a bot wall stands in front of it: check %s, token_headers and user_agent", key)
	case status == 400 || status == 415 || status == 422:
		hint := fmt.Sprintf("check token_format (now %s), token_params and token_headers", format)
		if connected {
			hint += "; if they are right, connect again"
		}
		return hint
	}
	return "check the provider's settings"
}

// wantsOperator reports whether a code means that only a person at the provider's page gets any further (OpenID Connect Core
// §3.1.2.6, which Microsoft also uses at the token endpoint).
func wantsOperator(code string) bool {
	return code == "interaction_required" || code == "login_required" || code == "consent_required" || code == "account_selection_required"
}

func or[T ~string](v, def T) T {
	if v == "" {
		return def
	}
	return v
}
