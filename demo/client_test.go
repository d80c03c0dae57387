package demo

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// newASWith is newAS with a client that has a secret and one that has a key.
func newASWith(t *testing.T) (a as, key ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	a.clock = &clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	a.Provider = NewProvider(ProviderOptions{Now: a.Now, Clients: []Client{
		{ID: "sealed", Secret: "p@ss word"}, {ID: "signer", Key: public},
	}})
	srv := httptest.NewServer(a.Provider)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a, private
}

// proof is a JWT as the signer makes them; edit breaks it.
func (a as) proof(t *testing.T, key crypto.PrivateKey, edit func(map[string]any)) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{"iss": "signer", "sub": "signer", "aud": a.url + "/token", "exp": a.Now().Add(time.Minute).Unix(), "jti": newSecret("")}
	if edit != nil {
		edit(claims)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (a as) ask(t *testing.T, form url.Values) tokenAnswer {
	t.Helper()
	got, err := a.post(t.Context(), form)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestClientAuthentication(t *testing.T) {
	a, key := newASWith(t)
	_, other, _ := ed25519.GenerateKey(nil)
	good := a.proof(t, key, nil)
	for _, tt := range []struct {
		name   string
		form   url.Values
		status int
	}{
		{"secret", url.Values{"client_id": {"sealed"}, "client_secret": {"p@ss word"}}, 200},
		{"wrong secret", url.Values{"client_id": {"sealed"}, "client_secret": {"x"}}, 401},
		{"no secret", url.Values{"client_id": {"sealed"}}, 401},
		{"public", url.Values{"client_id": {"wayleave-demo"}}, 400},
		{"public with a secret", url.Values{"client_id": {"wayleave-demo"}, "client_secret": {"x"}}, 401},
		{"unknown", url.Values{"client_id": {"x"}}, 401},
		{"key", url.Values{"client_id": {"signer"}, "client_assertion": {good}}, 200},
		{"the same proof again", url.Values{"client_id": {"signer"}, "client_assertion": {good}}, 401},
		{"no proof", url.Values{"client_id": {"signer"}}, 401},
		{"another key", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, other, nil)}}, 401},
		{"another audience", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, key, func(c map[string]any) { c["aud"] = "https://x" })}}, 401},
		{"another subject", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, key, func(c map[string]any) { c["sub"] = "x" })}}, 401},
		{"expired", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, key, func(c map[string]any) { c["exp"] = a.Now().Add(-time.Hour).Unix() })}}, 401},
		{"good for days", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, key, func(c map[string]any) { c["exp"] = a.Now().Add(99 * time.Hour).Unix() })}}, 401},
		{"no identifier", url.Values{"client_id": {"signer"}, "client_assertion": {a.proof(t, key, func(c map[string]any) { delete(c, "jti") })}}, 401},
	} {
		tt.form.Set("grant_type", "client_credentials")
		tt.form.Set("scope", "a")
		if tt.form.Has("client_assertion") {
			tt.form.Set("client_assertion_type", clientAssertionType)
		}
		if got := a.ask(t, tt.form); got.Status != tt.status || got.Refresh != "" || a.live(got.Access) != (got.Status == 200) {
			t.Errorf("%s: %d %s", tt.name, got.Status, got.Error)
		}
	}
	if n := a.Stats().Mints; n != 2 {
		t.Errorf("%d tokens minted", n)
	}
}

func TestAssertionGrant(t *testing.T) {
	a, key := newASWith(t)
	ask := func(assertion string) tokenAnswer {
		return a.ask(t, url.Values{
			"client_id": {"signer"}, "client_assertion_type": {clientAssertionType}, "client_assertion": {a.proof(t, key, nil)},
			"grant_type": {grantJWT}, "assertion": {assertion}, "scope": {"a"},
		})
	}
	if got := ask(a.proof(t, key, func(c map[string]any) { c["sub"] = "user@example" })); got.Status != 200 || got.Scope != "a" {
		t.Errorf("%d %s", got.Status, got.Error)
	}
	if got := ask(a.proof(t, key, func(c map[string]any) { c["iss"] = "x" })); got.Error != "invalid_grant" {
		t.Errorf("another issuer: %d %s", got.Status, got.Error)
	}
}

func TestTrade(t *testing.T) {
	a, key := newASWith(t)
	subject, refresh := a.Issue("a", "b")
	ask := func(edit func(url.Values)) tokenAnswer {
		form := url.Values{
			"client_id": {"signer"}, "client_assertion_type": {clientAssertionType}, "client_assertion": {a.proof(t, key, nil)},
			"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeAccessToken},
		}
		if edit != nil {
			edit(form)
		}
		return a.ask(t, form)
	}
	got := ask(func(f url.Values) {
		f.Set("audience", "api")
		f.Set("scope", "a")
		f.Set("actor_token", a.proof(t, key, func(c map[string]any) { c["sub"] = "worker-1" }))
		f.Set("actor_token_type", typeJWT)
	})
	if use := a.UseOf(got.Access); got.Status != 200 || got.Scope != "a" || got.Refresh != "" || use != (Use{Actor: "worker-1", Audience: "api"}) {
		t.Fatalf("%d %s, scope %q, use %+v", got.Status, got.Error, got.Scope, use)
	}
	for name, edit := range map[string]func(url.Values){
		"more scopes":      func(f url.Values) { f.Set("scope", "a c") },
		"a refresh token":  func(f url.Values) { f.Set("subject_token", refresh) },
		"unsigned actor":   func(f url.Values) { f.Set("actor_token", "worker-1"); f.Set("actor_token_type", typeJWT) },
		"other token type": func(f url.Values) { f.Set("subject_token_type", typeJWT) },
	} {
		if got := ask(edit); got.Status != 400 {
			t.Errorf("%s: %d", name, got.Status)
		}
	}
	a.RevokeAll()
	if a.live(got.Access) {
		t.Error("an exchanged token outlives the consent it came from")
	}
}

