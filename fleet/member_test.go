package fleet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/rollout"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// Stories that are the same over the store in memory, where time is the test's, and over a real OpenBao.
var stories = map[string]func(t *testing.T, w *world){
	"a good one reaches all": func(t *testing.T, w *world) {
		w.begin(3, 6, steps(3*time.Second, 10, 100))
		w.until(30*time.Second, "one has it", func(rollout.State) bool { return len(w.had()) > 0 })
		if got := w.had(); !slices.Equal(got, []string{w.canary().id}) {
			t.Errorf("%v had it first", got)
		}
		w.over(time.Minute, rollout.Succeeded, "")
	},
	"an Envoy refuses it": func(t *testing.T, w *world) {
		w.addEnvoys(6)
		c := w.canary()
		c.refuses = "r2"
		w.begin(3, 0, steps(3*time.Second, 10, 100))
		began := time.Now()
		w.over(30*time.Second, rollout.RolledBack, "the Envoy "+c.id+" refuses it: no such filter")
		if took := time.Since(began); w.inBubble() && took > 2*idleEvery {
			t.Errorf("all were back %v after the start", took)
		}
		if got := w.had(); len(got) > 0 {
			t.Errorf("%v had it", got)
		}
	},
	"more requests fail": func(t *testing.T, w *world) {
		w.addEnvoys(6)
		c := w.canary()
		c.fails["r2"] = 30
		w.begin(3, 0, steps(time.Minute, 10, 100))
		w.over(time.Minute, rollout.RolledBack, "requests failed with it")
		if got := w.had(); !slices.Equal(got, []string{c.id}) {
			t.Errorf("%v had it", got)
		}
	},
	"a gate cannot serve it": func(_ *testing.T, w *world) {
		w.begin(2, 4, rollout.Plan{})
		w.change(func() {
			w.gates[1].cannot = map[string]error{"r2": errors.New("the host a.test is refused"), "r1": nil}
		})
		if err := w.start("1", steps(3*time.Second, 100)); err != nil {
			w.t.Fatal(err)
		}
		w.over(30*time.Second, rollout.RolledBack, "the gate gate-1 cannot serve it: the host a.test is refused")
	},
	"Vault is away": func(t *testing.T, w *world) {
		w.begin(2, 4, steps(3*time.Second, 10, 100))
		w.until(30*time.Second, "one has it", func(rollout.State) bool { return len(w.had()) > 0 })
		w.away(true)
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); <-time.After(tick) {
			w.live()
		}
		w.away(false)
		w.over(time.Minute, rollout.Succeeded, "")
	},
	"more requests fail than before": func(t *testing.T, w *world) {
		w.begin(2, 4, rollout.Plan{})
		w.change(func() {
			for _, e := range w.envoys {
				e.fails["r1"], e.fails["r2"] = 2, 40
			}
		})
		w.until(time.Minute, "they have had requests", func(rollout.State) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.envoys[3].requests > 100
		})
		if err := w.start("1", steps(time.Minute, 100)); err != nil {
			t.Fatal(err)
		}
		w.until(time.Minute, "they have had it", func(rollout.State) bool { return len(w.had()) == 4 })
		w.over(time.Minute, rollout.RolledBack, "requests failed with it")
	},
	"two starts at once": func(t *testing.T, w *world) {
		w.begin(2, 2, rollout.Plan{})
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() { errs[i] = w.start(fmt.Sprint(i+1), steps(time.Second, 100)) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), rollout.ErrUnderWay) {
			t.Errorf("%v", errs)
		}
		w.over(30*time.Second, rollout.Succeeded, "")
	},
}

// begin starts gates, Envoys, and a rollout, if the plan is one.
func (w *world) begin(gates, envoys int, p rollout.Plan) {
	w.t.Helper()
	for i := range gates {
		w.gate(fmt.Sprintf("gate-%d", i), nil, 0)
	}
	w.addEnvoys(envoys)
	if w.inBubble() {
		w.pass(5 * time.Second)
	}
	w.until(20*time.Second, "every gate knows of every Envoy", func(rollout.State) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !slices.ContainsFunc(w.gates, func(g *gate) bool { return len(g.member.View().Envoys()) != len(w.envoys) })
	})
	if len(p.Steps) > 0 {
		if err := w.start("1", p); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestStories(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world, _ *vaulttest.Memory) { story(t, w) })
		})
	}
}

func TestStoriesOverOpenBao(t *testing.T) {
	t.Parallel()
	for name, story := range stories {
		if strings.HasPrefix(name, "more requests") {
			continue // which have nothing to do with the store
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vaulttest.Start(t)
			w := newWorld(t, s.Gateway, s.Operator)
			w.away = func(is bool) {
				if is {
					s.Seal(t)
				} else {
					s.Unseal(t)
				}
			}
			defer w.close()
			story(t, w)
		})
	}
}

