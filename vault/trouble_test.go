package vault_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// What goes wrong with a real server while the gate serves, and how it gets well again without anybody's help.

// logged counts what a client logs, by message.
type logged struct {
	mu    sync.Mutex
	count map[string]int
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) WithGroup(string) slog.Handler            { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[r.Message]++
	return nil
}

func (l *logged) times(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[message]
}

const (
	loggedInAgain = "logged in to vault again"
	logInFailed   = "logging in to vault failed"
)

// openLogged opens a client and what it will have logged.
func openLogged(t *testing.T, cfg vault.Config) (*vault.Client, *logged) {
	t.Helper()
	l := &logged{count: map[string]int{}}
	c, err := vault.Open(t.Context(), cfg, slog.New(l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, l
}

// eventually repeats f until it reports true, for at most 30 seconds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(30 * time.Second); !f(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func read(c *vault.Client) error {
	_, err := c.Get(context.Background(), "grants/g", &struct{}{})
	return err
}

// stored makes the document that read looks for.
func stored(t *testing.T, s *vaulttest.Server) {
	t.Helper()
	if _, err := s.Root.Put(t.Context(), "grants/g", struct{}{}, 0); err != nil {
		t.Fatal(err)
	}
}

func TestPolicyChangedUnderUs(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	c, log := openLogged(t, s.GatewayConfig)
	s.Raw(t, http.MethodPut, "sys/policies/acl/wayleave-gateway", `{"policy":"path \"wayleave/data/keys/*\" { capabilities = [\"read\"] }"}`)
	for range 100 {
		err := read(c)
		if !errors.Is(err, vault.ErrDenied) || errors.Is(err, vault.ErrNotFound) || !strings.Contains(err.Error(), `"read" on wayleave/data/grants/g`) {
			t.Fatalf("without the right: %v", err)
		}
	}
	if n := log.times(loggedInAgain); n != 1 {
		t.Errorf("%d log-ins for 100 refusals, want one", n)
	}
	if err := vault.Setup(t.Context(), s.Root, vault.SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := read(c); err != nil {
		t.Errorf("with the policy mended: %v", err)
	}
}

// A quota answers 429. The refusal is no hot loop of ours, and says what it is.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	s.Raw(t, http.MethodPut, "sys/quotas/rate-limit/tight", `{"path":"wayleave/","rate":1,"interval":"1h"}`)
	eventually(t, "the quota", func() bool {
		code, _ := s.Send(t, s.RootConfig.Auth.Token, http.MethodGet, "wayleave/data/grants/g", "")
		return code == http.StatusTooManyRequests
	})
	if err := read(s.Gateway); !errors.Is(err, vault.ErrUnavailable) || errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), "429") {
		t.Errorf("over the quota: %v", err)
	}
	if _, err := s.Gateway.Put(t.Context(), "grants/g", struct{}{}, 1); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("write over the quota: %v", err)
	}
	s.Raw(t, http.MethodDelete, "sys/quotas/rate-limit/tight", "")
	if err := read(s.Gateway); err != nil {
		t.Errorf("without the quota: %v", err)
	}
}

func TestSealedWhileServing(t *testing.T) {
	t.Parallel()
	s := vaulttest.Start(t)
	stored(t, s)
	cfg := s.GatewayConfig
	s.Seal(t)
	if err := read(s.Gateway); !errors.Is(err, vault.ErrUnavailable) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("read while sealed: %v", err)
	}
	if err := s.Gateway.Preflight(t.Context(), vault.Gateway); !errors.Is(err, vault.ErrUnavailable) || !strings.Contains(err.Error(), "unseal it") {
		t.Errorf("preflight while sealed: %v", err)
	}
	if _, err := vault.Open(t.Context(), cfg, nil); !errors.Is(err, vault.ErrUnavailable) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("log-in while sealed: %v", err)
	}
	s.Unseal(t)
	eventually(t, "service after unsealing", func() bool { return read(s.Gateway) == nil })
}

// A mount that is gone is not a grant that is gone: nobody may take it for never connected.
func TestDeletedMount(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	s.Raw(t, http.MethodDelete, "sys/mounts/wayleave", "")
	for name, c := range map[string]*vault.Client{"gateway": s.Gateway, "root": s.Root} {
		err := read(c)
		if err == nil || errors.Is(err, vault.ErrNotFound) || !strings.Contains(err.Error(), "wayleave vault setup") {
			t.Errorf("%s reads: %v", name, err)
		}
		if _, err := c.Version(t.Context(), "grants/g"); err == nil {
			t.Errorf("%s finds a version", name)
		}
		if names, err := c.List(t.Context(), "grants"); err == nil {
			t.Errorf("%s lists %v", name, names)
		}
		if err := c.Preflight(t.Context(), vault.Gateway); err == nil || !strings.Contains(err.Error(), "is it there, in this namespace?") {
			t.Errorf("%s: preflight: %v", name, err)
		}
	}
}

