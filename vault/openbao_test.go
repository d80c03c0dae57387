package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/deploy"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// What each role may and may not do, on the real server and through the policies an operator installs.
func TestPolicies(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	for path, doc := range map[string]any{"grants/g": map[string]string{"refresh": "r0"}, "status/g": map[string]string{"state": "healthy"}, "keys/session": map[string]string{}, "keys/audit": map[string]string{}, "requests/grants": map[string]string{}, "sessions/revoked": map[string]string{}, "sessions/live/a": map[string]string{}, "operators/tokens": map[string]string{}, "other/x": map[string]string{}} {
		if _, err := s.Root.Put(ctx, path, doc, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.Raw(t, http.MethodPut, "sys/mounts/other", `{"type":"kv","options":{"version":"2"}}`)
	other := s.GatewayConfig
	other.Mount = "other"
	elsewhere := vaulttest.Open(t, other)

	if _, err := s.Root.PrepareRoot(ctx); err != nil {
		t.Fatal(err)
	}
	roots, err := s.Root.Roots(ctx)
	if err != nil || len(roots) != 2 {
		t.Fatal(roots, err)
	}
	get := func(c *vault.Client, path string) error { _, err := c.Get(ctx, path, &struct{}{}); return err }
	// Each write is a conflict at worst: what counts is whether the policy let it through.
	put := func(c *vault.Client, path string) error { _, err := c.Put(ctx, path, struct{}{}, 99); return err }
	version := func(c *vault.Client, path string) error { _, err := c.Version(ctx, path); return err }
	list := func(c *vault.Client, path string) error { _, err := c.List(ctx, path); return err }
	remove := func(c *vault.Client, path string) error { return c.Delete(ctx, path) }
	root := func(c *vault.Client, _ string) error { _, err := c.Roots(ctx); return err }
	prepare := func(c *vault.Client, _ string) error { _, err := c.PrepareRoot(ctx); return err }
	activate := func(c *vault.Client, _ string) error { return c.ActivateRoot(ctx, roots[0]) }
	retire := func(c *vault.Client, _ string) error { return c.RetireRoot(ctx, roots[1]) }
	intermediates := func(c *vault.Client, _ string) error { _, err := c.Intermediates(ctx); return err }
	sign := func(c *vault.Client, _ string) error {
		_, err := c.SignIntermediate(ctx, roots[0], csr(t), []string{"example.com"}, time.Hour)
		return err
	}
	setup := func(c *vault.Client, _ string) error { return vault.Setup(ctx, c, vault.SetupOptions{}) }
	token := func(c *vault.Client, _ string) error {
		_, err := vault.IssueToken(ctx, c, vault.Gateway, time.Hour)
		return err
	}
	secretID := func(c *vault.Client, _ string) error { _, _, err := vault.IssueAppRole(ctx, c, "", false); return err }

	for _, tt := range []struct {
		what                      string
		do                        func(*vault.Client, string) error
		path                      string
		gateway, operator, viewer bool
	}{
		{"read", get, "grants/g", true, false, false},
		{"write", put, "grants/g", true, true, false},
		{"create", put, "grants/new", true, true, false},
		{"version of", version, "grants/g", true, true, false},
		{"list", list, "grants", true, true, false},
		{"delete", remove, "grants/none", true, true, false},
		{"read", get, "status/g", true, true, true},
		{"write", put, "status/g", true, true, false},
		{"version of", version, "status/g", true, true, true},
		{"list", list, "status", true, true, true},
		{"delete", remove, "status/none", true, true, false},
		{"read", get, "keys/session", true, false, false},
		{"write", put, "keys/session", true, false, false},
		{"read", get, "keys/audit", true, true, false},
		{"write", put, "keys/audit", true, false, false},
		{"list", list, "keys", true, false, false},
		{"delete", remove, "keys/none", false, false, false},
		{"read", get, "requests/grants", true, true, false},
		{"write", put, "requests/grants", true, true, false},
		{"version of", version, "requests/grants", true, true, false},
		{"list", list, "requests", true, true, false},
		{"delete", remove, "requests/none", false, false, false},
		{"read", get, "sessions/live/a", true, true, true},
		{"write", put, "sessions/live/a", true, false, false},
		{"read", get, "sessions/revoked", true, true, true},
		{"write", put, "sessions/revoked", true, true, false},
		{"list", list, "sessions/live", true, true, true},
		{"delete", remove, "sessions/none", false, false, false},
		{"read", get, "operators/tokens", true, false, false},
		{"write", put, "operators/tokens", true, false, false},
		{"delete", remove, "operators/none", false, false, false},
		{"read", get, "other/x", false, false, false},
		{"write", put, "other/x", false, false, false},
		{"sign an intermediate", sign, "", true, false, false},
		{"read the roots", root, "", true, true, true},
		{"make a root", prepare, "", false, false, false},
		{"let a root sign", activate, "", false, false, false},
		{"remove a root", retire, "", false, false, false},
		{"list intermediates", intermediates, "", false, false, false},
		{"set up", setup, "", false, false, false},
		{"make tokens", token, "", false, false, false},
		{"make secret ids", secretID, "", false, false, false},
	} {
		for _, who := range []struct {
			role   vault.Role
			client *vault.Client
			may    bool
		}{{vault.Gateway, s.Gateway, tt.gateway}, {vault.Operator, s.Operator, tt.operator}, {vault.Viewer, s.Viewer, tt.viewer}} {
			err := tt.do(who.client, tt.path)
			if denied := errors.Is(err, vault.ErrDenied); denied == who.may {
				t.Errorf("%s: %s %s: %v; may it? %v", who.role, tt.what, tt.path, err, who.may)
			} else if !denied && err != nil && !errors.Is(err, vault.ErrConflict) {
				t.Errorf("%s: %s %s: %v", who.role, tt.what, tt.path, err)
			}
		}
	}
	if err := get(elsewhere, "grants/g"); !errors.Is(err, vault.ErrDenied) {
		t.Errorf("gateway at another mount: %v", err)
	}

	// Roots of two: whoever may connect reads them without a policy too.
	for _, path := range []string{"wayleave-pki/cert/ca", "wayleave-pki/issuers?list=true"} {
		if code, _ := s.Send(t, secret.Text{}, http.MethodGet, path, ""); code != http.StatusOK {
			t.Errorf("nobody: GET %s: %d, want 200", path, code)
		}
	}

	// The other ways KV version 2 has to read or bring back what a grant holds, closed to the operator.
	for _, r := range []struct{ method, path, body string }{
		{http.MethodGet, "wayleave/data/grants/g", ""},
		{http.MethodGet, "wayleave/data/grants/g?version=1", ""},
		{http.MethodGet, "wayleave/subkeys/grants/g", ""},
		{http.MethodPatch, "wayleave/data/grants/g", `{"data":{},"options":{"cas":1}}`},
		{http.MethodPut, "wayleave/undelete/grants/g", `{"versions":[1]}`},
		{http.MethodGet, "wayleave/data/keys/session", ""},
		{http.MethodPut, "wayleave/config", `{"cas_required":false}`},
		{http.MethodPut, "wayleave/metadata/grants/g", `{"cas_required":false}`},
	} {
		if code, _ := s.Send(t, s.OperatorConfig.Auth.Token, r.method, r.path, r.body); code != http.StatusForbidden {
			t.Errorf("operator: %s %s: %d, want 403", r.method, r.path, code)
		}
	}
}

// The gateway's policy lets it sign nothing but leaf-only intermediates with name constraints.
func TestGatewaySignsOnlyConstrainedIntermediates(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	token := gatewayToken(t, s)
	good := map[string]any{
		"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr(t)})), "common_name": vault.IntermediateName,
		"permitted_dns_domains": []string{"example.com"}, "max_path_length": "0", "not_before_duration": "168h", "ttl": "1h", "exclude_cn_from_sans": "true",
	}
	for _, tt := range []struct {
		name   string
		change map[string]any
		want   int
	}{
		{"as the product asks", nil, http.StatusOK},
		{"as earlier releases ask", map[string]any{"not_before_duration": "5m"}, http.StatusOK},
		{"any beginning", map[string]any{"not_before_duration": "87600h"}, http.StatusForbidden},
		{"no name constraints", map[string]any{"permitted_dns_domains": nil}, http.StatusForbidden},
		{"no path length", map[string]any{"max_path_length": nil}, http.StatusForbidden},
		{"a CA that signs CAs", map[string]any{"max_path_length": "1"}, http.StatusForbidden},
		{"any path length", map[string]any{"max_path_length": "-1"}, http.StatusForbidden},
		{"values from the CSR", map[string]any{"use_csr_values": true}, http.StatusForbidden},
		{"by an issuer that the path does not name", map[string]any{"issuer_ref": "default"}, http.StatusForbidden},
		{"another name", map[string]any{"common_name": "Somebody else"}, http.StatusForbidden},
		{"other names", map[string]any{"alt_names": "example.org"}, http.StatusForbidden},
		{"an end of its own", map[string]any{"not_after": "2099-01-01T00:00:00Z"}, http.StatusForbidden},
	} {
		body := maps.Clone(good)
		for k, v := range tt.change {
			if v == nil {
				delete(body, k)
			} else {
				body[k] = v
			}
		}
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := s.Send(t, token, http.MethodPut, "wayleave-pki/issuer/default/sign-intermediate", string(text)); code != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, code, tt.want)
		}
	}
	for _, path := range []string{"wayleave-pki/root/sign-self-issued", "wayleave-pki/root/sign-intermediate", "wayleave-pki/sign-verbatim", "wayleave-pki/root/generate/internal", "wayleave-pki/intermediate/set-signed"} {
		if code, _ := s.Send(t, token, http.MethodPut, path, "{}"); code != http.StatusForbidden {
			t.Errorf("%s: %d, want 403", path, code)
		}
	}
}