// A gate that dies between any two calls of the store, or while one is answered, does not stop a rollout, and does not split it:
// alone, with its Envoys, when it comes back, and when all gates die and another one comes.
func TestGateDiesAnywhere(t *testing.T) {
	t.Parallel()
	const (
		alone = iota
		withEnvoys
		back
		all
		kinds
	)
	calls, ends := 0, map[string]int{}
	run := func(at, kind int, after bool) {
		inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
			died := make(chan struct{})
			m := &mortal{Documents: docs, left: at, after: after, die: func() {}}
			var first Documents
			if kind == all {
				first = m
			}
			gates := []*gate{w.gate("gate-0", first, 0), w.gate("gate-1", m, 0)}
			if gates[0].dead || gates[1].dead { // before it had begun
				return
			}
			m.mu.Lock()
			m.die = func() {
				close(died)
				w.change(func() {
					for _, e := range w.envoys {
						e.gone = e.gone || kind == withEnvoys && e.at == gates[1]
					}
					gates[1].dead, gates[0].dead = true, kind == all
				})
				gates[1].end()
				if kind == all {
					gates[0].end()
				}
			}
			m.mu.Unlock()
			w.addEnvoys(4)
			w.pass(2 * time.Second)
			if err := w.start("1", steps(2*time.Second, 30, 100)); err != nil {
				t.Fatal(err)
			}
			if kind >= back {
				w.until(2*time.Minute, "the gate has died, or the rollout is over", func(s rollout.State) bool {
					select {
					case <-died:
						return true
					default:
						return s.Current == nil
					}
				})
				w.pass(time.Second)
				w.gate("gate-1", nil, 0)
			}
			r := w.over(5*time.Minute, "", "")
			m.mu.Lock()
			calls = max(calls, m.calls)
			m.mu.Unlock()
			ends[string(r.Phase)]++
			if kind != withEnvoys && r.Phase != rollout.Succeeded {
				t.Errorf("call %d: %s", at, r.Reason)
			}
		})
	}
	run(1<<30, alone, false)
	if calls < 20 {
		t.Fatalf("a whole rollout took %d calls", calls)
	}
	for at := range calls {
		run(2+at, alone, at%2 == 1)
		for kind := range kinds {
			run(2+at, kind, (at+kind)%2 == 0)
		}
	}
	t.Logf("%d calls, and it ended so: %v", calls, ends)
}

// While Vault is away nothing moves, and nothing is held against anybody after it.
func TestVaultAway(t *testing.T) {
	for _, after := range []time.Duration{0, 300 * time.Millisecond, 2 * time.Second, 4 * time.Second} {
		inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
			w.begin(3, 6, steps(5*time.Second, 10, 100))
			w.pass(after + tick)
			before, _, err := ReadState(t.Context(), docs)
			if err != nil {
				t.Fatal(err)
			}
			w.change(func() { w.vault = true })
			docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
			back := time.Now().Add(5 * time.Minute)
			for time.Now().Before(back) {
				w.live()
				<-time.After(tick)
			}
			docs.Inject(nil)
			now, _, err := ReadState(t.Context(), docs)
			if err != nil || now.Current == nil || now.Current.Step != before.Current.Step {
				t.Errorf("while Vault was away: %v %+v", err, now)
			}
			w.pass(idleEvery)
			w.change(func() { w.vault = false })
			w.over(time.Minute, rollout.Succeeded, "")
		})
	}
}

// A gate that does not reach Vault, while others do, keeps the rollout from reaching all, and follows when it is back.
func TestGateCutOff(t *testing.T) {
	for _, after := range []time.Duration{0, 3 * time.Second, 6 * time.Second} {
		inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
			cut := &severed{Documents: docs}
			w.gate("gate-cut", cut, 0)
			w.begin(2, 6, steps(5*time.Second, 10, 100))
			w.pass(after + tick)
			cut.off.Store(true)
			w.change(func() { w.gates[0].cut = true })
			s := w.until(3*time.Minute, "it is over", func(s rollout.State) bool { return s.Current == nil })
			if got := s.History[0]; got.Phase != rollout.RolledBack {
				t.Errorf("cut off after %v: %+v", after, got)
			}
			cut.off.Store(false)
			w.pass(idleEvery)
			w.change(func() { w.gates[0].cut = false })
			w.over(time.Minute, rollout.RolledBack, "")
		})
	}
}

