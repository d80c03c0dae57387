package grant

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
)

// Options of a [Keeper]. The zero value is usable.
type Options struct {
	Holder      string               // names this replica in leases, for people; default: random
	Now         func() time.Time     // the time of day; default: time.Now
	Running     func() time.Duration // a clock that nobody sets, since any fixed point; default: the time since NewKeeper
	Spool       Spool                // outlives a crash of this process; nil: there is none
	Log         *slog.Logger         // default: nothing is logged
	Ahead       time.Duration        // refresh this long before expiry, at most a fifth of the token's life; default 5 min
	CallTimeout time.Duration        // longest token-endpoint call; default oauth.LongestCall, which no call of an [oauth.Client] outlasts
	Lease       time.Duration        // how long other replicas leave a grant to one that has ceased to renew its claim; default 20 s. The same on all replicas.
	Reread      time.Duration        // how often each grant is read again, to see what others wrote; default 5 s. A twelfth as often while nobody asks for it
	Watch       Watch                // default: nobody watches
	Drain       time.Duration        // how long Run may go on after its ctx has ended, and the calls under way then, to store what they brought; default 20 s

	// Tracer shows refreshes, and the waits of requests that are traced. Default: nothing is shown.
	Tracer trace.Tracer
	// Fingerprint tells tokens apart for who may not see them. It is called once for each, not for each request. Default: they have none.
	Fingerprint func(secret.Text) string
}

// Watch is told what a [Keeper] does. Each function may be nil, is called by many goroutines, and must not block.
type Watch struct {
	Token    func(waited bool)                   // a token was given out: from memory, or after a wait
	Happened func(grant string, e Event)         // to a grant, by this replica's doing
	Awaited  func(grant string, d time.Duration) // another replica's lease, which is over, when the grant was due
}

// Keeper keeps a set of grants usable and hands out their tokens. Each grant belongs to one goroutine, which [Keeper.Run]
// starts; every other method only looks at what that goroutine has published, so all are safe for concurrent use.
type Keeper struct {
	minders atomic.Pointer[map[string]*minder] // by name; the map is replaced, never changed
	make    func(Spec) *minder
	updates chan update
	docs    Documents
	reread  time.Duration
	log     *slog.Logger
	now     func() moment
	watch   Watch
	ended   chan struct{} // closed when Run returns

	changed atomic.Int64 // when it was seen last that operators have changed several grants, by the running clock

	fingerprint func(secret.Text) string // of a token
	tracer      trace.Tracer
}

// update asks Run for another set of grants.
type update struct {
	specs []Spec
	done  chan struct{} // closed when they are there
}

func (w Watch) token(waited bool) {
	if w.Token != nil {
		w.Token(waited)
	}
}

// minder is the one of a grant; nil when there is none.
func (k *Keeper) minder(name string) *minder { return (*k.minders.Load())[name] }

// NewKeeper returns a Keeper of the grants in specs, whose names are distinct. Nothing happens before Run.
func NewKeeper(docs Documents, specs []Spec, o Options) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Fingerprint == nil {
		o.Fingerprint = func(secret.Text) string { return "" }
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if o.Running == nil {
		start := time.Now()
		o.Running = func() time.Duration { return time.Since(start) }
	}
	k := &Keeper{
		updates: make(chan update),
		docs:    docs,
		reread:  cmp.Or(o.Reread, 5*time.Second),
		log:     o.Log,
		now:     func() moment { return moment{day: o.Now().Round(0), run: o.Running()} },
		watch:   o.Watch,
		ended:   make(chan struct{}),

		fingerprint: o.Fingerprint,
		tracer:      o.Tracer,
	}
	holder := cmp.Or(o.Holder, rand.Text())
	endpoints := map[string]*endpoint{}
	k.make = func(s Spec) *minder { // for NewKeeper, and then for Run alone
		if endpoints[s.Provider] == nil {
			endpoints[s.Provider] = &endpoint{}
		}
		return newMinder(&minder{
			spec:     s,
			docs:     docs,
			spool:    o.Spool,
			endpoint: endpoints[s.Provider],
			policy:   policy{ahead: cmp.Or(o.Ahead, 5*time.Minute), call: cmp.Or(o.CallTimeout, oauth.LongestCall), lease: cmp.Or(o.Lease, 20*time.Second)},
			holder:   holder,
			reread:   k.reread,
			changed:  &k.changed,
			drain:    cmp.Or(o.Drain, 20*time.Second),
			watch:    o.Watch,
			now:      k.now,
			log:      o.Log.With("grant", s.Name, "provider", s.Provider),

			fingerprint: k.fingerprint,
			tracer:      o.Tracer,
		})
	}
	minders := make(map[string]*minder, len(specs))
	for _, s := range specs {
		minders[s.Name] = k.make(s)
	}
	k.minders.Store(&minders)
	return k
}

