package console

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"wayleave/config"
	"wayleave/secret"
)

// identity is an identity provider that can be made to lie. A real one is in e2e.
type identity struct {
	*httptest.Server
	key *rsa.PrivateKey
	now func() time.Time // the console's, which tests move

	mu     sync.Mutex
	asked  url.Values                          // by the last log-in
	claims func(map[string]any) map[string]any // of the identity token; nil: as they should be
	info   map[string]any                      // what userinfo says
	posted url.Values                          // to the token endpoint

	methods   []string                 // that it says clients may authenticate by; nil: it does not say
	refuses   func(*http.Request) bool // what the token endpoint refuses; nil: nothing
	presented int                      // how often a code was
	asks      chan struct{}            // is read when somebody asks for its description, and again before it answers; nil: never
}

func newIdentity(t *testing.T) *identity {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &identity{key: key, now: time.Now}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.asks != nil {
			<-p.asks
			<-p.asks
		}
		says := map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"userinfo_endpoint": p.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"RS256"},
		}
		if p.methods != nil {
			says["token_endpoint_auth_methods_supported"] = p.methods
		}
		answer(w, says)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("/userinfo", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.info) })
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = r.ParseForm()
		p.posted = r.PostForm
		p.presented++
		if p.refuses != nil && p.refuses(r) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error": "invalid_client", "error_description": "of the code c"}`))
			return
		}
		claims := map[string]any{
			"iss": p.URL, "aud": "wayleave", "sub": "u1", "exp": p.now().Add(time.Hour).Unix(), "iat": p.now().Unix(),
			"nonce": p.asked.Get("nonce"), "email": "maria@example.com", "email_verified": true, "groups": []string{"platform"},
		}
		if p.claims != nil {
			claims = p.claims(claims)
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
		if err != nil {
			panic(err)
		}
		body, _ := json.Marshal(claims)
		signed, err := signer.Sign(body)
		if err != nil {
			panic(err)
		}
		text, _ := signed.CompactSerialize()
		answer(w, map[string]any{"access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": text})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// begin sends a browser to the provider, and returns where the provider would send it back to.
func (p *identity) begin(b *browser) string { return p.beginAt(b, "/login/start?next=/workers") }

// beginAt is begin at an address of the console.
func (p *identity) beginAt(b *browser, start string) string {
	b.t.Helper()
	a := b.get(start)
	u, err := url.Parse(a.to())
	if err != nil || !strings.HasPrefix(a.to(), p.URL+"/authorize?") {
		b.t.Fatalf("%d %s %s", a.status, a.to(), a.body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = u.Query()
	back := url.Values{"code": {"c"}, "state": {p.asked.Get("state")}}
	return p.asked.Get("redirect_uri") + "?" + back.Encode()
}

func withIdentity(p *identity) func(*Config) {
	return func(c *Config) {
		c.OIDC = config.OIDC{
			Issuer: p.URL, ClientID: "wayleave", ClientSecret: secret.New("s"), Scopes: []string{"openid", "email"}, RolesClaim: "groups",
			Roles: config.Roles{Viewer: []string{"engineering"}, Operator: []string{"platform"}, Admin: []string{"leads"}},
		}
	}
}

func TestLogInByOIDC(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	b := w.browser()
	b.wants("log-in", b.get("/login"), http.StatusOK, "Log in with your organisation")
	back := p.begin(b)
	if !strings.HasPrefix(back, w.address+"/login/callback?") || p.asked.Get("code_challenge_method") != "S256" || p.asked.Get("nonce") == "" || p.asked.Get("state") == "" {
		t.Fatalf("%s, asked %v", back, p.asked)
	}
	at, _ := url.Parse(w.address)
	asked := b.http.Jar.Cookies(at)
	if a := b.get(back); a.to() != "/workers" {
		t.Fatalf("%d %s %s", a.status, a.to(), a.body)
	}
	if sum := sha256.Sum256([]byte(p.posted.Get("code_verifier"))); base64.RawURLEncoding.EncodeToString(sum[:]) != p.asked.Get("code_challenge") {
		t.Error("the code is not bound to this log-in (RFC 7636)")
	}
	b.wants("in", b.get("/"), http.StatusOK, "maria@example.com", "operator, logged in by oidc", `href="/configuration"`)
	if a := b.do(b.request(http.MethodPost, "/rollouts/promote", "csrf="+b.csrf)); a.status != http.StatusForbidden {
		t.Errorf("an operator promotes a rollout: %d", a.status)
	}
	before, presented, csrf := w.events(), p.presented, b.csrf
	if a := b.get(back); a.status != http.StatusSeeOther || a.to() != "/" { // as when somebody goes back
		t.Errorf("replayed: %d %s", a.status, a.to())
	}
	if b.get("/"); w.events() != before || p.presented != presented || b.csrf != csrf {
		t.Error("an answer that comes again changes something")
	}
	thief := w.browser() // who has the cookie too
	thief.http.Jar.SetCookies(at, asked)
	thief.wants("replayed with the cookie", thief.get(back), http.StatusForbidden, "is over; begin again")
	if a := thief.get("/"); a.status != http.StatusSeeOther {
		t.Errorf("the thief is in: %d", a.status)
	}
}

// All tabs of a browser that begin to log in come in, in whatever order they come back.
func TestTabsThatLogInTogether(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	for _, order := range [][]int{{0, 1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1, 0}} {
		b := w.browser()
		var tabs []url.Values
		var backs []string
		for range order {
			backs = append(backs, p.beginAt(b, "/login/start?next=/workers"))
			tabs = append(tabs, p.asked)
		}
		first := ""
		for _, tab := range order {
			p.asked = tabs[tab] // whose nonce is in the token
			if a := b.get(backs[tab]); a.to() != "/workers" {
				t.Fatalf("tab %d: %d %s", tab, a.status, a.body)
			}
			b.wants("in", b.get("/"), http.StatusOK, "maria@example.com")
			if first == "" {
				first = b.csrf
			}
		}
		if b.csrf != first {
			t.Error("the forms of the first tab are of no more use")
		}
		if a := b.get(backs[0]); a.to() != "/" {
			t.Errorf("replayed: %d %s", a.status, a.to())
		}
		at, _ := url.Parse(w.address)
		for _, c := range b.http.Jar.Cookies(at) {
			if strings.Contains(c.Name, askedCookie) {
				t.Errorf("the cookie %s stays", c.Name)
			}
		}
		w.later(askedFor) // which forgives
	}
}

func TestRolesByClaim(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	tooMany := func(c map[string]any) map[string]any { // as Microsoft writes it
		c = with("_claim_names", map[string]any{"groups": "src1"})(with("groups", nil)(c))
		return with("_claim_sources", map[string]any{"src1": map[string]any{"endpoint": "https://graph.example/users/u1/getMemberObjects"}})(c)
	}
	for _, tt := range []struct {
		name   string
		claims func(map[string]any) map[string]any
		info   map[string]any
		role   Role
		why    string // there is none
	}{
		{"a list", with("groups", []string{"other", "engineering"}), nil, Viewer, ""},
		{"a string", with("groups", "leads"), nil, Admin, ""},
		{"the highest", with("groups", []string{"engineering", "leads", "platform"}), nil, Admin, ""},
		{"none that counts", with("groups", []string{"sales"}), nil, "", "none of the roles that may come in: the identity provider says &#34;sales&#34; in the claim groups; ask whoever runs the gate"},
		{"many, none of which counts", with("groups", []string{"/platform", "b", "c", "d", "e", "f", "g", "h", "i", "j"}), nil, "", "&#34;/platform&#34;, &#34;b&#34;, &#34;c&#34;, &#34;d&#34;, &#34;e&#34;, &#34;f&#34;, &#34;g&#34;, &#34;h&#34; and 2 more in the claim"},
		{"no claim", with("groups", nil), map[string]any{"sub": "u1"}, "", "to put that claim into the identity token or userinfo"},
		{"names in an object", with("groups", map[string]any{"platform": map[string]any{"4711": "example.com"}, "leads": map[string]any{}}), nil, Operator, ""}, // as Zitadel writes them
		{"something else", with("groups", map[string]any{"platform": true}), map[string]any{"sub": "u1"}, "", "to put that claim into the identity token or userinfo"},
		{"in userinfo", with("groups", nil), map[string]any{"sub": "u1", "groups": []string{"platform"}}, Operator, ""},
		{"nothing here, and in userinfo", with("groups", []string{}), map[string]any{"sub": "u1", "groups": []string{"platform"}}, Operator, ""},
		{"in somebody else's userinfo", with("groups", nil), map[string]any{"sub": "u2", "groups": []string{"leads"}}, "", "of somebody else"},
		{"too many to be told", tooMany, map[string]any{"sub": "u1"}, "", "too many groups"},
		{"too many to be told, and a userinfo that fails", tooMany, map[string]any{"sub": 1}, "", "too many groups"},
		{"too many to be told but in userinfo", tooMany, map[string]any{"sub": "u1", "groups": []string{"platform"}}, Operator, ""},
		{"in a userinfo that fails", with("groups", nil), map[string]any{"sub": 1}, "", "does not say what you may"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.later(10 * time.Minute)
			p.claims, p.info = tt.claims, tt.info
			b := w.browser()
			a := b.get(p.begin(b))
			if tt.role == "" {
				if a.status != http.StatusForbidden || !strings.Contains(a.body, tt.why) {
					t.Errorf("%d %s", a.status, a.body)
				}
				return
			}
			if page := b.get("/"); !strings.Contains(page.body, string(tt.role)+", logged in by oidc") {
				t.Errorf("%s is not %s", tt.name, tt.role)
			}
		})
	}
	for _, tt := range []struct{ claims, path, want string }{
		{`{"realm_access": {"roles": ["a", 1, "b"]}}`, "realm_access.roles", "a b"},
		{`{"resource_access": {"gate.example.com": {"roles": ["a"]}, "gate": {"roles": ["b"]}}}`, "resource_access.gate.example.com.roles", "a"}, // a client's id at Keycloak
		{`{"https://example.com/roles": ["a"]}`, "https://example.com/roles", "a"},                                                               // as Auth0 wants it
		{`{"a": {"b": {"c": ["1"]}}, "a.b": {"c": ["2"]}}`, "a.b.c", "1"},
		{`{"a": {"x": 1}, "a.b": {"c": ["2"]}}`, "a.b.c", "2"},
		{`{"a.b.c": "3", "a": {"b": {"c": ["1"]}}}`, "a.b.c", "3"},
		{`{"a": {"b": "1"}}`, "a", ""},
		{`{"a": {"b": {"org": "x"}, "c": {}, "d": false}}`, "a", "b"},
		{`{"a": "1"}`, "a.b", ""},
		{`{"a": {"": "1"}}`, "a.", "1"},
	} {
		var claims map[string]any
		if err := json.Unmarshal([]byte(tt.claims), &claims); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(values(claims, tt.path), " "); got != tt.want {
			t.Errorf("%s in %s: %q, want %q", tt.path, tt.claims, got, tt.want)
		}
	}
}

// An address that the provider has not verified is anybody's: it is neither shown nor gives a role.
func TestUnverifiedEmail(t *testing.T) {
	p := newIdentity(t)
	byEmail := func(allow bool) func(*Config) {
		return func(c *Config) {
			withIdentity(p)(c)
			c.OIDC.RolesClaim, c.OIDC.AllowUnverifiedEmail = "email", allow
			c.OIDC.Roles = config.Roles{Admin: []string{"maria@example.com"}}
		}
	}
	strict, lax, byGroup := newWorld(t, byEmail(false)), newWorld(t, byEmail(true)), newWorld(t, withIdentity(p))
	for name, tt := range map[string]struct {
		claims, info map[string]any // those of the identity token beside what it always has
		in           bool           // without being allowed explicitly
		called       string         // where the role comes of a group
	}{
		"verified":                     {map[string]any{"email_verified": true}, nil, true, "maria@example.com"},
		"verified, as a string":        {map[string]any{"email_verified": "true"}, nil, true, "maria@example.com"},
		"not verified":                 {map[string]any{"email_verified": false}, nil, false, "u1"},
		"not verified, as a string":    {map[string]any{"email_verified": "false"}, nil, false, "u1"},
		"not said":                     {map[string]any{"email_verified": nil}, nil, false, "u1"},
		"something else":               {map[string]any{"email_verified": 1}, nil, false, "u1"},
		"a name that one chooses":      {map[string]any{"email_verified": nil, "preferred_username": "maria@example.com"}, nil, false, "maria@example.com (u1)"},
		"verified in userinfo":         {map[string]any{"email": nil, "email_verified": nil}, map[string]any{"email": "maria@example.com", "email_verified": true}, true, "u1"}, // which is not asked where the token says all
		"not verified in userinfo":     {map[string]any{"email": nil, "email_verified": nil}, map[string]any{"email": "maria@example.com"}, false, "u1"},
		"another one's, in userinfo":   {map[string]any{"email_verified": nil}, map[string]any{"email": "eve@example.com", "email_verified": true}, false, "u1"},
		"verified here, written there": {map[string]any{"email": nil}, map[string]any{"email": "maria@example.com"}, false, "u1"},
		"written here, verified there": {map[string]any{"email_verified": nil}, map[string]any{"email_verified": true}, false, "u1"},
	} {
		p.claims = func(c map[string]any) map[string]any {
			for claim, value := range tt.claims {
				c = with(claim, value)(c)
			}
			return c
		}
		p.info = map[string]any{"sub": "u1"}
		maps.Copy(p.info, tt.info)
		enter := func(w *world) answer {
			w.later(10 * time.Minute)
			p.now = w.now
			b := w.browser()
			b.get(p.begin(b))
			return b.get("/")
		}
		if a := enter(strict); (a.status == http.StatusOK) != tt.in {
			t.Errorf("%s: %d", name, a.status)
		}
		if a := enter(lax); a.status != http.StatusOK { // each says that it is maria, somewhere
			t.Errorf("%s, allowed: %d", name, a.status)
		}
		if a := enter(byGroup); a.status != http.StatusOK || !strings.Contains(a.body, `logged in by oidc">`+html.EscapeString(tt.called)+`</span>`) {
			t.Errorf("%s: is not called %s: %d %.1500s", name, tt.called, a.status, a.body)
		}
	}
}

func with(claim string, value any) func(map[string]any) map[string]any {
	return func(c map[string]any) map[string]any {
		c[claim] = value
		if value == nil {
			delete(c, claim)
		}
		return c
	}
}

// An answer of the identity provider that is not the one to this log-in, or not whole, lets nobody in.
func TestForgedLogIns(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	for name, claims := range map[string]func(map[string]any) map[string]any{
		"for another client": with("aud", "other"),
		"of another issuer":  with("iss", "https://evil.example"),
		"another's nonce":    with("nonce", "n"),
		"no nonce":           with("nonce", nil),
		"expired":            with("exp", time.Now().Add(-time.Hour).Unix()),
	} {
		w.later(10 * time.Minute)
		p.claims = claims
		b := w.browser()
		if a := b.get(p.begin(b)); a.status != http.StatusForbidden || name == "expired" && !strings.Contains(a.body, "compare its clock") {
			t.Errorf("%s: %d", name, a.status)
		}
		if a := b.get("/"); a.status != http.StatusSeeOther {
			t.Errorf("%s: in all the same", name)
		}
	}
	p.claims = nil
	for name, change := range map[string]func(b, other *browser, back string) answer{
		"another state":   func(b, _ *browser, back string) answer { return b.get(strings.Replace(back, "state=", "state=x", 1)) },
		"no state":        func(b, _ *browser, back string) answer { return b.get(w.address + "/login/callback?code=c") },
		"another browser": func(_, other *browser, back string) answer { return other.get(back) },
		"another issuer":  func(b, _ *browser, back string) answer { return b.get(back + "&iss=https%3A%2F%2Fevil.example") },
		"refused":         func(b, _ *browser, back string) answer { return b.get(back + "&error=access_denied") },
		"another issuer's refusal": func(b, _ *browser, back string) answer {
			return b.get(back + "&error=access_denied&error_description=Call+us&iss=https%3A%2F%2Fevil.example")
		},
	} {
		w.later(10 * time.Minute)
		b, other := w.browser(), w.browser()
		if a := change(b, other, p.begin(b)); a.status != http.StatusForbidden {
			t.Errorf("%s: %d", name, a.status)
		}
		if a := other.get("/"); a.status != http.StatusSeeOther {
			t.Errorf("%s: in all the same", name)
		}
	}
	b := w.browser()
	back := p.begin(b)
	w.later(askedFor + time.Minute)
	b.wants("late", b.get(back), http.StatusForbidden, "begin again")
}

// Whoever may not log in reads why, in the words of the identity provider: they mostly say what is to be changed there.
func TestRefusedLogIn(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	b := w.browser()
	b.wants("refused", b.get(p.begin(b)+"&"+url.Values{"error": {"access_denied"}, "error_description": {"AADSTS50105: maria is not <assigned>\x1b[2J to a role."}}.Encode()),
		http.StatusForbidden, "refused the log-in (&#34;access_denied&#34;): AADSTS50105: maria is not &lt;assigned&gt;[2J to a role.</p>")
	if page := b.get(p.begin(b) + "&error=access_denied&error_description=Call+us&iss=https%3A%2F%2Fevil.example").body; strings.Contains(page, "Call us") {
		t.Error("the words of another provider are shown")
	}
	p.refuses = func(*http.Request) bool { return true }
	a := b.get(p.begin(b))
	b.wants("a wrong secret", a, http.StatusForbidden, "does not know the gate by its client_id and secret (401 Unauthorized, &#34;invalid_client&#34;)")
	if strings.Contains(a.body, "of the code") {
		t.Error("the page has what the token endpoint says of a code")
	}
}

// A code is presented once where there is one way for a client to say who it is, and later where it was found out: some providers take
// it as spent whatever was wrong with it.
func TestCodesArePresentedOnce(t *testing.T) {
	byForm := func(r *http.Request) bool {
		_, _, basic := r.BasicAuth()
		return !basic && r.PostForm.Get("client_id") == "wayleave"
	}
	for name, tt := range map[string]struct {
		methods       []string
		secret        secret.Text
		wants         func(*http.Request) bool
		first, second int // presentations by two log-ins
	}{
		"in the form alone":            {[]string{"client_secret_post", "private_key_jwt"}, secret.New("s"), byForm, 1, 1},
		"in the header alone":          {[]string{"client_secret_basic"}, secret.New("s"), func(r *http.Request) bool { return !byForm(r) }, 1, 1},
		"a public client":              {[]string{"client_secret_basic", "client_secret_post", "none"}, secret.Text{}, byForm, 1, 1},
		"one of two":                   {[]string{"client_secret_basic", "client_secret_post"}, secret.New("s"), byForm, 2, 1},
		"a provider that says nothing": {nil, secret.New("s"), byForm, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := newIdentity(t)
			p.methods = tt.methods
			p.refuses = func(r *http.Request) bool { return !tt.wants(r) }
			w := newWorld(t, func(c *Config) { withIdentity(p)(c); c.OIDC.ClientSecret = tt.secret })
			p.now = w.now
			for i, want := range []int{tt.first, tt.second} {
				p.presented = 0
				b := w.browser()
				if a := b.get(p.begin(b)); a.to() != "/workers" {
					t.Fatalf("%d %s", a.status, a.body)
				}
				if p.presented != want {
					t.Errorf("log-in %d: presented %d times, want %d", i+1, p.presented, want)
				}
			}
		})
	}
}

// While an identity provider takes its time nothing else waits, and it is asked once for all.
func TestIdentityProviderIsSlow(t *testing.T) {
	p := newIdentity(t)
	p.asks = make(chan struct{})
	w := newWorld(t, withIdentity(p))
	o := w.console.oidc
	begun := make(chan error, 1)
	begin := func() { _, _, err := o.begin(t.Context(), "192.0.2.1", "/", ""); begun <- err }
	go begin()
	p.asks <- struct{}{} // it is asked, and waits
	others := make(chan bool, 1)
	go func() { others <- o.awaits("x") }()
	select {
	case <-others:
	case <-time.After(30 * time.Second):
		t.Error("other log-ins wait for it")
	}
	p.asks <- struct{}{}
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	if begin(); <-begun != nil { // it is not asked again
		t.Error("the second log-in is not begun")
	}
}

// An identity provider that does not answer is tried again, and says so.
func TestIdentityProviderIsAway(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, func(c *Config) {
		withIdentity(p)(c)
		c.OIDC.Issuer = "http://127.0.0.1:1"
	})
	b := w.browser()
	b.wants("away", b.get("/login/start"), http.StatusBadGateway, "The identity provider http://127.0.0.1:1 cannot be used")
}

// Whoever comes to the log-in and is logged in goes on: another tab was faster.
func TestLogInOfWhoIsLoggedIn(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	for next, to := range map[string]string{"": "/", "?next=%2Fworkers": "/workers", "?next=https%3A%2F%2Fevil.example": "/"} {
		if a := b.get("/login" + next); a.status != http.StatusSeeOther || a.to() != to {
			t.Errorf("%s: %d %s", next, a.status, a.to())
		}
	}
	b.wants("a link", b.get("/login?token=x"), http.StatusOK, "Open the console")
	nobody := w.browser()
	nobody.wants("nobody", nobody.get("/login?next=%2Fworkers"), http.StatusOK, "Log in")
}
