package grant

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// However many requests meet an expired token, one call is made and all of them get its token.
func TestExpiryStorm(t *testing.T) {
	for _, requests := range []int{50, 1000} {
		t.Run(fmt.Sprint(requests), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect("files", "inference")
				time.Sleep(2 * time.Hour)
				k, _ := w.run(Options{})
				var wg sync.WaitGroup
				for range requests {
					wg.Go(func() {
						if got := w.token(k, "inference").Access.Reveal(); got != "at"+mark+"2" {
							t.Error("not the refreshed token")
						}
					})
				}
				wg.Wait()
				w.as.once(t, 1)
				if n := w.logged("grant refreshed", "grant=claude", "outcome=refreshed"); n != 1 {
					t.Errorf("%d log lines for one refresh", n)
				}
			})
		})
	}
}

// A token is replaced ahead of its expiry without any request waiting, for as long as the gateway runs.
func TestRefreshesAhead(t *testing.T) {
	for _, life := range []time.Duration{20 * time.Second, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, life)
				w.connect()
				k, _ := w.run(Options{})
				first := w.token(k).Access
				for range 100 {
					time.Sleep(life / 10)
					before := time.Now()
					tok := w.token(k)
					if waited := time.Since(before); waited != 0 {
						t.Fatalf("a request waited %v while a token was usable", waited)
					}
					if left := time.Until(tok.Expires); left < life/20 {
						t.Fatalf("served a token with %v left of %v", left, life)
					}
				}
				if first.Equal(w.token(k).Access) {
					t.Error("still the first token")
				}
				if n := w.as.count(); n < 9 || n > 14 {
					t.Errorf("%d refreshes in 10 lives", n)
				}
				w.as.once(t, w.as.count())
			})
		})
	}
}

// A token whose life is a second or ten is refreshed as often as that takes and no more, and requests get one even where the
// provider needs longer to answer than the token lives.
func TestShortLives(t *testing.T) {
	for _, tt := range []struct{ life, latency time.Duration }{
		{time.Second, 10 * time.Millisecond},
		{time.Second, 3 * time.Second},
		{0, 10 * time.Millisecond},
		{-time.Hour, 10 * time.Millisecond},
		{10 * time.Second, 10 * time.Millisecond},
		{10 * time.Second, 12 * time.Second},
	} {
		t.Run(fmt.Sprintf("%v after %v", tt.life, tt.latency), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.life)
				w.as.latency = tt.latency
				w.connect()
				k, _ := w.run(Options{})
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
					w.token(k)
				}
				n := w.as.count()
				if most := int(time.Minute / max(tt.life/2, shortestUse/2)); n < 1 || n > most {
					t.Errorf("%d calls in a minute, want at most %d", n, most)
				}
				w.as.once(t, n)
			})
		})
	}
}

// What fails once and works a second later is no failure for a worker, not even with an expired token.
func TestHiccups(t *testing.T) {
	for name, begin := range map[string]func(w *world){
		"provider": func(w *world) {
			w.as.fail = func(n int) error {
				if n == 1 {
					return &oauth.Error{Outcome: oauth.Unknown, Status: 503}
				}
				return nil
			}
		},
		"store": func(w *world) {
			w.mem.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
			time.AfterFunc(time.Second, func() { w.mem.Inject(nil) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				time.Sleep(2 * time.Hour)
				begin(w)
				k, _ := w.run(Options{})
				w.token(k)
			})
		})
	}
}

// An answer without a usable access token may still hold the successor of the refresh token it spent.
func TestUselessAnswerThatRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		w.as.lose = func(n int) error {
			if n < 4 {
				return &oauth.Error{Outcome: oauth.Unknown, Status: 200, Rotated: secret.New(w.as.live)}
			}
			return nil
		}
		k, _ := w.run(Options{})
		time.Sleep(time.Minute)
		w.token(k)
		w.as.once(t, 4)
		if r := w.stored(); r.Generation != 4 || r.Unanswered != 0 || r.LastError != "" {
			t.Errorf("generation %d, unanswered %d, %q", r.Generation, r.Unanswered, r.LastError)
		}
	})
}

