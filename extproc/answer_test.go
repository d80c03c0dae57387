package extproc

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/grant"
)

func standInConfig() Config {
	cfg := testConfig
	cfg.Refused = append([]string{"login.example.com/oauth/token"}, cfg.Refused...)
	answers := []Answer{
		{Host: "login.example.com", Path: "/oauth/token", Method: "POST", Token: true, Credential: "nobody's"},
		{Host: "login.example.com", Path: "/oauth/token", Method: "POST", Token: true, Credential: "claude", PlaceholderPrefix: "sk-ant-oat01-"},
		{Host: "api.anthropic.com", Path: "/v1/oauth/token", Method: "POST", Token: true, Credential: "claude", PlaceholderPrefix: "sk-ant-oat01-"},
	}
	cfg.Profiles = map[string]Profile{
		"default": {Grants: testConfig.Profiles["default"].Grants, Answers: answers},
		"poor":    {Answers: answers},
	}
	return cfg
}

// A client's own refresh gets the placeholder it has, where its profile says so, and nothing else at that host does.
func TestStandIn(t *testing.T) {
	f := newServer(t)
	f.server.only(standInConfig())
	f.vault.scopes = []string{"user:inference", "user:profile"}
	client, checks := f.serve(t)

	ask := func(host, method, path string) (status int, reason string, body map[string]any) {
		t.Helper()
		out := exchange(t, client, message(f.to(host, method, path, "authorization", "Bearer whatever"))).GetImmediateResponse()
		if out == nil {
			t.Fatal("the request is forwarded")
		}
		headers := headersOf(t, out.GetHeaders().GetSetHeaders())
		if err := json.Unmarshal(out.GetBody(), &body); err != nil {
			t.Fatal(err)
		}
		if out.GetStatus().GetCode() == 200 && (headers["content-type"] != "application/json" || headers["cache-control"] != "no-store") {
			t.Errorf("headers %v", headers)
		}
		return int(out.GetStatus().GetCode()), headers["x-wayleave-reason"], body
	}
	want := map[string]any{
		"access_token": f.claude(), "refresh_token": f.claude(), "token_type": "Bearer", "expires_in": time.Hour.Seconds(), "scope": "user:inference user:profile",
	}
	for _, at := range [][2]string{{"login.example.com", "/oauth/token"}, {"login.example.com", "/oauth/token?x=1"}, {"api.anthropic.com", "/v1/oauth/token"}} {
		if status, _, body := ask(at[0], "POST", at[1]); status != 200 || cmp.Diff(want, body) != "" {
			t.Errorf("%v: %d %s", at, status, cmp.Diff(want, body))
		}
	}
	for _, c := range [][3]string{
		{"login.example.com", "GET", "/oauth/token"}, {"login.example.com", "POST", "/oauth/token/"}, {"login.example.com", "POST", "/oauth//token"}, {"login.example.com", "POST", "/"},
		{"api.anthropic.com", "GET", "/v1/oauth/token"}, {"api.anthropic.com", "POST", "/v1/%6fauth/token"},
	} {
		if status, reason, _ := ask(c[0], c[1], c[2]); status != 503 || reason != tokenEndpoint {
			t.Errorf("%v: %d %s", c, status, reason)
		}
	}

	// A grant of no use now is no reason for a client to forget its log-in.
	f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: grant.NeedsReconnect}}
	if status, _, body := ask("login.example.com", "POST", "/oauth/token"); status != 200 || body["access_token"] != f.claude() || body["scope"] != nil {
		t.Errorf("%d %v", status, body)
	}

	check := func(want bool, user string) {
		t.Helper()
		got, err := checks.Check(t.Context(), checkRequest("CONNECT", "login.example.com:443", basicAuth(f.session.ID, f.token.Reveal())))
		if err != nil {
			t.Fatal(err)
		}
		if (got.GetStatus().GetCode() == 0) != want {
			t.Errorf("%s: %v", user, got)
		}
	}
	check(true, "a profile that wants answers")
	f.server.only(testConfig)
	check(false, "a profile that does not")
	if strings.Contains(f.log.String(), "REAL-") {
		t.Error("a token was logged")
	}
}

// A profile that has none of the credentials gets no answer, and the worker at an address has no session to answer with.
func TestStandInForNobody(t *testing.T) {
	f := newFixture(t)
	cfg := standInConfig()
	p := newPolicy(cfg)
	r := f.to("login.example.com", "POST", "/oauth/token")
	poor := f.session
	poor.Worker, poor.Profile = "poor", "poor"
	r.identity = poor.Identity()
	if d := decide(p, f.sessions, &r, now); d.refusal == nil || d.refusal.reason != tokenEndpoint {
		t.Errorf("got %+v", d)
	}
}