// A policy that an earlier release wrote lets the gateway sign as that release did.
func TestPolicyOfAnEarlierRelease(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	now, err := deploy.VaultPolicies.ReadFile("vault/gateway.hcl")
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Replace(string(now), `["168h", "5m"]`, `["5m"]`, 1)
	for policy, backdate := range map[string]time.Duration{string(now): vault.Backdate, before: vault.BackdateBefore} {
		text, err := json.Marshal(map[string]string{"policy": policy})
		if err != nil {
			t.Fatal(err)
		}
		s.Raw(t, http.MethodPut, "sys/policies/acl/wayleave-gateway", string(text))
		gateway, err := vault.Open(t.Context(), s.GatewayConfig, nil)
		if err != nil {
			t.Fatal(err)
		}
		roots, err := gateway.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		chain, err := gateway.SignIntermediate(t.Context(), roots[0], csr(t), []string{"example.com"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := x509.ParseCertificate(chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(signed.NotBefore.Add(backdate)).Abs() > time.Minute || time.Since(vault.SignedAt(signed)).Abs() > time.Minute {
			t.Errorf("valid from %v, want %v before now; signed at %v", signed.NotBefore, backdate, vault.SignedAt(signed))
		}
	}
}

// gatewayToken logs in as the gateway by hand.
func gatewayToken(t *testing.T, s *vaulttest.Server) secret.Text {
	a := s.GatewayConfig.Auth
	code, body := s.Send(t, secret.Text{}, http.MethodPut, "auth/approle/login", fmt.Sprintf(`{"role_id":%q,"secret_id":%q}`, a.RoleID, a.SecretID.Reveal()))
	var answer struct {
		Auth struct {
			Token string `json:"client_token"`
		}
	}
	if err := json.Unmarshal(body, &answer); code != http.StatusOK || err != nil {
		t.Fatalf("logging in: %d, %v", code, err)
	}
	return secret.New(answer.Auth.Token)
}

func csr(t *testing.T) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	for role, c := range map[vault.Role]*vault.Client{vault.Gateway: s.Gateway, vault.Operator: s.Operator, vault.Viewer: s.Viewer} {
		if err := c.Preflight(ctx, role); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if err := s.Root.Preflight(ctx, role); err != nil {
			t.Errorf("root as %s: %v", role, err)
		}
	}

	err := s.Operator.Preflight(ctx, vault.Gateway)
	if !errors.Is(err, vault.ErrDenied) {
		t.Errorf("operator as gateway: %v", err)
	}
	for _, want := range []string{"read on wayleave/data/grants/", "create, read, update on wayleave/data/keys/", "update on wayleave-pki/issuer/any/sign-intermediate", "wayleave vault setup", "deploy/vault/gateway.hcl"} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("operator as gateway: %v\nlacks %q", err, want)
		}
	}
	for _, not := range []string{"cert/ca", "data/status"} {
		if err != nil && strings.Contains(err.Error(), not) {
			t.Errorf("operator as gateway: %v\nnames %q, which it has", err, not)
		}
	}

	s.Raw(t, http.MethodPut, "sys/mounts/old", `{"type":"kv","options":{"version":"1"}}`)
	for mount, want := range map[string]string{"old": "KV version 1", "wayleave-pki": "not KV version 2", "nowhere": "vault setup"} {
		cfg := s.RootConfig
		cfg.Mount = mount
		if err := vaulttest.Open(t, cfg).Preflight(ctx, vault.Gateway); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mount %s: %v, want %q", mount, err, want)
		}
	}
}

