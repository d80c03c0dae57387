package oauth

import (
	"crypto/rand"
	"slices"

	"golang.org/x/oauth2"

	"wayleave/secret"
)

// PKCE is a proof key: the verifier stays with us until the exchange, the challenge goes into the authorization URL.
type PKCE struct {
	Verifier  secret.Text
	Challenge string // S256 of the verifier (RFC 7636 §4.2); "plain" is never used
}

// NewPKCE returns a fresh pair; use each for one authorization.
func NewPKCE() PKCE {
	v := oauth2.GenerateVerifier()
	return PKCE{Verifier: secret.New(v), Challenge: oauth2.S256ChallengeFromVerifier(v)}
}

// NewState returns a fresh unguessable value for the state parameter (RFC 6749 §10.12).
func NewState() string { return rand.Text() }

// AuthorizationURL returns the address an operator opens to consent. An empty redirectURL is the configured one.
func (c *Client) AuthorizationURL(state string, p PKCE, redirectURL string, scopes []string) string {
	var opts []oauth2.AuthCodeOption
	for k, v := range c.cfg.AuthorizeParams {
		if !slices.Contains(authorizeReserved, k) {
			opts = append(opts, oauth2.SetAuthURLParam(k, v))
		}
	}
	opts = append(opts,
		oauth2.SetAuthURLParam("code_challenge", p.Challenge),
		oauth2.SetAuthURLParam("code_challenge_method", "S256"))
	if len(scopes) > 0 {
		opts = append(opts, oauth2.SetAuthURLParam("scope", c.cfg.joinScopes(scopes)))
	}
	if c.cfg.Resource != "" {
		opts = append(opts, oauth2.SetAuthURLParam("resource", c.cfg.Resource))
	}
	url := oauth2.Config{
		ClientID:    c.cfg.ClientID,
		RedirectURL: c.redirect(redirectURL),
		Endpoint:    oauth2.Endpoint{AuthURL: c.cfg.AuthorizeURL},
	}
	return url.AuthCodeURL(state, opts...)
}

func (c *Client) redirect(redirectURL string) string {
	if redirectURL == "" {
		return c.cfg.RedirectURL
	}
	return redirectURL
}
