package grant

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"wayleave/oauth"
	"wayleave/secret"
)

const (
	maxExchanged     = 10_000           // tokens kept; each is one worker's at one grant
	exchangeTimeout  = 15 * time.Second // of one exchange, the wait for the grant's own token included
	exchangeAhead    = time.Minute      // an exchanged token is renewed this long before it ends, or a fifth of its life if that is less
	longestExchanged = time.Hour        // use of a token whose end nobody names
)

// Exchange is how the workers of a grant get tokens of their own (RFC 8693): the grant's access token is the subject.
type Exchange struct {
	OAuth              TokenExchanger
	Audience, Resource string   // where the tokens are used; each may be empty
	Scopes             []string // of the tokens; none: the provider decides
	Actor              bool     // name the worker to the provider, in a JWT signed with the client's key
}

// TokenExchanger trades tokens at a provider; it is an [oauth.Client]. It must obey ctx.
type TokenExchanger interface {
	TokenExchange(ctx context.Context, x oauth.Exchange) (oauth.Token, error)
}

// Exchanger hands out tokens as a [Keeper] does, and for grants with an [Exchange] one of its own to each worker. Those are
// kept in memory only: they cost one call, and nothing is lost with them. It is safe for concurrent use.
type Exchanger struct {
	keeper *Keeper
	rules  atomic.Pointer[map[string]Exchange] // by grant; stored with mu held

	mu      sync.Mutex
	entries map[exchangeKey]*exchanged // guarded by mu, and what they point to
}

type exchangeKey struct{ grant, worker string }

// exchanged is what is known of one worker's token at one grant. Times are by the running clock.
type exchanged struct {
	number   int           // of the token: none before it had the same
	rejected time.Duration // when the last token that the provider rejected was dropped; zero: never
	epoch    string        // of the grant; with another one, nothing of this holds
	token    Token
	renew    time.Duration // when to get the next token
	ends     time.Duration // when the token is of no more use; zero: there is none
	failures int           // in a row
	refusal  *Unusable     // of the last try; nil: it worked
	retry    time.Duration // with refusal: not before
	flight   chan struct{} // closed when the call under way has ended; nil: none
	used     time.Duration
}

// NewExchanger returns an Exchanger of the keeper's grants; rules are by the name of the grant.
func NewExchanger(k *Keeper, rules map[string]Exchange) *Exchanger {
	x := &Exchanger{keeper: k, entries: map[exchangeKey]*exchanged{}}
	x.rules.Store(&rules)
	return x
}

// Update replaces the rules at once. Tokens of a grant are kept while its rule is the same, with the very same client, and otherwise
// exchanged anew: also one that is being got by the old rule is given to nobody.
func (x *Exchanger) Update(rules map[string]Exchange) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := *x.rules.Swap(&rules)
	for key, e := range x.entries {
		rule, ok := rules[key.grant]
		switch {
		case !ok:
			delete(x.entries, key)
		case !rule.equal(old[key.grant]):
			x.entries[key] = &exchanged{number: e.number, used: e.used}
		}
	}
}

func (r Exchange) equal(o Exchange) bool {
	return r.OAuth == o.OAuth && r.Audience == o.Audience && r.Resource == o.Resource && slices.Equal(r.Scopes, o.Scopes) && r.Actor == o.Actor
}

// rule says whether a grant's workers have tokens of their own, and how they get them.
func (x *Exchanger) rule(name string) (Exchange, bool) {
	r, ok := (*x.rules.Load())[name]
	return r, ok
}