// Log-ins without the policy "default" can do their work all the same; one that may not look itself up is told so.
func TestNoDefaultPolicy(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	with := func(policy string) vault.Config {
		var made struct {
			Auth struct {
				Token string `json:"client_token"`
			} `json:"auth"`
		}
		if err := json.Unmarshal(s.Raw(t, http.MethodPost, "auth/token/create", fmt.Sprintf(`{"policies":[%q],"no_default_policy":true,"period":"1h"}`, policy)), &made); err != nil {
			t.Fatal(err)
		}
		cfg := s.GatewayConfig
		cfg.Auth = vault.Auth{Method: "token", Token: secret.New(made.Auth.Token)}
		return cfg
	}
	for _, role := range []vault.Role{vault.Gateway, vault.Operator, vault.Viewer} {
		c, err := vault.Open(t.Context(), with(role.Policy()), nil)
		if err != nil {
			t.Errorf("%s: %v", role, err)
			continue
		}
		if err := c.Preflight(t.Context(), role); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if l, err := c.LogIn(t.Context()); err != nil || l.Period == 0 {
			t.Errorf("%s: %+v, %v", role, l, err)
		}
		c.Close()
	}
	_, err := vault.Open(t.Context(), with("nothing"), nil)
	if !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), `must grant "read" on auth/token/lookup-self`) {
		t.Error(err)
	}
}