// Run loads all grants, refreshes them ahead of expiry, and watches the store for what operators and other replicas
// write. It returns when ctx has ended and no refresh is under way or waits to be stored, but not later than Options.Drain
// after the last call has ended; its error names the grants whose new tokens could not be stored and are lost. Run may be called once.
func (k *Keeper) Run(ctx context.Context) error {
	defer close(k.ended)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	all := crew{ctx: ctx, work: work, shifts: map[string]*shift{}}
	for name, m := range *k.minders.Load() {
		all.begin(name, m)
	}
	all.running.Go(func() { k.watchRequests(ctx) })
	all.running.Go(func() { k.watchChanges(ctx) })
	for ctx.Err() == nil {
		select {
		case u := <-k.updates:
			k.replace(&all, u.specs)
			close(u.done)
		case <-ctx.Done():
		}
	}
	all.running.Wait()
	return errors.Join(all.errs...)
}

// Update makes the set of grants that of specs, and returns when tokens of all of them can be asked for. Of a grant whose
// Spec is the same, OAuth being the same object, nothing changes. One that is to be kept otherwise goes on with the token it
// has; one that is gone is let go of when nothing of it is unsaved. The error is that of ctx, or says that Run has ended.
func (k *Keeper) Update(ctx context.Context, specs []Spec) error {
	u := update{specs, make(chan struct{})}
	select {
	case k.updates <- u:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ended:
		return errEnded
	}
	select {
	case <-u.done:
		return nil
	case <-k.ended:
		return errEnded
	}
}

var errEnded = errors.New("the grants are not kept any more: this gate is being stopped")

// replace is Update, in Run.
func (k *Keeper) replace(all *crew, specs []Spec) {
	was := *k.minders.Load()
	is := make(map[string]*minder, len(specs))
	for _, s := range specs {
		old := was[s.Name]
		switch {
		case old == nil:
			is[s.Name] = k.make(s)
			all.begin(s.Name, is[s.Name])
		case old.spec.same(s):
			is[s.Name] = old
		default:
			is[s.Name] = k.make(s)
			is[s.Name].view.Store(old.view.Load().again(s)) // which serves until the old one has ended
			all.begin(s.Name, is[s.Name])
		}
	}
	k.minders.Store(&is)
	for name := range was {
		if is[name] == nil {
			all.shifts[name].stop()
		}
	}
}

// crew is the minders' goroutines, of which each grant has one at a time. It belongs to Run.
type crew struct {
	ctx, work context.Context
	shifts    map[string]*shift // by name
	running   sync.WaitGroup

	mu   sync.Mutex
	errs []error // guarded by mu
}

// shift is a minder at work.
type shift struct {
	minder *minder
	stop   context.CancelFunc
	ended  chan struct{}
}

// begin sets m to work, after whoever has minded the grant before has ended, and with what that one knew.
func (c *crew) begin(name string, m *minder) {
	before := c.shifts[name]
	if before != nil {
		before.stop()
	}
	ctx, stop := context.WithCancel(c.ctx)
	now := &shift{minder: m, stop: stop, ended: make(chan struct{})}
	m.ending = c.ctx
	c.shifts[name] = now
	c.running.Go(func() {
		defer close(now.ended)
		defer stop()
		if before == nil {
			m.restore()
		} else {
			<-before.ended
			m.succeed(before.minder)
		}
		if err := m.run(ctx, c.work); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.errs = append(c.errs, err)
		}
	})
}

