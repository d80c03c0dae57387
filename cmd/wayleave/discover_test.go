package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/config"
	"wayleave/oauth"
	"wayleave/provider"
)

// server is an API, which asks for scopes, and its authorization server: it describes itself, and registers clients.
func server(t *testing.T, metadata map[string]any, secret string, scopes ...string) *httptest.Server {
	t.Helper()
	var srv *httptest.Server
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mcp", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="`+srv.URL+`/.well-known/oauth-protected-resource/mcp"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("GET /.well-known/oauth-protected-resource/mcp", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"resource": srv.URL + "/mcp", "authorization_servers": []string{srv.URL}, "scopes_supported": scopes})
	})
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		doc := map[string]any{"issuer": srv.URL}
		for k, v := range metadata {
			if path, ok := v.(string); ok {
				v = srv.URL + path
			}
			doc[k] = v
		}
		answer(w, http.StatusOK, doc)
	})
	mux.HandleFunc("POST /register", func(w http.ResponseWriter, r *http.Request) {
		var asked map[string]any
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		asked["client_id"] = "client-7"
		if secret != "" {
			asked["client_secret"] = secret
		}
		answer(w, http.StatusCreated, asked)
	})
	srv = httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

var whole = map[string]any{
	"authorization_endpoint": "/authorize", "token_endpoint": "/token", "revocation_endpoint": "/revoke", "registration_endpoint": "/register",
	"device_authorization_endpoint": "/device", "code_challenge_methods_supported": []string{"S256"},
	"grant_types_supported": []string{"authorization_code", "refresh_token"}, "token_endpoint_auth_methods_supported": []string{"client_secret_basic"},
	"scopes_supported": []string{"openid", "offline_access", "admin"},
}