// How many strings a server takes in a document, and that a store in memory takes no more.
func TestStringsAreCounted(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	for what, store := range map[string]store{"OpenBao": vaulttest.Open(t, s.GatewayConfig), "memory": vaulttest.NewMemory()} {
		for n, taken := range map[int]bool{450: true, 600: false} {
			doc := map[string]string{}
			for i := range n {
				doc[fmt.Sprintf("name-%d", i)] = fmt.Sprint(i)
			}
			if _, err := store.Put(t.Context(), fmt.Sprintf("requests/%d", n), doc, 0); (err == nil) != taken || errors.Is(err, vault.ErrConflict) {
				t.Errorf("%s, %d names and values: %v", what, n, err)
			}
		}
	}
}

// A mount that deletes what is not written for a while is said once, and Setup mends it.
func TestDocumentsAreDeleted(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	put := func(c *vault.Client, path string) {
		t.Helper()
		if _, err := c.Put(ctx, path, struct{}{}, 0); err != nil {
			t.Fatal(err)
		}
	}
	told := func(l *logged, want int) {
		t.Helper()
		n := 0
		for message, times := range l.count {
			if strings.Contains(message, "delete_version_after") {
				n += times
			}
		}
		if n != want {
			t.Errorf("told %d times, want %d", n, want)
		}
	}
	c, log := openLogged(t, s.GatewayConfig)
	put(c, "grants/before")
	if at, will := c.Deletes(); will {
		t.Errorf("deletes at %s", at)
	}
	s.Raw(t, http.MethodPut, "wayleave/config", `{"delete_version_after":"1h"}`)
	put(c, "grants/a")
	put(c, "grants/b")
	if _, will := c.Deletes(); !will {
		t.Error("does not delete")
	}
	told(log, 1)
	reader, log := openLogged(t, s.GatewayConfig)
	if _, err := reader.Get(ctx, "grants/a", &struct{}{}); err != nil {
		t.Fatal(err)
	}
	told(log, 1)

	var notes []string
	if err := vault.Setup(ctx, s.Root, vault.SetupOptions{Note: func(n string) { notes = append(notes, n) }}); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "delete none by itself") {
		t.Errorf("%v, did %q", err, notes)
	}
	c, log = openLogged(t, s.GatewayConfig)
	put(c, "grants/c")
	told(log, 0)
}

