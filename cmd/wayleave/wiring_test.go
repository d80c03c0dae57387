package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
	"wayleave/xds"
)

func wiringConfig(t *testing.T) *config.Config {
	t.Helper()
	cfg, err := config.Load("testdata/wiring.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// golden compares v, as JSON, with a file.
func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what comes out; look at it, then run 'go test ./cmd/wayleave -update'\n-want +got:\n%s", path, diff)
	}
}

// The decision and Envoy get the same routes, each its own side of them.
func TestWiring(t *testing.T) {
	cfg := wiringConfig(t)
	golden(t, "wiring.swap.json", swapConfig(cfg, nil))

	roots, err := upstreamRoots(cfg)
	if err != nil || !strings.Contains(string(roots), "BEGIN CERTIFICATE") {
		t.Errorf("no roots to verify upstreams against: %v", err)
	}
	told := envoyConfig(cfg, nil, "/run/wayleave", "/dev/stdout")
	golden(t, "wiring.envoy.json", told)
	if told.MessageTimeout <= swapDeadline {
		t.Errorf("Envoy gives up after %v, before the swap does after %v", told.MessageTimeout, swapDeadline)
	}
}

// A host whose fault only Envoy's resources show is refused by the gate too, and has its place in the file.
func TestHostsTakenOut(t *testing.T) {
	const text = `
grants: {claude: {provider: anthropic}}
routes:
  - {name: wayleave.answers, hosts: [a.example.com], grant: claude}
%s
profiles: {default: {grants: [claude], token_endpoint: placeholder}}
`
	build := func(more string) (*config.Config, *xds.Resources, error) {
		t.Helper()
		cfg, err := config.Parse("wayleave.yaml", fmt.Appendf(nil, text, more))
		if err != nil {
			t.Fatal(err)
		}
		r, err := envoyResources(cfg, "", "/run/wayleave", "")
		return cfg, r, err
	}
	cfg, r, err := build("  - {hosts: [b.example.com], grant: claude}")
	if err != nil || r.Served != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	refused := swapConfig(cfg, r.Quarantined).Quarantined
	if !slices.Contains(refused, "a.example.com") || slices.Contains(refused, "b.example.com") {
		t.Errorf("refused: %q", refused)
	}
	const want = `wayleave.yaml:4:38: routes[0].hosts[0]: host "a.example.com" cannot be served: route "wayleave.answers": the name is used twice`
	if err := latentFaults(cfg); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, _, err := build(""); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("nothing left: %v", err)
	}
}