// Token returns a token for a worker with at least the required scopes; the error is an *[Unusable]. For a grant without
// an exchange it is [Keeper.Token]. Otherwise it returns at once while the worker's token is usable, and waits for one
// exchange, which all requests of the worker share, when it is not. A ctx that ends ends the wait only.
func (x *Exchanger) Token(ctx context.Context, name, worker string, required []string) (Token, error) {
	key := exchangeKey{name, worker}
	if _, ok := x.rule(name); ok {
		x.keeper.look(ctx, name, x.keeper.now()) // a token of the worker's own ends with the consent
	}
	for waited := false; ; waited = true {
		if _, ok := x.rule(name); !ok {
			return x.keeper.Token(ctx, name, required)
		}
		t, flight, refusal := x.look(ctx, key, waited)
		if refusal != nil {
			return Token{}, refusal
		}
		if flight == nil {
			if missing := oauth.MissingScopes(t.Scopes, required); len(missing) > 0 {
				return Token{}, &Unusable{Grant: name, State: ScopeMissing, Missing: missing, next: nextForScopes}
			}
			x.keeper.watch.token(waited)
			return t, nil
		}
		select {
		case <-flight:
		case <-ctx.Done():
			return Token{}, &Unusable{Grant: name, State: RefreshUnavailable, Err: errStillExchanging, RetryAfter: time.Second, means: noneForWorker, next: "try again"}
		}
	}
}

// Replace is [Keeper.Replace] for a worker's own token: it is exchanged anew, for the grant's present one. That one is
// refreshed when the provider does not take it.
func (x *Exchanger) Replace(ctx context.Context, name, worker, rejected string, required []string) (Token, error) {
	if _, ok := x.rule(name); !ok {
		return x.keeper.Replace(ctx, name, rejected, required)
	}
	x.Reject(name, worker, rejected)
	return x.Token(ctx, name, worker, required)
}

// Reject is Replace for whoever does not wait.
func (x *Exchanger) Reject(name, worker, version string) {
	if _, ok := x.rule(name); !ok {
		x.keeper.Reject(name, version)
		return
	}
	now := x.keeper.now().run
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.entries[exchangeKey{name, worker}]; e != nil && e.token.Version == version && e.replaceable(now) {
		e.ends, e.renew, e.rejected = 0, 0, now
	}
}

// replaceable reports whether another token may be got in place of one that the provider rejects.
func (e *exchanged) replaceable(now time.Duration) bool {
	return e.rejected == 0 || now-e.rejected >= firstCooldown
}

var errStillExchanging = errors.New("still waiting for the worker's own token")

const noneForWorker = "has no token for this worker at the moment"

const nextForScopes = "add them to exchange.scopes of the grant in the configuration, and allow them at the provider"

// look returns the worker's token, or the call to wait for, or why there is neither. A call that has just been waited for
// is not followed by another.
func (x *Exchanger) look(ctx context.Context, key exchangeKey, waited bool) (t Token, flight chan struct{}, refusal *Unusable) {
	epoch, now := x.keeper.epoch(key.grant), x.keeper.now().run
	x.mu.Lock()
	defer x.mu.Unlock()
	rule, ok := x.rule(key.grant)
	if !ok { // since whoever asks has looked
		return Token{}, closedFlight, nil
	}
	e := x.entry(key, now)
	e.used = now
	if e.epoch != epoch { // connected anew, disconnected or revoked since
		*e = exchanged{epoch: epoch, flight: e.flight, used: now, number: e.number}
	}
	usable := now < e.ends
	held := e.refusal != nil && (waited || now < e.retry)
	if e.flight == nil && !held && (!usable || now >= e.renew) {
		e.flight = make(chan struct{})
		go x.exchange(trace.SpanContextFromContext(ctx), key, rule, e, e.flight)
	}
	switch {
	case usable:
		t := e.token
		t.Replaceable = e.replaceable(now)
		return t, nil, nil
	case e.flight != nil:
		return Token{}, e.flight, nil
	}
	u := *e.refusal
	if u.RetryAfter > 0 {
		u.RetryAfter = max(e.retry-now, time.Second)
	}
	return Token{}, nil, &u
}

