package grant

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// blind is an operator's view of a store: grants can be written, never read.
type blind struct{ Documents }

func (b blind) Get(ctx context.Context, path string, into any) (int, error) {
	if strings.HasPrefix(path, "grants/") {
		return 0, vault.ErrDenied
	}
	return b.Documents.Get(ctx, path, into)
}

func TestConnectListDisconnect(t *testing.T) {
	mem := vaulttest.NewMemory()
	docs := blind{mem}
	tok := oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour), Account: "pat@example.com"}
	now := t0
	listed := func(specs ...Spec) []Summary {
		t.Helper()
		l, err := list(t.Context(), docs, specs, now)
		if err != nil {
			t.Fatal(err)
		}
		for i := range l {
			l[i].Epoch, l[i].History = "", nil
		}
		return l
	}

	never := Summary{Name: "claude", Provider: "anthropic", State: NeverConnected, Requested: spec.Scopes, Granted: []string{}, Next: "run `wayleave grant connect claude`"}
	if diff := cmp.Diff([]Summary{never}, listed(spec)); diff != "" {
		t.Errorf("before the connect (-want +got):\n%s", diff)
	}

	first, err := Connect(t.Context(), docs, spec, tok, t0)
	if err != nil {
		t.Fatal(err)
	}
	healthy := Summary{Name: "claude", Provider: "anthropic", Account: "pat@example.com", State: Healthy, Requested: spec.Scopes, Granted: spec.Scopes,
		Expires: t0.Add(time.Hour), UpdatedAt: t0}
	if diff := cmp.Diff([]Summary{healthy}, listed(spec)); diff != "" {
		t.Errorf("after the connect (-want +got):\n%s", diff)
	}

	// No gate has run since the token expired.
	now = t0.Add(2 * time.Hour)
	if got := listed(spec)[0]; got.State != RefreshUnavailable || !strings.Contains(got.LastError, "expired") || !strings.Contains(got.Next, "start a gate") {
		t.Errorf("expired: %s, %q, %q", got.State, got.LastError, got.Next)
	}
	now = t0

	tok.Scopes = []string{"files"}
	narrow, err := Connect(t.Context(), docs, spec, tok, t0)
	if err != nil || narrow.State != ScopeMissing || !cmp.Equal(narrow.Missing, []string{"inference"}) || narrow.Next == "" {
		t.Errorf("narrow connect: %s, missing %q, next %q, %v", narrow.State, narrow.Missing, narrow.Next, err)
	}
	if narrow.Epoch == first.Epoch || narrow.Epoch == "" {
		t.Error("a reconnect has the epoch of the first connect")
	}

	// The configuration changes after the status was written.
	wider, other := spec, spec
	wider.Scopes = []string{"admin", "files"}
	other.Provider = "github"
	if got := listed(wider)[0]; got.State != ScopeMissing || !cmp.Equal(got.Missing, []string{"admin"}) {
		t.Errorf("more requested: %s, missing %q", got.State, got.Missing)
	}
	if got := listed(other)[0]; got.State != NeedsReconnect || got.LastError == "" {
		t.Errorf("other provider: %s, %q", got.State, got.LastError)
	}
	if got := listed(); len(got) != 1 || !strings.Contains(got[0].Next, "wayleave grant disconnect claude") {
		t.Errorf("not configured: %+v", got)
	}

	if err := Disconnect(t.Context(), docs, "claude"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Summary{never}, listed(spec)); diff != "" {
		t.Errorf("after the disconnect (-want +got):\n%s", diff)
	}
	if _, err := mem.Get(t.Context(), "grants/claude", new(any)); !errors.Is(err, vault.ErrNotFound) {
		t.Errorf("the grant is still there: %v", err)
	}
	if err := Disconnect(t.Context(), docs, "claude"); err != nil {
		t.Errorf("disconnecting nothing: %v", err)
	}
}

// A connect wins against a gateway that writes at the same moment, and over a deleted version.
func TestConnectOverOthers(t *testing.T) {
	mem := vaulttest.NewMemory()
	tok := oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour)}
	if _, err := Connect(t.Context(), mem, spec, tok, t0); err != nil {
		t.Fatal(err)
	}
	mem.SoftDelete("grants/claude")
	mem.SoftDelete("status/claude")
	if _, err := Connect(t.Context(), mem, spec, tok, t0); err != nil {
		t.Errorf("over a deleted version: %v", err)
	}
	busy := 2
	mem.Inject(func(op, path string) vaulttest.Fault {
		if op != "put" || busy == 0 {
			return vaulttest.Fault{}
		}
		busy--
		return vaulttest.Fault{Before: vault.ErrConflict}
	})
	if _, err := Connect(t.Context(), mem, spec, tok, t0); err != nil {
		t.Errorf("against a busy gateway: %v", err)
	}
	mem.Inject(func(op, path string) vaulttest.Fault {
		if path == "status/claude" {
			return vaulttest.Fault{Before: vault.ErrDenied}
		}
		return vaulttest.Fault{}
	})
	if s, err := Connect(t.Context(), mem, spec, tok, t0); !errors.Is(err, vault.ErrDenied) || s.State != Healthy {
		t.Errorf("without status: %s, %v", s.State, err)
	}
	if _, err := Connect(t.Context(), mem, spec, oauth.Token{}, t0); err == nil {
		t.Error("connected without a token")
	}
}

