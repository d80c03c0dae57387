package grant

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Options of a [Keeper]. The zero value is usable.
type Options struct {
	Holder      string               // names this replica in leases, for people; default: random
	Now         func() time.Time     // the time of day; default: time.Now
	Running     func() time.Duration // a clock that nobody sets, since any fixed point; default: the time since NewKeeper
	Spool       Spool                // outlives a crash of this process; nil: there is none
	Log         *slog.Logger         // default: nothing is logged
	Ahead       time.Duration        // refresh this long before expiry, at most a fifth of the token's life; default 5 min
	CallTimeout time.Duration        // longest token-endpoint call: a slow answer may hold the only live refresh token; default 60 s
	Lease       time.Duration        // how long other replicas leave a grant to one that has ceased to renew its claim; default 20 s. The same on all replicas.
	Reread      time.Duration        // how often each grant is read again, to see what others wrote; default 5 s
	Drain       time.Duration        // how long Run may go on after its ctx ends, to finish and store refreshes; default 20 s
}

// Keeper keeps a set of grants usable and hands out their tokens. Each grant belongs to one goroutine, which [Keeper.Run]
// starts; every other method only looks at what that goroutine has published, so all are safe for concurrent use.
type Keeper struct {
	minders map[string]*minder // by name; never changed
	docs    Documents
	reread  time.Duration
	log     *slog.Logger
	now     func() moment
	drain   time.Duration
	ended   chan struct{} // closed when Run returns
}

// NewKeeper returns a Keeper of the grants in specs, whose names are distinct. Nothing happens before Run.
func NewKeeper(docs Documents, specs []Spec, o Options) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Running == nil {
		start := time.Now()
		o.Running = func() time.Duration { return time.Since(start) }
	}
	k := &Keeper{
		minders: make(map[string]*minder, len(specs)),
		docs:    docs,
		reread:  cmp.Or(o.Reread, 5*time.Second),
		log:     o.Log,
		now:     func() moment { return moment{day: o.Now().Round(0), run: o.Running()} },
		drain:   cmp.Or(o.Drain, 20*time.Second),
		ended:   make(chan struct{}),
	}
	holder := cmp.Or(o.Holder, rand.Text())
	endpoints := map[string]*endpoint{}
	for _, s := range specs {
		if endpoints[s.Provider] == nil {
			endpoints[s.Provider] = &endpoint{}
		}
		k.minders[s.Name] = newMinder(&minder{
			spec:     s,
			docs:     docs,
			spool:    o.Spool,
			endpoint: endpoints[s.Provider],
			policy:   policy{ahead: cmp.Or(o.Ahead, 5*time.Minute), call: cmp.Or(o.CallTimeout, time.Minute), lease: cmp.Or(o.Lease, 20*time.Second)},
			holder:   holder,
			reread:   k.reread,
			now:      k.now,
			log:      o.Log.With("grant", s.Name, "provider", s.Provider),
		})
	}
	return k
}

// Run loads all grants, refreshes them ahead of expiry, and watches the store for what operators and other replicas
// write. It returns when ctx has ended and no refresh is under way or waits to be stored, but not later than Options.Drain
// after; its error names the grants whose new tokens could not be stored and are lost. Run may be called once.
func (k *Keeper) Run(ctx context.Context) error {
	defer close(k.ended)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		errs    []error // guarded by mu
	)
	for _, m := range k.minders {
		running.Go(func() {
			if err := m.run(ctx, work); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	running.Go(func() { k.watchRequests(ctx) })
	<-ctx.Done()
	defer time.AfterFunc(k.drain, stop).Stop()
	running.Wait()
	return errors.Join(errs...)
}

// Token returns an access token of the grant with at least the required scopes; the error is an *[Unusable]. It returns
// at once while the present token is usable, and otherwise waits for the first answer of the store, for a refresh, for
// another try of either when one is about to come, or, before it refuses what only an operator can mend, for a look at the
// store that is newer than the request: that may take a second, because grants are not read more often. A ctx that ends
// ends the wait only: no work is bound to it.
func (k *Keeper) Token(ctx context.Context, name string, required []string) (Token, error) {
	m, ok := k.minders[name]
	if !ok {
		return Token{}, &Unusable{Grant: name, State: NeverConnected, Err: ErrNotConfigured}
	}
	came := k.now()
	for waiting := true; ; {
		v := m.view.Load()
		t, refusal, wait := v.answer(m.policy, m.spec, required, came, k.now())
		if refusal == nil {
			return t, nil
		}
		if !wait || !waiting {
			return Token{}, refusal
		}
		m.ask()
		select {
		case <-v.superseded:
		case <-ctx.Done():
			waiting = false // one last look: what is refused with is as of now
		case <-k.ended:
			waiting = false
		}
	}
}

// Replace is Token for a request whose token, of the version rejected, the provider has just answered with 401. It returns
// at once when there is another token meanwhile; otherwise it has the grant refreshed, once for each rejected token
// however many requests ask, and again only after a pause, which grows while new tokens are rejected too. What cannot be
// refreshed may have been connected or imported anew: that is looked for. When nothing helps it returns the rejected token.
func (k *Keeper) Replace(ctx context.Context, name, rejected string, required []string) (Token, error) {
	m, ok := k.minders[name]
	if !ok {
		return k.Token(ctx, name, required)
	}
	came := k.now()
	for {
		v, now := m.view.Load(), k.now()
		t, refusal, _ := v.answer(m.policy, m.spec, required, came, now)
		if refusal != nil || t.Version != rejected {
			return k.Token(ctx, name, required)
		}
		switch {
		case v.storeErr == nil && v.replaceable(now):
			m.reject(rejected)
		case v.storeErr == nil && v.readAt+recheck <= came.run:
			m.ask()
		default:
			return t, nil
		}
		select {
		case <-v.superseded:
		case <-ctx.Done():
			return t, nil
		case <-k.ended:
			return t, nil
		}
	}
}

// Reject is Replace for whoever does not wait: the provider has rejected a token of the grant.
func (k *Keeper) Reject(name, version string) {
	if m := k.minders[name]; m != nil {
		m.reject(version)
	}
}

// watchRequests hands on what operators ask for, until ctx ends.
func (k *Keeper) watchRequests(ctx context.Context) {
	tick := time.NewTicker(k.reread)
	defer tick.Stop()
	failed := false
	for {
		all, _, err := getRequests(ctx, k.docs)
		if err != nil && !failed && ctx.Err() == nil {
			k.log.Warn("requests of operators cannot be read: `wayleave grant refresh` and revocation have no effect until they can", "err", err)
		}
		failed = err != nil
		for name, r := range all {
			if m := k.minders[name]; m != nil && err == nil {
				m.carryOut(r)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Summary returns what this replica knows of a grant: what status/<name> holds, or worse when the store fails.
func (k *Keeper) Summary(name string) Summary {
	m, ok := k.minders[name]
	if !ok {
		return Summary{Name: name, LastError: ErrNotConfigured.Error()}.in(NeverConnected)
	}
	return m.view.Load().summary(m.spec, k.now())
}
