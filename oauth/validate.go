package oauth

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// FieldError is one fault of a configuration: the key it is about and what is wrong with it.
type FieldError struct {
	Key     string // YAML key, for example token_url or token_headers.Host
	Problem string // what is wrong and what to write instead, without the key
}

func (e FieldError) Error() string { return e.Key + " " + e.Problem }

// Parameters that the protocol itself sets, so that a configuration cannot change them unseen.
var (
	authorizeReserved = []string{"response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method", "resource"}
	tokenReserved     = []string{"grant_type", "client_id", "client_secret", "redirect_uri", "code", "code_verifier", "refresh_token", "scope", "state",
		"device_code", "assertion", "client_assertion", "client_assertion_type", "resource", "subject_token", "subject_token_type", "actor_token", "actor_token_type"}
	headersReserved = []string{"Authorization", "Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "Expect", "Host", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent"}
)

// errorCodes are the codes of RFC 6749 §5.2 that a provider's own may be translated to.
var errorCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}

// Validate returns every fault of c, in the order of its fields.
func (c Config) Validate() []FieldError {
	var faults []FieldError
	fault := func(key, format string, args ...any) {
		faults = append(faults, FieldError{key, fmt.Sprintf(format, args...)})
	}
	endpoint := func(key, value string, required bool) {
		if value == "" {
			if required {
				fault(key, "is missing: set it to the provider's endpoint")
			}
		} else if f := endpointFault(value, c.AllowInsecure); f != "" {
			fault(key, "%s", f)
		}
	}
	oneOf := func(key, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			fault(key, "is %q: it must be one of %s", value, strings.Join(allowed, ", "))
		}
	}

	grant := or(c.GrantType, GrantCode)
	oneOf("grant_type", string(c.GrantType), string(GrantCode), string(GrantDevice), string(GrantClient), string(GrantJWT))
	endpoint("authorize_url", c.AuthorizeURL, grant == GrantCode)
	endpoint("token_url", c.TokenURL, true)
	endpoint("refresh_url", c.RefreshURL, false)
	endpoint("revoke_url", c.RevokeURL, false)
	oneOf("revoke_format", string(c.RevokeFormat), string(FormatForm), string(FormatJSON))
	endpoint("device_url", c.DeviceURL, grant == GrantDevice)
	oneOf("device_flow", string(c.DeviceFlow), string(DeviceRFC8628), string(DeviceCodex))
	codex := c.DeviceURL != "" && c.DeviceFlow == DeviceCodex
	endpoint("device_verification_url", c.DeviceVerificationURL, codex)
	endpoint("device_redirect_url", c.DeviceRedirectURL, codex)
	endpoint("registration_url", c.RegistrationURL, false)
	endpoint("issuer", c.Issuer, false)
	if r := c.Resource; r != "" {
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || u.Fragment != "" || !isToken(r) {
			fault("resource", "must be an absolute address without a fragment (RFC 8707 §2)")
		}
	}
	if c.ClientID == "" && (grant != GrantJWT || c.Assertion.Issuer == "") {
		fault("client_id", "is missing: register an application at the provider and write its client id here")
	}
	c.validateClient(grant, fault, oneOf)
	oneOf("token_format", string(c.TokenFormat), string(FormatForm), string(FormatJSON))
	oneOf("refresh_scope", string(c.RefreshScope), string(ScopeOmit), string(ScopeGranted), string(ScopeRequested))
	if c.ScopeSeparator != "" && strings.ContainsFunc(c.ScopeSeparator, func(r rune) bool { return r < ' ' || r > '~' }) {
		fault("scope_separator", "must be printable ASCII, usually a space or a comma")
	}
	if c.RedirectURL != "" {
		// Only a browser goes there, with a code that is worthless without the verifier: plain http on loopback is normal.
		if f := endpointFault(c.RedirectURL, true); f != "" {
			fault("redirect_url", "%s", f)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.AuthorizeParams)) {
		if slices.Contains(authorizeReserved, k) {
			fault("authorize_params."+k, "is set by the protocol: remove it")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.TokenParams)) {
		if slices.Contains(tokenReserved, k) {
			fault("token_params."+k, "is set by the protocol: remove it")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.TokenHeaders)) {
		switch {
		case slices.Contains(headersReserved, http.CanonicalHeaderKey(k)):
			fault("token_headers."+k, "is set by the protocol: remove it (user_agent has a key of its own)")
		case !httpguts.ValidHeaderFieldName(k):
			fault("token_headers."+k, "is not a header name")
		case !httpguts.ValidHeaderFieldValue(c.TokenHeaders[k]):
			fault("token_headers."+k, "has a value that cannot stand in a header")
		}
	}
	if !httpguts.ValidHeaderFieldValue(c.UserAgent) {
		fault("user_agent", "has a value that cannot stand in a header")
	}
	if c.DefaultTTL < 0 {
		fault("default_ttl", "is negative: write a duration such as 1h, or leave it out")
	}
	for _, k := range slices.Sorted(maps.Keys(c.ErrorCodes)) {
		if v := c.ErrorCodes[k]; !slices.Contains(errorCodes, v) {
			fault("error_codes."+k, "is %q: it must be one of %s", v, strings.Join(errorCodes, ", "))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.Facts)) {
		if strings.Trim(k, "abcdefghijklmnopqrstuvwxyz_") != "" || k == "" {
			fault("facts."+k, "has a name of other characters than a-z and _")
		}
		for _, pointer := range c.Facts[k] {
			last := strings.ToLower(pointer[strings.LastIndexByte(pointer, '/')+1:])
			switch {
			case !strings.HasPrefix(pointer, "/"):
				fault("facts."+k, "has %q: a JSON pointer begins with /", pointer)
			case strings.Contains(last, "token") || strings.Contains(last, "secret"): // facts are shown and sent
				fault("facts."+k, "has %q, which leads to a secret: facts are none", pointer)
			}
		}
	}
	return faults
}

