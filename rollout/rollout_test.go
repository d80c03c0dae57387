package rollout

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func plan(shares ...int) Plan {
	p := Plan{MinRequests: 50, TakeTime: 30 * time.Second}
	for _, s := range shares {
		p.Steps = append(p.Steps, Step{Share: s, Dwell: time.Minute})
	}
	return p
}

// envoy is a simulated Envoy.
type envoy struct {
	id, group string
	has       string
	refuses   string // a revision
	slow      string // a revision that it never takes
	errors    map[string]float64
	refusals  map[string]float64
	gone      bool
	counts    Counts
	counting  string // the rollout and revision that counts are of
}

// fleet is Envoys that do as the state says, with requests.
type fleet struct {
	envoys []*envoy
	had    map[string]map[string]bool // revision → ids that ever had it
	random *rand.Rand
}

func newFleet(n int, seed uint64) *fleet {
	f := &fleet{had: map[string]map[string]bool{}, random: rand.New(rand.NewPCG(seed, 7))}
	for i := range n {
		f.envoys = append(f.envoys, &envoy{id: fmt.Sprintf("envoy-%d", i), group: []string{"a", "b"}[i%2], has: "r1"})
	}
	return f
}

// live lets a second pass at every Envoy.
func (f *fleet) live(s State) {
	for _, e := range f.envoys {
		want := s.Revision(e.id)
		if e.gone {
			continue
		}
		if want != e.refuses && want != e.slow {
			e.has = want
		}
		if f.had[e.has] == nil {
			f.had[e.has] = map[string]bool{}
		}
		f.had[e.has][e.id] = true
		of := e.has
		if s.Current != nil {
			of += s.Current.ID
		}
		if of != e.counting {
			e.counts, e.counting = Counts{}, of
		}
		for range 5 {
			e.counts.Requests++
			if f.random.Float64() < e.errors[e.has]+e.errors["any"] {
				e.counts.Errors++
			}
			if f.random.Float64() < e.refusals[e.has] {
				e.counts.Refusals++
			}
		}
	}
}