// Replicas that share a store present each refresh token once between them, and all get the new tokens.
func TestReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*time.Minute)
		w.connect()
		var replicas []*Keeper
		for i := range 4 {
			k, _ := w.run(Options{Holder: fmt.Sprint("replica-", i)})
			replicas = append(replicas, k)
		}
		for range 30 {
			time.Sleep(10 * time.Minute / 4)
			for _, k := range replicas {
				w.token(k)
			}
		}
		// And the hard case: all of them meet the expired token at once.
		w.as.set(func(a *authority) { a.latency = 2 * time.Second })
		for range 3 {
			w.mem.Inject(func(op, path string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
			time.Sleep(11 * time.Minute)
			w.mem.Inject(nil)
			time.Sleep(5 * time.Second)
			var wg sync.WaitGroup
			for _, k := range replicas {
				for range 50 {
					wg.Go(func() { w.token(k) })
				}
			}
			wg.Wait()
		}
		w.as.once(t, w.as.count())
	})
}

// A client that hangs up ends its own wait, never the refresh.
func TestCancelledRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		k, _ := w.run(Options{})
		ctx, cancel := context.WithTimeout(t.Context(), w.as.latency/2)
		defer cancel()
		_, err := k.Token(ctx, "claude", nil)
		if u, ok := errors.AsType[*Unusable](err); !ok || u.State != RefreshUnavailable || u.RetryAfter <= 0 {
			t.Errorf("Token: %v", err)
		}
		w.token(k)
		w.as.once(t, 1)
	})
}

// The store fails right after the provider's answer: the new token serves, nothing else is presented, and the record
// is written once the store is back.
func TestStoreOutageAfterAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		var down atomic.Bool
		w.as.lose = func(int) error { down.Store(true); return nil }
		w.mem.Inject(func(op, path string) vaulttest.Fault {
			if down.Load() {
				return vaulttest.Fault{Before: vault.ErrUnavailable}
			}
			return vaulttest.Fault{}
		})
		k, _ := w.run(Options{})
		for range 30 {
			w.token(k)
			time.Sleep(time.Second)
		}
		if s := k.Summary("claude"); s.State != Degraded || s.LastError == "" {
			t.Errorf("state %s (%s) while the new token is not stored", s.State, s.LastError)
		}
		down.Store(false)
		time.Sleep(10 * time.Second)
		if r := w.stored(); r.Refresh.Reveal() != "rt"+mark+"2" || r.Generation != 1 || r.Lease != nil {
			t.Errorf("stored generation %d, lease %v", r.Generation, r.Lease)
		}
		if s := w.status(); s.State != Healthy || s.Generation != 1 {
			t.Errorf("status %s of generation %d", s.State, s.Generation)
		}
		w.as.once(t, 1)
	})
}

// A write whose answer gets lost, or that another writer gets ahead of, costs neither a token nor a second call.
func TestWritesThatGoWrong(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault vaulttest.Fault
		ahead bool // another writer changes something of no importance
	}{
		{"answer lost", vaulttest.Fault{After: vault.ErrUnavailable}, false},
		{"not applied", vaulttest.Fault{Before: vault.ErrUnavailable}, false},
		{"conflict", vaulttest.Fault{}, true},
	} {
		for nth, what := range []string{"lease", "answer"} {
			t.Run(tt.name+" of "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, time.Hour)
					w.connect()
					time.Sleep(2 * time.Hour)
					puts := 0
					w.mem.Inject(func(op, path string) vaulttest.Fault {
						if op != "put" || path != "grants/claude" {
							return vaulttest.Fault{}
						}
						puts++
						if puts != nth+1 {
							return vaulttest.Fault{}
						}
						if tt.ahead {
							r, ver, _ := getRecord(t.Context(), w.mem, "claude")
							r.Account = "quinn@example.com"
							if _, err := putRecord(t.Context(), w.mem, "claude", r, ver); err != nil {
								t.Error(err)
							}
						}
						return tt.fault
					})
					k, _ := w.run(Options{})
					w.token(k) // what fails once is waited for
					time.Sleep(5 * time.Second)
					w.as.once(t, 1)
					if r := w.stored(); r.Refresh.Reveal() != "rt"+mark+"2" || r.Lease != nil {
						t.Errorf("stored generation %d, lease %v", r.Generation, r.Lease)
					}
				})
			})
		}
	}
}