// TestChaos has a store that fails, loses answers and lags, gates that die and come back, and Envoys that are restarted. When that
// ends the rollout does too, and does not go back where no Envoy refuses it.
func TestChaos(t *testing.T) {
	t.Parallel()
	ends := map[rollout.Phase]int{}
	for seed := range uint64(30) {
		inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
			r, faults := rand.New(rand.NewPCG(seed, 3)), rand.New(rand.NewPCG(seed, 4))
			var mu sync.Mutex
			refuser := r.IntN(3) == 0
			w.addEnvoys(2 + r.IntN(6))
			if refuser {
				w.envoys[r.IntN(len(w.envoys))].refuses = "r2"
			}
			p := steps(time.Duration(r.IntN(4))*time.Second, 1+r.IntN(40), 41+r.IntN(40), 100)
			p.TakeTime = time.Minute
			w.begin(3, 0, p)
			w.change(func() { w.vault = true })
			docs.Inject(func(op, _ string) vaulttest.Fault {
				mu.Lock()
				defer mu.Unlock()
				switch faults.IntN(12) {
				case 0:
					return vaulttest.Fault{Before: vault.ErrUnavailable}
				case 1:
					return vaulttest.Fault{After: vault.ErrUnavailable}
				case 2:
					return vaulttest.Fault{Stale: op == "get"}
				}
				return vaulttest.Fault{}
			})
			for range r.IntN(30) {
				for range 1 + r.IntN(20) {
					w.live()
					<-time.After(tick)
				}
				switch i := r.IntN(len(w.gates)); r.IntN(4) {
				case 0:
					if !w.gates[i].dead {
						w.stop(w.gates[i])
						w.gate(w.gates[i].name, nil, time.Duration(r.IntN(600)-300)*time.Second)
					}
				case 1:
					w.change(func() {
						e := w.envoys[r.IntN(len(w.envoys))]
						e.at, e.has, e.told, e.refused = nil, "", "", ""
					})
				}
			}
			docs.Inject(nil)
			w.gate("gate-late", nil, 0) // of the others none may be left
			w.pass(idleEvery)
			w.change(func() { w.vault = false })
			end := w.over(5*time.Minute, "", "")
			ends[end.Phase]++
			if end.Phase != rollout.Succeeded && !refuser {
				t.Errorf("seed %d: %+v", seed, end)
			}
		})
	}
	t.Logf("it ended so: %v", ends)
}

// Gates whose clocks are ten minutes apart keep to the dwell.
func TestClocksDiffer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *vaulttest.Memory) {
		for i, skew := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
			w.gate(fmt.Sprintf("gate-%d", i), nil, skew)
		}
		w.begin(0, 6, rollout.Plan{})
		began := time.Now()
		if err := w.start("1", steps(20*time.Second, 10, 50, 100)); err != nil {
			t.Fatal(err)
		}
		w.over(5*time.Minute, rollout.Succeeded, "")
		if took := time.Since(began); took < time.Minute || took > 80*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// What a lagging standby answers is not followed.
func TestStaleReads(t *testing.T) {
	inWorld(t, func(_ *testing.T, w *world, docs *vaulttest.Memory) {
		n := 0
		var mu sync.Mutex
		docs.Inject(func(op, path string) vaulttest.Fault {
			mu.Lock()
			defer mu.Unlock()
			n++
			return vaulttest.Fault{Stale: op == "get" && path == statePath && n%3 == 0}
		})
		w.begin(2, 4, steps(3*time.Second, 10, 100))
		w.until(time.Minute, "it is over for certain", func(s rollout.State) bool { return s.Current == nil })
		docs.Inject(nil)
		w.over(time.Minute, rollout.Succeeded, "")
	})
}

// The Envoys of a gate that is gone, and that nobody took over, are not there.
func TestEnvoyGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *vaulttest.Memory) {
		w.begin(2, 6, steps(time.Minute, 10, 100))
		c := w.canary()
		w.until(10*time.Second, "it has it", func(rollout.State) bool { return len(w.had()) > 0 })
		w.change(func() { c.gone = true })
		gone := time.Now()
		w.over(time.Minute, rollout.RolledBack, "the Envoy "+c.id+" went away and did not come back within 10s")
		if took := time.Since(gone); took > 15*time.Second {
			t.Errorf("after %v", took)
		}
		w.change(func() { c.gone = false })
		// Begun again, the same revision is judged by what happens now.
		if err := w.start("2", steps(time.Second, 10, 100)); err != nil {
			t.Fatal(err)
		}
		w.over(time.Minute, rollout.Succeeded, "")
	})
}

