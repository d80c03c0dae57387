package vault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// A cluster of two, spoken to through the standby, which answers reads from a copy that is behind: every call must be as
// good as at the active node.
func TestStandby(t *testing.T) {
	t.Parallel()
	raft := vaulttest.StartRaft(t)
	active, standby := vaulttest.Open(t, raft.Active), vaulttest.Open(t, raft.Standby)
	ctx := t.Context()
	if err := vault.Setup(ctx, standby, vault.SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	s := &vaulttest.Server{Address: raft.Active.Address, RootConfig: raft.Active, Root: standby}
	t.Run("documents", func(t *testing.T) { testServer(t, s) })

	type counter struct {
		N int `json:"n"`
	}
	const rounds = 50
	version, old := 0, 0
	for n := 1; n <= rounds; n++ {
		// Two replicas of the gate, one at each node: what the first writes the second reads and writes over, at once.
		if _, err := active.Put(ctx, "grants/turns", counter{n}, version); err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if plain(t, raft.Standby, "wayleave/data/grants/turns") != fmt.Sprintf(`"n":%d`, n) {
			old++
		}
		var got counter
		v, err := standby.Get(ctx, "grants/turns", &got)
		if err != nil || got.N != n {
			t.Fatalf("round %d: read %d, version %d, %v", n, got.N, v, err)
		}
		if version, err = standby.Put(ctx, "grants/turns", counter{-n}, v); err != nil {
			t.Fatalf("round %d: the right version was refused: %v", n, err)
		}
	}
	// Not a matter of timing: the copy is behind by tens of milliseconds, and one request takes one.
	if old == 0 {
		t.Errorf("a client without our headers never read an old document: the test does not show that they are needed")
	}
	t.Logf("without our headers %d of %d reads at the standby were old", old, rounds)

	// A log-in at the standby can be used there at once.
	auth, _, err := vault.IssueAppRole(ctx, standby, "", false)
	if err != nil {
		t.Fatal(err)
	}
	cfg := raft.Standby
	cfg.Auth = auth
	gateway := vaulttest.Open(t, cfg)
	if err := gateway.Preflight(ctx, vault.Gateway); err != nil {
		t.Error(err)
	}

	// Without an active node there is no answer rather than an old one.
	raft.KillActive()
	if got := plain(t, raft.Standby, "wayleave/data/grants/turns"); !strings.Contains(got, `"n":`) {
		t.Errorf("the standby alone answers %q", got)
	}
	if _, err := gateway.Get(ctx, "grants/turns", &counter{}); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("without an active node: %v", err)
	}
}

// plain reads a document's only number as a client that knows nothing of our headers.
func plain(t *testing.T, cfg vault.Config, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, cfg.Address+"/v1/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", cfg.Auth.Token.Reveal())
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	from := strings.Index(string(text), `"n":`)
	if from < 0 {
		return string(text)
	}
	rest := string(text[from:])
	return rest[:strings.IndexAny(rest, "},")]
}
