package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/spool"
	"wayleave/vault/vaulttest"
)

// grants: what it costs to keep many of them: to start with them, to have their tokens at hand, to see what others write, and to refresh
// all at once. It needs no Envoy. The store is in memory and so are the providers, whose answers take a while, as they do; the spool is
// on this machine's disk.

const (
	providers  = 10 // each with as many of the grants
	answerTime = 50 * time.Millisecond
	tokenLife  = 12 * time.Hour

	readyMS    = "all ready ms"
	cpuEachMS  = "CPU ms each"
	refreshedS = "all refreshed s"
	callsMost  = "calls at once"
	readsEach  = "reads a second"
	cpuPart    = "CPU ms a second"
)

type grantsRun struct {
	*report
	grants, rounds, checks int
	watch                  time.Duration
}

func grantsFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &grantsRun{}
	f.IntVar(&r.grants, "grants", 10_000, "how many grants there are")
	f.IntVar(&r.rounds, "rounds", 3, "how often everything is started anew and measured")
	f.IntVar(&r.checks, "checks", 100_000, "how often a token is asked for, in each round")
	f.DurationVar(&r.watch, "watch", 10*time.Second, "how long it is watched what a gate does unasked, in each round")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.grants <= fewGrants || r.rounds < 1 || r.checks < 1 || r.watch <= 0 {
			return fmt.Errorf("grants are more than %d, rounds and checks at least 1, and watch is some time", fewGrants)
		}
		return r.run(ctx)
	}
}

const fewGrants = 100 // what more of them are compared with

func (r *grantsRun) run(ctx context.Context) error {
	few := grouped(fewGrants)
	keep := r.table("A gate starts with so many grants whose tokens are good, hands tokens out, and watches", few,
		metric{Name: readyMS, NoRatio: true}, metric{Name: cpuEachMS}, metric{Name: kbEach}, metric{Name: cpuNS}, metric{Name: readsEach, NoRatio: true}, metric{Name: cpuPart, NoRatio: true})
	storm := r.table(fmt.Sprintf("All are due at once, at %d providers that answer after %s", providers, answerTime), few,
		metric{Name: refreshedS, NoRatio: true}, metric{Name: cpuEachMS}, metric{Name: callsMost, NoRatio: true})
	for round := range r.rounds {
		for _, n := range []int{fewGrants, r.grants} {
			r.say("round %d of %d: %s grants", round+1, r.rounds, grouped(n))
			found, err := r.kept(ctx, n)
			if err != nil {
				return fmt.Errorf("keeping %s grants: %w", grouped(n), err)
			}
			keep.add("", grouped(n), round, found)
			if found, err = r.due(ctx, n); err != nil {
				return fmt.Errorf("refreshing %s grants: %w", grouped(n), err)
			}
			storm.add("", grouped(n), round, found)
		}
	}
	return nil
}

// estate are grants that a gate keeps.
type estate struct {
	names  []string
	store  *counting
	issuer *issuer
	keeper *grant.Keeper
	heap   int64 // before it runs
	stop   func() error
}

// newEstate connects so many grants, whose tokens are good for so long, and has a gate that does not run yet.
func newEstate(ctx context.Context, n int, life time.Duration) (*estate, error) {
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		return nil, err
	}
	e := &estate{store: &counting{Memory: vaulttest.NewMemory()}, issuer: newIssuer(), stop: func() error { return os.RemoveAll(dir) }}
	key, err := spool.LoadKey(ctx, e.store)
	if err != nil {
		return nil, errors.Join(err, e.stop())
	}
	spooled, err := spool.Open(dir, key)
	if err != nil {
		return nil, errors.Join(err, e.stop())
	}
	e.stop = func() error {
		spooled.Close()
		return os.RemoveAll(dir)
	}
	var specs []grant.Spec
	for i := range n {
		s := grant.Spec{Name: fmt.Sprintf("grant-%d", i), Provider: fmt.Sprintf("provider-%d", i%providers), Scopes: []string{"user:profile", "user:inference"}, OAuth: e.issuer}
		t := e.issuer.token()
		t.Expiry = time.Now().Add(life)
		if _, err := grant.Connect(ctx, e.store, s, t, t.Expiry.Add(-tokenLife)); err != nil {
			return nil, errors.Join(err, e.stop())
		}
		specs, e.names = append(specs, s), append(e.names, s.Name)
	}
	e.heap = used()
	e.keeper = grant.NewKeeper(e.store, specs, grant.Options{Spool: spooled})
	return e, nil
}

