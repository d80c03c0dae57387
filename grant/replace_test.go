package grant

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// replace gets a token in place of one that the provider has rejected, or fails the test.
func (w *world) replace(k *Keeper, rejected Token) Token {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	t, err := k.Replace(ctx, w.spec.Name, rejected.Version, nil)
	if err != nil {
		w.Fatalf("Replace: %v", err)
	}
	return t
}

// A token that the provider rejects is replaced once, however many requests of however many replicas it was rejected for.
func TestReplaceRefreshesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		first, _ := w.run(Options{})
		second, _ := w.run(Options{})
		rejected := w.token(first)
		if other := w.token(second); other.Version != rejected.Version {
			t.Fatalf("%+v", other)
		}
		var all sync.WaitGroup
		for i := range 100 {
			k := first
			if i%2 == 1 {
				k = second
			}
			all.Go(func() {
				if got := w.replace(k, rejected); got.Access.Equal(rejected.Access) || got.Version == rejected.Version {
					t.Error("the rejected token came back")
				}
			})
		}
		all.Wait()
		w.as.once(t, 1)
		if got := w.token(first); !got.Access.Equal(w.token(second).Access) {
			t.Error("replicas have different tokens")
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if h := w.status().History; !h[len(h)-1].Rejected {
			t.Errorf("history does not say why: %+v", h)
		}
	})
}

// A provider that rejects every token is left alone for longer each time, by all replicas together.
func TestReplaceCoolsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*time.Hour)
		w.connect()
		first, _ := w.run(Options{})
		second, _ := w.run(Options{})
		for range 3600 { // an hour of a request each second at each replica
			for _, k := range []*Keeper{first, second} {
				w.replace(k, w.token(k))
			}
			time.Sleep(time.Second)
		}
		// After 1, 2, 4, 8, 16 and 32 minutes.
		if n := w.as.count(); n != 6 {
			t.Errorf("%d refreshes in an hour of rejections", n)
		}
		// Much later, it is the first time again.
		time.Sleep(3 * time.Hour)
		w.replace(first, w.token(first))
		before := w.as.count()
		time.Sleep(firstCooldown + time.Second)
		w.replace(first, w.token(first))
		if n := w.as.count(); n != before+1 {
			t.Errorf("%d refreshes, want %d", n, before+1)
		}
		w.as.once(t, before+1)
	})
}

// What others have stored meanwhile is taken, and costs no refresh: another replica's refresh, or an operator's connect.
func TestReplaceLooksFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{Reread: time.Minute})
		rejected := w.token(k)
		w.connect()
		got := w.replace(k, rejected)
		if got.Version == rejected.Version || got.Access.Equal(rejected.Access) {
			t.Error("the new consent was not seen")
		}
		w.as.once(t, 0)
	})
}

// A refresh that fails is no help: the provider's own answer is the better one, unless only an operator can help.
func TestReplaceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		rejected := w.token(k)
		w.as.set(func(a *authority) {
			a.fail = func(int) error { return &oauth.Error{Outcome: oauth.Refused, Status: 503} }
		})
		if got := w.replace(k, rejected); got.Version != rejected.Version {
			t.Errorf("%+v", got)
		}
		w.as.set(func(a *authority) { a.fail, a.revoked = nil, true })
		time.Sleep(time.Minute)
		if _, err := k.Replace(t.Context(), "claude", rejected.Version, nil); err == nil {
			if got := w.token(k); got.Version == rejected.Version {
				t.Error("a token that is rejected, of a consent that has ended, is still given out")
			}
		}
		w.refused(k, NeedsReconnect)
		w.connect()
		time.Sleep(10 * time.Second)
		w.token(k)
	})
}

// A grant whose consent has ended serves the token that it has, until the provider rejects that too.
func TestReplaceEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		rejected := w.token(k)
		w.as.set(func(a *authority) { a.revoked = true })
		time.Sleep(56 * time.Minute) // it was refreshed ahead
		if got := w.token(k); got.Version != rejected.Version || !got.Replaceable {
			t.Fatalf("another token, or one whose rejection nobody looks at: %+v", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := k.Replace(ctx, w.spec.Name, rejected.Version, nil); err == nil {
			t.Error("the rejected token came back; want a word that it must be connected again")
		}
		w.refused(k, NeedsReconnect)
	})
}

// A value that an operator imports anew is found, and looking for it is not overdone.
func TestReplaceStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.spec.Kind, w.spec.OAuth, w.spec.Scopes = Static, nil, nil
		put := func(key string) {
			if _, err := Connect(t.Context(), w.docs, w.spec, oauth.Token{Access: secret.New(key + mark)}, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		put("old")
		k, _ := w.run(Options{Reread: time.Minute})
		rejected := w.token(k)
		began := time.Now()
		if got := w.replace(k, rejected); got.Version != rejected.Version || time.Since(began) > recheck {
			t.Errorf("%+v after %v", got, time.Since(began))
		}
		time.Sleep(2 * time.Second)
		put("new")
		if got := w.replace(k, rejected); got.Access.Reveal() != "new"+mark {
			t.Error("the new value was not seen")
		}
	})
}

// A request waits no longer than it may, and the refresh it began goes on.
func TestReplaceWaitsNoLongerThanTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.latency = 30 * time.Second
		k, _ := w.run(Options{})
		rejected := w.token(k)
		began := time.Now()
		if got := w.replace(k, rejected); got.Version != rejected.Version {
			t.Errorf("%+v", got)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		time.Sleep(30 * time.Second)
		if got := w.token(k); got.Version == rejected.Version {
			t.Error("the refresh ended with the request")
		}
		w.as.once(t, 1)
	})
}

// A worker's own token is exchanged anew, once for each rejected one.
func TestReplaceExchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		tr := &trader{life: time.Hour}
		x := NewExchanger(k, map[string]Exchange{"claude": {OAuth: tr, Audience: "api"}})
		get := func() Token {
			got, err := x.Token(t.Context(), "claude", "ann", nil)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		rejected := get()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				got, err := x.Replace(t.Context(), "claude", "ann", rejected.Version, nil)
				if err != nil || got.Version == rejected.Version || got.Access.Equal(rejected.Access) {
					t.Errorf("%+v %v", got, err)
				}
			})
		}
		all.Wait()
		if n := tr.calls(); n != 2 {
			t.Errorf("%d exchanges", n)
		}
		if again, err := x.Replace(t.Context(), "claude", "ann", get().Version, nil); err != nil || again.Version != get().Version {
			t.Errorf("the next rejection, at once, is answered with another exchange: %+v %v", again, err)
		}

		// The grant's token is revoked too.
		tr.fail = func(n int) error {
			if n == 3 {
				return &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
			}
			return nil
		}
		time.Sleep(2 * time.Minute)
		if got, err := x.Replace(t.Context(), "claude", "ann", get().Version, nil); err != nil || got.Access.Equal(rejected.Access) {
			t.Errorf("%+v %v", got, err)
		}
		w.as.once(t, 1)
	})
}