// closedFlight is one that has ended: whoever waits for it looks again.
var closedFlight = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// exchange makes one call and notes what came of it. It outlives the request that began it, which by may show it: others wait for it too.
func (x *Exchanger) exchange(by trace.SpanContext, key exchangeKey, rule Exchange, e *exchanged, done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTimeout)
	defer cancel()
	span := trace.SpanFromContext(ctx) // none: there may be one for each worker
	if by.IsSampled() {
		ctx, span = x.keeper.tracer.Start(trace.ContextWithSpanContext(ctx, by), "exchange the token", trace.WithAttributes(
			attribute.String("wayleave.grant", key.grant), attribute.String("wayleave.worker", key.worker)))
	}
	subject, err := x.keeper.Token(ctx, key.grant, nil)
	var (
		got   oauth.Token
		epoch string // of the subject
	)
	asked := err == nil
	if asked {
		epoch = x.keeper.epochOf(key.grant, subject.Access)
		ask := oauth.Exchange{Subject: subject.Access, Audience: rule.Audience, Resource: rule.Resource, Scopes: rule.Scopes}
		if rule.Actor {
			ask.Actor = key.worker
		}
		got, err = rule.OAuth.TokenExchange(ctx, ask)
		if e, ok := errors.AsType[*oauth.Error](err); ok && x.doubtsSubject(key.grant, e) {
			if other, failed := x.keeper.Replace(ctx, key.grant, subject.Version, nil); failed == nil && other.Version != subject.Version {
				subject, ask.Subject = other, other.Access
				epoch = x.keeper.epochOf(key.grant, subject.Access)
				got, err = rule.OAuth.TokenExchange(ctx, ask)
			}
		}
	}
	fingerprint := ""
	if err == nil {
		fingerprint = x.keeper.fingerprint(got.Access)
	}
	called(span, err)
	now := x.keeper.now()
	x.mu.Lock()
	defer x.mu.Unlock()
	e.flight = nil
	close(done)
	switch {
	case !asked: // the keeper knows when to try again, and answers at once while that is of no use
		e.refusal, e.retry = asUnusable(err, key.grant), now.run
	case epoch == "": // the grant changed meanwhile: whoever waits asks again
		e.refusal = nil
	case err != nil:
		e.epoch = epoch
		e.failures++
		e.refusal = exchangeRefused(key, err)
		e.refusal.RetryAfter = max(e.refusal.RetryAfter, backoff(e.failures, rand.Float64()))
		e.retry = now.run + e.refusal.RetryAfter
	default:
		life := lifeOf(got.Expiry, subject.Expires, now.day)
		*e = exchanged{
			epoch: epoch, number: e.number + 1, rejected: e.rejected,
			token: Token{
				Access: got.Access, Scopes: x.keeper.granted(key.grant, exchangedScopes(got.Scopes, rule.Scopes, subject.Scopes)), Facts: subject.Facts, Expires: got.Expiry,
				Version: epoch + "." + strconv.Itoa(e.number+1), Fingerprint: fingerprint,
			},
			renew: now.run + life - min(exchangeAhead, life/5),
			ends:  now.run + life - min(maxMargin, life/20),
			used:  e.used,
		}
	}
}

