package grant

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

func (w *world) update(k *Keeper, specs ...Spec) {
	w.Helper()
	if err := k.Update(w.Context(), specs); err != nil {
		w.Fatal(err)
	}
}

// A grant that is new can be used as soon as Update has returned, one that is gone is not configured any more, and the
// others notice nothing.
func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect("files", "inference")
		k, _ := w.run(Options{})
		w.token(k)
		minder := k.minder("claude")

		other := w.spec
		other.Name = "other"
		if _, err := Connect(t.Context(), w.docs, other, newAuthority(time.Hour).grant(), time.Now()); err != nil {
			t.Fatal(err)
		}
		w.update(k, w.spec, other)
		if _, err := k.Token(t.Context(), "other", nil); err != nil {
			t.Error(err)
		}
		if k.minder("claude") != minder {
			t.Error("a grant that is kept as before has begun anew")
		}
		w.update(k, other)
		if _, err := k.Token(t.Context(), "claude", nil); !errors.Is(err, ErrNotConfigured) {
			t.Errorf("a grant that is gone: %v", err)
		}
		w.update(k, w.spec, other)
		w.token(k)
		w.as.once(t, 0)
	})
}

// Another set of scopes is asked for from then on, and what the grant holds is served meanwhile, also while Vault is away.
func TestUpdateScopes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect("files", "inference")
		k, _ := w.run(Options{})
		first := w.token(k)
		w.mem.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		w.spec.Scopes = []string{"files", "inference", "sessions"}
		w.update(k, w.spec)
		if w.token(k, "files").Version != first.Version {
			t.Error("the token is another")
		}
		time.Sleep(time.Minute)
		w.token(k, "files")
		w.mem.Inject(nil)
		time.Sleep(time.Minute)
		w.refused(k, ScopeMissing, "sessions")
		if s := k.Summary("claude"); s.State != ScopeMissing {
			t.Errorf("the state is %s", s.State)
		}
		if s := w.status(); s.State != ScopeMissing {
			t.Errorf("the state that people see is %s", s.State)
		}
	})
}

// What comes with a scope counts from the moment the configuration says so, and no longer than it does: also of a grant that was
// connected before, while Vault is away, and when the provider goes on listing the wider scope alone.
func TestUpdateImplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		if s := w.connect("inference"); s.State != ScopeMissing {
			t.Fatalf("connected as %s", s.State)
		}
		k, _ := w.run(Options{})
		w.refused(k, ScopeMissing, "files")

		with := w.spec
		with.Implied = map[string][]string{"inference": {"files"}}
		if all, err := list(t.Context(), w.docs, []Spec{with}, time.Now()); err != nil || all[0].State != Healthy || len(all[0].NotGranted) > 0 || all[0].Next != "" {
			t.Errorf("listed before a gate has it: %+v, %v", all, err)
		}
		w.mem.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
		w.update(k, with)
		if got := w.token(k, "files", "inference"); !slices.Equal(got.Scopes, []string{"inference", "files"}) {
			t.Errorf("the token has %q", got.Scopes)
		}
		w.mem.Inject(nil)
		time.Sleep(time.Minute)
		if s := w.status(); s.State != Healthy || !slices.Equal(s.Granted, []string{"files", "inference"}) {
			t.Errorf("the status is %+v", s)
		}
		if all, err := list(t.Context(), w.docs, []Spec{w.spec}, time.Now()); err != nil || all[0].State != ScopeMissing || !slices.Equal(all[0].Granted, []string{"inference"}) {
			t.Errorf("listed by a configuration in which it implies nothing: %+v, %v", all, err)
		}

		w.as.set(func(a *authority) { a.scopes = []string{"inference"} })
		time.Sleep(time.Hour)
		w.token(k, "files")
		if r := w.stored(); r.Generation != 1 || len(r.Last.Lost) > 0 || !slices.Equal(r.Granted, []string{"inference"}) {
			t.Errorf("stored after a refresh: %+v", r.details)
		}

		w.update(k, w.spec)
		w.refused(k, ScopeMissing, "files")
	})
}

// Whatever changes while a refresh is under way: its refresh token is spent once, its answer is stored, and who waits for it
// gets it.
func TestUpdateDuringRefresh(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, time.Hour)
			w.connect("files", "inference")
			time.Sleep(2 * time.Hour)
			w.as.set(func(a *authority) { a.latency = 10 * time.Second })
			k, _ := w.run(Options{})
			var waiting sync.WaitGroup
			waiting.Go(func() {
				_, err := k.Token(t.Context(), "claude", nil)
				if removed && !errors.Is(err, ErrNotConfigured) || !removed && err != nil {
					t.Errorf("who waited got %v", err)
				}
			})
			time.Sleep(time.Second)
			if removed {
				w.update(k)
			} else {
				for range 3 {
					w.spec.Scopes = append(w.spec.Scopes, "more")
					w.update(k, w.spec)
				}
			}
			waiting.Wait()
			time.Sleep(time.Minute)
			w.as.once(t, 1)
			if r := w.stored(); r.Generation != 1 || r.Lease != nil {
				t.Errorf("stored generation %d, lease %v", r.Generation, r.Lease)
			}
		})
	}
}

// With the end of Run there is nothing to change any more.
func TestUpdateEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		k, stop := w.run(Options{})
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := k.Update(t.Context(), nil); err == nil {
			t.Error("no error")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.keeper(Options{}).Update(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("not started: %v", err)
		}
	})
}
