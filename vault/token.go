package vault

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"
)

// givenToken looks up the token we were given, to learn that it works, and renews it if it can be: a periodic token lives
// as long as it is used, even by a command that is done in a moment.
func (c *Client) givenToken(ctx context.Context) (*api.SecretAuth, error) {
	token, err := credential("vault token", c.cfg.Auth.Token, c.cfg.Auth.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: set VAULT_TOKEN, or log in with `bao login` or `vault login`", ErrDenied, err)
	}
	a, err := c.newAPI(c.http, token.Reveal(), callTimeout)
	if err != nil {
		return nil, err
	}
	self, err := a.Auth().Token().LookupSelfWithContext(ctx)
	if status(err) == http.StatusForbidden && !tokenEnded(err) { // nor are there those of the policy `default`
		return nil, fmt.Errorf("%w; or unwrap it first, if it wraps another token", explain("read", "auth/token/lookup-self", err))
	}
	if status(err) == http.StatusForbidden {
		return nil, fmt.Errorf("%w: the vault token has expired, was revoked, is of another server or namespace, or wraps another that is to be unwrapped first: get a new one", ErrDenied)
	}
	if err != nil {
		return nil, explain("read", "auth/token/lookup-self", err)
	}
	ttl, err := self.TokenTTL()
	if err != nil {
		return nil, fmt.Errorf("reading the life of the vault token: %w", err)
	}
	if ttl == 0 && self.Data["expire_time"] != nil {
		ttl = time.Second // the last one; only a token without an end has none
	}
	// A policy may forbid the renewal; the token works nevertheless.
	if renewable, _ := self.TokenIsRenewable(); renewable && ttl > 0 {
		if renewed, err := a.Auth().Token().RenewSelfWithContext(ctx, 0); err == nil && renewed.Auth != nil {
			return renewed.Auth, nil
		}
	}
	if ttl > 0 {
		c.log.Warn("the vault token cannot be renewed", "ends_in", ttl)
	}
	return &api.SecretAuth{ClientToken: token.Reveal(), LeaseDuration: int(ttl / time.Second)}, nil
}
