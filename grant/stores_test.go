package grant

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// The protocol between operator and replicas holds over the store in memory, which the other tests use, and over a real
// OpenBao with each role's own policy, for which time cannot be driven.
func TestStores(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		mem := vaulttest.NewMemory()
		testStore(t, blind{mem}, mem, mem)
	})
	t.Run("openbao", func(t *testing.T) {
		s := vaulttest.Start(t)
		testStore(t, s.Operator, s.Gateway, s.Viewer)
	})
}

func testStore(t *testing.T, operator, gateway, viewer Documents) {
	w := newWorldOn(t, gateway, 3*time.Second)
	w.as.latency = 20 * time.Millisecond
	connect := func(scopes ...string) {
		t.Helper()
		if _, err := Connect(t.Context(), operator, w.spec, w.as.grant(scopes...), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	var replicas []*Keeper
	for i := range 3 {
		k, _ := w.run(Options{Holder: fmt.Sprint("replica-", i), Reread: 200 * time.Millisecond})
		replicas = append(replicas, k)
	}
	all := func(required ...string) {
		t.Helper()
		var wg sync.WaitGroup
		for _, k := range replicas {
			for range 50 {
				wg.Go(func() {
					if _, err := k.Token(t.Context(), "claude", required); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
	}
	// eventually waits for what other replicas and the store take their time for.
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never %s", what)
			}
		}
	}
	everywhere := func(st State) func() bool {
		return func() bool {
			for _, k := range replicas {
				if s := k.Summary("claude").State; s != st {
					return false
				}
			}
			return true
		}
	}
	listed := func() Summary {
		t.Helper()
		l, err := List(t.Context(), viewer, []Spec{w.spec})
		if err != nil || len(l) != 1 {
			t.Fatalf("List: %v, %v", l, err)
		}
		return l[0]
	}

	for _, k := range replicas {
		w.refused(k, NeverConnected)
	}
	connect("inference")
	eventually("scope_missing", everywhere(ScopeMissing))
	for _, k := range replicas {
		w.refused(k, ScopeMissing, "files")
	}
	connect()
	eventually("healthy", everywhere(Healthy))
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		all("files", "inference")
	}
	if n := w.as.count(); n == 0 {
		t.Errorf("%d refreshes in 5 s of a 3 s token", n)
	}
	w.as.once(t, w.as.count())
	eventually("in the list", func() bool { s := listed(); return s.State == Healthy && s.Generation > 0 })

	// An operator may overwrite, but not read.
	if _, _, err := getRecord(t.Context(), operator, "claude"); err == nil {
		t.Error("an operator can read tokens")
	}

	w.as.set(func(a *authority) {
		a.fail = func(int) error {
			return &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
		}
	})
	eventually("needs_reconnect", everywhere(NeedsReconnect))
	eventually("in the list", func() bool { return listed().State == NeedsReconnect })
	w.as.set(func(a *authority) { a.fail = nil })
	connect()
	eventually("healthy", everywhere(Healthy))
	all()

	if err := Disconnect(t.Context(), operator, "claude"); err != nil {
		t.Fatal(err)
	}
	eventually("never_connected", everywhere(NeverConnected))
	eventually("in the list", func() bool { return listed().State == NeverConnected })
}

var _ Documents = (*vault.Client)(nil)