// What a client asks before it begins is answered from the template, with nothing that is a secret.
func TestAnswers(t *testing.T) {
	f := newServer(t)
	cfg := testConfig
	cfg.Profiles = map[string]Profile{"default": {Grants: testConfig.Profiles["default"].Grants, Answers: []Answer{
		{Host: "id.example.com", Path: "/whoami", Method: "GET", Status: 203, Credential: "claude", PlaceholderPrefix: "sk-ant-oat01-",
			JSON: `{"token":"{placeholder}","scopes":{scopes_json},"all":"{scopes}","seconds":{expires_in},"account":"{account}","plan":"{plan}","empty":{}}`},
		{Host: "id.example.com", Path: "/hello", Method: "GET", Credential: "claude", JSON: `{}`},
		{Host: "api.anthropic.com", Path: "/api/hello", Method: "GET", Credential: "claude"},
	}}}
	f.server.only(cfg)
	f.vault.scopes, f.vault.facts = []string{"a", "b"}, map[string]string{"account": `x"y\`}
	client, checks := f.serve(t)
	ask := func(r request) (int, string, string) {
		t.Helper()
		out := exchange(t, client, message(r)).GetImmediateResponse()
		return int(out.GetStatus().GetCode()), string(out.GetBody()), headersOf(t, out.GetHeaders().GetSetHeaders())["x-wayleave-reason"]
	}
	want := `{"token":"` + f.claude() + `","scopes":["a","b"],"all":"a b","seconds":3600,"account":"x\"y\\","plan":"","empty":{}}`
	if status, body, _ := ask(f.to("id.example.com", "GET", "/whoami?a=b")); status != 203 || body != want || !json.Valid([]byte(body)) {
		t.Errorf("got %d %s", status, body)
	}
	for _, path := range []string{"/other", "/whoami/", "/w%68oami"} {
		if status, _, reason := ask(f.to("id.example.com", "GET", path)); status != 403 || reason != hostNotAllowed {
			t.Errorf("%s: %d %s", path, status, reason)
		}
	}
	if status, _, reason := ask(f.to("id.example.com", "POST", "/whoami")); status != 403 || reason != hostNotAllowed {
		t.Errorf("POST: %d %s", status, reason)
	}
	if status, body, _ := ask(f.to("api.anthropic.com", "GET", "/api/hello")); status != 200 || body != "" {
		t.Errorf("at a route's host: %d %q", status, body)
	}
	if got := exchange(t, client, message(f.to("api.anthropic.com", "GET", "/api/hello2"))); got.GetImmediateResponse() != nil {
		t.Error("the rest of a route's host is not forwarded")
	}
	if out, err := checks.Check(t.Context(), checkRequest("CONNECT", "id.example.com:443", basicAuth(f.session.ID, f.token.Reveal()))); err != nil || out.GetStatus().GetCode() != 0 {
		t.Errorf("CONNECT: %v, %v", out, err)
	}
	f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: grant.NeverConnected}}
	if status, body, _ := ask(f.to("id.example.com", "GET", "/whoami")); status != 203 || !strings.Contains(body, `"scopes":[],"all":"",`) {
		t.Errorf("of a grant that is not connected: %d %s", status, body)
	}
	// The worker at an address has no session, so no placeholder that could be told.
	p := newPolicy(cfg)
	for path, answered := range map[string]bool{"/whoami": false, "/hello": true} {
		r := f.to("id.example.com", "GET", path)
		if a := p.answerTo(endpoint{"id.example.com", 443}, &r, "default", ""); (a != nil) != answered {
			t.Errorf("%s without a session: %v", path, a)
		}
	}
}

// A header that names the account of the client's own gets that of the grant, when the request gets its token; when that is not known, none.
func TestRewrittenHeaders(t *testing.T) {
	f := newServer(t)
	cfg := testConfig
	cfg.Routes = slices.Clone(cfg.Routes)
	for i := range cfg.Routes {
		cfg.Routes[i].RewriteHeaders = map[string]string{"x-account": "account"}
	}
	f.server.only(cfg)
	client, _ := f.serve(t)
	ask := func(headers ...string) (set map[string]string, removed []string) {
		t.Helper()
		m := exchange(t, client, message(f.to("api.anthropic.com", "POST", "/v1/messages", headers...))).GetRequestHeaders().GetResponse().GetHeaderMutation()
		return headersOf(t, m.GetSetHeaders()), m.GetRemoveHeaders()
	}
	placeholder := []string{"authorization", "Bearer " + f.claude()}
	f.vault.facts = map[string]string{"account": "real"}
	if set, removed := ask(append(placeholder, "x-account", "mine")...); set["x-account"] != "real" || slices.Contains(removed, "x-account") {
		t.Errorf("known: %v, without %v", set, removed)
	}
	if set, _ := ask(placeholder...); set["x-account"] != "" {
		t.Errorf("one that was not sent: %v", set)
	}
	if set, removed := ask("authorization", "Bearer of-another", "x-account", "mine"); set["x-account"] != "" || slices.Contains(removed, "x-account") {
		t.Errorf("with a bearer of another: %v, without %v", set, removed)
	}
	f.vault.facts = nil
	if set, removed := ask(append(placeholder, "x-account", "mine")...); set["x-account"] != "" || !slices.Contains(removed, "x-account") {
		t.Errorf("not known: %v, without %v", set, removed)
	}
}
