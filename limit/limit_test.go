package limit

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) func() time.Time { return func() time.Time { return start.Add(d) } }

func TestRate(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit Limit
		at    []time.Duration
		wait  []time.Duration // 0: let through
	}{
		{"one a second, one at a moment", Limit{PerMinute: 60, Burst: 1},
			[]time.Duration{0, 0, 999 * time.Millisecond, time.Second, 1500 * time.Millisecond},
			[]time.Duration{0, time.Second, time.Millisecond, 0, 500 * time.Millisecond}},
		{"a burst, then as they come back", Limit{PerMinute: 60, Burst: 3},
			[]time.Duration{0, 0, 0, 0, time.Second, time.Second, time.Hour, time.Hour, time.Hour, time.Hour},
			[]time.Duration{0, 0, 0, time.Second, 0, time.Second, 0, 0, 0, time.Second}},
		{"no burst is one", Limit{PerMinute: 6}, []time.Duration{0, 0}, []time.Duration{0, 10 * time.Second}},
		{"a part of two gates", Limit{PerMinute: 60, Burst: 3, Gates: 2},
			[]time.Duration{0, 0, 0, 2 * time.Second}, []time.Duration{0, 0, 2 * time.Second, 0}},
		{"a clock set back lets nobody wait longer than that", Limit{PerMinute: 60, Burst: 1}, []time.Duration{0, -time.Second}, []time.Duration{0, 2 * time.Second}},
		{"no limit", Limit{}, []time.Duration{0, 0, 0}, []time.Duration{0, 0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m Meters
			for i, d := range c.at {
				release, over, _ := m.Take(t.Context(), at(d), Claim{Key: "w", Limit: c.limit})
				var wait time.Duration
				if over != nil {
					wait = over.Wait
				}
				if release != nil || wait != c.wait[i] {
					t.Errorf("request %d, at %s: wait %s, want %s", i, d, wait, c.wait[i])
				}
			}
		})
	}
}

// However requests come, no span of time has more than the burst and what a minute's share of it is.
func TestRateInTheLongRun(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var m Meters
		l := Limit{PerMinute: 1 + random.IntN(600), Burst: 1 + random.IntN(20)}
		var passed []time.Duration
		for d, n := time.Duration(0), 0; n < 500; n++ {
			d += time.Duration(random.ExpFloat64() * float64(l.per()) / 2)
			if _, over, _ := m.Take(t.Context(), at(d), Claim{Key: "w", Limit: l}); over == nil {
				passed = append(passed, d)
			}
		}
		for i, from := range passed {
			for j := i; j < len(passed); j++ {
				if most := l.Burst + int((passed[j]-from)/l.per()); j-i+1 > most {
					t.Fatalf("%+v: %d requests in %s", l, j-i+1, passed[j]-from)
				}
			}
		}
	}
}

func TestOneClaimTakesNothingFromTheOther(t *testing.T) {
	var m Meters
	worker, grant := Claim{Key: "w", Limit: Limit{PerMinute: 60, Burst: 2, Concurrent: 9}}, Claim{Key: "g", Limit: Limit{PerMinute: 60, Burst: 1}}
	if _, over, _ := m.Take(t.Context(), at(0), worker, grant); over != nil {
		t.Fatal(over)
	}
	for range 5 {
		if _, over, _ := m.Take(t.Context(), at(0), worker, grant); over == nil || over.Claim.Key != "g" || over.Concurrent {
			t.Fatal(over)
		}
	}
	if _, over, _ := m.Take(t.Context(), at(0), worker); over != nil {
		t.Errorf("what the grant refused was counted for the worker: %+v", over)
	}
	if m.of["w"].underWay != 2 {
		t.Errorf("%d under way", m.of["w"].underWay)
	}
}

func TestDryRefusesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meters
		c := Claim{Key: "w", Limit: Limit{PerMinute: 60, Burst: 1, Concurrent: 1}, Dry: true}
		release, over, dry := m.Take(t.Context(), time.Now, c)
		if over != nil || dry != nil || release == nil {
			t.Fatal(over, dry)
		}
		before := time.Now()
		if again, over, dry := m.Take(t.Context(), time.Now, c); over != nil || dry == nil || again != nil || time.Since(before) != 0 {
			t.Errorf("%+v %+v after %s", over, dry, time.Since(before))
		}
		release()
		time.Sleep(time.Second)
		if _, _, dry := m.Take(t.Context(), time.Now, c); dry != nil {
			t.Errorf("what was not counted is counted: %+v", dry)
		}
	})
}

// A request waits for one that ends, not for long, and as many as may be under way.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meters
		c := Claim{Key: "w", Limit: Limit{Concurrent: 1}}
		release, _, _ := m.Take(t.Context(), time.Now, c)

		time.AfterFunc(patience/2, release)
		before := time.Now()
		next, over, _ := m.Take(t.Context(), time.Now, c)
		if over != nil || time.Since(before) != patience/2 {
			t.Fatalf("%+v after %s", over, time.Since(before))
		}

		release() // again, which is nothing
		before = time.Now()
		if _, over, _ := m.Take(t.Context(), time.Now, c); over == nil || !over.Concurrent || over.Wait != time.Second || time.Since(before) != patience {
			t.Errorf("%+v after %s", over, time.Since(before))
		}

		ctx, leave := context.WithCancel(t.Context())
		waited := make(chan *Excess)
		go func() { _, over, _ := m.Take(ctx, time.Now, c); waited <- over }()
		synctest.Wait()
		before = time.Now()
		if _, over, _ := m.Take(t.Context(), time.Now, c); over == nil || time.Since(before) != 0 {
			t.Errorf("there is no more place to wait: %+v after %s", over, time.Since(before))
		}
		leave()
		if over := <-waited; over == nil || time.Since(before) != 0 {
			t.Errorf("who leaves is let in")
		}

		next()
		if _, over, _ := m.Take(t.Context(), time.Now, c); over != nil {
			t.Error(over)
		}
		if w := m.of["w"]; w.waiting != 0 || w.underWay != 1 {
			t.Errorf("%+v", w)
		}
	})
}

func TestNeverMoreAtOnce(t *testing.T) {
	var m Meters
	var now, most, passed atomic.Int64
	claims := []Claim{{Key: "w", Limit: Limit{Concurrent: 5}}, {Key: "g", Limit: Limit{Concurrent: 8, Gates: 2}}}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 200 {
				release, over, _ := m.Take(t.Context(), time.Now, claims...)
				if over != nil {
					continue
				}
				n := now.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				passed.Add(1)
				now.Add(-1)
				release()
			}
		})
	}
	all.Wait()
	if most.Load() > 4 || passed.Load() == 0 {
		t.Errorf("%d at once, %d in all", most.Load(), passed.Load())
	}
	for key, w := range m.of {
		if w.underWay != 0 || w.waiting != 0 {
			t.Errorf("%s: %+v", key, w)
		}
	}
}
