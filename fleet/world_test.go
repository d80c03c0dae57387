package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/rollout"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

const tick = 100 * time.Millisecond

// world is some gates that share a store, and simulated Envoys that obey them.
type world struct {
	t        *testing.T
	docs     Documents // as gates see it
	operator Documents
	away     func(bool) // makes Vault be away

	mu     sync.Mutex
	gates  []*gate              // guarded by mu
	envoys []*envoy             // guarded by mu
	differ map[string]time.Time // guarded by mu; since when two gates say different things of an Envoy
	vault  bool                 // guarded by mu; it is away
}

// gate is one that runs. What changes is guarded by the world's mu.
type gate struct {
	name   string
	member *Member
	end    context.CancelFunc
	ended  chan struct{}
	dead   bool
	cut    bool // off from Vault
	skew   time.Duration
	state  rollout.State
	cannot map[string]error
	count  map[traffic]rollout.Counts
	over   []rollout.Rollout
}

// envoy is guarded by the world's mu.
type envoy struct {
	id, group string
	at        *gate
	since     time.Time
	told, has string
	refuses   string         // a revision
	refused   string         // what it said
	fails     map[string]int // percent of the requests, by revision
	requests  int
	gone      bool
	had       map[string]bool
}

// inWorld runs a test with a clock of its own, over the store in memory.
func inWorld(t *testing.T, f func(t *testing.T, w *world, docs *vaulttest.Memory)) {
	synctest.Test(t, func(t *testing.T) {
		docs := vaulttest.NewMemory()
		w := newWorld(t, docs, docs)
		w.away = func(is bool) {
			w.change(func() { w.vault = is })
			docs.Inject(func(string, string) vaulttest.Fault {
				if is {
					return vaulttest.Fault{Before: vault.ErrUnavailable}
				}
				return vaulttest.Fault{}
			})
		}
		defer w.close()
		f(t, w, docs)
	})
}