// Everything that ends a log-in, while many use it: a token at its maximum life, a revoked one, and the two at once.
// The race detector watches, and no call may fail.
func TestNoCallNoticesALogIn(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	s.Raw(t, http.MethodPut, "auth/approle/role/wayleave-gateway", `{"token_period":"0","token_ttl":"2s","token_max_ttl":"3s"}`)
	c, log := openLogged(t, s.GatewayConfig)
	ctx, stop := context.WithCancel(t.Context())
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for ctx.Err() == nil {
				if err := read(c); err != nil {
					t.Errorf("after %d log-ins: %v", log.times(loggedInAgain), err)
					stop()
				}
			}
		})
	}
	eventually(t, "two log-ins by themselves", func() bool { return log.times(loggedInAgain) >= 2 || ctx.Err() != nil })
	s.Raw(t, http.MethodPut, "sys/leases/revoke-prefix/auth/approle/login", "{}")
	before := log.times(loggedInAgain)
	eventually(t, "a log-in after the token was revoked", func() bool { return log.times(loggedInAgain) > before || ctx.Err() != nil })
	stop()
	users.Wait()
}

// The server caps the life of a secret id without a word. The gate's log says in time that it ends.
func TestSecretIDEnds(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	if id, err := s.Gateway.SecretID(ctx); err != nil || id != (vault.SecretID{}) {
		t.Errorf("by default: %+v, %v; want one without an end", id, err)
	}
	s.Raw(t, http.MethodPut, "sys/auth/approle/tune", `{"max_lease_ttl":"1h"}`)
	s.Raw(t, http.MethodPut, "auth/approle/role/wayleave-gateway", `{"secret_id_ttl":"720h"}`)
	auth, ttl, err := vault.IssueAppRole(ctx, s.Root, "", false)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.GatewayConfig
	cfg.Auth = auth
	c, log := openLogged(t, cfg)
	id, err := c.SecretID(ctx)
	if left := time.Until(id.Expires); err != nil || left > time.Hour || left < 50*time.Minute || ttl != time.Hour {
		t.Errorf("asked for 720h, got %v (said %v), %v; the mount allows 1h", left, ttl, err)
	}
	eventually(t, "a warning", func() bool { return log.times("the secret id of the vault log-in must be replaced") == 1 })
	l, err := c.LogIn(ctx)
	if err != nil || l.Path != "auth/approle/login" || l.TTL <= 0 || l.TTL > time.Hour || !l.Renewable {
		t.Errorf("log-in: %+v, %v", l, err)
	}
	if _, err := s.Viewer.SecretID(ctx); err == nil {
		t.Error("a log-in by token has a secret id")
	}
}

// What a role may do to the tokens that it gives, beside a life: each works, or says what to change.
func TestLimitedTokens(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	stored(t, s)
	for _, tt := range []struct {
		name, role string
		reads      int    // that work, in a row
		says       string // of the log-in, or of the read that does not
	}{
		{"batch tokens, which nobody can renew", `{"token_type":"batch","token_period":"0","token_ttl":"1h"}`, 20, ""},
		{"a few uses", `{"token_type":"service","token_num_uses":"2"}`, 4, "token_num_uses"},
		{"for other addresses", `{"token_num_uses":"0","token_bound_cidrs":"10.0.0.0/8"}`, 0, "token_bound_cidrs"},
		{"secret ids for other addresses", `{"token_bound_cidrs":"","secret_id_bound_cidrs":"10.0.0.0/8"}`, 0, "secret_id_bound_cidrs"},
		{"without limits", `{"secret_id_bound_cidrs":""}`, 20, ""},
	} {
		s.Raw(t, http.MethodPut, "auth/approle/role/wayleave-gateway", tt.role)
		err := func() error {
			c, err := vault.Open(t.Context(), s.GatewayConfig, nil)
			if err != nil {
				return err
			}
			defer c.Close()
			for range tt.reads {
				if err := read(c); err != nil {
					t.Errorf("%s: %v", tt.name, err)
				}
			}
			for range 20 {
				err = read(c)
				if err != nil {
					break
				}
			}
			return err
		}()
		if tt.says == "" && err != nil || tt.says != "" && (!errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A wrapped secret id is a token; it is no secret id, and no token to work with.
func TestWrappedSecretID(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	for _, wrapping := range []string{"s.Qb0kZfXr6mFh1q2w3e4r5t6y", "hvs.CAESIJ3vJkQ"} {
		for _, auth := range []vault.Auth{
			{Method: "approle", RoleID: s.GatewayConfig.Auth.RoleID, SecretID: secret.New(wrapping)},
			{Method: "token", Token: secret.New(wrapping)},
		} {
			cfg := s.GatewayConfig
			cfg.Auth = auth
			err := logIn(t, cfg)
			if !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), "unwrapped first") || strings.Contains(err.Error(), wrapping) {
				t.Errorf("%s: %v", auth.Method, err)
			}
		}
	}
}