// A lease whose writing took so long that the call might outlast it is renewed before the refresh token is presented.
func TestFencing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		var slow sync.Once
		w.mem.Inject(func(op, path string) vaulttest.Fault {
			if op == "put" && path == "grants/claude" {
				slow.Do(func() { time.Sleep(20 * time.Second) })
			}
			return vaulttest.Fault{}
		})
		w.as.fail = func(int) error {
			if left := time.Until(w.stored().Lease.Deadline); left < 15*time.Second {
				t.Errorf("presented the token with %v of the lease left", left)
			}
			return nil
		}
		k, _ := w.run(Options{CallTimeout: 15 * time.Second})
		w.token(k)
		w.as.once(t, 1)
		if r := w.stored(); r.Unanswered != 0 {
			t.Errorf("an unused lease of our own counts as presented")
		}
	})
}

// Reads from a standby that lags by a version lead to no second presentation.
func TestStaleReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*time.Minute)
		w.connect()
		a, _ := w.run(Options{})
		b, _ := w.run(Options{})
		var n atomic.Int64
		w.mem.Inject(func(op, path string) vaulttest.Fault {
			return vaulttest.Fault{Stale: n.Add(1)%3 > 0 && w.as.count() > 0}
		})
		for range 40 {
			time.Sleep(3 * time.Minute)
			w.token(a)
			w.token(b)
		}
		w.as.once(t, w.as.count())
	})
}

// A store set back to a backup holds an older record: the newest one, in memory, goes on serving and is written again at
// once, for gates that start meanwhile.
func TestStoreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		backup := w.stored()
		k, _ := w.run(Options{})
		time.Sleep(time.Hour)
		w.token(k)
		if err := w.docs.Delete(t.Context(), "grants/claude"); err != nil {
			t.Fatal(err)
		}
		if _, err := putRecord(t.Context(), w.docs, "claude", backup, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if got := w.stored().Generation; got != 1 {
			t.Errorf("stored generation %d some seconds later, want 1", got)
		}
		another, _ := w.run(Options{}) // would present the spent one
		time.Sleep(time.Hour)
		w.token(k)
		w.token(another)
		w.as.once(t, 2)
		if got := w.stored().Generation; got != 2 {
			t.Errorf("stored generation %d, want 2", got)
		}
	})
}

// A refresh may narrow a grant. What it still covers works on, the rest is refused with the scopes missing, and after
// one reconnect everything works without anything else changing.
func TestNarrowingAndReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect("files", "inference")
		k, _ := w.run(Options{})
		w.token(k, "files", "inference")
		w.as.set(func(a *authority) { a.scopes = []string{"inference"} })
		time.Sleep(time.Hour)
		w.token(k, "inference")
		w.token(k)
		u := w.refused(k, ScopeMissing, "files", "inference", "admin")
		if !slices.Equal(u.Missing, []string{"admin", "files"}) {
			t.Errorf("missing %q", u.Missing)
		}
		if s := w.status(); s.State != ScopeMissing || !slices.Equal(s.Missing, []string{"files"}) || s.Next == "" {
			t.Errorf("status %s, missing %q, next %q", s.State, s.Missing, s.Next)
		}
		if w.logged("grant refreshed", "scopes_lost=[files]") != 1 {
			t.Error("the narrowing is not in the log")
		}
		if s := w.connect("files", "inference"); s.State != Healthy {
			t.Errorf("connect says %s", s.State)
		}
		time.Sleep(time.Millisecond)
		w.token(k, "files", "inference")
	})
}