func newWorld(t *testing.T, docs, operator Documents) *world {
	w := &world{t: t, docs: docs, operator: operator, differ: map[string]time.Time{}}
	if _, err := Change(t.Context(), operator, func(s rollout.State) (rollout.State, error) {
		return s.Start(rollout.Rollout{ID: "0", To: "r1", Plan: steps(0, 100)}, time.Now())
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// close ends the gates.
func (w *world) close() {
	for _, g := range w.gates {
		w.stop(g)
	}
}

func steps(dwell time.Duration, shares ...int) rollout.Plan {
	p := rollout.Plan{MinRequests: 50, TakeTime: 10 * time.Second}
	for _, s := range shares {
		p.Steps = append(p.Steps, rollout.Step{Share: s, Dwell: dwell})
	}
	return p
}

// gate starts one over docs, or over the world's.
func (w *world) gate(name string, docs Documents, skew time.Duration) *gate {
	g := &gate{name: name, count: map[traffic]rollout.Counts{}, ended: make(chan struct{}), skew: skew}
	if docs == nil {
		docs = w.docs
	}
	began := time.Now()
	locked := func(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }
	g.member = Join(Options{
		Docs: docs, Gate: name, Log: slog.New(slog.DiscardHandler),
		Now:     func() time.Time { return time.Now().Add(skew) },
		Running: func() time.Duration { return time.Since(began) },
		Look: func() (all []Envoy) {
			locked(func() {
				for _, e := range w.envoys {
					if e.at == g {
						all = append(all, Envoy{ID: e.id, Group: e.group, Version: "1.40.0", Since: e.since, Revision: e.told, Has: e.has, Refused: e.refused})
					}
				}
			})
			return all
		},
		Counted: func() (all []Traffic) {
			locked(func() {
				for k, c := range g.count {
					all = append(all, Traffic{k.envoy, k.revision, c})
				}
				clear(g.count)
			})
			return all
		},
		Apply: func(_ context.Context, s rollout.State) (unable map[string]error) {
			locked(func() {
				g.state = s
				for _, r := range s.Revisions() {
					if err := g.cannot[r]; err != nil {
						unable = map[string]error{r: err}
					}
				}
			})
			return unable
		},
		Ended: func(r rollout.Rollout) { locked(func() { g.over = append(g.over, r) }) },
	})
	ctx, end := context.WithCancel(context.Background())
	g.end = end
	s, err := g.member.Open(ctx)
	if err != nil {
		end()
		close(g.ended)
		g.dead = true
		return g
	}
	g.state = s // Envoys that come before Run has begun are told it too
	go func() { defer close(g.ended); g.member.Run(ctx) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gates = append(w.gates, g)
	return g
}

// stop ends a gate, well or not; its Envoys go to others.
func (w *world) stop(g *gate) {
	w.mu.Lock()
	g.dead = true
	w.mu.Unlock()
	g.end()
	<-g.ended
}

// envoy adds Envoys, which connect to the gates in turns.
func (w *world) addEnvoys(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range n {
		i := len(w.envoys)
		w.envoys = append(w.envoys, &envoy{id: fmt.Sprintf("envoy-%d", i), group: []string{"a", "b"}[i%2], has: "r1", told: "r1", had: map[string]bool{}, fails: map[string]int{}})
	}
}

// live lets Envoys do as they are told, and have requests.
func (w *world) live() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var there []*gate
	for _, g := range w.gates {
		if !g.dead && g.state.Stable != "" {
			there = append(there, g)
		}
	}
	for i, e := range w.envoys {
		var said []string
		for _, g := range there {
			if !g.cut {
				said = append(said, g.state.Revision(e.id))
			}
		}
		slices.Sort(said)
		since, known := w.differ[e.id]
		switch {
		case len(slices.Compact(said)) < 2 || w.vault:
			delete(w.differ, e.id)
		case !known:
			w.differ[e.id] = now
		case now.Sub(since) > idleEvery+3*tick && w.inBubble():
			w.t.Errorf("for %v gates say different things of %s: %v", now.Sub(since), e.id, said)
			delete(w.differ, e.id)
		}
		if e.gone {
			e.at, e.has, e.refused = nil, "", ""
			continue
		}
		if e.at == nil || e.at.dead {
			e.at, e.since, e.refused = nil, now, ""
			if len(there) == 0 {
				continue
			}
			e.at = there[i%len(there)]
		}
		wake := false
		if told := e.at.state.Revision(e.id); told != e.told {
			e.told, e.refused = told, ""
		}
		switch {
		case e.told == e.refuses:
			wake = e.refused == ""
			e.refused = "no such filter"
		case e.told != e.has:
			e.has, wake = e.told, true
		}
		e.had[e.has] = true
		c := rollout.Counts{Requests: 1}
		if e.requests++; e.requests*e.fails[e.has]/100 != (e.requests-1)*e.fails[e.has]/100 {
			c.Errors = 1
		}
		k := traffic{e.id, e.has}
		e.at.count[k] = e.at.count[k].Plus(c)
		if wake {
			e.at.member.Wake()
		}
	}
}

// inBubble reports whether time is ours, so that it can be judged.
func (w *world) inBubble() bool { _, is := w.docs.(*vaulttest.Memory); return is }

// until lets time pass until is, at most so long.
func (w *world) until(most time.Duration, what string, is func(s rollout.State) bool) rollout.State {
	w.t.Helper()
	beat := time.NewTicker(tick)
	defer beat.Stop()
	for end := time.Now().Add(most); ; <-beat.C {
		w.live()
		s, _, err := ReadState(context.Background(), w.operator)
		if err == nil && is(s) {
			return s
		}
		if time.Now().After(end) {
			w.t.Fatalf("within %v it was not so that %s: %v %+v %+v", most, what, err, s, s.Current)
		}
	}
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	end := time.Now().Add(d)
	w.until(2*d, "time passes", func(rollout.State) bool { return !time.Now().Before(end) })
}

func (w *world) start(id string, p rollout.Plan) error {
	_, err := Change(context.Background(), w.operator, func(s rollout.State) (rollout.State, error) {
		return s.Start(rollout.Rollout{ID: id, To: "r2", Plan: p}, time.Now())
	})
	return err
}

// over waits for the end of the rollout, and until every Envoy has what is stable then and each gate has told of it once.
func (w *world) over(most time.Duration, phase rollout.Phase, reason string) rollout.Rollout {
	w.t.Helper()
	s := w.until(most, "the rollout is over", func(s rollout.State) bool { return s.Current == nil })
	r := s.History[0]
	if phase != "" && r.Phase != phase || !strings.Contains(r.Reason, reason) {
		w.t.Errorf("it ended so: %s: %s; want %s: %s", r.Phase, r.Reason, phase, reason)
	}
	if want := map[rollout.Phase]string{rollout.Succeeded: "r2"}[r.Phase]; want != "" && s.Stable != want {
		w.t.Errorf("%s, and %s is stable", r.Phase, s.Stable)
	}
	w.until(most, "every Envoy has "+s.Stable, func(rollout.State) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !slices.ContainsFunc(w.envoys, func(e *envoy) bool { return !e.gone && (e.at == nil || e.has != s.Stable && e.refuses != s.Stable) })
	})
	w.until(most, "each gate has told of the end", func(rollout.State) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, g := range w.gates {
			n := 0
			for _, o := range g.over {
				if o.ID == r.ID {
					n++
				}
			}
			if n > 1 {
				w.t.Errorf("%s told %d times of the end", g.name, n)
			}
			if n == 0 && !g.dead && g.state.Current != nil {
				return false
			}
		}
		return true
	})
	return r
}

// canary is the Envoy that a first step of one is for.
func (w *world) canary() *envoy {
	w.mu.Lock()
	defer w.mu.Unlock()
	var nodes []rollout.Node
	for _, e := range w.envoys {
		nodes = append(nodes, rollout.Node{ID: e.id})
	}
	s, err := rollout.State{Stable: "x"}.Start(rollout.Rollout{To: "y", Plan: steps(time.Hour, 1, 100)}, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	id := s.Advance(nodes, nil, time.Now()).Current.Chosen[0]
	return w.envoys[slices.IndexFunc(w.envoys, func(e *envoy) bool { return e.id == id })]
}

// change changes what is guarded by mu.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// had are those that ever had r2.
func (w *world) had() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.envoys {
		if e.had["r2"] {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// severed is a store as a gate sees it that is cut off from it.
type severed struct {
	Documents
	off atomic.Bool
}

func (s *severed) Get(ctx context.Context, path string, into any) (int, error) {
	if s.off.Load() {
		return 0, vault.ErrUnavailable
	}
	return s.Documents.Get(ctx, path, into)
}

func (s *severed) Put(ctx context.Context, path string, doc any, cas int) (int, error) {
	if s.off.Load() {
		return 0, vault.ErrUnavailable
	}
	return s.Documents.Put(ctx, path, doc, cas)
}

// mortal is a store as a gate sees it that dies at its n-th call, before it or after.
type mortal struct {
	Documents
	mu    sync.Mutex
	left  int  // guarded by mu
	after bool // the call is done
	die   func()
	calls int // guarded by mu
}

var errDead = errors.New("the gate is dead")

func (m *mortal) call(do func() error) error {
	m.mu.Lock()
	m.left--
	m.calls++
	left := m.left
	m.mu.Unlock()
	if left > 0 || left == 0 && m.after {
		if err := do(); left > 0 {
			return err
		}
	}
	if left == 0 {
		m.die()
	}
	return errDead
}

func (m *mortal) Get(ctx context.Context, path string, into any) (version int, err error) {
	err = m.call(func() error { version, err = m.Documents.Get(ctx, path, into); return err })
	return version, err
}

func (m *mortal) Put(ctx context.Context, path string, doc any, cas int) (version int, err error) {
	err = m.call(func() error { version, err = m.Documents.Put(ctx, path, doc, cas); return err })
	return version, err
}

func (m *mortal) List(ctx context.Context, path string) (names []string, err error) {
	err = m.call(func() error { names, err = m.Documents.List(ctx, path); return err })
	return names, err
}

func (m *mortal) Delete(ctx context.Context, path string) error {
	return m.call(func() error { return m.Documents.Delete(ctx, path) })
}

// Traffic is what the Envoy did under the revision; an empty revision: under all of them.
func (v View) Traffic(envoy, revision string) (sum rollout.Counts) {
	for _, r := range v.Reports {
		for _, t := range r.Traffic {
			if t.Envoy == envoy && (revision == "" || t.Revision == revision) {
				sum = sum.Plus(t.Counts)
			}
		}
	}
	return sum
}
