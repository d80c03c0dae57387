package worker

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// holder is a worker with its session.
type holder struct {
	session     Session
	identity    string // as it crosses Envoy
	token       secret.Text
	placeholder string
}

// crowd are n live sessions of n workers, each renewed once, at a gate that has written and read them.
func crowd(t testing.TB, n int) (*Sessions, []holder) {
	t.Helper()
	clock := now
	gate := replicas(t, vaulttest.NewMemory(), &clock, 1)[0]
	all := make([]holder, n)
	for i := range all {
		s, token, err := gate.Issue(fmt.Sprintf("worker-%d", i), "default", time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		gate.Issued(s, "repo:acme/app:ref:refs/heads/main", "192.0.2.1")
		gate.Renew(s, now.Add(2*time.Hour))
		all[i] = holder{s, s.Identity(), token, gate.Placeholder(s, "claude", "sk-ant-oat01-")}
	}
	if err := Revoke(t.Context(), gate.Ledger.docs, Revocation{Workers: []string{"another"}, NotBefore: now}, now); err != nil {
		t.Fatal(err)
	}
	turn(t, gate)
	return gate, all
}

// connects is what happens when a worker opens a tunnel, requests what happens for each request in it.
func (h holder) connects(gate *Sessions) bool {
	s, err := gate.Verify(h.session.ID, h.token)
	return err == nil && gate.Check(s, now) == nil
}

func (h holder) requests(gate *Sessions) bool {
	s, err := ParseIdentity(h.identity)
	if err != nil || gate.Check(s, now) != nil {
		return false
	}
	_, why := gate.Recognize(h.placeholder, s, "claude", "sk-ant-oat01-")
	return why == ""
}

// What one session costs does not depend on how many there are, and those that are over cost nothing.
func TestManySessions(t *testing.T) {
	made := func(n int) (connect, request float64) {
		gate, all := crowd(t, n)
		h := all[n/2]
		return testing.AllocsPerRun(100, func() {
				if !h.connects(gate) {
					t.Error("not let in")
				}
			}), testing.AllocsPerRun(100, func() {
				if !h.requests(gate) {
					t.Error("not recognised")
				}
			})
	}
	connect1, request1 := made(1)
	connect, request := made(10_000)
	if connect != connect1 || request != request1 {
		t.Errorf("with 10,000 sessions %v and %v allocations, with one %v and %v", connect, request, connect1, request1)
	}

	clock := now
	gate := replicas(t, vaulttest.NewMemory(), &clock, 1)[0]
	for range 20 {
		for range 1000 {
			enrolled(t, gate, "ci", clock)
		}
		turn(t, gate)
		clock = clock.Add(time.Hour)
	}
	remembered := 0
	for i := range gate.shards {
		remembered += len(gate.shards[i].live)
	}
	live, err := ListSessions(t.Context(), gate.Ledger.docs, clock.Add(-time.Second))
	if err != nil || remembered > 1000 || len(live) > 1000 {
		t.Errorf("of 20,000 sessions, 1000 at a time, %d are remembered and %d written down, %v", remembered, len(live), err)
	}
}

// processorTime is what this process has used so far: on a machine that does other things the clock says less.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkSessions(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		gate, all := crowd(b, n)
		runtime.GC()
		runtime.ReadMemStats(&after)
		for name, do := range map[string]func(holder, *Sessions) bool{"connect": holder.connects, "request": holder.requests} {
			b.Run(fmt.Sprintf("%s/live=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				i, used := 0, processorTime(b)
				for b.Loop() {
					if i++; !do(all[i%n], gate) {
						b.Fatal("refused")
					}
				}
				b.ReportMetric(float64((processorTime(b)-used).Nanoseconds())/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
			})
		}
	}
}