// A second run changes nothing, with two roots neither; other mounts get policies of their own.
func TestSetup(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	if _, err := s.Root.PrepareRoot(ctx); err != nil {
		t.Fatal(err)
	}
	before, err := s.Root.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	note := func(n string) { notes = append(notes, n) }
	if err := vault.Setup(ctx, s.Root, vault.SetupOptions{Note: note}); err != nil || len(notes) > 0 {
		t.Errorf("second run: %v, did %q", err, notes)
	}
	after, err := s.Root.Roots(ctx)
	if diff := cmp.Diff(names(before), names(after)); err != nil || diff != "" || !after[0].Equal(before[0]) {
		t.Errorf("the root CAs were changed: %v %s", err, diff)
	}

	// Nobody can use a root that has ended.
	var made struct {
		Data struct {
			ID string `json:"issuer_id"`
		}
	}
	ended := fmt.Sprintf(`{"common_name":"ended","key_type":"ec","not_after":%q,"not_before_duration":"1h"}`, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if err := json.Unmarshal(s.Raw(t, http.MethodPut, "wayleave-pki/root/generate/internal", ended), &made); err != nil {
		t.Fatal(err)
	}
	s.Raw(t, http.MethodPut, "wayleave-pki/config/issuers", fmt.Sprintf(`{"default":%q}`, made.Data.ID))
	if err := vault.Setup(ctx, s.Root, vault.SetupOptions{Note: note}); err != nil || len(notes) != 1 {
		t.Errorf("with a root that has ended: %v, did %q", err, notes)
	}
	if roots, err := s.Root.Roots(ctx); err != nil || roots[0].Subject.CommonName != vault.RootName+" 3" {
		t.Errorf("in place of a root that has ended: %q, %v", names(roots), err)
	}
	notes = nil

	cfg := s.RootConfig
	cfg.Mount, cfg.PKIMount = "team/grants", "team/pki"
	admin := vaulttest.Open(t, cfg)
	if err := vault.Setup(ctx, admin, vault.SetupOptions{AppRoleMount: "robots", Note: note}); err != nil {
		t.Fatal(err)
	}
	if len(notes) == 0 {
		t.Error("nothing was reported")
	}
	auth, _, err := vault.IssueAppRole(ctx, admin, "robots", false)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Auth = auth
	gateway := vaulttest.Open(t, cfg)
	if err := gateway.Preflight(ctx, vault.Gateway); err != nil {
		t.Error(err)
	}
	roots, err := gateway.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.SignIntermediate(ctx, roots[0], csr(t), []string{"example.com"}, time.Hour); err != nil {
		t.Error(err)
	}

	// A gate that logs in otherwise has no use for AppRole.
	s.Raw(t, http.MethodPut, "sys/namespaces/bare", "{}")
	cfg = s.RootConfig
	cfg.Namespace = "bare"
	bare := vaulttest.Open(t, cfg)
	if err := vault.Setup(ctx, bare, vault.SetupOptions{NoAppRole: true}); err != nil {
		t.Fatal(err)
	}
	if err := bare.Preflight(ctx, vault.Gateway); err != nil {
		t.Error(err)
	}
	if body := s.Raw(t, http.MethodGet, "bare/sys/auth", ""); bytes.Contains(body, []byte("approle")) {
		t.Errorf("AppRole was enabled: %s", body)
	}

	cfg = s.RootConfig
	cfg.Mount = "old"
	s.Raw(t, http.MethodPut, "sys/mounts/old", `{"type":"kv"}`)
	if err := vault.Setup(ctx, vaulttest.Open(t, cfg), vault.SetupOptions{}); err == nil || !strings.Contains(err.Error(), "KV version 1") {
		t.Errorf("KV version 1: %v", err)
	}
}

// Withdrawing earlier secret ids ends log-ins with them, and a token's death is healed by logging in again.
func TestCredentialsOfTheGateway(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	if _, err := s.Gateway.Put(ctx, "grants/g", struct{}{}, 0); err != nil {
		t.Fatal(err)
	}
	revokeGatewayTokens := func() { s.Raw(t, http.MethodPut, "sys/leases/revoke-prefix/auth/approle/login", "{}") }
	revokeGatewayTokens()
	if _, err := s.Gateway.Get(ctx, "grants/g", &struct{}{}); err != nil {
		t.Errorf("after its token was revoked: %v", err)
	}

	fresh, ttl, err := vault.IssueAppRole(ctx, s.Root, "", true)
	if err != nil || ttl != 0 {
		t.Fatalf("a secret id for %v (%v), want one without an end", ttl, err)
	}
	if _, err := vault.Open(ctx, s.GatewayConfig, nil); !errors.Is(err, vault.ErrDenied) {
		t.Errorf("withdrawn secret id: %v", err)
	}
	cfg := s.GatewayConfig
	cfg.Auth = fresh
	if err := vaulttest.Open(t, cfg).Preflight(ctx, vault.Gateway); err != nil {
		t.Errorf("new secret id: %v", err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, cfg); strings.Contains(text, fresh.SecretID.Reveal()) {
			t.Errorf("%s prints the secret id", format)
		}
	}
}

func TestSignIntermediate(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	for name, signer := range map[string]interface {
		SignIntermediate(context.Context, *x509.Certificate, []byte, []string, time.Duration) ([][]byte, error)
		Roots(context.Context) ([]*x509.Certificate, error)
	}{"openbao": s.Gateway, "memory": vaulttest.NewMemory()} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			roots, err := signer.Roots(ctx)
			if err != nil || len(roots) != 1 {
				t.Fatal(roots, err)
			}
			root := roots[0]
			if root.Subject.CommonName != vault.RootName || root.MaxPathLen != 1 || root.NotAfter.Before(time.Now().AddDate(9, 11, 0)) {
				t.Errorf("root: %q, path length %d, until %v", root.Subject.CommonName, root.MaxPathLen, root.NotAfter)
			}
			chain, err := signer.SignIntermediate(ctx, root, csr(t), []string{"a.example", "b.example"}, 24*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 2 || !bytes.Equal(chain[1], root.Raw) {
				t.Fatalf("chain of %d certificates, want the intermediate and the root", len(chain))
			}
			issued, err := x509.ParseCertificate(chain[0])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"a.example", "b.example"}, issued.PermittedDNSDomains); diff != "" {
				t.Error(diff)
			}
			if !issued.IsCA || issued.MaxPathLen != 0 || !issued.MaxPathLenZero || !issued.PermittedDNSDomainsCritical ||
				len(issued.SubjectKeyId) == 0 || !bytes.Equal(issued.AuthorityKeyId, root.SubjectKeyId) || issued.KeyUsage&x509.KeyUsageCertSign == 0 ||
				len(issued.DNSNames) != 0 {
				t.Errorf("issued: %+v", issued)
			}
			if life := issued.NotAfter.Sub(issued.NotBefore).Round(time.Minute); life != 24*time.Hour+vault.Backdate {
				t.Errorf("valid for %v, want 24h and a week before", life)
			}
			var many []string // more than a server takes strings in a request
			for i := range 1200 {
				many = append(many, fmt.Sprintf("api-%04d.example.com", i))
			}
			if chain, err = signer.SignIntermediate(ctx, root, csr(t), many, time.Hour); err != nil {
				t.Fatal(err)
			}
			if issued, err = x509.ParseCertificate(chain[0]); err != nil || !cmp.Equal(issued.PermittedDNSDomains, many) {
				t.Errorf("of many domains it has %d, %v", len(issued.PermittedDNSDomains), err)
			}
			if _, err := signer.SignIntermediate(ctx, root, csr(t), nil, time.Hour); err == nil {
				t.Error("an unconstrained intermediate was signed")
			}
		})
	}
}