// The first request after an operator's connect succeeds, whatever the state was, without waiting for the next periodic
// look; and requests that are refused make the store be read once a second at most.
func TestConnectIsSeen(t *testing.T) {
	for _, tt := range []struct {
		state State
		start func(w *world)
	}{
		{NeverConnected, func(*world) {}},
		{ScopeMissing, func(w *world) { w.connect("files") }},
		{NeedsReconnect, func(w *world) {
			w.connect()
			w.as.set(func(a *authority) { a.revoked = true })
			time.Sleep(2 * time.Hour)
		}},
	} {
		t.Run(string(tt.state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				tt.start(w)
				k, _ := w.run(Options{Reread: time.Hour})
				w.refused(k, tt.state, "inference")
				time.Sleep(10 * time.Second)

				var reads atomic.Int64
				w.mem.Inject(func(op, path string) vaulttest.Fault {
					if op == "get" && path == "grants/claude" {
						reads.Add(1)
					}
					return vaulttest.Fault{}
				})
				var wg sync.WaitGroup
				for range 3000 {
					wg.Go(func() { w.refused(k, tt.state, "inference") })
					time.Sleep(time.Millisecond)
				}
				wg.Wait()
				if n := reads.Load(); n < 3 || n > 5 {
					t.Errorf("%d reads for 3 s of refusals", n)
				}
				w.connect()
				time.Sleep(time.Millisecond)
				before := time.Now()
				w.token(k, "inference")
				if waited := time.Since(before); waited > recheck {
					t.Errorf("the connect was seen %v late", waited)
				}
				synctest.Wait()
				if s := w.status(); s.State != Healthy {
					t.Errorf("status %s after the connect", s.State)
				}
			})
		})
	}
}

// A disconnect ends the use of a grant at the next look at the store, and its status says so, even though the gateway was
// just writing another.
func TestDisconnectIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		w.token(k)
		if err := Disconnect(t.Context(), w.docs, "claude"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		w.refused(k, NeverConnected)
		if s, err := getStatus(t.Context(), w.docs, "claude"); err != nil || s.State != NeverConnected {
			t.Errorf("status %s, %v", s.State, err)
		}
		w.connect()
		time.Sleep(time.Millisecond)
		w.token(k)
	})
}

// Only invalid_grant for a token that is still the stored one is the end; the present token serves until it expires.
func TestInvalidGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.set(func(a *authority) { a.revoked = true })
		k, _ := w.run(Options{})
		time.Sleep(58 * time.Minute)
		w.token(k)
		if s := w.status(); s.State != NeedsReconnect || !strings.Contains(s.LastError, "invalid_grant") || !strings.Contains(s.Next, "wayleave grant connect claude") {
			t.Errorf("status %s, %q, %q", s.State, s.LastError, s.Next)
		}
		time.Sleep(time.Hour)
		w.refused(k, NeedsReconnect)
		if n := w.as.count(); n != 1 {
			t.Errorf("%d calls with a dead token", n)
		}
	})
}

// A sibling's rotation that appears while the provider says invalid_grant is adopted, not buried.
func TestInvalidGrantAfterSiblingRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		w.as.fail = func(int) error {
			r, ver, _ := getRecord(t.Context(), w.docs, "claude")
			next := r.answered(w.as.issue(), "sibling", time.Now(), time.Now())
			if _, err := putRecord(t.Context(), w.docs, "claude", next, ver); err != nil {
				t.Error(err)
			}
			return &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
		}
		k, _ := w.run(Options{})
		if got := w.token(k).Access.Reveal(); got != "at"+mark+"2" {
			t.Error("not the sibling's token")
		}
		if s := k.Summary("claude"); s.State != Healthy {
			t.Errorf("state %s", s.State)
		}
	})
}

