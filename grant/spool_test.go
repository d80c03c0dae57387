package grant

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// shelf is a Spool in memory.
type shelf struct {
	mu      sync.Mutex
	entries map[string][]byte
	full    error // what Keep fails with
	corrupt bool
}

func (s *shelf) Keep(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != nil {
		return s.full
	}
	if s.entries == nil {
		s.entries = map[string][]byte{}
	}
	s.entries[name] = data
	return nil
}

func (s *shelf) Read(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.entries[name]
	switch {
	case !ok:
		return nil, fs.ErrNotExist
	case s.corrupt:
		return []byte(`{"Base":`), nil
	}
	return data, nil
}

func (s *shelf) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, name)
	return nil
}

func (s *shelf) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// crashed makes a replica refresh and then leaves, as a kill would, before the store has the answer.
func crashed(t *testing.T, w *world, spool *shelf) {
	t.Helper()
	w.mem.Inject(func(op, path string) vaulttest.Fault {
		if op == "put" && path == "grants/claude" && w.as.count() > 0 {
			return vaulttest.Fault{Before: vault.ErrUnavailable}
		}
		return vaulttest.Fault{}
	})
	k, stop := w.run(Options{Holder: "here", Spool: spool, Drain: time.Millisecond})
	w.token(k)
	if err := stop(); err == nil || strings.Contains(err.Error(), "spooled on this machine") != (spool.full == nil) {
		t.Errorf("Run: %v", err)
	}
	w.mem.Inject(nil)
}

// A process that ended between the provider's answer and the store is followed by one that stores the answer: the refresh
// token is not presented again.
func TestSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		spool := &shelf{}
		crashed(t, w, spool)
		if spool.len() != 1 || w.stored().Generation != 0 {
			t.Fatalf("%d entries spooled, generation %d stored", spool.len(), w.stored().Generation)
		}
		k, _ := w.run(Options{Holder: "here", Spool: spool})
		if got := w.token(k).Access.Reveal(); got != "at"+mark+"2" {
			t.Error("not the token of before the crash")
		}
		synctest.Wait()
		if spool.len() != 0 || w.stored().Generation != 1 || w.stored().Lease != nil {
			t.Errorf("%d entries left, generation %d, lease %v", spool.len(), w.stored().Generation, w.stored().Lease)
		}
		time.Sleep(time.Hour)
		w.token(k)
		w.as.once(t, 2)
		if h := w.status().History; len(h) != 3 || h[1].What != Refreshed || h[1].Generation != 1 {
			t.Errorf("history %+v", h)
		}
	})
}

// What was spooled is worth nothing any more when the operator has reconnected, the grant is gone, or another replica got
// further; and everything when another replica found the refresh token spent.
func TestSpoolIsJudged(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(*world)
		token     string // served after the restart; "" for none
	}{
		"reconnected":  {func(w *world) { w.connect() }, "at" + mark + "3"},
		"disconnected": {func(w *world) { _ = Disconnect(w.Context(), w.docs, "claude") }, ""},
		"sibling got further": {func(w *world) {
			r, ver, _ := getRecord(w.Context(), w.docs, "claude")
			_, _ = putRecord(w.Context(), w.docs, "claude", r.answered(w.as.grant(), "sibling", time.Now(), time.Now()), ver)
		}, "at" + mark + "3"},
		"sibling gave up": {func(w *world) {
			r, ver, _ := getRecord(w.Context(), w.docs, "claude")
			r.Lease = nil
			r = r.leased(lease{ID: "b"}, "").failed(&oauth.Error{Outcome: oauth.InvalidGrant, Status: 400}, "sibling", time.Now(), 0)
			_, _ = putRecord(w.Context(), w.docs, "claude", r.happened(Event{What: Ended}), ver)
		}, "at" + mark + "2"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				time.Sleep(2 * time.Hour)
				spool := &shelf{}
				crashed(t, w, spool)
				tt.meanwhile(w)
				k, _ := w.run(Options{Holder: "here", Spool: spool})
				if tt.token == "" {
					w.refused(k, NeverConnected)
				} else if got := w.token(k).Access.Reveal(); got != tt.token {
					t.Errorf("serves %s, want %s", got, tt.token)
				}
				synctest.Wait()
				if spool.len() != 0 {
					t.Error("the entry was left")
				}
				if name == "sibling gave up" && !w.stored().Reused {
					t.Error("it is forgotten that the spent token was presented")
				}
			})
		})
	}
}

