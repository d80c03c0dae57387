// Package oauth owns the OAuth 2 protocol: authorization URLs with PKCE, the code exchange, refresh and revocation,
// and the judgement of what a failed call means for the refresh token that was sent. It stores nothing, retries
// nothing except one definitely refused scope, and logs nothing; keeping a grant alive is left to package grant.
//
//	AuthorizationURL ─▶ browser ─▶ ParseCallback ─▶ Exchange ─▶ Token
//	                                                 Refresh ─▶ Token, or *Error with an Outcome
//
// A refresh token that rotates may be presented once. Every call is therefore exactly one POST on a connection of its
// own, never redirected and never replayed, and every failure says whether the token can have been spent.
package oauth

import (
	"net/http"
	"time"

	"wayleave/secret"
)

// AuthStyle says how the client authenticates at the token endpoint (RFC 6749 §2.3). It is never detected by trying:
// a second try would present a single-use code or refresh token twice.
type AuthStyle string

// Ways to authenticate. Empty means AuthNone.
const (
	AuthNone  AuthStyle = "none"  // public client: client_id in the body
	AuthBasic AuthStyle = "basic" // HTTP Basic, both parts form-encoded first (RFC 6749 §2.3.1)
	AuthPost  AuthStyle = "post"  // client_id and client_secret in the body
)

// TokenFormat is the encoding of the body sent to the token endpoint.
type TokenFormat string

// Body formats. Empty means FormatForm, the only one RFC 6749 knows; some providers accept only JSON.
const (
	FormatForm TokenFormat = "form"
	FormatJSON TokenFormat = "json"
)

// RefreshScope says what a refresh request carries in scope (RFC 6749 §6). Whatever the mode, scopes known not to be
// granted are never sent: a refresh cannot widen a grant.
type RefreshScope string

// Refresh scope modes. Empty means ScopeOmit.
const (
	ScopeOmit      RefreshScope = "omit"      // no scope parameter
	ScopeGranted   RefreshScope = "granted"   // every granted scope
	ScopeRequested RefreshScope = "requested" // those of the requested scopes that are granted
)

// Config describes one provider's endpoints and habits. In YAML it is part of a provider.
type Config struct {
	// AuthorizeURL is the authorization endpoint, where an operator's browser is sent (RFC 6749 §3.1).
	AuthorizeURL string `yaml:"authorize_url,omitempty"`
	// TokenURL is the token endpoint (RFC 6749 §3.2): https, or http on loopback with allow_insecure.
	TokenURL string `yaml:"token_url,omitempty"`
	// RevokeURL is the revocation endpoint (RFC 7009); empty when the provider has none.
	RevokeURL string `yaml:"revoke_url,omitempty"`
	// ClientID is the client identifier the provider registered.
	ClientID string `yaml:"client_id,omitempty"`
	// ClientSecret is the client's secret, for auth_style basic and post. It never stands in the configuration
	// itself: client_secret_file or client_secret_env names where it is read from.
	ClientSecret secret.Text `yaml:"-" json:"-"`
	// AuthStyle is none (default), basic or post.
	AuthStyle AuthStyle `yaml:"auth_style,omitempty" jsonschema:"enum=none,enum=basic,enum=post"`
	// TokenFormat is the body sent to the token endpoint: form (default) or json.
	TokenFormat TokenFormat `yaml:"token_format,omitempty" jsonschema:"enum=form,enum=json"`
	// RefreshScope is what a refresh sends as scope: omit (default), granted or requested.
	RefreshScope RefreshScope `yaml:"refresh_scope,omitempty" jsonschema:"enum=omit,enum=granted,enum=requested"`
	// ScopeSeparator stands between scopes in requests and answers; default one space. White space always separates
	// scopes in answers.
	ScopeSeparator string `yaml:"scope_separator,omitempty"`
	// RedirectURL is the redirect address registered for the client when it is a fixed one, whose page shows a code to
	// paste. Empty: a callback on loopback, chosen at connect time (RFC 8252 §7.3).
	RedirectURL string `yaml:"redirect_url,omitempty"`
	// AuthorizeParams are further parameters of the authorization URL.
	AuthorizeParams map[string]string `yaml:"authorize_params,omitempty"`
	// TokenParams are further fields of every exchange and refresh request.
	TokenParams map[string]string `yaml:"token_params,omitempty"`
	// TokenHeaders are further headers of every request to the token endpoint.
	TokenHeaders map[string]string `yaml:"token_headers,omitempty"`
	// ExchangeSendsState also sends state in the code exchange, which some providers require.
	ExchangeSendsState bool `yaml:"exchange_sends_state,omitempty"`
	// UserAgent of our requests; default "wayleave". We do not pretend to be another client unless an operator says so.
	UserAgent string `yaml:"user_agent,omitempty"`
	// DefaultTTL is the life of an access token whose answer has no usable expires_in. Zero: such a token is taken to
	// last until it is refused.
	DefaultTTL time.Duration `yaml:"default_ttl,omitempty"`
	// ErrorCodes translates a provider's own error codes to those of RFC 6749 §5.2, for example
	// bad_refresh_token: invalid_grant.
	ErrorCodes map[string]string `yaml:"error_codes,omitempty"`
	// AllowInsecure allows http endpoints on loopback addresses, for demonstrations.
	AllowInsecure bool `yaml:"allow_insecure,omitempty"`
}

// Token is a successful answer of the token endpoint.
type Token struct {
	Access secret.Text
	// Refresh is the new refresh token. Zero: none came, keep the one you have (RFC 6749 §6).
	Refresh secret.Text
	// Scopes are the access token's scopes, sorted. Nil: the answer named none, so they are unchanged at a refresh and
	// those requested at an exchange (RFC 6749 §5.1). Not nil but empty: none of those named was well-formed.
	Scopes []string
	// Expiry is the time the request was sent plus expires_in; a minute where that is less than a second, and at most a
	// year. Zero: the provider named none and there is no default_ttl; use it until it is refused.
	Expiry time.Time
	// Account names whose consent this is, as far as the answer tells; for display only.
	Account string
	// Notes say what was unusual in the answer and how it was read, for a log. They never quote the answer.
	Notes []string
}

// Client speaks to one provider. It holds no state and may be used concurrently.
type Client struct {
	cfg Config
	hc  *http.Client
	now func() time.Time
}

// NewClient returns a client for cfg, which should have passed Config.Validate. With a nil hc it uses
// NewHTTPClient(nil); of another hc the redirect policy and cookie jar are not used. A nil now is time.Now.
func NewClient(cfg Config, hc *http.Client, now func() time.Time) *Client {
	if hc == nil {
		hc = NewHTTPClient(nil)
	}
	own := *hc
	own.Jar = nil
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if now == nil {
		now = time.Now
	}
	return &Client{cfg: cfg, hc: &own, now: now}
}
