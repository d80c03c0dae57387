package extproc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/grant"
)

func standInConfig() Config {
	cfg := testConfig
	cfg.TokenEndpoints = []TokenEndpoint{
		{Host: "login.example.com", Path: "/oauth/token", Credentials: []Credential{{"nobody's", ""}, {"claude", "sk-ant-oat01-"}}},
		{Host: "api.anthropic.com", Path: "/v1/oauth/token", Credentials: []Credential{{"claude", "sk-ant-oat01-"}}},
	}
	cfg.Refused = append([]string{"login.example.com/oauth/token"}, cfg.Refused...)
	cfg.Profiles = map[string]Profile{
		"default": {Grants: testConfig.Profiles["default"].Grants, StandIn: true},
		"poor":    {StandIn: true},
	}
	return cfg
}

// A client's own refresh gets the placeholder it has, where its profile says so, and nothing else at that host does.
func TestStandIn(t *testing.T) {
	f := newServer(t)
	f.server.Update(standInConfig())
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
	f.server.Update(testConfig)
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
