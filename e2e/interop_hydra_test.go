package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hydra runs Ory Hydra, which leaves signing in and consent to a page of ours: that one says yes to everybody, and to the
// scopes that refused does not hold.
func hydra(t *testing.T) (s *authServer, refuse func(scopes ...string)) {
	bin := filepath.Join(toolsBin, "hydra")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("Hydra is not here; run 'make tools'")
	}
	s = newAuthServer(t, "hydra")
	admin := &http.Client{Transport: s.way("admin.sock"), Timeout: patience}
	pages := &hydraPages{admin: admin}
	page := httptest.NewServer(pages)
	t.Cleanup(page.Close)

	settings, err := json.Marshal(map[string]any{
		"dsn": "memory",
		"sqa": map[string]any{"opt_out": true},
		"log": map[string]any{"level": "warn"},
		"serve": map[string]any{
			"public": map[string]any{"host": "unix:" + s.file("public.sock")},
			"admin":  map[string]any{"host": "unix:" + s.file("admin.sock")},
		},
		"urls":      map[string]any{"self": map[string]any{"issuer": s.issuer}, "login": page.URL + "/login", "consent": page.URL + "/consent"},
		"ttl":       map[string]any{"access_token": fmt.Sprintf("%ds", accessLife)},
		"oidc":      map[string]any{"dynamic_client_registration": map[string]any{"enabled": true}},
		"webfinger": map[string]any{"oidc_discovery": map[string]any{"client_registration_url": s.issuer + "/oauth2/register"}},
		"oauth2":    map[string]any{"grant": map[string]any{"jwt": map[string]any{"iat_optional": false, "jti_optional": false}}},
		"secrets":   map[string]any{"system": []string{newClientSecret() + newClientSecret()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.introspect = func(token string) (map[string]any, error) {
		return fetchJSON(admin, http.MethodPost, "http://admin/admin/oauth2/introspect", url.Values{"token": {token}})
	}
	s.start(t, nil, bin, "serve", "all", "--dev", "--config", s.write(t, "hydra.json", settings))

	secret := newClientSecret()
	s.write(t, "client-secret", []byte(secret))
	loopback, scope := []string{"http://127.0.0.1/callback"}, "openid offline_access api:read api:write"
	jwks := s.keyPair(t, "client-key.pem")
	for _, c := range []map[string]any{
		{"client_id": "public", "token_endpoint_auth_method": "none", "grant_types": []string{codeGrant, refreshGrant}, "redirect_uris": loopback, "scope": scope},
		{"client_id": "narrow", "token_endpoint_auth_method": "none", "grant_types": []string{codeGrant, refreshGrant}, "redirect_uris": loopback, "scope": scope},
		{"client_id": "signing", "token_endpoint_auth_method": "private_key_jwt", "token_endpoint_auth_signing_alg": "ES256", "jwks": jwks,
			"grant_types": []string{codeGrant, refreshGrant}, "redirect_uris": loopback, "scope": scope},
		{"client_id": "console", "token_endpoint_auth_method": "client_secret_basic", "client_secret": secret, "grant_types": []string{codeGrant}, "redirect_uris": []string{"http://127.0.0.1/login/callback"}, "scope": "openid email contact"},
		{"client_id": "machine", "token_endpoint_auth_method": "client_secret_basic", "client_secret": secret,
			"grant_types": []string{clientGrant, jwtBearerGrant}, "scope": scope},
	} {
		if _, err := fetchJSON(admin, http.MethodPost, "http://admin/admin/clients", c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fetchJSON(admin, http.MethodPost, "http://admin/admin/trust/grants/jwt-bearer/issuers", map[string]any{
		"issuer": "fleet.interop.test", "subject": "worker@interop.test", "scope": []string{"api:read"},
		"jwk": jwks["keys"].([]any)[0], "expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}); err != nil {
		t.Fatal(err)
	}
	return s, pages.refuse
}

// hydraPages are the pages to which Hydra sends a browser.
type hydraPages struct {
	admin   *http.Client
	mu      sync.Mutex
	refused []string
}

func (p *hydraPages) refuse(scopes ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = scopes
}

// addressOf is what the identity token has of an address, as oidc-provider's userinfo has it.
func addressOf(scopes []any) map[string]any {
	claims := map[string]any{}
	if slices.Contains(scopes, any("email")) {
		claims["email"], claims["email_verified"] = "operator@interop.test", true
	}
	if slices.Contains(scopes, any("contact")) {
		claims["email"] = "operator@interop.test"
	}
	return claims
}

func (p *hydraPages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := strings.TrimPrefix(r.URL.Path, "/") // login or consent
	at := "http://admin/admin/oauth2/auth/requests/" + kind
	challenge := "?" + url.Values{kind + "_challenge": {r.FormValue(kind + "_challenge")}}.Encode()
	asked, err := fetchJSON(p.admin, http.MethodGet, at+challenge, nil)
	var answer map[string]any
	if err == nil {
		yes := map[string]any{"subject": "operator"}
		if kind == "consent" {
			p.mu.Lock()
			scopes, _ := asked["requested_scope"].([]any)
			yes = map[string]any{"session": map[string]any{"id_token": addressOf(scopes)}, "grant_scope": slices.DeleteFunc(scopes, func(s any) bool { return slices.Contains(p.refused, s.(string)) })}
			p.mu.Unlock()
		}
		answer, err = fetchJSON(p.admin, http.MethodPut, at+"/accept"+challenge, yes)
	}
	to, _ := answer["redirect_to"].(string)
	if err != nil || to == "" {
		http.Error(w, fmt.Sprint("no way on: ", err), http.StatusInternalServerError)
		return
	}
	http.Redirect(w, r, to, http.StatusFound)
}
