package grant

import (
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// Tokens that are imported once more, as by a script that sets machines up, take the place of none that the provider gave since: the refresh
// token among them is spent.
func TestImportedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant("files", "inference")
		w.load(tokens)
		k, stop := w.run(Options{Holder: "a"})
		other, _ := w.run(Options{Holder: "b"})
		w.token(k)
		w.load(tokens) // nothing came of the first one yet: it is the same
		time.Sleep(10 * time.Second)
		if w.logged("that this grant began with") != 0 {
			t.Error("the same tokens are called older ones")
		}
		time.Sleep(2 * time.Hour)
		now := w.token(k)
		w.token(other)
		for range 2 {
			again := w.load(tokens)
			time.Sleep(10 * time.Second)
			for _, k := range []*Keeper{k, other} {
				if got := w.token(k); !got.Access.Equal(now.Access) {
					t.Error("another token than before")
				}
			}
			if r := w.stored(); !r.Refresh.Equal(secret.New(w.as.live)) || r.Epoch != again.Epoch {
				t.Error("the present refresh token is not stored, or not as the last import's")
			}
			if s := w.status(); s.Epoch != again.Epoch || s.State != Healthy {
				t.Errorf("status %+v", s)
			}
		}
		if w.logged("that this grant began with", "disconnect the grant") == 0 {
			t.Error("nobody is told")
		}
		// What is asked for with the last import is done.
		if _, err := Ask(t.Context(), w.docs, w.spec.Name, AskRefresh, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if got := w.token(k); got.Access.Equal(now.Access) {
			t.Error("it is not refreshed when that is asked for")
		}
		// Also by a gate that begins later.
		stop()
		w.load(tokens)
		time.Sleep(10 * time.Second)
		k, _ = w.run(Options{Holder: "c"})
		time.Sleep(2 * time.Hour)
		w.token(k)
		w.as.mu.Lock()
		defer w.as.mu.Unlock()
		for _, n := range w.as.presented {
			if n > 1 {
				t.Errorf("a refresh token was presented %d times", n)
			}
		}
		if w.as.revoked {
			t.Error("the consent is lost")
		}
	})
}

// The same while a refresh is under way, whose answer is stored all the same: also where what is imported is what the gate had got meanwhile.
func TestImportedAgainDuringARefresh(t *testing.T) {
	const latency = 33 * time.Second // no renewal of the lease in the last seconds
	for _, tt := range []struct {
		refreshed int
		present   bool
		left      time.Duration // until the answer
	}{{0, true, latency}, {1, false, latency}, {1, true, latency}, {1, false, 2 * time.Second}, {1, true, 2 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, time.Hour)
			tokens := w.as.grant("files", "inference")
			w.load(tokens)
			k, _ := w.run(Options{Holder: "a"})
			w.run(Options{Holder: "b"})
			for range tt.refreshed {
				time.Sleep(70 * time.Minute)
				w.token(k)
			}
			if r := w.stored(); tt.present {
				tokens.Access, tokens.Refresh, tokens.Expiry = r.Access, r.Refresh, r.Expires
			}
			w.as.set(func(a *authority) { a.latency = latency })
			for begun := w.as.count(); w.as.count() == begun; {
				time.Sleep(time.Second)
			}
			time.Sleep(latency - tt.left)
			w.load(tokens)
			time.Sleep(time.Minute)
			w.token(k)
			if r := w.stored(); !r.Refresh.Equal(secret.New(w.as.live)) {
				t.Error("the present refresh token is not stored")
			}
			w.as.once(t, tt.refreshed+1)
		})
	}
}

// Where the provider keeps its refresh token, what is imported again while it is presented is refreshed at once when that is over: nobody else presents it.
func TestImportedAgainWhereNothingRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.as.keeps = true
		tokens := w.as.grant("files", "inference")
		w.load(tokens)
		k, _ := w.run(Options{Holder: "a"})
		w.as.set(func(a *authority) { a.latency = 33 * time.Second })
		for w.as.count() == 0 {
			time.Sleep(time.Second)
		}
		time.Sleep(31 * time.Second) // the lease is renewed no more
		tokens.Expiry = time.Now()
		w.load(tokens)
		w.as.set(func(a *authority) { a.latency = time.Second })
		time.Sleep(5 * time.Second) // the call is over
		begun := time.Now()
		w.token(k)
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("a token after %v", took)
		}
	})
}

// What is imported once more while another gate presents it, and would be due at once, waits for that gate.
func TestImportedAgainWhilePresented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant("files", "inference")
		load := func() {
			tokens.Expiry = time.Now()
			w.load(tokens)
		}
		w.as.set(func(a *authority) { a.latency = 50 * time.Second })
		load()
		k, _ := w.run(Options{Holder: "a"})
		other, _ := w.run(Options{Holder: "b"})
		for w.as.count() == 0 {
			time.Sleep(time.Second)
		}
		time.Sleep(30 * time.Second) // both have seen whose it is
		load()
		time.Sleep(2 * time.Minute)
		w.token(k)
		w.token(other)
		w.as.once(t, 1)
	})
}

// The same while a gate is thought to present the present ones, which has ended: whoever begins now must not find those that are spent.
func TestImportedAgainOverALeaseLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant("files", "inference")
		w.load(tokens)
		k, _ := w.run(Options{Holder: "a", Reread: 5 * time.Second})
		time.Sleep(70 * time.Minute)
		w.token(k)
		r, ver, err := getRecord(t.Context(), w.docs, w.spec.Name)
		if err != nil {
			t.Fatal(err)
		}
		left := lease{ID: "left", Holder: "b", Deadline: time.Now().Add(time.Minute), Attempt: 1}
		if _, err := putRecord(t.Context(), w.docs, w.spec.Name, r.leased(left, ""), ver); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		w.token(k)
		w.load(tokens)
		time.Sleep(10 * time.Second)
		if r := w.stored(); !r.Refresh.Equal(secret.New(w.as.live)) || leaseID(r) != left.ID {
			t.Error("the tokens that were imported once more are left in the store, or nobody is thought to present the present ones")
		}
	})
}

// Whoever means the older tokens disconnects the grant before, however soon a gate looks again.
func TestImportedAfterADisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant("files", "inference")
		w.load(tokens)
		k, _ := w.run(Options{})
		time.Sleep(2 * time.Hour)
		w.token(k)
		if err := Disconnect(t.Context(), w.docs, w.spec.Name); err != nil {
			t.Fatal(err)
		}
		w.load(tokens)
		time.Sleep(10 * time.Second)
		if r := w.stored(); !r.Refresh.Equal(tokens.Refresh) || w.logged("that this grant began with") > 0 {
			t.Error("other tokens are stored than those that were imported")
		}
	})
}

// What is imported into a grant that has ended, or is of another consent, is taken.
func TestImportedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant("files", "inference")
		load := func(tok oauth.Token) {
			w.load(tok)
			time.Sleep(10 * time.Second)
		}
		load(tokens)
		k, _ := w.run(Options{})
		time.Sleep(2 * time.Hour)
		w.token(k)
		w.as.set(func(a *authority) { a.revoked = true })
		time.Sleep(2 * time.Hour)
		w.refused(k, NeedsReconnect)
		load(tokens)
		if r := w.stored(); !r.Refresh.Equal(tokens.Refresh) {
			t.Error("what is imported into a grant that has ended is not stored")
		}
		fresh := w.as.grant("files", "inference")
		load(fresh)
		if got := w.token(k); !got.Access.Equal(fresh.Access) {
			t.Error("another consent's token is not used")
		}
	})
}
