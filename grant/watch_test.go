package grant

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever watches is told of the one refresh by who made it, of the wait for it by who did not, and of tokens by both.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.as.latency = 3 * time.Second
		w.connect()
		time.Sleep(2 * time.Hour)
		type told struct {
			memory, waited int
			refreshes      []What
			awaited        []time.Duration
		}
		var mu sync.Mutex
		all := make([]told, 2)
		watch := func(s *told) Watch {
			return Watch{
				Token: func(waited bool) {
					mu.Lock()
					defer mu.Unlock()
					if waited {
						s.waited++
					} else {
						s.memory++
					}
				},
				Happened: func(name string, e Event) {
					mu.Lock()
					defer mu.Unlock()
					if s.refreshes = append(s.refreshes, e.What); name != "claude" || e.Took != w.as.latency {
						t.Errorf("%s: %+v", name, e)
					}
				},
				Awaited: func(name string, d time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					s.awaited = append(s.awaited, d)
				},
			}
		}
		a, stopA := w.run(Options{Watch: watch(&all[0])})
		time.Sleep(time.Second) // it has the lease
		b, stopB := w.run(Options{Watch: watch(&all[1])})
		for _, k := range []*Keeper{a, b, a, b} {
			w.token(k)
		}
		time.Sleep(time.Minute)
		stopA()
		stopB()
		first, second := all[0], all[1]
		if len(first.refreshes) != 1 || first.refreshes[0] != Refreshed || len(second.refreshes) != 0 {
			t.Errorf("refreshes: %v and %v", first.refreshes, second.refreshes)
		}
		if len(first.awaited) != 0 || len(second.awaited) != 1 || second.awaited[0] <= 0 || second.awaited[0] > 10*time.Second {
			t.Errorf("waits for the other's lease: %v and %v", first.awaited, second.awaited)
		}
		if first.waited != 1 || first.memory != 1 || second.waited+second.memory != 2 {
			t.Errorf("tokens: %+v and %+v", first, second)
		}
	})
}