// Token returns an access token of the grant with at least the required scopes; the error is an *[Unusable]. It returns
// at once while the present token is usable, and otherwise waits for the first answer of the store, for a refresh, for
// another try of either when one is about to come, or, before it refuses what only an operator can mend, for a look at the
// store that is newer than the request: that may take a second, because grants are not read more often. A grant that nobody
// has asked for in a while is looked at first, too, if the store answers within a second. A ctx that ends
// ends the wait only: no work is bound to it.
func (k *Keeper) Token(ctx context.Context, name string, required []string) (Token, error) {
	came, waited := k.now(), false
	k.look(ctx, name, came)
	for waiting := true; ; waited = true {
		m := k.minder(name)
		if m == nil {
			return Token{}, &Unusable{Grant: name, State: NeverConnected, Err: ErrNotConfigured}
		}
		v := m.view.Load()
		t, refusal, wait := v.answer(m.policy, m.spec, required, came, k.now())
		if refusal == nil {
			k.watch.token(waited)
			return t, nil
		}
		if !wait || !waiting {
			return Token{}, refusal
		}
		if !waited {
			defer m.waiting(ctx)()
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

// look notes that a grant is used, and has one that was not for a while be read first: what others have written meanwhile holds. A
// store that does not answer in time is not waited for.
func (k *Keeper) look(ctx context.Context, name string, now moment) {
	var late *time.Timer // nil: nothing was waited for
	for {
		m := k.minder(name)
		if m == nil {
			return
		}
		m.use(now.run)
		v := m.view.Load()
		if !v.unseen(now, k.reread) {
			return
		}
		if late == nil {
			defer m.waiting(ctx)()
			late = time.NewTimer(lookFor)
			defer late.Stop()
		}
		m.ask()
		select {
		case <-v.superseded:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		case <-k.ended:
			return
		}
	}
}

// Current is Token for whoever waits for nothing, and has nothing done: it reports false when there is no token that can be used now.
func (k *Keeper) Current(name string) (Token, bool) {
	m := k.minder(name)
	if m == nil {
		return Token{}, false
	}
	now := k.now()
	t, refusal, _ := m.view.Load().answer(m.policy, m.spec, nil, now, now)
	return t, refusal == nil
}

// Replace is Token for a request whose token, of the version rejected, the provider has just answered with 401. It returns
// at once when there is another token meanwhile; otherwise it has the grant refreshed, once for each rejected token
// however many requests ask, and again only after a pause, which grows while new tokens are rejected too. What cannot be
// refreshed may have been connected or imported anew: that is looked for. When nothing helps it returns the rejected token.
func (k *Keeper) Replace(ctx context.Context, name, rejected string, required []string) (Token, error) {
	came := k.now()
	for waited := false; ; waited = true {
		m := k.minder(name)
		if m == nil {
			return k.Token(ctx, name, required)
		}
		v, now := m.view.Load(), k.now()
		t, refusal, _ := v.answer(m.policy, m.spec, required, came, now)
		if refusal != nil || t.Version != rejected {
			return k.Token(ctx, name, required)
		}
		replaceable := v.replaceable(now)
		ended := v.rec.Dead && v.wish.rejected != rejected // no refresh helps, and nobody else has said that this token does not work
		if v.storeErr != nil || !replaceable && !ended && v.readAt+recheck > came.run {
			return t, nil
		}
		if !waited {
			defer m.waiting(ctx)()
		}
		if replaceable || ended {
			m.reject(rejected)
		} else {
			m.ask()
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
	if m := k.minder(name); m != nil {
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
			if m := k.minder(name); m != nil && err == nil {
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

// watchChanges has grants read that operators have changed, until ctx ends: the last one, or all when there were several since, which
// is spread over as long as grants in use are read in.
func (k *Keeper) watchChanges(ctx context.Context) {
	tick := time.NewTicker(k.reread)
	defer tick.Stop()
	for seen := -1; ; {
		var last change
		version, err := k.docs.Get(ctx, changesPath, &last)
		if errors.Is(err, vault.ErrNotFound) {
			version, err = 0, nil
		}
		if err == nil {
			switch m := k.minder(last.Grant); {
			case seen < 0 || version == seen:
			case version != seen+1:
				k.changed.Store(int64(k.now().run))
			case m != nil:
				m.ask()
			}
			seen = version
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Reread has a grant read again soon: somebody has just changed it.
func (k *Keeper) Reread(name string) {
	if m := k.minder(name); m != nil {
		m.ask()
	}
}

// Summary returns what this replica knows of a grant: what status/<name> holds, or worse when the store fails.
func (k *Keeper) Summary(name string) Summary {
	m := k.minder(name)
	if m == nil {
		return Summary{Name: name, LastError: ErrNotConfigured.Error()}.in(NeverConnected)
	}
	return m.view.Load().summary(m.spec, k.now())
}