// invalid_grant is not believed before the store confirms the token, however long that takes.
func TestInvalidGrantWhileStoreIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.set(func(a *authority) { a.revoked = true })
		time.Sleep(2 * time.Hour)
		w.as.fail = func(int) error {
			w.mem.Inject(func(op, path string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
			return nil
		}
		k, _ := w.run(Options{})
		time.Sleep(time.Minute)
		w.refused(k, VaultUnavailable)
		w.mem.Inject(nil)
		time.Sleep(10 * time.Second)
		w.refused(k, NeedsReconnect)
		if n := w.as.count(); n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

// What failures of the token endpoint make of a grant whose token has expired, and how often it is called.
func TestProviderFails(t *testing.T) {
	refused := func(status int, retry time.Duration) error {
		return &oauth.Error{Outcome: oauth.Refused, Status: status, RetryAfter: retry}
	}
	for _, tt := range []struct {
		name      string
		err       error
		state     State // in the status document
		min, max  int   // calls in 10 min of requests
		afterward bool  // works when the provider does
	}{
		{"nothing sent", &oauth.Error{Outcome: oauth.NotSent, Err: errors.New("connection refused")}, RefreshUnavailable, 8, 18, true},
		{"rate limit", refused(429, 0), RefreshUnavailable, 8, 18, true},
		{"rate limit that says how long", refused(429, 4*time.Minute), RefreshUnavailable, 3, 3, true},
		{"moved", refused(404, 0), RefreshUnavailable, 8, 18, true},
		{"server error", &oauth.Error{Outcome: oauth.Unknown, Status: 503}, RefreshUnavailable, 8, 18, true},
		{"no answer", &oauth.Error{Outcome: oauth.Unknown, Err: errors.New("connection reset")}, NeedsReconnect, 2, 2, false},
		{"an answer that is no token", &oauth.Error{Outcome: oauth.Unknown, Status: 200}, RefreshUnavailable, 8, 18, true},
		{"an error of another kind", errors.New("rt-secret-1 was not liked"), NeedsReconnect, 2, 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				time.Sleep(2 * time.Hour)
				w.as.fail = func(int) error { return tt.err }
				k, _ := w.run(Options{})
				for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
					for range 10 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						if _, err := k.Token(ctx, "claude", nil); err == nil || strings.Contains(err.Error(), mark) {
							t.Fatal("served, or told a secret")
						}
						cancel()
					}
				}
				if n := w.as.count(); n < tt.min || n > tt.max {
					t.Errorf("%d calls, want %d to %d", n, tt.min, tt.max)
				}
				if s := w.status(); s.State != tt.state || s.LastError == "" || s.Next == "" {
					t.Errorf("status %s, %q, %q; want %s", s.State, s.LastError, s.Next, tt.state)
				}
				w.refused(k, tt.state)
				w.as.set(func(a *authority) { a.fail = nil })
				time.Sleep(5 * time.Minute)
				if tt.afterward {
					w.token(k)
				} else {
					w.refused(k, tt.state)
				}
			})
		})
	}
}

// While the token is good, a failing provider is nobody's problem but the operator's.
func TestProviderFailsAhead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		state State
	}{
		{"rate limit", &oauth.Error{Outcome: oauth.Refused, Status: 429}, Degraded},
		{"no answer", &oauth.Error{Outcome: oauth.Unknown}, Ambiguous},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				w.as.fail = func(n int) error {
					if n == 1 {
						return tt.err
					}
					return nil
				}
				k, _ := w.run(Options{})
				for w.as.count() == 0 {
					time.Sleep(100 * time.Millisecond)
					w.token(k)
				}
				time.Sleep(w.as.latency)
				synctest.Wait()
				w.token(k)
				if s := w.status(); s.State != tt.state {
					t.Errorf("status %s, want %s", s.State, tt.state)
				}
				time.Sleep(4 * time.Minute)
				w.token(k)
				if s := w.status(); s.State != Healthy || s.LastError != "" {
					t.Errorf("status %s, %q", s.State, s.LastError)
				}
				w.as.once(t, 2)
			})
		})
	}
}