// validateClient looks at how the client proves who it is.
func (c Config) validateClient(grant GrantType, fault func(key, format string, args ...any), oneOf func(key, value string, allowed ...string)) {
	oneOf("auth_style", string(c.AuthStyle), string(AuthNone), string(AuthBasic), string(AuthPost), string(AuthPrivateKeyJWT))
	switch needsSecret := c.AuthStyle == AuthBasic || c.AuthStyle == AuthPost; {
	case needsSecret && c.ClientSecret.IsZero():
		fault("auth_style", "is %s, which needs a client secret: set client_secret_file or client_secret_env, or use none", c.AuthStyle)
	case !needsSecret && !c.ClientSecret.IsZero():
		fault("auth_style", "is %s although there is a client secret: use client_secret_basic or client_secret_post, or remove the secret", or(c.AuthStyle, AuthNone))
	case c.AuthStyle == AuthPrivateKeyJWT && c.ClientKey == nil:
		fault("auth_style", "is private_key_jwt, which needs a key: set client_key_file")
	case c.AuthStyle == AuthPrivateKeyJWT && c.ClientID == "":
		fault("auth_style", "is private_key_jwt, which needs a client_id")
	case grant == GrantClient && or(c.AuthStyle, AuthNone) == AuthNone:
		fault("auth_style", "is none, with which client_credentials proves nothing: use client_secret_basic, client_secret_post or private_key_jwt")
	}
	if grant == GrantJWT && c.ClientKey == nil {
		fault("grant_type", "is jwt_bearer, which needs a key: set client_key_file")
	}
	if a := c.Assertion; a.Lifetime < 0 || a.Lifetime > longestJWTBearer {
		fault("assertion.lifetime", "must be at most 1h")
	}
	for _, k := range slices.Sorted(maps.Keys(c.Assertion.Claims)) {
		if slices.Contains([]string{"iss", "sub", "aud", "iat", "exp", "nbf", "jti"}, k) {
			fault("assertion.claims."+k, "is set by the protocol: remove it (issuer, subject, audience and lifetime have keys of their own)")
		}
	}
}
