// Package oauth owns the OAuth 2 protocol: every way to a first token, refresh, token exchange and revocation, finding a
// provider's endpoints, and the judgement of what a failed call means for the code or refresh token that was sent. It
// stores nothing, retries nothing except one definitely refused scope and a device's polling, and logs nothing; keeping
// a grant alive is left to package grant.
//
//	AuthorizationURL ─▶ browser ─▶ ParseCallback ─▶ Exchange ─▶ Token      (authorization_code)
//	StartDevice ─▶ another browser                ─▶ AwaitDevice ─▶ Token  (device_code)
//	Refresh ─▶ Token, or *Error with an Outcome       also for client_credentials and jwt_bearer
//	TokenExchange ─▶ a worker's own Token             Discover, Register ─▶ a Config for the configuration
//
// A refresh token that rotates may be presented once. Every call is therefore exactly one POST on a connection of its
// own, never redirected and never replayed, and every failure says whether the token can have been spent.
package oauth

import (
	"crypto"
	"net/http"
	"time"

	"wayleave/secret"
)

// AuthStyle says how the client authenticates at the token endpoint, by the names of RFC 7591 §2. It is never detected
// by trying: a second try would present a single-use code or refresh token twice.
type AuthStyle string

// Ways to authenticate. Empty means AuthNone.
const (
	AuthNone          AuthStyle = "none"                // public client: client_id in the body
	AuthBasic         AuthStyle = "client_secret_basic" // HTTP Basic, both parts form-encoded first (RFC 6749 §2.3.1)
	AuthPost          AuthStyle = "client_secret_post"  // client_id and client_secret in the body
	AuthPrivateKeyJWT AuthStyle = "private_key_jwt"     // a JWT signed with the client's key (RFC 7523 §2.2)
)

// GrantType says how a grant gets its first token.
type GrantType string

// Grant types. Empty means GrantCode.
const (
	GrantCode   GrantType = "authorization_code" // an operator consents in a browser (RFC 6749 §4.1)
	GrantDevice GrantType = "device_code"        // an operator consents in a browser anywhere (RFC 8628)
	GrantClient GrantType = "client_credentials" // nobody consents: the client's own rights (RFC 6749 §4.4)
	GrantJWT    GrantType = "jwt_bearer"         // nobody consents: a JWT signed with the client's key (RFC 7523 §2.1)
)

// DeviceFlow is the protocol of the device endpoint.
type DeviceFlow string

// Device flows. Empty means DeviceRFC8628.
const (
	DeviceRFC8628 DeviceFlow = "rfc8628"
	DeviceCodex   DeviceFlow = "codex" // see codex.go
)

// TokenFormat is the encoding of the body sent to the token endpoint.
type TokenFormat string

// Body formats. Empty means FormatForm, the only one RFC 6749 knows; some providers accept only JSON.
const (
	FormatForm TokenFormat = "form"
	FormatJSON TokenFormat = "json"
)

// RefreshScope says what a refresh request carries in scope (RFC 6749 §6). Whatever the mode, scopes known not to be
// granted are never sent: a refresh cannot widen a grant. Those that providers do not list (see [Unlisted]) are not among them.
type RefreshScope string

// Refresh scope modes. Empty means ScopeOmit.
const (
	ScopeOmit      RefreshScope = "omit"      // no scope parameter
	ScopeGranted   RefreshScope = "granted"   // every granted scope
	ScopeRequested RefreshScope = "requested" // those of the requested scopes that are granted, or Unlisted
)