// The answer to a refresh is lost after the provider has rotated: the one further try is answered invalid_grant, and
// the operator is told why.
func TestAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.lose = func(int) error { return &oauth.Error{Outcome: oauth.Unknown, Err: errors.New("connection reset")} }
		k, _ := w.run(Options{})
		time.Sleep(2 * time.Hour)
		u := w.refused(k, NeedsReconnect)
		if !strings.Contains(u.Error(), "no answer") {
			t.Errorf("the text does not say why: %v", u)
		}
		if n := w.as.count(); n != 2 {
			t.Errorf("%d calls", n)
		}
	})
}

// A replica that dies with the lease is waited for, and then replaced, once.
func TestHolderDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		leave := func(attempt int) {
			r, ver, _ := getRecord(t.Context(), w.docs, "claude")
			r.Lease = &lease{ID: "left", Holder: "dead", Deadline: time.Now().Add(20 * time.Second), Attempt: attempt}
			if _, err := putRecord(t.Context(), w.docs, "claude", r, ver); err != nil {
				t.Fatal(err)
			}
		}
		leave(1)
		k, _ := w.run(Options{})
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := k.Token(ctx, "claude", nil); err == nil || !strings.Contains(err.Error(), "waiting for the refresh") {
			t.Errorf("Token: %v", err)
		} else if u, _ := errors.AsType[*Unusable](err); u.RetryAfter != 11*time.Second {
			t.Errorf("a request is told to come back after %v, want when the lease may be taken over", u.RetryAfter)
		}
		w.token(k)
		if waited := time.Since(begin); waited < 20*time.Second || waited > 22*time.Second {
			t.Errorf("took the lease over after %v", waited)
		}
		w.as.once(t, 1)

		time.Sleep(50 * time.Minute)
		leave(2)
		time.Sleep(time.Hour)
		if u := w.refused(k, NeedsReconnect); !strings.Contains(u.Error(), "presented 2 times without an answer") {
			t.Errorf("the text does not say why: %v", u)
		}
		w.as.once(t, 1)
	})
}

// A running replica sees another's rotation and neither repeats it nor waits for its own turn.
func TestAdopts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		time.Sleep(30 * time.Second)
		r, ver, _ := getRecord(t.Context(), w.docs, "claude")
		if _, err := putRecord(t.Context(), w.docs, "claude", r.answered(w.as.grant(), "sibling", time.Now(), time.Now()), ver); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if got := w.token(k).Access.Reveal(); got != "at"+mark+"2" {
			t.Error("not the sibling's token")
		}
		w.as.once(t, 0)
	})
}

// Without the store nothing can be refreshed: what is in memory serves to its end, and the refusal then says so.
func TestStoreDown(t *testing.T) {
	for name, cause := range map[string]error{"down": vault.ErrUnavailable, "denied": vault.ErrDenied} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				w.connect()
				fault := func(op, path string) vaulttest.Fault { return vaulttest.Fault{Before: cause} }
				w.mem.Inject(fault)
				k, _ := w.run(Options{})
				if u := w.refused(k, VaultUnavailable); !errors.Is(u, cause) {
					t.Errorf("refusal %v does not wrap %v", u, cause)
				}
				w.mem.Inject(nil)
				time.Sleep(5 * time.Second)
				w.token(k)
				w.mem.Inject(fault)
				time.Sleep(58 * time.Minute)
				w.token(k)
				if s := k.Summary("claude"); s.State != Degraded {
					t.Errorf("state %s", s.State)
				}
				time.Sleep(time.Hour)
				if u := w.refused(k, VaultUnavailable); !errors.Is(u, cause) {
					t.Errorf("refusal %v does not wrap %v", u, cause)
				}
				if n := w.as.count(); n != 0 {
					t.Errorf("%d calls without a lease", n)
				}
				w.mem.Inject(nil)
				time.Sleep(6 * time.Second)
				w.token(k)
				w.as.once(t, 1)
				if n := w.logged("grant state"); n > 8 {
					t.Errorf("%d log lines for four changes of state", n)
				}
			})
		})
	}
}