// A session holds a placeholder for each grant of its profile, in the way of the grant's provider.
func TestCredentials(t *testing.T) {
	cfg := wiringConfig(t)
	docs := vaulttest.NewMemory()
	sessions, err := worker.OpenSessions(t.Context(), docs, worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	render := credentials(cfg, sessions, grant.NewKeeper(docs, operate.Specs(cfg), grant.Options{}))
	for profile, want := range map[string]map[string]string{ // grant → the variable that has its placeholder
		"default": {"claude": "CLAUDE_CODE_OAUTH_TOKEN", "acme": "ACME_TOKEN"},
		"other":   {"claude-two": "ANTHROPIC_AUTH_TOKEN"},
		"gone":    {},
	} {
		held, err := render(t.Context(), worker.Session{ID: "s", Worker: "w", Profile: profile, Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, c := range held {
			p, _ := cfg.ProviderOf(c.Grant)
			if !strings.HasPrefix(c.Placeholder, p.PlaceholderPrefix) || !strings.Contains(c.Placeholder, worker.Marker) {
				t.Errorf("%s has the placeholder %q", c.Grant, c.Placeholder)
			}
			for name, value := range c.Env {
				if value == c.Placeholder {
					got[c.Grant] = name
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("profile %s (-want +got):\n%s", profile, diff)
		}
	}
}

// A worker without a token gets one from `up`, the same one each time; `serve` has nowhere to keep it.
func TestConfiguredWorkers(t *testing.T) {
	cfg := wiringConfig(t)
	if _, err := configuredWorkers(cfg, nil); err == nil || !strings.Contains(err.Error(), "wayleave worker token") {
		t.Errorf("without a state directory: %v", err)
	}
	st := &state{dir: t.TempDir()}
	first, err := configuredWorkers(cfg, st)
	if err != nil {
		t.Fatal(err)
	}
	again, err := configuredWorkers(cfg, st)
	if err != nil || !cmp.Equal(first, again) {
		t.Errorf("the second start knows other workers: %v\n%s", err, cmp.Diff(first, again))
	}
	if len(first) != 2 || first[0].Name != "ci" || first[0].SessionTTL != 8*time.Hour || first[1].Name != "laptop" || first[1].Profile != "other" {
		t.Errorf("got %+v", first)
	}
	registry, err := worker.NewRegistry(first)
	if err != nil {
		t.Fatal(err)
	}
	token, err := st.workerToken("laptop")
	if err != nil {
		t.Fatal(err)
	}
	if w, known := registry.Lookup(token); !known || w.Name != "laptop" {
		t.Errorf("the token of laptop is that of %q", w.Name)
	}
	cfg.Workers["ci"] = config.Worker{Profile: "default", TokenDigest: "beef"}
	if _, err := configuredWorkers(cfg, st); err == nil || !strings.Contains(err.Error(), "ci") {
		t.Errorf("a digest that is none: %v", err)
	}
}

func TestVaultConfig(t *testing.T) {
	cfg := wiringConfig(t)
	t.Setenv("VAULT_ADDR", "https://other.example")
	got := vaultConfig(cfg)
	if got.Address != "https://vault.example:8200" || got.Namespace != "platform" || got.CAFile != filepath.Join("testdata", "vault-ca.pem") ||
		got.Mount != "teams/wayleave" || got.PKIMount != "teams/pki" {
		t.Errorf("got %+v", got)
	}
	if a := got.Auth; a.Method != "approle" || a.RoleID != "role" || a.Mount != "machines" || a.SecretIDFile != filepath.Join("testdata", "secret-id") {
		t.Errorf("got %+v", a)
	}
	cfg.Vault.Address = ""
	if got := vaultConfig(cfg).Address; got != "https://other.example" {
		t.Errorf("without vault.address: %q; want $VAULT_ADDR", got)
	}
	t.Setenv("VAULT_ADDR", "")
	if got := vaultConfig(cfg).Address; got != "" {
		t.Errorf("without either: %q", got)
	}
}

// What Envoy carries credentials with loads nothing from our environment.
func TestCleanEnvironment(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/x.so")
	t.Setenv("VAULT_TOKEN", "secret")
	t.Setenv("TZ", "UTC")
	got := strings.Join(cleanEnvironment(), "\n")
	if strings.Contains(got, "LD_PRELOAD") || strings.Contains(got, "secret") || !strings.Contains(got, "TZ=UTC") {
		t.Errorf("got %s", got)
	}
}

// Gates of one run directory have sockets of their own, and Envoy knows all of them.
func TestReplicaNames(t *testing.T) {
	cfg := &config.Config{}
	if got := socketPaths(cfg, "/run", gateSocket); !slices.Equal(got, []string{"/run/gate.sock"}) {
		t.Errorf("of one gate: %v", got)
	}
	if checkReplica(cfg, "") != nil || checkReplica(cfg, "a") == nil {
		t.Error("one gate has no name, and any is wrong")
	}
	cfg.Listen.Replicas = []string{"a", "b"}
	if got := socketPaths(cfg, "/run", apiSocket); !slices.Equal(got, []string{"/run/api.a.sock", "/run/api.b.sock"}) {
		t.Errorf("of two: %v", got)
	}
	if checkReplica(cfg, "b") != nil || checkReplica(cfg, "") == nil || checkReplica(cfg, "c") == nil {
		t.Error("of two gates each is one of them")
	}
	if got := ofReplica("a", "spool"); got != "spool.a" {
		t.Errorf("a directory: %s", got)
	}
}

// Gates of one run directory write files of their own.
func TestRecordOfReplicas(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte(`record: {file: requests.jsonl}`))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir = t.TempDir()
	for replica, name := range map[string]string{"": "requests.jsonl", "a": "requests.a.jsonl"} {
		if _, err := (gate{cfg: cfg, replica: replica, log: slog.New(slog.DiscardHandler)}).openRecord(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(cfg.Dir, name)); err != nil {
			t.Error(err)
		}
	}
	cfg.Record.File = ""
	if r, err := (gate{cfg: cfg}).openRecord(); r != nil || err != nil {
		t.Errorf("%v, %v", r, err)
	}
}

// An Envoy that somebody else started says its version by itself, and one that should not serve any more is named.
func TestOldEnvoysAreNamed(t *testing.T) {
	for version, want := range map[string]string{"1.39.0": "CVE-2026-73547", "1.38.9": "is not supported", "1.40.0-dev": "is not supported", "1.40.0": ""} {
		var out strings.Builder
		(gate{log: slog.New(slog.NewTextHandler(&out, nil))}).joined(xds.Node{ID: "n", Version: version})
		if warned := strings.Contains(out.String(), "this Envoy should be replaced"); warned != (want != "") || !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "version="+version) {
			t.Errorf("%s: %s", version, out.String())
		}
	}
}

// A file of authorities that Envoy could not read is refused before it takes every upstream away.
func TestUnreadableAuthorities(t *testing.T) {
	cfg := wiringConfig(t)
	file := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Upstream.CAFiles = []string{file}
	if _, err := upstreamRoots(cfg); err == nil || !strings.Contains(err.Error(), "upstream.ca_files: "+file+": there is no certificate in it") {
		t.Errorf("%v", err)
	}
}

// What Envoy is not to tunnel is what the gate would not: one rule for both.
func TestDeniedTunnels(t *testing.T) {
	cfg := wiringConfig(t)
	cfg.Tunnel, cfg.Deny = []string{"*.example.com"}, []string{"no.example.com"}
	p := cfg.Providers["anthropic"]
	p.RefusedHosts = []string{"tokens.example.com/path"}
	cfg.Providers["anthropic"] = p
	if diff := cmp.Diff([]string{"no.example.com", "tokens.example.com:443"}, envoyConfig(cfg, nil, "", "").Deny); diff != "" {
		t.Error(diff)
	}
}
