package oauth

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"wayleave/secret"
)

// Exchange trades an authorization code for tokens (RFC 6749 §4.1.3, RFC 7636 §4.5). redirectURL is the one of the
// authorization URL; empty is the configured one. A failure is an *Error.
func (c *Client) Exchange(ctx context.Context, code secret.Text, state string, p PKCE, redirectURL string) (Token, error) {
	c = c.fresh()
	params := map[string]string{
		"grant_type":    "authorization_code",
		"code":          code.Reveal(),
		"code_verifier": p.Verifier.Reveal(),
	}
	if r := c.redirect(redirectURL); r != "" {
		params["redirect_uri"] = r
	}
	if c.cfg.ExchangeSendsState {
		params["state"] = state
	}
	c.aim(params)
	return c.token(ctx, params)
}

// Refresh trades a refresh token for a new access token (RFC 6749 §6). granted are the scopes the grant is known to hold
// (nil: not known), requested those the configuration asks for; RefreshScope decides which are sent.
//
// A definite invalid_scope leaves the refresh token unspent, so that answer, and no other, is followed by one more
// request, without scope. A failure is an *Error; only its Outcome says whether refresh may be presented again.
//
// With client_credentials and jwt_bearer a new token is fetched with the requested scopes, and refresh is ignored: there
// is nothing that could be spent.
func (c *Client) Refresh(ctx context.Context, refresh secret.Text, granted, requested []string) (Token, error) {
	c = c.fresh()
	if !c.cfg.NeedsOperator() {
		return c.mint(ctx, requested)
	}
	if refresh.IsZero() {
		return Token{}, notSent(c.refreshEndpoint(), errNoRefresh, "connect again; ask for offline access if the provider needs that")
	}
	params := map[string]string{"grant_type": "refresh_token", "refresh_token": refresh.Reveal()}
	c.aim(params)
	scope := c.cfg.scopeAtRefresh(granted, requested)
	if scope == "" {
		return c.tokenAt(ctx, c.refreshEndpoint(), params)
	}
	params["scope"] = scope
	tok, err := c.tokenAt(ctx, c.refreshEndpoint(), params)
	if e, ok := errors.AsType[*Error](err); !ok || e.Outcome != Refused || e.Code != "invalid_scope" {
		return tok, err
	}
	delete(params, "scope")
	if tok, err = c.tokenAt(ctx, c.refreshEndpoint(), params); err == nil {
		tok.Notes = append(tok.Notes, "the provider refused the scope sent at refresh and took the request without: set refresh_scope to omit")
	}
	return tok, err
}

// mint gets a token that needs no operator: client_credentials (RFC 6749 §4.4.2) or jwt_bearer (RFC 7523 §2.1).
func (c *Client) mint(ctx context.Context, scopes []string) (Token, error) {
	params := map[string]string{"grant_type": "client_credentials"}
	if c.cfg.GrantType == GrantJWT {
		assertion, err := c.grantAssertion()
		if err != nil {
			return Token{}, notSent(c.tokenEndpoint(), err, "")
		}
		params = map[string]string{"grant_type": grantJWTBearer, "assertion": assertion}
	}
	c.aim(params)
	if len(scopes) > 0 {
		params["scope"] = c.cfg.joinScopes(scopes)
	}
	tok, err := c.token(ctx, params)
	tok.Refresh = secret.Text{} // RFC 6749 §4.4.3 wants none: the next token is had in the same way
	return tok, err
}

// CanRevoke reports whether the provider has a revocation endpoint.
func (c *Client) CanRevoke() bool { return c.cfg.RevokeURL != "" }

// Revoke tells the provider that a token is not needed any more (RFC 7009). Without a RevokeURL it does nothing. A token that
// the provider does not know (any more) is revoked, also where it should have said so with 200 (§2.2). After a failure, an
// *Error, the token is to be taken as live.
func (c *Client) Revoke(ctx context.Context, token secret.Text) error {
	c = c.fresh()
	if !c.CanRevoke() || token.IsZero() {
		return nil
	}
	params := map[string]string{"token": token.Reveal()}
	a, fail := c.post(ctx, place{"revocation endpoint", "revoke_url", c.cfg.RevokeURL}, or(c.cfg.RevokeFormat, FormatForm), params)
	if fail != nil {
		return fail
	}
	if a.status/100 == 2 {
		return nil
	}
	e := c.cfg.failure(a, secretsOf(params, c.cfg))
	if e.Outcome == InvalidGrant || e.Code == "invalid_token" && e.Status == http.StatusBadRequest {
		return nil
	}
	return e
}

// aim adds the API that the tokens are for (RFC 8707 §2).
func (c *Client) aim(params map[string]string) {
	if c.cfg.Resource != "" {
		params["resource"] = c.cfg.Resource
	}
}

// token makes one request to the token endpoint and reads the answer.
func (c *Client) token(ctx context.Context, params map[string]string) (Token, error) {
	return c.tokenAt(ctx, c.tokenEndpoint(), params)
}

func (c *Client) tokenAt(ctx context.Context, at place, params map[string]string) (Token, error) {
	for k, v := range c.cfg.TokenParams {
		if !slices.Contains(tokenReserved, k) {
			params[k] = v
		}
	}
	a, fail := c.post(ctx, at, or(c.cfg.TokenFormat, FormatForm), params)
	if fail != nil {
		return Token{}, fail
	}
	tok, fail := c.cfg.read(a, secretsOf(params, c.cfg))
	if fail != nil {
		return Token{}, fail
	}
	return tok, nil
}