func (f *fleet) seen(s State) (nodes []Node) {
	for _, e := range f.envoys {
		if e.gone {
			continue
		}
		n := Node{ID: e.id, Group: e.group, Has: e.has, Revision: s.Revision(e.id), Counts: e.counts}
		if n.Revision == e.refuses {
			n.Refused = "no such filter"
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// run lets time pass until the rollout ends, at most for an hour.
func (f *fleet) run(t *testing.T, s State, now time.Time, each func(State, time.Time)) (State, time.Time) {
	t.Helper()
	for end := now.Add(time.Hour); s.Current != nil; now = now.Add(time.Second) {
		if now.After(end) {
			t.Fatalf("no end: %+v", s.Current)
		}
		f.live(s)
		if each != nil {
			each(s, now)
		}
		seen := f.seen(s)
		next := s.Advance(seen, nil, now)
		if again := s.Advance(seen, nil, now); !reflect.DeepEqual(next, again) {
			t.Fatal("two gates that see the same do not agree")
		}
		s = next
	}
	f.live(s)
	for _, e := range f.envoys {
		if !e.gone && e.has != s.Stable {
			t.Errorf("at the end %s has %s, and %s is stable", e.id, e.has, s.Stable)
		}
	}
	return s, now
}

func begin(t *testing.T, p Plan) State {
	t.Helper()
	s, err := State{Stable: "r1"}.Start(Rollout{ID: "1", To: "r2", Plan: p}, start)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGoodRevisionReachesAll(t *testing.T) {
	f := newFleet(10, 1)
	for _, e := range f.envoys {
		e.errors = map[string]float64{"any": 0.05}
	}
	shares := map[int]bool{}
	s, end := f.run(t, begin(t, plan(10, 50, 100)), start, func(s State, _ time.Time) {
		n := 0
		for _, e := range f.envoys {
			if s.Revision(e.id) == "r2" {
				n++
			}
		}
		shares[n] = true
	})
	if s.Stable != "r2" || s.History[0].Phase != Succeeded {
		t.Fatalf("%+v", s)
	}
	if got := slices.Sorted(maps.Keys(shares)); !slices.Equal(got, []int{0, 1, 5, 10}) {
		t.Errorf("so many Envoys had it: %v", got)
	}
	if took := end.Sub(start); took < 3*time.Minute || took > 4*time.Minute {
		t.Errorf("it took %v", took)
	}
}

func TestBadRevisionsGoBack(t *testing.T) {
	var ids []string
	for i := range 10 {
		ids = append(ids, fmt.Sprintf("envoy-%d", i))
	}
	byHash(ids)
	first := ids[0]
	canary := func(f *fleet) *envoy {
		return f.envoys[slices.IndexFunc(f.envoys, func(e *envoy) bool { return e.id == first })]
	}
	for name, c := range map[string]struct {
		harm func(*fleet)
		says string
	}{
		"refused":    {func(f *fleet) { canary(f).refuses = "r2" }, "refuses it: no such filter"},
		"not taken":  {func(f *fleet) { canary(f).slow = "r2" }, "did not take it within 30s"},
		"errors":     {func(f *fleet) { canary(f).errors = map[string]float64{"r2": 0.5} }, "requests failed with it, and 0 of"},
		"few errors": {func(f *fleet) { canary(f).errors = map[string]float64{"r2": 0.1} }, "requests failed with it"},
		"refusals":   {func(f *fleet) { canary(f).refusals = map[string]float64{"r2": 0.2} }, "requests were refused with it"},
		"in the noise": {func(f *fleet) {
			for _, e := range f.envoys {
				e.errors = map[string]float64{"r1": 0.02, "r2": 0.2}
			}
		}, "requests failed with it"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(10, 2)
			c.harm(f)
			s, _ := f.run(t, begin(t, plan(10, 50, 100)), start, nil)
			if s.Stable != "r1" || s.History[0].Phase != RolledBack || s.History[0].Step != 0 || !strings.Contains(s.History[0].Reason, c.says) {
				t.Errorf("%+v", s.History[0])
			}
			for id := range f.had["r2"] {
				if id != first {
					t.Errorf("%s had it too", id)
				}
			}
		})
	}
}

// An Envoy that dies of a revision takes the rollout back; one that is restarted does not.
func TestAway(t *testing.T) {
	for _, c := range []struct {
		away time.Duration
		want Phase
	}{{10 * time.Second, Succeeded}, {time.Hour, RolledBack}} {
		f := newFleet(4, 3)
		var victim *envoy
		s, end := f.run(t, begin(t, plan(25, 100)), start, func(s State, now time.Time) {
			switch {
			case victim == nil && len(s.Current.Chosen) > 0 && now.Sub(start) > 20*time.Second:
				victim = f.envoys[slices.IndexFunc(f.envoys, func(e *envoy) bool { return e.id == s.Current.Chosen[0] })]
				victim.gone, victim.has = true, ""
			case victim != nil && now.Sub(start) > 20*time.Second+c.away:
				victim.gone = false
			}
		})
		if got := s.History[0]; got.Phase != c.want || c.want == RolledBack && (!strings.Contains(got.Reason, "went away") || end.Sub(start) > 55*time.Second) {
			t.Errorf("away for %v: %+v", c.away, got)
		}
	}
}

func TestGroups(t *testing.T) {
	f := newFleet(6, 4)
	p := Plan{MinRequests: 50, TakeTime: 30 * time.Second, Steps: []Step{{Group: "b", Dwell: time.Minute}, {Share: 100, Dwell: time.Minute}}}
	s := begin(t, p)
	for now := start; s.Current != nil && s.Current.Step == 0; now = now.Add(time.Second) {
		f.live(s)
		s = s.Advance(f.seen(s), nil, now)
	}
	if got := slices.Sorted(maps.Keys(f.had["r2"])); !slices.Equal(got, []string{"envoy-1", "envoy-3", "envoy-5"}) {
		t.Errorf("the first step was for %v", got)
	}
}

// Envoys that come, and such that are restarted, take the revision, and do not make a dwell begin anew.
func TestComing(t *testing.T) {
	f := newFleet(10, 6)
	n := 0
	_, end := f.run(t, begin(t, plan(20, 100)), start, func(State, time.Time) {
		n++
		e := f.envoys[n/10%len(f.envoys)]
		switch n % 10 {
		case 0:
			f.envoys = append(f.envoys, &envoy{id: fmt.Sprintf("later-%d", n)})
		case 3:
			e.gone, e.has = true, ""
		case 6:
			e.gone = false
		}
	})
	if took := end.Sub(start); took < 2*time.Minute || took > 150*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestComerThatDoesNotTakeIt(t *testing.T) {
	f := newFleet(3, 7)
	s, end := f.run(t, begin(t, plan(100)), start, func(_ State, now time.Time) {
		if now.Sub(start) == 20*time.Second {
			f.envoys = append(f.envoys, &envoy{id: "later", slow: "r2", has: "r1"})
		}
	})
	if got := s.History[0]; got.Phase != RolledBack || got.Reason != "the Envoy later did not take it within 30s" || end.Sub(start) > 55*time.Second {
		t.Errorf("after %v: %+v", end.Sub(start), got)
	}
}

// One that is away keeps its place: no other becomes a canary for it.
func TestAwayKeepsItsPlace(t *testing.T) {
	f := newFleet(4, 8)
	f.run(t, begin(t, plan(25, 100)), start, func(s State, now time.Time) {
		if s.Current.Step > 0 || len(s.Current.Chosen) == 0 {
			return
		}
		if len(s.Current.Chosen) > 1 {
			t.Fatalf("chosen are %v", s.Current.Chosen)
		}
		e := f.envoys[slices.IndexFunc(f.envoys, func(e *envoy) bool { return e.id == s.Current.Chosen[0] })]
		if e.gone = now.Sub(start) > 20*time.Second && now.Sub(start) < 40*time.Second; e.gone {
			e.has = ""
		}
	})
}

func TestNobodyThere(t *testing.T) {
	group := Plan{TakeTime: 30 * time.Second, Steps: []Step{{Group: "canary", Dwell: time.Minute}, {Share: 100, Dwell: time.Minute}}}
	for name, c := range map[string]struct {
		envoys int
		plan   Plan
		phase  Phase
		says   string
		after  time.Duration
	}{
		"no Envoy":                   {0, plan(10, 100), Succeeded, "", 2 * time.Minute},
		"no Envoy, and a group":      {0, group, Succeeded, "", 2 * time.Minute},
		"a group that nobody is of":  {3, group, RolledBack, "no Envoy is of the group canary, which a step is for", 30 * time.Second},
		"no dwell, and a small step": {3, Plan{Steps: []Step{{Share: 1}, {Share: 100}}, TakeTime: time.Minute}, Succeeded, "", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(c.envoys, 9)
			s, end := f.run(t, begin(t, c.plan), start, nil)
			if got := s.History[0]; got.Phase != c.phase || got.Reason != c.says || end.Sub(start) > c.after+5*time.Second || end.Sub(start) < c.after {
				t.Errorf("after %v: %+v", end.Sub(start), got)
			}
		})
	}
}

func TestCompared(t *testing.T) {
	node := func(id, has string, counts, past int) Node {
		return Node{ID: id, Has: has, Counts: Counts{Requests: counts}, Past: Counts{Requests: past}}
	}
	r := Rollout{From: "r1", To: "r2", Plan: plan(50, 100), Chosen: []string{"a"}}
	for name, c := range map[string]struct {
		before, others, fresh, old int
	}{
		"others, now":           {60, 50, 7, 50},
		"an earlier step":       {60, 49, 7, 60},
		"the minutes before":    {49, 49, 7, 300},
		"others, and no step":   {0, 80, 7, 80},
		"nothing but the past":  {0, 0, 7, 300},
		"one that has neither":  {0, 10, 7, 300},
		"exactly enough of all": {50, 50, 7, 50},
	} {
		r.Before = Counts{Requests: c.before}
		fresh, old := r.Compared([]Node{node("a", "r2", 7, 100), node("b", "r1", c.others, 200), node("c", "r0", 1000, 0)})
		if fresh.Requests != c.fresh || old.Requests != c.old {
			t.Errorf("%s: %v and %v", name, fresh, old)
		}
	}
}

func TestUnable(t *testing.T) {
	f := newFleet(3, 10)
	s := begin(t, plan(50, 100))
	s = s.Advance(f.seen(s), []Unable{{"g1", "r1", "no"}, {"g1", "r0", "no"}}, start)
	if s.Current == nil {
		t.Fatal("it went back for another revision")
	}
	s = s.Advance(f.seen(s), []Unable{{"g1", "r2", "the host a.test is refused"}}, start)
	if s.Stable != "r1" || s.History[0].Reason != "the gate g1 cannot serve it: the host a.test is refused" {
		t.Errorf("%+v", s)
	}
}

// The times by which a step is judged move together, and no others do.
func TestMoved(t *testing.T) {
	f := newFleet(4, 11)
	s := begin(t, plan(50, 100))
	for i := range 5 {
		f.live(s)
		if i == 3 {
			f.envoys[2].gone, f.envoys[3].gone = true, true
		}
		s = s.Advance(f.seen(s), nil, start.Add(time.Duration(i)*time.Second))
	}
	if s.Current.Settled.IsZero() || len(s.Current.Away) == 0 || !s.Times().Equal(start.Add(3*time.Second)) {
		t.Fatalf("%v %+v", s.Times(), s.Current)
	}
	moved := s.Moved(time.Hour)
	if got, want := moved.Times(), s.Times().Add(time.Hour); !got.Equal(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if again := moved.Moved(-time.Hour); !reflect.DeepEqual(again, s) {
		t.Errorf("%+v", again)
	}
	if !moved.Current.Began.Equal(s.Current.Began) || (State{}).Moved(time.Hour).Current != nil || !(State{}).Times().IsZero() {
		t.Error("other times were moved")
	}
}

// While it is paused nobody is chosen, and it still goes back.
func TestPaused(t *testing.T) {
	f := newFleet(4, 12)
	s, err := begin(t, plan(25, 100)).Pause("wait")
	if err != nil {
		t.Fatal(err)
	}
	now := start
	pass := func(n int) {
		for range n {
			f.live(s)
			now = now.Add(time.Second)
			s = s.Advance(f.seen(s), nil, now)
		}
	}
	pass(100)
	if len(s.Current.Chosen) > 0 {
		t.Fatalf("chosen are %v", s.Current.Chosen)
	}
	if s, err = s.Resume(now); err != nil {
		t.Fatal(err)
	}
	pass(5)
	if s, err = s.Pause("wait"); err != nil || len(s.Current.Chosen) != 1 {
		t.Fatalf("%v %+v", err, s.Current)
	}
	for i := range 8 {
		f.envoys = append(f.envoys, &envoy{id: fmt.Sprintf("later-%d", i), has: "r1"})
	}
	pass(100)
	if len(s.Current.Chosen) != 1 {
		t.Fatalf("chosen are %v", s.Current.Chosen)
	}
	for _, e := range f.envoys {
		e.refuses = "r2"
	}
	pass(1)
	if s.Current != nil || s.History[0].Phase != RolledBack {
		t.Errorf("%+v", s.Current)
	}
}

func TestOperators(t *testing.T) {
	s := begin(t, plan(50, 100))
	if _, err := s.Start(Rollout{ID: "2", To: "r3", Plan: plan(100)}, start); err == nil || !strings.Contains(err.Error(), "another rollout is under way") {
		t.Errorf("a second one: %v", err)
	}
	f := newFleet(2, 5)
	s = s.Advance(f.seen(s), nil, start)
	s, err := s.Pause("lunch")
	if err != nil {
		t.Fatal(err)
	}
	now := start
	for range 600 {
		f.live(s)
		s = s.Advance(f.seen(s), nil, now)
		now = now.Add(time.Second)
	}
	if s.Current == nil || s.Current.Step != 0 || s.Current.Phase != Paused || len(s.Current.Chosen) != 1 {
		t.Fatalf("paused: %+v", s.Current)
	}
	resumed, err := s.Resume(now)
	if err != nil {
		t.Fatal(err)
	}
	if done, _ := f.run(t, resumed, now, nil); done.Stable != "r2" {
		t.Errorf("resumed: %+v", done)
	}
	if aborted, err := s.Abort("no", now); err != nil || aborted.Revision(s.Current.Chosen[0]) != "r1" || aborted.History[0].Phase != Aborted {
		t.Errorf("aborted: %v %+v", err, aborted)
	}
	if promoted, err := s.Promote("yes", now); err != nil || promoted.Revision("anybody") != "r2" {
		t.Errorf("promoted: %v %+v", err, promoted)
	}
	for _, f := range []func(State) (State, error){
		func(s State) (State, error) { return s.Pause("") }, func(s State) (State, error) { return s.Resume(now) },
		func(s State) (State, error) { return s.Promote("", now) }, func(s State) (State, error) { return s.Abort("", now) },
	} {
		if _, err := f(State{Stable: "r1"}); err == nil {
			t.Error("something was done to no rollout")
		}
	}
	for name, r := range map[string]Rollout{"the same": {To: "r1", Plan: plan(100)}, "no last step": {To: "r2", Plan: plan(50)}, "no step": {To: "r2"}} {
		if _, err := (State{Stable: "r1"}).Start(r, start); err == nil {
			t.Errorf("%s: it began", name)
		}
	}
	if first, err := (State{}).Start(Rollout{To: "r1", Plan: plan(100)}, start); err != nil || first.Stable != "r1" || first.Current != nil {
		t.Errorf("the first: %v %+v", err, first)
	}
}

// store is the document as gates see it: reads may be late, and of two that write at once one does.
type store struct {
	states []State
}

func (s *store) read(r *rand.Rand) (State, int) {
	at := len(s.states) - 1
	if at > 0 && r.IntN(3) == 0 {
		at-- // a standby that lags
	}
	return s.states[at], at
}

func (s *store) write(state State, version int) bool {
	if version != len(s.states)-1 {
		return false
	}
	s.states = append(s.states, state)
	return true
}

// TestModel lets several gates, which die and come back at any point, and operators lead a fleet whose Envoys refuse, fail and go away,
// and holds every history to what must be true of it.
func TestModel(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := newFleet(1+r.IntN(12), seed)
		bad := r.IntN(2) == 0
		for _, e := range f.envoys {
			if bad && r.IntN(3) == 0 {
				e.refuses = "r2"
			}
		}
		docs := &store{states: []State{begin(t, plan(1+r.IntN(30), 31+r.IntN(40), 100))}}
		alive := [2]int{} // seconds until a gate is back
		operated := false
		for second := range 1200 {
			now := start.Add(time.Duration(second) * time.Second)
			actual := docs.states[len(docs.states)-1]
			f.live(actual)
			for g := range alive {
				if alive[g] > 0 {
					alive[g]--
					continue
				}
				if r.IntN(100) == 0 {
					alive[g] = r.IntN(60) // killed, after it had read or written or before
				}
				state, version := docs.read(r)
				next := state.Advance(f.seen(state), nil, now)
				if !reflect.DeepEqual(next, state) && r.IntN(20) > 0 {
					docs.write(next, version)
				}
			}
			if r.IntN(400) == 0 {
				if next, err := actual.Abort("operator", now); err == nil {
					operated = docs.write(next, len(docs.states)-1) || operated
				}
			}
		}
		last := docs.states[len(docs.states)-1]
		f.live(last)
		if last.Current != nil || len(last.History) != 1 {
			t.Fatalf("seed %d: after twenty minutes it is not over: %+v", seed, last)
		}
		for i, s := range docs.states {
			if i > 0 && len(s.History) < len(docs.states[i-1].History) {
				t.Fatalf("seed %d: history was lost", seed)
			}
			if s.Current == nil && s.Revision("x") != s.Stable {
				t.Fatalf("seed %d: no rollout, and two revisions", seed)
			}
		}
		refuser := slices.ContainsFunc(f.envoys, func(e *envoy) bool { return e.refuses != "" })
		switch end := last.History[0].Phase; {
		case end == Succeeded && refuser:
			t.Fatalf("seed %d: succeeded with an Envoy that refuses", seed)
		case end != Succeeded && !refuser && !operated:
			t.Fatalf("seed %d: %s: %s", seed, end, last.History[0].Reason)
		case (end == Succeeded) != (last.Stable == "r2"):
			t.Fatalf("seed %d: %s, and %s is stable", seed, end, last.Stable)
		}
		for _, e := range f.envoys {
			if e.has != last.Stable {
				t.Fatalf("seed %d: %s has %s, and %s is stable", seed, e.id, e.has, last.Stable)
			}
		}
	}
}

// Values of R's fisher.test(alternative = "greater").
func TestFisher(t *testing.T) {
	for _, c := range []struct {
		k, n, k0, n0 int
		want         float64
	}{
		{3, 4, 1, 4, 0.2428571428571429},   // the lady tasting tea
		{4, 4, 0, 4, 0.014285714285714285}, // 1/70
		{0, 10, 5, 10, 1},                  // none of them
		{10, 10, 0, 10, 5.41254e-06},       // 1/184756
		{5, 100, 0, 1000, 5.661e-06},       // (100 choose 5) / (1100 choose 5)
		{500, 10000, 500, 10000, 0.5129},   // the same, about
	} {
		if got := fisher(c.k, c.n, c.k0, c.n0); math.Abs(got-c.want) > c.want*0.02 {
			t.Errorf("%+v: %.8g", c, got)
		}
	}
}

// How often a revision that is as good as the one before is taken for worse, with a look each second for ten minutes.
func TestChanceIsNotTakenForHarm(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	wrong := 0
	for range 300 {
		var k, n, k0, n0 int
		for range 600 {
			for range 5 {
				n++
				if r.Float64() < 0.05 {
					k++
				}
			}
			for range 45 {
				n0++
				if r.Float64() < 0.05 {
					k0++
				}
			}
			if n >= 50 && worse(k, n, k0, n0) {
				wrong++
				break
			}
		}
	}
	if wrong > 3 {
		t.Errorf("%d of 300 good revisions went back", wrong)
	}
}
