package vault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
)

// login is one successful log-in.
type login struct {
	api       *api.Client
	ttl       time.Duration // from the log-in on; 0: it never ends
	renewable bool
	replaced  chan struct{} // closed when another log-in took its place
}

// logIn proves who we are once. It changes nothing.
func (c *Client) logIn(ctx context.Context) (*login, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var s *api.SecretAuth
	var err error
	switch c.cfg.Auth.Method {
	case "approle":
		s, err = c.appRole(ctx)
	case "token":
		s, err = c.givenToken(ctx)
	default:
		err = fmt.Errorf("unknown vault auth method %q: use token or approle", c.cfg.Auth.Method)
	}
	if err != nil {
		return nil, err
	}
	a, err := c.newAPI(s.ClientToken, adminTimeout)
	if err != nil {
		return nil, err
	}
	return &login{api: a, ttl: leaseOf(s), renewable: s.Renewable, replaced: make(chan struct{})}, nil
}

func leaseOf(a *api.SecretAuth) time.Duration { return time.Duration(a.LeaseDuration) * time.Second }

func (c *Client) appRole(ctx context.Context) (*api.SecretAuth, error) {
	a := c.cfg.Auth
	method, err := approle.NewAppRoleAuth(a.RoleID, &approle.SecretID{FromString: a.SecretID.Reveal()}, approle.WithMountPath(a.AppRoleMount))
	if err != nil {
		return nil, fmt.Errorf("%w: AppRole needs a role id and a secret id: %w", ErrDenied, err)
	}
	anonymous, err := c.newAPI("", callTimeout)
	if err != nil {
		return nil, err
	}
	path := "auth/" + a.AppRoleMount + "/login"
	s, err := anonymous.Auth().Login(ctx, method)
	switch code := status(err); {
	case code == http.StatusBadRequest, code == http.StatusForbidden:
		var refused *api.ResponseError
		errors.As(err, &refused)
		return nil, fmt.Errorf("%w: role id or secret id not accepted at %s (expired, used up, or of another role? make a new secret id): %s", ErrDenied, path, said(refused))
	case err != nil:
		return nil, explain("update", path, err)
	}
	return s.Auth, nil
}

// givenToken looks up the token we were given, to learn that it works, and renews it if it can be: a periodic token lives
// as long as it is used, even by a command that is done in a moment.
func (c *Client) givenToken(ctx context.Context) (*api.SecretAuth, error) {
	token := c.cfg.Auth.Token.Reveal()
	if token == "" {
		return nil, fmt.Errorf("%w: no vault token was given", ErrDenied)
	}
	a, err := c.newAPI(token, callTimeout)
	if err != nil {
		return nil, err
	}
	self, err := a.Auth().Token().LookupSelfWithContext(ctx)
	if status(err) == http.StatusForbidden {
		return nil, fmt.Errorf("%w: the vault token has expired, was revoked, or is of another server or namespace", ErrDenied)
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
	return &api.SecretAuth{ClientToken: token, LeaseDuration: int(ttl / time.Second)}, nil
}

// A log-in that ended sooner than this did not work, and the next one waits.
const shortestLogin = time.Second

// keepLoggedIn renews the current log-in and replaces it when it cannot be renewed any longer, until ctx ends.
func (c *Client) keepLoggedIn(ctx context.Context) {
	delay := backoff{low: 100 * time.Millisecond, high: 30 * time.Second}
	for {
		current, since := c.login.Load(), time.Now()
		why := c.watch(ctx, current)
		if ctx.Err() != nil {
			return
		}
		if time.Since(since) >= shortestLogin {
			delay.reset()
		} else if !sleep(ctx, delay.next()) {
			return
		}
		for c.login.Load() == current {
			err := c.replace(ctx, current)
			if err == nil {
				c.log.Info("logged in to vault again", "why", why)
				break
			}
			wait := delay.next()
			c.log.Warn("logging in to vault failed", "why", why, "err", err, "again_in", wait)
			if !sleep(ctx, wait) {
				return
			}
		}
	}
}

// watch renews l as long as that helps, and returns why it no longer does: while there is time left to log in anew.
//
// The API's LifetimeWatcher is not used: while renewals fail it retries without any pause once its own back-off has
// run out, which turns an outage of the server into a flood from every client.
func (c *Client) watch(ctx context.Context, l *login) string {
	if l.ttl == 0 {
		select {
		case <-ctx.Done():
		case <-l.replaced:
		}
		return "replaced"
	}
	ends := time.Now().Add(l.ttl)
	delay := backoff{low: time.Second, high: 30 * time.Second}
	wait := early(l.ttl)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return "closed"
		case <-l.replaced:
			timer.Stop()
			return "replaced"
		case <-timer.C:
		}
		if !l.renewable {
			return "the token ends and cannot be renewed"
		}
		renewed, err := l.renew(ctx)
		switch {
		case status(err) == http.StatusForbidden, status(err) == http.StatusBadRequest:
			return "the server does not renew the token"
		case err != nil:
			wait = delay.next()
			if time.Now().Add(wait).After(ends) {
				return "the token ends and could not be renewed: " + explain("update", "auth/token/renew-self", err).Error()
			}
			continue
		case renewed < l.ttl/2:
			return "the token nears its maximum life"
		}
		delay.reset()
		ends = time.Now().Add(renewed)
		wait = early(renewed)
	}
}