// A code or refresh token is of no use to another client.
func TestTokensBelongToTheirClient(t *testing.T) {
	a, _ := newASWith(t)
	_, rt := a.Issue("a")
	sealed := func(f url.Values) {
		f.Set("client_id", "sealed")
		f.Set("client_secret", "p@ss word")
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {rt}}
	sealed(form)
	if got := a.ask(t, form); got.Error != "invalid_grant" {
		t.Errorf("refresh: %d %s", got.Status, got.Error)
	}
	if got := a.exchange(t, a.code(t), sealed); got.Error != "invalid_grant" {
		t.Errorf("code: %d %s", got.Status, got.Error)
	}
	form = url.Values{"token": {rt}}
	sealed(form)
	resp, err := http.PostForm(a.url+"/revoke", form)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 || a.refresh(t, rt, "").Status != 200 {
		t.Errorf("revoke: %d", resp.StatusCode)
	}
}

func TestDevice(t *testing.T) {
	a := newAS(t)
	start := func(scope string) (d struct {
		Code     string `json:"device_code"`
		UserCode string `json:"user_code"`
		Page     string `json:"verification_uri_complete"`
		Interval int    `json:"interval"`
	}, status int) {
		resp, err := http.PostForm(a.url+"/device", url.Values{"client_id": {"wayleave-demo"}, "scope": {scope}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&d); err != nil {
			t.Fatal(err)
		}
		return d, resp.StatusCode
	}
	if _, status := start(""); status != 400 {
		t.Errorf("no scopes: %d", status)
	}
	d, status := start("a b")
	if status != 200 || d.Interval != 1 || !strings.HasSuffix(d.Page, d.UserCode) {
		t.Fatalf("%d, %+v", status, d)
	}
	poll := func(code string, want string) tokenAnswer {
		t.Helper()
		got := a.ask(t, url.Values{"grant_type": {grantDevice}, "device_code": {code}})
		if got.Error != want {
			t.Errorf("%d %q, want %q", got.Status, got.Error, want)
		}
		return got
	}
	poll("x", "invalid_grant")
	poll(d.Code, "authorization_pending")
	poll(d.Code, "slow_down")
	a.advance(5 * time.Second)
	poll(d.Code, "slow_down")
	a.advance(11 * time.Second)
	poll(d.Code, "authorization_pending")
	if err := ApproveDevice(t.Context(), a.url+"/activate?user_code=x"); err == nil {
		t.Error("another code was approved")
	}
	if err := ApproveDevice(t.Context(), d.Page); err != nil {
		t.Fatal(err)
	}
	if got := poll(d.Code, ""); got.Scope != "a b" || !a.live(got.Access) {
		t.Errorf("scope %q", got.Scope)
	}
	poll(d.Code, "invalid_grant")

	d, _ = start("a")
	a.SetDenied(true)
	if err := ApproveDevice(t.Context(), d.Page); err != nil {
		t.Fatal(err)
	}
	poll(d.Code, "access_denied")
	d, _ = start("a")
	a.advance(deviceTTL)
	poll(d.Code, "expired_token")
}

func TestRegistrationAndMetadata(t *testing.T) {
	a := newAS(t)
	get := func(path string) map[string]any {
		resp, err := http.Get(a.url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := get("/.well-known/oauth-authorization-server")
	if m["issuer"] != a.url || get("/.well-known/openid-configuration")["token_endpoint"] != a.url+"/token" {
		t.Errorf("%v", m)
	}
	register := func(body string) (int, map[string]any) {
		resp, err := http.Post(m["registration_endpoint"].(string), "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, got
	}
	status, got := register(`{"redirect_uris":["http://127.0.0.1/cb"],"token_endpoint_auth_method":"none"}`)
	if status != 201 || got["client_secret"] != nil {
		t.Fatalf("%d %v", status, got)
	}
	edit := func(q url.Values) {
		q.Set("client_id", got["client_id"].(string))
		q.Set("redirect_uri", "http://127.0.0.1:5/cb")
	}
	if location, err := Approve(t.Context(), a.authorizeURL(edit)); err != nil || !strings.Contains(location, "iss="+url.QueryEscape(a.url)) {
		t.Errorf("a registered client: %s, %v", location, err)
	}
	if status, got := register(`{"redirect_uris":["http://127.0.0.1/cb"]}`); status != 201 || got["client_secret"] == "" || got["token_endpoint_auth_method"] != "client_secret_basic" {
		t.Errorf("%d %v", status, got)
	}
	for _, bad := range []string{`{`, `{}`, `{"redirect_uris":["/x"]}`, `{"redirect_uris":["http://127.0.0.1/cb"],"token_endpoint_auth_method":"tls_client_auth"}`} {
		if status, got := register(bad); status != 400 || !slices.Contains([]any{"invalid_redirect_uri", "invalid_client_metadata"}, got["error"]) {
			t.Errorf("%s: %d %v", bad, status, got)
		}
	}
}

// An API that Start started says where its tokens come from.
func TestProtectedResource(t *testing.T) {
	d := start(t)
	resp, err := d.client(t, false).Get(d.APIURL + "/echo")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if want := `Bearer resource_metadata="` + d.APIURL + wellKnownResource + `"`; resp.Header.Get("WWW-Authenticate") != want {
		t.Errorf("challenge %q", resp.Header.Get("WWW-Authenticate"))
	}
	if _, m := d.do(t, "GET", wellKnownResource, "", ""); m["resource"] != d.APIURL || !slices.Contains(m["authorization_servers"].([]any), any(d.ProviderURL)) {
		t.Errorf("%v", m)
	}
}