// A spool that takes nothing costs only what it is for; one that cannot be read is said and left.
func TestSpoolFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		crashed(t, w, &shelf{full: errors.New("no space left on device")})
		if w.logged("the spool fails", "no space left") == 0 {
			t.Error("a full spool is not logged")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		spool := &shelf{corrupt: true, entries: map[string][]byte{"claude": nil}}
		k, _ := w.run(Options{Spool: spool})
		w.token(k)
		if w.logged("cannot be read", "level=ERROR") != 1 || spool.len() != 1 {
			t.Error("an unreadable entry is not logged, or was removed")
		}
	})
}

// However slow the provider is, no other replica presents the refresh token while the first one waits for the answer.
func TestSlowProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.latency = 50 * time.Second
		time.Sleep(2 * time.Hour)
		a, _ := w.run(Options{Holder: "a"})
		b, _ := w.run(Options{Holder: "b"})
		var wg sync.WaitGroup
		for _, k := range []*Keeper{a, b} {
			wg.Go(func() { w.token(k) })
		}
		wg.Wait()
		w.as.once(t, 1)
		if r := w.stored(); r.Unanswered != 0 || r.Lease != nil {
			t.Errorf("%d unanswered, lease %v", r.Unanswered, r.Lease)
		}
	})
}

// The store fails, or loses answers, while a lease is renewed.
func TestRenewalFails(t *testing.T) {
	for name, fault := range map[string]vaulttest.Fault{
		"down": {Before: vault.ErrUnavailable}, "answers lost": {After: vault.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				w.as.latency = 50 * time.Second
				time.Sleep(2 * time.Hour)
				n := 0
				w.mem.Inject(func(op, path string) vaulttest.Fault {
					if op == "put" && path == "grants/claude" {
						if n++; n == 3 || n == 4 {
							return fault
						}
					}
					return vaulttest.Fault{}
				})
				a, _ := w.run(Options{Holder: "a"})
				b, _ := w.run(Options{Holder: "b"})
				w.token(a)
				w.token(b)
				w.as.once(t, 1)
			})
		})
	}
}

// A process that ends again and again after it took the lease and before it called the provider costs the grant nothing:
// its successor knows from the spool that the refresh token was not presented. Without a spool it has to assume that it was.
func TestCrashLoopBeforeCall(t *testing.T) {
	for _, spool := range []*shelf{{}, nil} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, time.Hour)
			w.connect()
			time.Sleep(2 * time.Hour)
			o := Options{Holder: "here"}
			if spool != nil {
				o.Spool = spool
			}
			for range 5 {
				r, ver, _ := getRecord(t.Context(), w.docs, "claude")
				r = r.leased(lease{ID: time.Now().String(), Holder: "here", Deadline: time.Now().Add(20 * time.Second), Marked: spool != nil}, leaseID(r))
				if spool == nil {
					r.Lease.Attempt = 2
				}
				if _, err := putRecord(t.Context(), w.docs, "claude", r, ver); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			k, _ := w.run(o)
			if spool == nil {
				w.refused(k, NeedsReconnect)
				return
			}
			w.token(k)
			w.as.once(t, 1)
			if r := w.stored(); r.Unanswered != 0 {
				t.Errorf("%d unanswered", r.Unanswered)
			}
		})
	}
}

// Two gateways with one name, as when a spool directory is copied, are two: a lease that appears while we run is a twin's.
func TestTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.latency = 30 * time.Second
		a, _ := w.run(Options{Holder: "same", Spool: &shelf{}})
		b, _ := w.run(Options{Holder: "same", Spool: &shelf{}})
		w.token(a)
		w.token(b)
		for range 5 {
			time.Sleep(30 * time.Minute)
			w.token(a)
			w.token(b)
		}
		w.as.once(t, w.as.count())
	})
}
