package grant

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/vault/vaulttest"
)

// reads counts how often the grant is read in a while.
func (w *world) reads(while func()) int {
	var n atomic.Int64
	w.mem.Inject(func(op, path string) vaulttest.Fault {
		if op == "get" && path == grantPath(w.spec.Name) {
			n.Add(1)
		}
		return vaulttest.Fault{}
	})
	defer w.mem.Inject(nil)
	while()
	return int(n.Load())
}

// A grant that workers use is read every five seconds, and one that nobody asks for once a minute, unless something is wrong with it.
func TestReadsByUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 12*time.Hour)
		k, _ := w.run(Options{})
		tenMinutes := func() { time.Sleep(10 * time.Minute) }
		if n := w.reads(tenMinutes); n < 119 {
			t.Errorf("a grant that may be connected any time was read %d times", n)
		}
		w.connect()
		time.Sleep(2 * time.Minute) // nobody asks
		if n := w.reads(tenMinutes); n < 9 || n > 13 {
			t.Errorf("a grant that nobody asks for was read %d times in ten minutes", n)
		}
		if n := w.reads(func() {
			for range 600 {
				w.token(k)
				time.Sleep(time.Second)
			}
		}); n < 119 {
			t.Errorf("a grant in use was read %d times", n)
		}
	})
}

// Whoever asks first for a grant that was not read for long gets what the store has by then.
func TestFirstUseLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 12*time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		time.Sleep(10 * time.Minute)
		began := time.Now()
		for n := range 50 {
			r, ver, err := getRecord(t.Context(), w.docs, "claude")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := putRecord(t.Context(), w.docs, "claude", r.answered(w.as.grant(), "sibling", time.Now(), time.Now()), ver); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(n)*time.Second + 8*time.Second)
			if got, want := w.token(k).Access, w.stored().Access; !got.Equal(want) {
				t.Fatalf("%v on: the token before", time.Since(began))
			}
			time.Sleep(2 * time.Minute)
		}
		if err := w.docs.Delete(t.Context(), grantPath("claude")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second)
		w.refused(k, NeverConnected)
	})
}

// What operators do to a grant that nobody asks for is seen within seconds all the same, were it one of many things that they do.
func TestChangesAreSeenUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 12*time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		for _, others := range []int{0, 1, 7} {
			time.Sleep(10 * time.Minute)
			w.connect() // anew
			for range others {
				tell(t.Context(), w.docs, "another")
			}
			time.Sleep(11 * time.Second) // to hear of it, and to read all of them
			if got := k.minder("claude").view.Load().rec; !got.Access.Equal(w.stored().Access) {
				t.Errorf("%d others changed: the token of a consent before", others)
			}
		}
		time.Sleep(10 * time.Minute)
		if n := w.reads(func() {
			for range 20 {
				time.Sleep(10 * time.Second)
				tell(t.Context(), w.docs, "another")
			}
		}); n > 6 {
			t.Errorf("read %d times because others were changed", n)
		}
		if err := Disconnect(t.Context(), w.docs, "claude"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7 * time.Second)
		if s := k.Summary("claude"); s.State != NeverConnected {
			t.Errorf("state %s", s.State)
		}
	})
}

// Tokens of workers' own end with the consent as soon as the grant's own, though the grant's own is not asked for then.
func TestFirstUseOfAnExchangedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: 7 * time.Hour}, nil)
		m.own("w1")
		time.Sleep(10 * time.Minute)
		if n := m.reads(func() {
			for range 60 {
				m.own("w1")
				time.Sleep(time.Second)
			}
		}); n < 11 {
			t.Errorf("read %d times in a minute of use", n)
		}
		time.Sleep(10 * time.Minute)
		if err := m.docs.Delete(t.Context(), grantPath("claude")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second)
		m.denied("w1", NeverConnected)
	})
}

// A store that hangs holds a request up for a second, and one that fails not at all: tokens serve on.
func TestFirstUseWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 12*time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		time.Sleep(10*time.Minute + 10*time.Second)
		w.mem.Inject(func(string, string) vaulttest.Fault {
			time.Sleep(readFor)
			return vaulttest.Fault{Before: errNotRead}
		})
		for _, want := range []time.Duration{lookFor, lookFor, 0, 0} { // and then it is known to fail
			began := time.Now()
			w.token(k)
			if took := time.Since(began); took > want {
				t.Errorf("waited %v, want at most %v", took, want)
			}
			synctest.Wait()
		}
	})
}

// While a token is fetched, which may take the provider long, the one before serves without a wait.
func TestNoLookDuringACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.as.latency = 50 * time.Second
		w.connect()
		k, _ := w.run(Options{})
		for w.as.count() == 0 {
			time.Sleep(time.Second)
		}
		time.Sleep(40 * time.Second)
		began := time.Now()
		w.token(k)
		if took := time.Since(began); took > 0 {
			t.Errorf("waited %v", took)
		}
	})
}

// Of replicas that nobody asks, one refreshes each time.
func TestIdleReplicasRefreshOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		for range 4 {
			w.run(Options{})
		}
		time.Sleep(24 * time.Hour)
		w.as.once(t, w.stored().Generation)
		if n := w.stored().Generation; n < 24 || n > 28 {
			t.Errorf("%d refreshes in a day", n)
		}
	})
}