// doubtsSubject reports whether an exchange may have failed because the grant's token, the subject, was revoked. Servers are to call that an
// invalid request (RFC 8693 section 2.2.2), as they do a wrong audience, say: which it is not where workers have had tokens.
func (x *Exchanger) doubtsSubject(grant string, e *oauth.Error) bool {
	switch {
	case e.Outcome != oauth.Refused && e.Outcome != oauth.InvalidGrant:
		return false
	case e.Kind() == oauth.KindInvalidGrant, e.Code == "invalid_token":
		return true
	case e.Code != "invalid_request":
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, e := range x.entries {
		if key.grant == grant && !e.token.Access.IsZero() {
			return true
		}
	}
	return false
}

// entry returns the entry of key, and makes room for a new one.
func (x *Exchanger) entry(key exchangeKey, now time.Duration) *exchanged {
	if e := x.entries[key]; e != nil {
		return e
	}
	if len(x.entries) >= maxExchanged {
		x.evict(now)
	}
	e := &exchanged{}
	x.entries[key] = e
	return e
}

// evict forgets what is of no use any more, and if that is nothing, what was not used for longest.
func (x *Exchanger) evict(now time.Duration) {
	var (
		oldest exchangeKey
		found  bool
	)
	for key, e := range x.entries {
		switch {
		case e.flight != nil:
		case now >= e.ends && now >= e.retry:
			delete(x.entries, key)
		case !found || e.used < x.entries[oldest].used:
			oldest, found = key, true
		}
	}
	if found && len(x.entries) >= maxExchanged {
		delete(x.entries, oldest)
	}
}

// epoch names the consent that a grant's tokens come from; empty while there is none that may be used.
func (k *Keeper) epoch(name string) string {
	m := k.minder(name)
	if m == nil {
		return ""
	}
	r := m.view.Load().rec
	if !r.connected() || r.foreign(m.spec) {
		return ""
	}
	return r.Epoch
}

// epochOf names the consent that access comes from; empty when the grant has another token by now.
func (k *Keeper) epochOf(name string, access secret.Text) string {
	if m := k.minder(name); m == nil || !m.view.Load().rec.Access.Equal(access) {
		return ""
	}
	return k.epoch(name)
}

// granted are the scopes that come with those of a grant's token.
func (k *Keeper) granted(name string, listed []string) []string {
	if m := k.minder(name); m != nil {
		return m.spec.granted(listed)
	}
	return listed
}

// lifeOf is how long an exchanged token is used: until it ends, or else until its subject does.
func lifeOf(expiry, subject, now time.Time) time.Duration {
	life := longestExchanged
	switch {
	case !expiry.IsZero():
		life = expiry.Sub(now)
	case !subject.IsZero():
		life = min(subject.Sub(now), longestExchanged)
	}
	return max(life, shortestUse)
}

// exchangedScopes are the scopes of an exchanged token: those that the answer names, else those asked for (RFC 8693
// section 2.2.1), else those of the subject.
func exchangedScopes(answered, asked, subject []string) []string {
	switch {
	case answered != nil:
		return answered
	case len(asked) > 0:
		return sorted(asked)
	}
	return subject
}

// asUnusable is an error of the keeper.
func asUnusable(err error, name string) *Unusable {
	if u, ok := errors.AsType[*Unusable](err); ok {
		return u
	}
	return &Unusable{Grant: name, State: RefreshUnavailable, Err: err, RetryAfter: time.Second}
}

// exchangeRefused is a failed exchange as the worker sees it.
func exchangeRefused(key exchangeKey, err error) *Unusable {
	u := &Unusable{Grant: key.grant, State: RefreshUnavailable, means: noneForWorker, Err: fmt.Errorf("its token could not be exchanged for one of worker %q: %w", key.worker, err)}
	u.next = "check that the provider knows token exchange (RFC 8693) for this client"
	e, ok := errors.AsType[*oauth.Error](err)
	if !ok {
		return u
	}
	u.RetryAfter = e.RetryAfter
	kind := e.Kind()
	if e.Code == "invalid_token" {
		kind = oauth.KindInvalidGrant
	}
	switch kind {
	case oauth.KindInvalidGrant:
		u.next = "wait for the grant's next token; if it lasts, run `wayleave grant connect " + key.grant + "`"
	case oauth.KindInvalidScope, oauth.KindInvalidRequest:
		u.next = "check audience, resource, scopes and actor of the grant's exchange in the configuration"
	case oauth.KindInvalidClient:
		u.next = "check the client's secret or key and auth_style of the provider in the configuration, and that the provider lets this client exchange tokens"
	case oauth.KindRateLimited, oauth.KindProviderFailed, oauth.KindUnreachable, oauth.KindNoAnswer:
		u.next = "wait: it is retried; if it lasts, check the provider's token endpoint"
	case oauth.KindBadAnswer, oauth.KindProviderChanged, oauth.KindRefused:
	}
	return u
}