// begin runs the gate and returns when it has a token of every grant.
func (e *estate) begin(ctx context.Context) error {
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.keeper.Run(running) }()
	stop := e.stop
	e.stop = func() error {
		end()
		return errors.Join(<-done, stop())
	}
	for _, name := range e.names {
		if _, err := e.keeper.Token(ctx, name, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r *grantsRun) kept(ctx context.Context, n int) (_ map[string]float64, err error) {
	e, err := newEstate(ctx, n, tokenLife-time.Minute)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	begun := time.Now()
	started, err := cpuOf(func() error { return e.begin(ctx) })
	if err != nil {
		return nil, err
	}
	ready := time.Since(begun)
	memory := used() - e.heap
	asked, err := cpuOf(func() error {
		for range r.checks {
			if _, err := e.keeper.Token(ctx, e.names[rand.IntN(n)], nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	before := e.store.reads.Load()
	watched, err := cpuOf(func() error { return pause(ctx, r.watch) })
	if err != nil {
		return nil, err
	}
	if calls := e.issuer.calls.Load(); calls > 0 {
		return nil, fmt.Errorf("%d tokens were refreshed that were good", calls)
	}
	return map[string]float64{
		readyMS: millis(ready), cpuEachMS: millis(started) / float64(n), kbEach: float64(memory) / 1e3 / float64(n),
		cpuNS:     float64(asked) / float64(r.checks),
		readsEach: float64(e.store.reads.Load()-before) / r.watch.Seconds(), cpuPart: millis(watched) / r.watch.Seconds(),
	}, nil
}

func (r *grantsRun) due(ctx context.Context, n int) (_ map[string]float64, err error) {
	e, err := newEstate(ctx, n, -time.Minute)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	begun := time.Now()
	cpu, err := cpuOf(func() error { return e.begin(ctx) })
	if err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if calls := e.issuer.calls.Load(); calls != int64(n) {
		return nil, fmt.Errorf("%d grants were refreshed %d times", n, calls)
	}
	return map[string]float64{refreshedS: took.Seconds(), cpuEachMS: millis(cpu) / float64(n), callsMost: float64(e.issuer.most)}, nil
}

// cpuOf is the CPU time that this process takes for it.
func cpuOf(do func() error) (time.Duration, error) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := cpuTime(os.Getpid())
	return after - before, err
}

// used is what is in use by values and by goroutines.
func used() int64 {
	values := heap()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return values + int64(m.StackInuse)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// counting is a store that counts how often it is read.
type counting struct {
	*vaulttest.Memory
	reads atomic.Int64
}

func (c *counting) Get(ctx context.Context, path string, into any) (int, error) {
	c.reads.Add(1)
	return c.Memory.Get(ctx, path, into)
}

// issuer takes each refresh token once.
type issuer struct {
	calls, next atomic.Int64

	mu        sync.Mutex
	now, most int // calls under way
	good      map[string]bool
}

func newIssuer() *issuer { return &issuer{good: map[string]bool{}} }

func (s *issuer) token() oauth.Token {
	n := s.next.Add(1)
	refresh := fmt.Sprintf("sk-ant-ort01-a-refresh-token-which-is-about-as-long-as-they-are-and-different-each-time-%012d", n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.good[refresh] = true
	return oauth.Token{Access: secret.New(fmt.Sprintf("%s-%012d", realToken, n)), Refresh: secret.New(refresh), Expiry: time.Now().Add(tokenLife)}
}

func (s *issuer) Refresh(ctx context.Context, refresh secret.Text, _, _ []string) (oauth.Token, error) {
	s.calls.Add(1)
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	good := s.good[refresh.Reveal()]
	delete(s.good, refresh.Reveal())
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	if !good {
		return oauth.Token{}, errors.New("a refresh token was presented twice")
	}
	if err := pause(ctx, answerTime); err != nil {
		return oauth.Token{}, err
	}
	return s.token(), nil
}

func (s *issuer) Revoke(context.Context, secret.Text) error { return nil }