// A revision that went back for its errors, and is tried again, is not judged by them.
func TestCountsAreFresh(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *vaulttest.Memory) {
		w.addEnvoys(6)
		c := w.canary()
		c.fails["r2"] = 50
		w.begin(3, 0, steps(time.Minute, 10, 100))
		w.over(time.Minute, rollout.RolledBack, "requests failed")
		w.change(func() { c.fails["r2"] = 0 })
		if err := w.start("2", steps(5*time.Second, 10, 100)); err != nil {
			t.Fatal(err)
		}
		w.over(time.Minute, rollout.Succeeded, "")
		w.pass(2 * ReportEvery)
		v := w.gates[0].member.View()
		if got := v.Traffic(c.id, "r2"); got.Requests == 0 || got.Errors > 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Reports of gates that stop are taken back, and those of gates that die are removed in time.
func TestReports(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
		w.begin(3, 3, rollout.Plan{})
		names := func() string {
			all, err := docs.List(t.Context(), gatesDir)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(all, " ")
		}
		if got := names(); got != "gate-0 gate-1 gate-2" {
			t.Errorf("%s", got)
		}
		w.stop(w.gates[1])
		if got := names(); got != "gate-0 gate-2" {
			t.Errorf("after a stop: %s", got)
		}
		docs.Inject(func(op, _ string) vaulttest.Fault {
			if op == "delete" {
				return vaulttest.Fault{Before: vault.ErrUnavailable}
			}
			return vaulttest.Fault{}
		})
		w.stop(w.gates[2])
		docs.Inject(nil)
		w.pass(silent - ReportEvery - othersEvery - time.Second)
		if v := w.gates[0].member.View(); len(v.Reports) != 2 || len(v.Envoys()) != 3 {
			t.Errorf("at once: %+v", v.Reports)
		}
		w.pass(silent)
		if v := w.gates[0].member.View(); len(v.Reports) != 1 || len(v.Envoys()) != 3 {
			t.Errorf("a minute later: %+v", v.Reports)
		}
		w.pass(swept)
		if got := names(); got != "gate-0" {
			t.Errorf("after long: %s", got)
		}
	})
}

// The document that is gone is not taken for a fleet that has none.
func TestStateLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, docs *vaulttest.Memory) {
		w.begin(1, 1, rollout.Plan{})
		if err := docs.Delete(t.Context(), statePath); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		if got := w.gates[0].member.View().State.Stable; got != "r1" {
			t.Errorf("%q is stable", got)
		}
		if _, err := Change(t.Context(), docs, func(s rollout.State) (rollout.State, error) {
			return s.Start(rollout.Rollout{ID: "9", To: "r9", Plan: steps(0, 100)}, time.Now())
		}); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		if got := w.gates[0].member.View().State.Stable; got != "r9" {
			t.Errorf("%q is stable", got)
		}
	})
}

func TestForget(t *testing.T) {
	docs := vaulttest.NewMemory()
	now := time.Now()
	id := func(i int) string { return fmt.Sprintf("%064x", i) }
	s := rollout.State{Stable: id(1) + "+0123456789abcdef", Current: &rollout.Rollout{To: id(2)}}
	for i := range 30 {
		s.History = append(s.History, rollout.Rollout{From: id(100 + i + 1), To: id(100 + i)})
	}
	for i := range 200 {
		stored := now.Add(-2 * time.Hour)
		if i == 50 {
			stored = now
		}
		if err := StoreRevision(t.Context(), docs, Revision{ID: id(i), Text: "x", Stored: stored}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Forget(t.Context(), docs, s, now); err != nil {
		t.Fatal(err)
	}
	left, err := docs.List(t.Context(), revisionsDir)
	want := []string{id(1), id(2), id(50)}
	for i := range 21 {
		want = append(want, id(100+i))
	}
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("%v: %d are left: %v", err, len(left), left)
	}
}

// What a gate says of a thousand Envoys is far from what Vault refuses.
func TestReportIsSmall(t *testing.T) {
	r := Report{Gate: "gate", Rollout: "1", At: time.Now()}
	for i := range 1000 {
		e := Envoy{ID: fmt.Sprintf("envoy-%016x.fleet.example", i*7919), Group: "canary", Version: "1.40.0", Gate: "gate", Since: time.Now().Add(time.Duration(i) * time.Millisecond), Revision: fmt.Sprintf("%064x", 1), Has: fmt.Sprintf("%064x", 1), Listening: true}
		for _, kind := range []string{"Cluster", "Listener", "RouteConfiguration", "Secret", "TypedExtensionConfig", "VirtualHost"} {
			e.Parts = append(e.Parts, Part{Type: kind, Sent: fmt.Sprintf("%s-%016x", kind, i/100), Acked: fmt.Sprintf("%s-%016x", kind, i/100)})
		}
		r.Envoys = append(r.Envoys, e)
		for _, rev := range []int{1, 2} {
			r.Traffic = append(r.Traffic, Traffic{e.ID, fmt.Sprintf("%064x", rev), rollout.Counts{Requests: i * 7919 % 100003, Errors: i % 13, Refusals: i % 7}})
		}
	}
	text, err := vault.Packed{Value: r}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", len(text))
	if len(text) > 200_000 {
		t.Errorf("%d bytes", len(text))
	}
}