func TestDiscover(t *testing.T) {
	insecure := oauth.DiscoverOptions{AllowInsecure: true, AllowPrivate: true}
	run := func(t *testing.T, address string, o discoverOptions) (out, log string, err error) {
		t.Helper()
		t.Chdir(t.TempDir())
		o.DiscoverOptions = insecure
		var w, l strings.Builder
		err = discover(t.Context(), http.DefaultClient, address, o, &w, &l)
		return w.String(), l.String(), err
	}
	check := func(t *testing.T, text string, wants ...string) {
		t.Helper()
		for _, s := range wants {
			if !strings.Contains(text, s) {
				t.Errorf("%q is not in:\n%s", s, text)
			}
		}
	}

	t.Run("an API, with a client registered", func(t *testing.T) {
		srv := server(t, whole, "sk-hush-secret", "pages:read")
		out, log, err := run(t, srv.URL+"/mcp", discoverOptions{name: "notes", clientName: "Wayleave", register: true})
		if err != nil {
			t.Fatal(err)
		}
		check(t, log, "Authorization server: "+srv.URL, "named by the API "+srv.URL+"/mcp", "Registered the client client-7", "notes.secret")
		check(t, out, "client_id: client-7", "resource: "+srv.URL+"/mcp", "client_secret_file: notes.secret", "scopes: ['pages:read', offline_access]", "prompt: consent")
		if strings.Contains(out+log, "hush") {
			t.Error("the client's secret was printed")
		}
		if info, err := os.Stat("notes.secret"); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the secret's file: %v, %v", info, err)
		}
		// What is printed is a configuration, and the gate can use it.
		dir, _ := os.Getwd()
		cfg, err := config.Parse(filepath.Join(dir, "wayleave.yaml"), []byte(out))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := cfg.LoadSecrets(os.Getenv); err != nil {
			t.Fatal(err)
		}
		if p, ok := cfg.ProviderOf("notes"); !ok || p.Validate() != nil || p.ClientSecret.Reveal() != "sk-hush-secret" || p.RevokeURL != srv.URL+"/revoke" {
			t.Errorf("%+v", p)
		}
		// A second run would overwrite what may be the only copy.
		var w, l strings.Builder
		err = discover(t.Context(), http.DefaultClient, srv.URL+"/mcp", discoverOptions{DiscoverOptions: insecure, name: "notes", register: true}, &w, &l)
		if err == nil || !strings.Contains(err.Error(), "--secret-file") {
			t.Errorf("a secret that is there already: %v", err)
		}
	})
	t.Run("a public client", func(t *testing.T) {
		public := map[string]any{"authorization_endpoint": "/authorize", "token_endpoint": "/token", "registration_endpoint": "/register", "token_endpoint_auth_methods_supported": []string{"none"}, "code_challenge_methods_supported": []string{"S256"}}
		srv := server(t, public, "")
		out, log, err := run(t, srv.URL, discoverOptions{name: "notes", register: true, redirect: "https://console.example/callback"})
		if err != nil {
			t.Fatal(err)
		}
		check(t, out, "auth_style: none", "redirect_url: https://console.example/callback")
		check(t, log, "It has no device flow", "It has no revocation", "refresh tokens")
		if _, err := os.Stat("notes.secret"); err == nil {
			t.Error("an empty file was left behind")
		}
	})
	t.Run("an issuer, and nothing registered", func(t *testing.T) {
		srv := server(t, whole, "")
		out, log, err := run(t, srv.URL, discoverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		check(t, log, "Register a client at the provider with the redirect address http://127.0.0.1/callback", "Its secret or key goes into 127.0.0.1.secret", "Scopes it knows: openid offline_access admin")
		check(t, out, "127.0.0.1:\n", "auth_style: client_secret_basic", "scopes: [openid, offline_access]")
		if _, err := config.Parse("wayleave.yaml", []byte(out)); err == nil || strings.Count(err.Error(), "\n") > 0 || !strings.Contains(err.Error(), "client_id") {
			t.Errorf("more is missing than the client: %v", err)
		}
	})
	t.Run("an API that asks for nothing", func(t *testing.T) {
		srv := server(t, whole, "")
		out, _, err := run(t, srv.URL+"/mcp", discoverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		check(t, out, "scopes: [openid, offline_access]")
	})
	t.Run("a client that acts for itself", func(t *testing.T) {
		srv := server(t, whole, "", "pages:read")
		out, _, err := run(t, srv.URL+"/mcp", discoverOptions{grantType: "client_credentials"})
		if err != nil {
			t.Fatal(err)
		}
		check(t, out, "scopes: ['pages:read']")
	})
	t.Run("as JSON", func(t *testing.T) {
		srv := server(t, whole, "")
		out, _, err := run(t, srv.URL, discoverOptions{name: "x", json: true})
		var got struct {
			Providers map[string]struct {
				TokenURL string `json:"token_url"`
			}
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Providers["x"].TokenURL != srv.URL+"/token" {
			t.Errorf("%v, %s", err, out)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		srv := httptest.NewServer(http.NotFoundHandler())
		defer srv.Close()
		if _, _, err := run(t, srv.URL, discoverOptions{}); err == nil || !strings.Contains(err.Error(), "documentation") {
			t.Errorf("got %v", err)
		}
	})
}

func TestListProviders(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte(deskConfig))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]listedProvider{}
	for _, l := range listProviders(cfg) {
		if _, twice := byName[l.Name]; twice {
			t.Errorf("%s is listed twice", l.Name)
		}
		byName[l.Name] = l
	}
	for _, name := range provider.Presets() {
		if byName[name].First == "" {
			t.Errorf("preset %s is not listed", name)
		}
	}
	for name, first := range map[string]string{
		"anthropic-api": "import", "robot": "client_credentials", "acme": "authorization_code", "github": "authorization_code, device_code",
	} {
		if byName[name].First != first {
			t.Errorf("%s: %q, want %q", name, byName[name].First, first)
		}
	}
	if got := byName["robot"]; got.Preset != "oauth2" || len(got.Grants) != 1 || got.Grants[0] != "robot" {
		t.Errorf("%+v", got)
	}
	var out strings.Builder
	if err := printProviders(&out, listProviders(cfg)); err != nil || !strings.Contains(out.String(), "grants: robot") || !strings.Contains(out.String(), "login.acme.example") {
		t.Errorf("%v\n%s", err, &out)
	}
}
