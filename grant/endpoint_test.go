package grant

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

func TestEndpointCalls(t *testing.T) {
	e := &endpoint{}
	enter := func(now time.Duration, urgent bool) bool {
		ok, wait := e.enter(now, urgent, 0)
		if ok == (wait > 0) {
			t.Errorf("entered: %v, wait %v", ok, wait)
		}
		return ok
	}
	for i := range maxAhead {
		if !enter(0, false) {
			t.Errorf("call %d waits", i)
		}
	}
	if enter(0, false) {
		t.Error("more calls ahead of expiry than there may be")
	}
	for i := maxAhead; i < maxCalls; i++ {
		if !enter(0, true) {
			t.Errorf("call %d, which workers wait for, waits", i)
		}
	}
	if enter(0, true) {
		t.Error("more calls than there may be")
	}
	for range maxCalls {
		e.leave(0, nil, 0)
	}

	// One provider that is down: what refused for the grant's own reasons does not count, and a call not made neither.
	broken := &oauth.Error{Outcome: oauth.Unknown, Status: 503, RetryAfter: 40 * time.Second}
	own := &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
	for _, err := range []error{broken, broken, own, broken, broken, errUnused} {
		if !enter(0, true) {
			t.Fatal("left alone too soon")
		}
		e.leave(0, err, 0)
	}
	enter(0, true)
	e.leave(0, broken, 0)
	if ok, wait := e.enter(0, true, 0); ok || wait != 40*time.Second {
		t.Errorf("after three failures: %v, %v", ok, wait)
	}
	if !enter(40*time.Second, false) || enter(40*time.Second, true) {
		t.Error("not exactly one call finds out whether it is up again")
	}
	e.leave(40*time.Second, fmt.Errorf("wrapped: %w", broken), 0)
	if ok, wait := e.enter(41*time.Second, true, 0); ok || wait != 39*time.Second {
		t.Errorf("after a fourth failure: %v, %v", ok, wait)
	}
	broken.RetryAfter = 24 * time.Hour // is meant for whoever sent that request
	if !enter(80*time.Second, true) {
		t.Error("left alone for too long")
	}
	e.leave(80*time.Second, broken, 0)
	if ok, wait := e.enter(80*time.Second, true, 0); ok || wait != maxBackoff {
		t.Errorf("after a long Retry-After: %v, %v", ok, wait)
	}
	if !enter(80*time.Second+maxBackoff, true) {
		t.Error("left alone for too long")
	}
	e.leave(0, nil, 0)
	for range 2 {
		if !enter(0, false) {
			t.Error("still left alone although it is up")
		}
	}
	e.leave(0, errors.New("of another kind"), 0)
}

// crowd is many grants at one provider, all connected at once.
func crowd(w *world, n int) (specs []Spec) {
	for i := range n {
		s := w.spec
		s.Name = fmt.Sprintf("g%03d", i)
		if _, err := Connect(w.Context(), w.docs, s, oauth.Token{Access: secret.New("at" + mark + s.Name), Refresh: secret.New("rt" + mark), Expiry: time.Now().Add(w.as.life)}, time.Now()); err != nil {
			w.Fatal(err)
		}
		specs = append(specs, s)
	}
	return specs
}

// tally is a provider for a crowd: it counts its calls by the second.
type tally struct {
	*authority
	start  time.Time
	second map[int]int // guarded by authority.mu
	most   int         // at once
	now    int
}

func (c *tally) Refresh(ctx context.Context, _ secret.Text, _, _ []string) (oauth.Token, error) {
	c.mu.Lock()
	c.calls++
	c.second[int(time.Since(c.start)/time.Second)]++
	c.now++
	c.most = max(c.most, c.now)
	fail, n := c.fail, c.calls
	c.mu.Unlock()
	time.Sleep(c.latency)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
	if fail != nil {
		if err := fail(n); err != nil {
			return oauth.Token{}, err
		}
	}
	c.tokens++
	return oauth.Token{Access: secret.New(fmt.Sprintf("at%s%d", mark, c.tokens)), Expiry: time.Now().Add(c.life)}, nil
}

// Grants that expire together are refreshed spread out, and few at once, without any request waiting. (B46)
func TestManyExpireTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		c := &tally{authority: w.as, start: time.Now(), second: map[int]int{}}
		w.spec.OAuth = c
		specs := crowd(w, 100)
		k := NewKeeper(w.docs, specs, Options{Reread: 30 * time.Second, Log: slog.New(slog.NewTextHandler(w.log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		for range 36 {
			time.Sleep(100 * time.Second)
			before := time.Now()
			for _, s := range specs {
				if _, err := k.Token(t.Context(), s.Name, nil); err != nil {
					t.Error(err)
				}
			}
			if waited := time.Since(before); waited > 0 {
				t.Errorf("requests waited %v", waited)
			}
		}
		cancel()
		<-done
		busiest := 0
		for _, n := range c.second {
			busiest = max(busiest, n)
		}
		if c.calls != 100 || c.most > maxAhead || busiest > 20 || len(c.second) < 30 {
			t.Errorf("%d calls in %d different seconds, at most %d in one and %d at once", c.calls, len(c.second), busiest, c.most)
		}
	})
}

// A provider that is down gets few calls however many grants and requests there are, and is used again soon after it is up.
func TestProviderDownForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		c := &tally{authority: w.as, start: time.Now(), second: map[int]int{}}
		c.fail = func(int) error { return &oauth.Error{Outcome: oauth.Unknown, Status: 503} }
		w.spec.OAuth = c
		specs := crowd(w, 100)
		time.Sleep(2 * time.Hour)
		k := NewKeeper(w.docs, specs, Options{Reread: 30 * time.Second, Log: slog.New(slog.NewTextHandler(w.log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		for range 600 {
			time.Sleep(time.Second)
			for _, s := range specs[:20] {
				impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				if _, err := k.Token(impatient, s.Name, nil); err == nil {
					t.Error("a token while the provider is down")
				}
				cancel()
			}
		}
		if calls := w.as.count(); calls > maxCalls+20 {
			t.Errorf("%d calls in ten minutes to a provider that is down", calls)
		}
		w.as.set(func(a *authority) { a.fail = nil })
		time.Sleep(2*maxBackoff + 2*time.Minute)
		for _, s := range specs {
			if _, err := k.Token(t.Context(), s.Name, nil); err != nil {
				t.Error(err)
			}
		}
		cancel()
		<-done
	})
}

// A request that meets a provider which is left alone is told when to come back, and does not wait for it.
func TestRefusedWhileLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		time.Sleep(2 * time.Hour)
		k := w.keeper(Options{})
		m := k.minder("claude")
		m.endpoint.failures, m.endpoint.until = tripsAt, m.now().run+30*time.Second
		w.start(k)
		before := time.Now()
		u := w.refused(k, RefreshUnavailable)
		if waited := time.Since(before); waited > soon || u.RetryAfter > 31*time.Second || u.RetryAfter < 25*time.Second {
			t.Errorf("waited %v, retry after %v", waited, u.RetryAfter)
		}
		time.Sleep(31 * time.Second)
		w.token(k)
	})
}
