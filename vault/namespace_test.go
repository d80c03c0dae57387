package vault_test

import (
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// Everything the product does with a server, inside a namespace of a namespace, set up by the administrator of the root.
func TestNamespace(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	ctx := t.Context()
	s.Raw(t, http.MethodPut, "sys/namespaces/fleet", "{}")
	s.Raw(t, http.MethodPut, "fleet/sys/namespaces/eu", "{}")
	in := func(cfg vault.Config, namespace string) vault.Config { cfg.Namespace = namespace; return cfg }

	root := in(s.RootConfig, "fleet/eu")
	admin := vaulttest.Open(t, root)
	if err := vault.Setup(ctx, admin, vault.SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	auth, _, err := vault.IssueAppRole(ctx, admin, "", false)
	if err != nil {
		t.Fatal(err)
	}
	cfg := root
	cfg.Auth = auth
	gateway := vaulttest.Open(t, cfg)
	if err := gateway.Preflight(ctx, vault.Gateway); err != nil {
		t.Error(err)
	}
	token, err := vault.IssueToken(ctx, admin, vault.Operator, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Auth = vault.Auth{Method: "token", Token: token}
	if err := vaulttest.Open(t, cfg).Preflight(ctx, vault.Operator); err != nil {
		t.Error(err)
	}
	roots, err := gateway.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.SignIntermediate(ctx, roots[0], csr(t), []string{"example.com"}, time.Hour); err != nil {
		t.Error(err)
	}
	if id, err := gateway.SecretID(ctx); err != nil || !id.Expires.IsZero() {
		t.Errorf("secret id: %+v, %v", id, err)
	}
	t.Run("documents", func(t *testing.T) {
		testDocuments(t, admin, map[string]func(string){
			"deleted": func(path string) { s.Raw(t, http.MethodDelete, "fleet/eu/wayleave/data/"+path, "") },
		})
	})

	// The same names elsewhere are other documents, and the log-in is worth nothing there.
	if _, err := gateway.Put(ctx, "grants/here", struct{}{}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Root.Get(ctx, "grants/here", &struct{}{}); !errors.Is(err, vault.ErrNotFound) {
		t.Errorf("in the root namespace: %v", err)
	}
	for elsewhere, want := range map[string]string{"": "namespace", "fleet": "namespace", "nowhere": "no such namespace"} {
		for _, auth := range []vault.Auth{auth, cfg.Auth} {
			wrong := in(root, elsewhere)
			wrong.Auth = auth
			if err := logIn(t, wrong); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of fleet/eu in %q: %v", auth.Method, elsewhere, err)
			}
		}
	}

	ci := vaulttest.NewIssuer(t)
	s.Raw(t, http.MethodPut, "fleet/eu/sys/auth/jwt", `{"type":"jwt"}`)
	s.Raw(t, http.MethodPut, "fleet/eu/auth/jwt/config", toJSON(t, map[string]any{"jwt_validation_pubkeys": []string{ci.PublicPEM(t)}}))
	s.Raw(t, http.MethodPut, "fleet/eu/auth/jwt/role/gate", `{"role_type":"jwt","user_claim":"sub","bound_audiences":["wayleave"],"token_policies":["wayleave-gateway"]}`)
	file := filepath.Join(t.TempDir(), "jwt")
	write(t, file, ci.Token(t, time.Hour, map[string]any{"sub": "gate", "aud": "wayleave"}))
	cfg.Auth = vault.Auth{Method: "jwt", Role: "gate", JWTFile: file}
	if err := logIn(t, cfg); err != nil {
		t.Error(err)
	}
	if err := logIn(t, in(cfg, "fleet")); !errors.Is(err, vault.ErrDenied) || !strings.Contains(err.Error(), "vault.namespace") {
		t.Errorf("JWT in another namespace: %v", err)
	}
}