// renew returns how long the token lasts from now.
func (l *login) renew(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := l.api.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return 0, err
	}
	if s == nil || s.Auth == nil {
		return 0, errors.New("the answer holds no lease")
	}
	return leaseOf(s.Auth), nil
}

// early is when to renew a lease: at about two thirds, spread so that replicas started together do not stay together.
func early(lease time.Duration) time.Duration {
	return lease*6/10 + rand.N(lease/10+1)
}

// replace puts a new log-in in the place of old, unless somebody else already has.
func (c *Client) replace(ctx context.Context, old *login) error {
	release, err := c.oneLogin(ctx)
	if err != nil {
		return err
	}
	defer release()
	if c.login.Load() != old {
		return nil
	}
	return c.renewLogin(ctx, old)
}

// healEvery spaces the log-ins that refusals cause: a policy that refuses us would otherwise cost one per request.
const healEvery = 5 * time.Second

// heal logs in again after the server refused l, and reports whether there is a newer log-in to try with.
func (c *Client) heal(ctx context.Context, l *login) (newer bool, err error) {
	release, err := c.oneLogin(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if c.login.Load() != l {
		return true, nil
	}
	if !c.lastHeal.IsZero() && time.Since(c.lastHeal) < healEvery {
		return false, nil
	}
	c.lastHeal = time.Now()
	if err := c.renewLogin(ctx, l); err != nil {
		return false, fmt.Errorf("logging in again after a refusal: %w", err)
	}
	c.log.Info("logged in to vault again", "why", "the server refused our token")
	return true, nil
}

// oneLogin waits for its turn to log in, so that many callers with the same dead token cost one log-in. The wait ends
// with ctx, which a mutex's would not.
func (c *Client) oneLogin(ctx context.Context) (release func(), err error) {
	select {
	case c.logging <- struct{}{}:
		return func() { <-c.logging }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting to log in: %w", ErrUnavailable, ctx.Err())
	}
}

// renewLogin must be called by the one whose turn it is.
func (c *Client) renewLogin(ctx context.Context, old *login) error {
	fresh, err := c.logIn(ctx)
	if err != nil {
		return err
	}
	c.login.Store(fresh)
	close(old.replaced)
	return nil
}

// backoff doubles from low to high, with jitter.
type backoff struct{ low, high, current time.Duration }

func (b *backoff) next() time.Duration {
	b.current = min(max(2*b.current, b.low), b.high)
	return b.current/2 + rand.N(b.current/2)
}

func (b *backoff) reset() { b.current = 0 }

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