// Config describes one provider's endpoints and habits. In YAML it is part of a provider.
type Config struct {
	// GrantType is how a grant gets its first token: authorization_code (default) and device_code need an operator;
	// with client_credentials and jwt_bearer the gate gets its tokens by itself.
	GrantType GrantType `yaml:"grant_type,omitempty" jsonschema:"enum=authorization_code,enum=device_code,enum=client_credentials,enum=jwt_bearer"`
	// AuthorizeURL is the authorization endpoint, where an operator's browser is sent (RFC 6749 §3.1).
	AuthorizeURL string `yaml:"authorize_url,omitempty"`
	// TokenURL is the token endpoint (RFC 6749 §3.2): https, or http on loopback with allow_insecure.
	TokenURL string `yaml:"token_url,omitempty"`
	// RefreshURL is where refresh tokens are presented, at providers that have another endpoint for that; empty is TokenURL.
	RefreshURL string `yaml:"refresh_url,omitempty"`
	// RevokeURL is the revocation endpoint (RFC 7009); empty when the provider has none.
	RevokeURL string `yaml:"revoke_url,omitempty"`
	// RevokeFormat is the body sent to the revocation endpoint: form (default, and all that RFC 7009 knows) or json.
	RevokeFormat TokenFormat `yaml:"revoke_format,omitempty" jsonschema:"enum=form,enum=json"`
	// DeviceURL is the device authorization endpoint (RFC 8628 §3.1), for a login without a browser on this machine.
	DeviceURL string `yaml:"device_url,omitempty"`
	// DeviceFlow is what the device endpoint speaks: rfc8628 (default) or codex.
	DeviceFlow DeviceFlow `yaml:"device_flow,omitempty" jsonschema:"enum=rfc8628,enum=codex"`
	// DeviceVerificationURL is the page where the code is typed in, for device_flow codex, whose answers do not name it.
	DeviceVerificationURL string `yaml:"device_verification_url,omitempty"`
	// DeviceRedirectURL is the redirect address that the code of device_flow codex was made for.
	DeviceRedirectURL string `yaml:"device_redirect_url,omitempty"`
	// RegistrationURL is the client registration endpoint (RFC 7591). The gate never calls it, and keeps workers from it.
	RegistrationURL string `yaml:"registration_url,omitempty"`
	// Issuer is the authorization server's identifier (RFC 8414 §2). Answers that name another are refused (RFC 9207).
	Issuer string `yaml:"issuer,omitempty"`
	// Resource is the API that tokens are asked for, as an absolute address (RFC 8707); empty sends none.
	Resource string `yaml:"resource,omitempty"`
	// ClientID is the client identifier the provider registered.
	ClientID string `yaml:"client_id,omitempty"`
	// ClientSecret is the client's secret, for auth_style client_secret_basic and client_secret_post. It never stands in
	// the configuration itself: client_secret_file or client_secret_env names where it is read from.
	ClientSecret secret.Text `yaml:"-" json:"-"`
	// ClientKey signs for the client, for auth_style private_key_jwt, grant_type jwt_bearer and the actor tokens of an
	// exchange; from [ParseKey]. client_key_file names where it is read from.
	ClientKey crypto.Signer `yaml:"-" json:"-"`
	// ClientKeyID is the name of the client's key at the provider, sent as kid; empty sends none.
	ClientKeyID string `yaml:"client_key_id,omitempty"`
	// AuthStyle is how the client authenticates: none (default), client_secret_basic, client_secret_post or private_key_jwt.
	AuthStyle AuthStyle `yaml:"auth_style,omitempty" jsonschema:"enum=none,enum=client_secret_basic,enum=client_secret_post,enum=private_key_jwt"`
	// Assertion is what the JWT of grant_type jwt_bearer says; its audience is also that of auth_style private_key_jwt.
	Assertion Assertion `yaml:"assertion,omitempty"`
	// TokenFormat is the body sent to the token endpoint: form (default) or json.
	TokenFormat TokenFormat `yaml:"token_format,omitempty" jsonschema:"enum=form,enum=json"`
	// RefreshScope is what a refresh sends as scope: omit (default), granted or requested.
	RefreshScope RefreshScope `yaml:"refresh_scope,omitempty" jsonschema:"enum=omit,enum=granted,enum=requested"`
	// ScopeSeparator stands between scopes in requests and answers; default one space. White space always separates
	// scopes in answers.
	ScopeSeparator string `yaml:"scope_separator,omitempty"`
	// ImpliedScopes are scopes that come with another one, by that one: where a provider that was asked for both lists only the wider one,
	// as GitHub does, the others are granted too.
	ImpliedScopes map[string][]string `yaml:"implied_scopes,omitempty"`
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
	// Facts are what token responses say about a grant's account, by name: where in the response each is, as JSON pointers (RFC 6901) of
	// which the first that leads somewhere counts. A pointer may lead through a JWT, such as id_token, into its claims.
	Facts map[string][]string `yaml:"facts,omitempty"`
	// AllowInsecure allows http endpoints on loopback addresses, for demonstrations.
	AllowInsecure bool `yaml:"allow_insecure,omitempty"`
}

// Assertion is what the JWT of grant_type jwt_bearer says (RFC 7523 §3); the audience counts for private_key_jwt too.
type Assertion struct {
	// Issuer of the JWT, iss. Default: client_id.
	Issuer string `yaml:"issuer,omitempty"`
	// Subject is whom the token is for, sub. Default: the issuer.
	Subject string `yaml:"subject,omitempty"`
	// Audience is who may read the JWT, aud. Default: token_url; some servers want their issuer.
	Audience string `yaml:"audience,omitempty"`
	// Lifetime of the JWT, at most 1h. Default: 5m.
	Lifetime time.Duration `yaml:"lifetime,omitempty"`
	// Claims are further claims, for example scope where the provider reads it there.
	Claims map[string]string `yaml:"claims,omitempty"`
}

// NeedsOperator reports whether a grant's first token takes an operator's consent. Otherwise the gate gets its tokens by
// itself, and there is no refresh token.
func (c Config) NeedsOperator() bool {
	return c.GrantType != GrantClient && c.GrantType != GrantJWT
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
	// RefreshExpiry is the time the request was sent plus the refresh token's own life. Zero: the answer named none within a
	// year. Some providers count it anew at each refresh, others from the consent on.
	RefreshExpiry time.Time
	// Account names whose consent this is, as far as the answer tells; for display only.
	Account string
	// Facts are what Config.Facts found in the answer.
	Facts map[string]string
	// Notes say what was unusual in the answer and how it was read, for a log. They never quote the answer.
	Notes []string
}

// Client speaks to one provider. It holds no state and may be used concurrently.
type Client struct {
	cfg     Config
	hc      *http.Client
	now     func() time.Time
	renewed func(Config) Config // nil: cfg is for ever
}

// Renewing returns a client like c whose secret and key are asked for again before each call, since who replaces them need not tell: renewed gets
// the configuration, and returns it with those of now.
func (c *Client) Renewing(renewed func(Config) Config) *Client {
	own := *c
	own.renewed = renewed
	return &own
}

// fresh is c for one call.
func (c *Client) fresh() *Client {
	if c.renewed == nil {
		return c
	}
	own := *c
	is := c.renewed(c.cfg)
	own.cfg.ClientSecret, own.cfg.ClientKey, own.renewed = is.ClientSecret, is.ClientKey, nil
	return &own
}

// NewClient returns a client for cfg, which should have passed Config.Validate. With a nil hc it uses
// NewHTTPClient(nil), for as long as LongestCall; of another hc the redirect policy and cookie jar are not used. A nil now is time.Now.
func NewClient(cfg Config, hc *http.Client, now func() time.Time) *Client {
	if hc == nil {
		hc = NewHTTPClient(nil)
		hc.Timeout = LongestCall
	}
	own := *hc
	own.Jar = nil
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if now == nil {
		now = time.Now
	}
	return &Client{cfg: cfg, hc: &own, now: now}
}
