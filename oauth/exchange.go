package oauth

import (
	"context"
	"errors"

	"wayleave/secret"
)

// Exchange is what a token exchange asks for (RFC 8693 §2.1).
type Exchange struct {
	// Subject is the access token that is traded in. It stays good.
	Subject secret.Text
	// Actor names who will act with the new token. It is sent as a JWT signed with the client's key (sub is the actor, iss
	// the client). Empty sends none.
	Actor string
	// Audience and Resource say where the new token is to be used; each may be empty.
	Audience, Resource string
	// Scopes asked for. None: the server decides.
	Scopes []string
}

// TokenExchange trades an access token for another one (RFC 8693). A failure is an *Error; whatever its Outcome, the
// subject token is as good as before.
func (c *Client) TokenExchange(ctx context.Context, x Exchange) (Token, error) {
	c = c.fresh()
	params := map[string]string{
		"grant_type":           grantTokenExchange,
		"subject_token":        x.Subject.Reveal(),
		"subject_token_type":   tokenTypeAccess,
		"requested_token_type": tokenTypeAccess,
	}
	if x.Subject.IsZero() {
		return Token{}, notSent(c.tokenEndpoint(), errors.New("there is no token to exchange"), "connect the grant first")
	}
	if x.Actor != "" {
		actor, err := c.actorToken(x.Actor)
		if err != nil {
			return Token{}, notSent(c.tokenEndpoint(), err, "")
		}
		params["actor_token"], params["actor_token_type"] = actor, tokenTypeJWT
	}
	for k, v := range map[string]string{"audience": x.Audience, "resource": x.Resource, "scope": c.cfg.joinScopes(x.Scopes)} {
		if v != "" {
			params[k] = v
		}
	}
	tok, err := c.token(ctx, params)
	tok.Refresh = secret.Text{} // the grant's own is what we keep
	return tok, err
}