// A consent is not lost because the store changes its active node just then; nor does anybody wait for one that stays away.
func TestConnectWaitsForTheStore(t *testing.T) {
	for name, tt := range map[string]struct {
		away   time.Duration
		fault  vaulttest.Fault
		stored bool
	}{
		"not answering":   {5 * time.Second, vaulttest.Fault{Before: vault.ErrUnavailable}, true},
		"answers lost":    {5 * time.Second, vaulttest.Fault{After: vault.ErrUnavailable}, true},
		"away for longer": {time.Hour, vaulttest.Fault{Before: vault.ErrUnavailable}, false},
		"refusing":        {5 * time.Second, vaulttest.Fault{Before: vault.ErrDenied}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem, began := vaulttest.NewMemory(), time.Now()
				mem.Inject(func(string, string) vaulttest.Fault {
					if time.Since(began) < tt.away {
						return tt.fault
					}
					return vaulttest.Fault{}
				})
				tok := oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour)}
				s, err := Connect(t.Context(), mem, spec, tok, t0)
				if (err == nil) != tt.stored || (s.Name != "") != tt.stored {
					t.Errorf("%+v, %v", s, err)
				}
				if took := time.Since(began); took > StoreFor+2*storeAgain || !tt.stored && errors.Is(tt.fault.Before, vault.ErrDenied) && took > 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A gateway may have refreshed what a write without an answer stored: written again, the refresh token that is spent would be another gateway's to
// present. Nor is a consent reported that is not there.
func TestConnectIsNotStoredTwice(t *testing.T) {
	const path = "grants/claude"
	for name, tt := range map[string]struct {
		fault  vaulttest.Fault
		meant  func(t *testing.T, mem *vaulttest.Memory) // by a gateway, before the second try
		stored bool
		always bool // the fault
	}{
		"refreshed since": {vaulttest.Fault{After: vault.ErrUnavailable}, func(t *testing.T, mem *vaulttest.Memory) {
			r, version, err := getRecord(t.Context(), mem, "claude")
			if err != nil {
				t.Fatal(err)
			}
			r = r.answered(oauth.Token{Access: secret.New("a2"), Refresh: secret.New("r2")}, "refreshed", t0, t0)
			if _, err := putRecord(t.Context(), mem, "claude", r, version); err != nil {
				t.Fatal(err)
			}
			if err := putStatus(t.Context(), mem, summarize(r, spec, moment{day: t0})); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		"nobody says":     {vaulttest.Fault{After: vault.ErrUnavailable}, func(*testing.T, *vaulttest.Memory) {}, false, false},
		"not written":     {vaulttest.Fault{Before: vault.ErrUnavailable}, func(*testing.T, *vaulttest.Memory) {}, true, false},
		"nothing answers": {vaulttest.Fault{Before: vault.ErrUnavailable}, func(*testing.T, *vaulttest.Memory) {}, false, true},
		"not written, and somebody else did": {vaulttest.Fault{Before: vault.ErrUnavailable}, func(t *testing.T, mem *vaulttest.Memory) {
			if _, err := putRecord(t.Context(), mem, "claude", begun(spec, "other"), 0); err != nil {
				t.Fatal(err)
			}
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem, puts, meanwhile := vaulttest.NewMemory(), 0, 0
				mem.Inject(func(op, at string) vaulttest.Fault {
					if op == "put" && at == path {
						switch puts++; {
						case puts == 1, tt.always:
							return tt.fault
						case puts == 2:
							tt.meant(t, mem)
							meanwhile, _ = mem.Version(t.Context(), path)
						}
					}
					return vaulttest.Fault{}
				})
				tok := oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour)}
				_, err := Connect(t.Context(), blind{mem}, spec, tok, t0)
				if (err == nil) != tt.stored || err != nil && !errors.Is(err, errUnsure) {
					t.Errorf("%v", err)
				}
				if version, _ := mem.Version(t.Context(), path); meanwhile > 0 && version != meanwhile {
					t.Errorf("written over version %d, of somebody else or of our own", meanwhile)
				}
				if s, _ := getStatus(t.Context(), mem, "claude"); name == "refreshed since" && s.Generation != 1 {
					t.Errorf("what the gateway said of it was taken back: generation %d", s.Generation)
				}
			})
		})
	}
}

// Gateways that look at a grant seldom, since it is well and nobody asks for it, say in time what they found of such a write.
func TestGatewaysSayWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.run(Options{})
		w.run(Options{})
		time.Sleep(20 * time.Minute)
		lost := false
		w.mem.Inject(func(op, path string) (f vaulttest.Fault) {
			if op == "put" && path == "grants/claude" && !lost {
				lost, f.After = true, vault.ErrUnavailable
			}
			return f
		})
		tok := oauth.Token{Access: secret.New("a9"), Refresh: secret.New("r9"), Expiry: time.Now().Add(time.Hour)}
		if _, err := Connect(t.Context(), blind{w.mem}, w.spec, tok, time.Now()); err != nil || !lost {
			t.Errorf("an answer was lost: %v; %v", lost, err)
		}
	})
}

// A refresh token alone is enough: the first token comes by it.
func TestRefreshTokenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		tokens := w.as.grant()
		tokens.Access, tokens.Expiry = secret.Text{}, time.Now()
		s, err := Connect(t.Context(), w.docs, w.spec, tokens, time.Now())
		if err != nil || s.State != Refreshing {
			t.Fatalf("%+v, %v", s, err)
		}
		k, _ := w.run(Options{})
		w.token(k)
		w.as.once(t, 1)
		time.Sleep(10 * time.Second)
		if s := w.status(); s.State != Healthy {
			t.Errorf("status %+v", s)
		}
	})
}