// Where a grant that nobody had connected is looked for and the store does not say, it is not said either that nobody has: another gate, or an
// operator, may have done it.
func TestStoreDownBeforeConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		k, _ := w.run(Options{})
		w.refused(k, NeverConnected)
		w.connect()
		w.mem.Inject(func(op, path string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		time.Sleep(time.Millisecond)
		for range 3 {
			if u := w.refused(k, VaultUnavailable); !errors.Is(u, vault.ErrUnavailable) {
				t.Errorf("refusal %v", u)
			}
			if s := k.Summary("claude"); s.State != VaultUnavailable {
				t.Errorf("state %s", s.State)
			}
			time.Sleep(10 * time.Second)
		}
		w.mem.Inject(nil)
		time.Sleep(5 * time.Second)
		w.token(k)
	})
}

// The same for a request that cannot wait until the store says something.
func TestStoreSlowBeforeConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		k, _ := w.run(Options{})
		w.refused(k, NeverConnected)
		w.connect()
		w.mem.Inject(func(op, path string) vaulttest.Fault {
			time.Sleep(time.Second)
			return vaulttest.Fault{}
		})
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := k.Token(ctx, "claude", nil)
		if u, ok := errors.AsType[*Unusable](err); !ok || u.State != VaultUnavailable || u.RetryAfter == 0 {
			t.Errorf("got %v", err)
		}
		w.token(k)
	})
}

// A store that reads but does not write is as good as down for an expired token, and no reason to spin.
func TestStoreReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		var calls atomic.Int64
		w.mem.Inject(func(op, path string) vaulttest.Fault {
			calls.Add(1)
			if op == "put" {
				return vaulttest.Fault{Before: vault.ErrDenied}
			}
			return vaulttest.Fault{}
		})
		k, _ := w.run(Options{})
		time.Sleep(2 * time.Hour)
		w.refused(k, VaultUnavailable)
		calls.Store(0)
		time.Sleep(time.Minute)
		if n := calls.Load(); n > 60 {
			t.Errorf("%d store calls a minute", n)
		}
		w.mem.Inject(nil)
		time.Sleep(6 * time.Second)
		w.token(k)
	})
}

// A refresh under way when the gateway stops is finished and stored.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		w.as.set(func(a *authority) { a.latency = 10 * time.Second })
		_, stop := w.run(Options{})
		time.Sleep(time.Second)
		begin := time.Now()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 9*time.Second {
			t.Errorf("stopped after %v", took)
		}
		if r := w.stored(); r.Generation != 1 || r.Lease != nil {
			t.Errorf("stored generation %d, lease %v", r.Generation, r.Lease)
		}
		if s := w.status(); s.Generation != 1 {
			t.Errorf("status of generation %d", s.Generation)
		}
	})
}

// A provider that takes longer to answer than a store is waited for when the gateway stops is heard to the end: whatever it answers then is
// stored, and nobody cut off a call that had spent the refresh token.
func TestDrainAwaitsTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		w.as.set(func(a *authority) { a.latency = 50 * time.Second })
		_, stop := w.run(Options{Drain: 7 * time.Second})
		time.Sleep(time.Second)
		begin := time.Now()
		w.mem.Inject(func(op, path string) vaulttest.Fault { // the store is away when the answer comes, and for a while after
			if past := time.Since(begin); op == "put" && path == "grants/claude" && past > 48*time.Second && past < 52*time.Second {
				return vaulttest.Fault{Before: vault.ErrUnavailable}
			}
			return vaulttest.Fault{}
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
		if r := w.stored(); r.Generation != 1 || r.Lease != nil {
			t.Errorf("stored generation %d, lease %v", r.Generation, r.Lease)
		}
		w.as.once(t, 1)
	})
}

