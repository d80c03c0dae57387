package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"wayleave/secret"
)

// login is one successful log-in.
type login struct {
	api       *api.Client
	http      *http.Client  // what api sends with
	ttl       time.Duration // from the log-in on; 0: it never ends
	renewable bool
	replaced  chan struct{} // closed when another log-in took its place
}

// logIn proves who we are once. It changes nothing.
func (c *Client) logIn(ctx context.Context) (*login, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l := &login{http: c.http, replaced: make(chan struct{})}
	s, err := c.prove(ctx, l)
	if errors.Is(err, ErrDenied) && c.learnIndex(ctx) {
		// A standby judged it from its copy, which may not have the role or the token that was made a moment ago.
		s, err = c.prove(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	if l.api, err = c.newAPI(l.http, s.ClientToken, adminTimeout); err != nil {
		return nil, err
	}
	l.ttl, l.renewable = leaseOf(s), s.Renewable
	return l, nil
}

// prove shows the server what our method has to show. It sets l.http when the log-in needs one of its own.
func (c *Client) prove(ctx context.Context, l *login) (*api.SecretAuth, error) {
	var p proof
	var err error
	switch c.cfg.Auth.Method {
	case "token":
		return c.givenToken(ctx)
	case "approle":
		p, err = c.cfg.Auth.appRole()
	case "kubernetes", "jwt":
		p, err = c.cfg.Auth.jwt()
	case "cert":
		p, err = c.cfg.Auth.cert()
		if err == nil {
			l.http, err = c.withCertificate(p.certificate)
		}
	default:
		return nil, fmt.Errorf("unknown vault auth method %q: use token, approle, kubernetes, jwt or cert", c.cfg.Auth.Method)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return c.present(ctx, l.http, p)
}

// proof is what a method shows at its login path.
type proof struct {
	what        string                   // for messages
	body        map[string]any           // holds secrets: for the wire only
	certificate *tls.Certificate         // nil: none
	expired     time.Duration            // how long ago it ended by our clock; 0: it has not, or we do not know
	advice      func(said string) string // the next step after a refusal, from the server's words
}

// refusal reports whether the status says that the proof is not good enough. OpenBao answers an expired client
// certificate with 500, as if it were the server's fault.
func (p proof) refusal(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusForbidden || status == http.StatusInternalServerError && p.expired > 0
}

// present logs in with the proof.
func (c *Client) present(ctx context.Context, hc *http.Client, p proof) (*api.SecretAuth, error) {
	anonymous, err := c.newAPI(hc, "", callTimeout)
	if err != nil {
		return nil, err
	}
	path := "auth/" + c.cfg.Auth.Mount + "/login"
	s, err := anonymous.Logical().WriteWithContext(ctx, path, p.body)
	var refused *api.ResponseError
	switch {
	case errors.As(err, &refused) && p.refusal(status(err)):
		text := said(refused)
		advice := p.advice(text)
		if text == "permission denied" { // what OpenBao says of a mount or a namespace that is not there
			advice += "; if no such method is mounted there, mend vault.auth.mount or vault.namespace"
		}
		return nil, fmt.Errorf("%w: %s not accepted at %s (%s): %s", ErrDenied, p.what, path, text, advice)
	case err != nil:
		return nil, explain("update", path, err)
	case s == nil || s.Auth == nil || s.Auth.ClientToken == "":
		return nil, fmt.Errorf("%w: %s answered without a token (does the server ask for a second factor? it must not for the gate)", ErrDenied, path)
	}
	return s.Auth, nil
}

// credential is the content of a file, as it is now, or the value itself when there is no file.
func credential(what string, value secret.Text, file string) (secret.Text, error) {
	if file == "" {
		if value.IsZero() {
			return value, fmt.Errorf("no %s was given", what)
		}
		return value, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return secret.Text{}, fmt.Errorf("reading the %s: %w", what, err)
	}
	value = secret.New(strings.TrimSpace(string(text)))
	if value.IsZero() {
		return value, fmt.Errorf("the file of the %s, %s, is empty: see that whatever writes it still runs", what, file)
	}
	return value, nil
}

func leaseOf(a *api.SecretAuth) time.Duration { return time.Duration(a.LeaseDuration) * time.Second }

// A log-in that ended sooner than this did not work, and the next one waits.
const shortestLogin = time.Second

// keepLoggedIn renews the current log-in and replaces it when it cannot be renewed any longer, until ctx ends.
func (c *Client) keepLoggedIn(ctx context.Context) {
	delay := backoff{low: 100 * time.Millisecond, high: 30 * time.Second}
	for {
		current, since := c.login.Load(), time.Now()
		c.warnOfSecretID(ctx)
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
		c.warnOfSecretID(ctx)
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

// Refusals make us log in again, so that a changed role takes effect and a revoked token is replaced; but not for every
// request. In each healEvery, one log-in is for policies that refuse us, and a few more for tokens that ended.
const (
	healEvery   = 5 * time.Second
	healsPolicy = 1
	healsToken  = 3
)

// heal logs in again after the server refused l with err, and reports whether there is a newer log-in to try with.
func (c *Client) heal(ctx context.Context, l *login, refusal error) (newer bool, err error) {
	release, err := c.oneLogin(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if c.login.Load() != l {
		return true, nil
	}
	if time.Since(c.healing) >= healEvery {
		c.healing, c.heals = time.Now(), 0
	}
	most, why := healsPolicy, "the server refused our request"
	if tokenEnded(refusal) {
		most, why = healsToken, "the server refused our token"
	}
	if c.heals >= most {
		return false, nil
	}
	c.heals++
	if err := c.renewLogin(ctx, l); err != nil {
		return false, fmt.Errorf("logging in again after a refusal: %w", err)
	}
	c.log.Info("logged in to vault again", "why", why)
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
	if old.http != c.http {
		old.http.CloseIdleConnections() // nobody starts a call with it any longer
	}
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