// A token that cannot be stored before the time is up is reported as lost, by name and with the next step.
func TestDrainEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		w.as.lose = func(int) error {
			w.mem.Inject(func(op, path string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
			return nil
		}
		_, stop := w.run(Options{Drain: 7 * time.Second})
		time.Sleep(time.Minute)
		begin := time.Now()
		err := stop()
		if took := time.Since(begin); took != 7*time.Second {
			t.Errorf("stopped after %v", took)
		}
		if w.logged("stopping waits", "vault is unavailable") != 1 {
			t.Error("the log does not say what the stop waits for")
		}
		if err == nil || !errors.Is(err, vault.ErrUnavailable) || !strings.Contains(err.Error(), "`wayleave grant connect claude`") || strings.Contains(err.Error(), mark) {
			t.Errorf("Run: %v", err)
		}
	})
}

// A stopped keeper answers from memory, and refuses at once what it would have to wait for.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, stop := w.run(Options{})
		w.token(k)
		stop()
		w.token(k)
		time.Sleep(2 * time.Hour)
		w.refused(k, RefreshUnavailable)
	})
}

// A grant's tokens never go to another provider than the one that issued them.
func TestProviderChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.spec.Provider = "github"
		k, _ := w.run(Options{})
		w.refused(k, NeedsReconnect)
		time.Sleep(2 * time.Hour)
		w.refused(k, NeedsReconnect)
		w.as.once(t, 0)
		w.connect()
		time.Sleep(time.Millisecond)
		w.token(k)
	})
}

// A provider that does not rotate refresh tokens, and one that gives none.
func TestWithoutRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.set(func(a *authority) { a.keeps = true })
		k, _ := w.run(Options{})
		time.Sleep(5 * time.Hour)
		w.token(k)
		if got := w.stored().Refresh.Reveal(); got != "rt"+mark+"1" {
			t.Error("the refresh token was not kept")
		}

		once := w.as.grant()
		once.Refresh = oauth.Token{}.Refresh
		if s, err := Connect(t.Context(), w.docs, w.spec, once, time.Now()); err != nil || s.LastError == "" {
			t.Errorf("Connect without a refresh token: %q, %v", s.LastError, err)
		}
		time.Sleep(30 * time.Minute)
		w.token(k)
		calls := w.as.count()
		time.Sleep(time.Hour)
		w.refused(k, NeedsReconnect)
		if n := w.as.count() - calls; n != 0 {
			t.Errorf("%d calls without a refresh token", n)
		}
	})
}

// What somebody wrote over a grant by hand is refused by name, and mended by a connect.
func TestUnreadableDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		if _, err := w.docs.Put(t.Context(), "grants/claude", map[string]any{"access_token": []string{"x" + mark}}, 0); err != nil {
			t.Fatal(err)
		}
		k, _ := w.run(Options{})
		if u := w.refused(k, NeedsReconnect); !strings.Contains(u.Error(), "grants/claude") {
			t.Errorf("refusal %v", u)
		}
		w.connect()
		time.Sleep(time.Millisecond)
		w.token(k)
	})
}

// Summaries and refusals of names that are not configured.
func TestNotConfigured(t *testing.T) {
	k := NewKeeper(vaulttest.NewMemory(), nil, Options{})
	if _, err := k.Token(t.Context(), "nobody", nil); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("Token: %v", err)
	}
	if s := k.Summary("nobody"); s.State != NeverConnected {
		t.Errorf("Summary: %s", s.State)
	}
}
