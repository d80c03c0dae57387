package extproc

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	rules "wayleave/policy"
	"wayleave/worker"
)

// recorded is what is told of requests and CONNECTs under cfg, as the file has it.
func recorded(t *testing.T, f *fixture, cfg Config, headers, query []string, requests ...request) (all []rules.Judged, text string) {
	t.Helper()
	s := New(cfg, f.sessions, &vault{}, Options{Now: func() time.Time { return now }, Recording: Recording{Headers: headers, Query: query, To: func(j rules.Judged) {
		line, err := json.Marshal(j)
		if err != nil {
			t.Error(err)
		}
		var back rules.Judged
		if err := json.Unmarshal(line, &back); err != nil {
			t.Error(err)
		}
		text += string(line) + "\n"
		all = append(all, back)
	}}})
	for _, r := range requests {
		if r.connectAuthority == "" {
			in := checkRequest(r.method, r.authority, basicAuth(f.session.ID, f.token.Reveal()))
			in.GetAttributes().GetRequest().GetHttp().Scheme, in.GetAttributes().GetRequest().GetHttp().Path = r.scheme, r.path
			if _, err := s.Check(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := s.processMessage(t.Context(), message(r), new(phases)); err != nil {
			t.Fatal(err)
		}
	}
	return all, text
}

// keyed is a request to a host at a port of its own.
func (f *fixture) keyed(method, key string) request {
	r := f.to("keyed.example.com", method, "/x", "x-api-key", key)
	r.authority, r.connectAuthority = "keyed.example.com:8443", "keyed.example.com:8443"
	return r
}

func connectTo(authority string) request { return request{method: "CONNECT", authority: authority} }

// A line has the facts of its request and nothing that could be a credential, whatever is asked for.
func TestRecordingHoldsNoSecrets(t *testing.T) {
	f := newFixture(t)
	names := []string{"authorization", "x-api-key", "x_api_key", "x-goog-api-key", "cookie", "private-token", "api-key", "x-auth", "x-environment", "x-long"}
	keyed := f.placeholder("queried", "")
	_, text := recorded(t, f, ruled(false, ""), names, []string{"key", "access_token", "force"},
		f.anthropic("POST", "/v1/messages?token=hidden-query", "authorization", "Bearer "+f.claude(), "cookie", "hidden-cookie", "private-token", "hidden-gitlab", "x_api_key", "", "x-other", "hidden-header"),
		f.anthropic("POST", "/v1/messages", "authorization", "Bearer hidden-foreign", "api-key", "hidden-key"),
		f.anthropic("POST", "/v1/messages", "authorization", "Bearer sk-ant-oat01-"+worker.Marker),
		f.to("queried.example.com", "GET", "/x?key="+keyed+"&force=yes"),
		f.to("custom.example.com", "GET", "/", "x-auth", "Key "+f.placeholder("custom", "")),
		f.to("github.com", "GET", "/a/b", "authorization", basicAuth("hidden-user", f.placeholder("github", "gho_"))),
		f.keyed("POST", "hidden-foreign"), f.keyed("GET", "hidden-foreign"),
		f.to("nowhere.example.com", "GET", "/"+f.claude()+"?force="+f.claude(), "x-environment", f.claude()),
		f.anthropic("GET", "/v1/oauth/token?force="+f.claude(), "x-environment", f.claude()),
		f.anthropic(strings.Repeat("M", maxMethod+1), "/v1/messages"),
		connectTo("pypi.org:443"), connectTo("nowhere.example.com:443"),
	)
	if strings.Contains(text, "hidden") || strings.Contains(text, worker.Marker) || strings.Contains(text, "REAL-") || strings.Contains(text, f.token.Reveal()) {
		t.Errorf("a secret is recorded:\n%s", text)
	}
	if n := strings.Count(text, "\n"); n != 9 {
		t.Errorf("%d lines:\n%s", n, text)
	}
}

func TestRecordingIsTold(t *testing.T) {
	f := newFixture(t)
	all, _ := recorded(t, f, ruled(false, "", denying(`host == "api.anthropic.com" && method == "DELETE"`)), []string{"x-environment"}, []string{"force", "absent"},
		f.anthropic("DELETE", "/v1/x/../messages?force=1;force=2&other=3", "authorization", "Bearer "+f.claude(), "x-environment", "test"),
		f.anthropic("GET", "/"+strings.Repeat("p", maxTold), "x-environment", strings.Repeat("h", maxTold+1)),
		f.anthropic("GET", "/v1/organizations", "authorization", "Bearer "+f.claude()),
		connectTo("pypi.org:443"),
	)
	base := rules.Facts{Worker: "ci", Profile: "default", Session: f.session.ID, Subject: "repo:acme/app", Route: "anthropic", Host: "api.anthropic.com", Port: 443, Source: "10.0.0.9"}
	facts := func(change func(*rules.Facts)) rules.Facts {
		f := base
		change(&f)
		return f
	}
	want := []rules.Judged{
		{Time: now, Verdict: rules.Deny, Rule: "r", Reason: policyDenied, Facts: facts(func(f *rules.Facts) {
			f.Method, f.Credential, f.Path = "DELETE", "claude", "/v1/x/../messages"
			f.Query = map[string][]string{"force": {"1;force=2"}}
			f.Others = []rules.Reading{{Path: f.Path, Query: map[string][]string{"force": {"1", "2"}}}}
			f.Headers, f.Known = map[string]string{"x-environment": "test"}, map[string][]string{"headers": {"x-environment"}, "query": {"force", "absent"}}
		})},
		{Time: now, Verdict: rules.Allow, Facts: facts(func(f *rules.Facts) {
			f.Method, f.Known = "GET", map[string][]string{"headers": {}, "query": {"force", "absent"}, "path": {}}
		})},
		{Time: now, Verdict: rules.Deny, Reason: policyDenied, Facts: facts(func(f *rules.Facts) {
			f.Method, f.Path, f.Known = "GET", "/v1/organizations", map[string][]string{"headers": {"x-environment"}, "query": {"force", "absent"}, "credential": {}}
		})},
		{Time: now, Verdict: rules.Allow, Facts: facts(func(f *rules.Facts) {
			f.Method, f.Route, f.Host, f.Source, f.Opaque = "CONNECT", "", "pypi.org", "", true
		})},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
}

// Under the rules that decided it, a recorded request is decided the same, or it cannot be told for what was not recorded.
func TestReplay(t *testing.T) {
	f := newFixture(t)
	bearer := "Bearer " + f.claude()
	requests := []request{
		f.anthropic("GET", "/v1/models", "authorization", bearer, "x-environment", "test", "x-other", "1"),
		f.anthropic("DELETE", "/v1/models?force=1", "authorization", bearer),
		f.anthropic("GET", "/v1/x/../admin?force=1;all=2", "authorization", bearer),
		f.anthropic("GET", "/v1/models"),
		f.anthropic("GET", "/v1/organizations"),
		f.anthropic("TRACE", "/v1/models"),
		f.anthropic("POST", "/v1/models", "authorization", bearer, "x-http-method-override", "DELETE"),
		f.anthropic("GET", "/v1/models", "x-original-url", "/v1/organizations"),
		f.anthropic("GET", "/v1/models", "authorization", "NTLM TlRM"),
		{method: "GET", authority: "plain.example.org", scheme: "http", path: "/a", headers: []header{{"authorization", "NTLM TlRM"}}},
		f.keyed("GET", f.placeholder("keyed", "")),
		f.to("queried.example.com", "GET", "/x?key="+f.placeholder("queried", "")),
		f.to("basic.example.com", "GET", "/x", "authorization", basicAuth("u", f.placeholder("basic", ""))),
		f.to("replaced.example.com", "GET", "/x", "authorization", "Bearer foreign"),
		f.to("other.example.com", "GET", "/x"),
		connectTo("pypi.org:443"), connectTo("api.anthropic.com:443"), connectTo("nowhere.example.com:443"), connectTo("other.example.com:443"),
		{method: "GET", authority: "plain.example.org", scheme: "http", path: "/a?b=c"},
	}
	for _, when := range []string{
		`method == "DELETE"`, `path.startsWith("/v1/admin")`, `credential == ""`, `credential == "claude"`, `query[?"force"].hasValue()`, `headers["x-environment"] == "test"`,
		`headers[?"x-other"].hasValue()`, `query[?"all"].hasValue()`, `subject == "repo:acme/app"`, `now == timestamp("2026-03-01T12:00:00Z")`, `session == ""`, `route == "keyed"`, `source == "10.0.0.9"`, `host == "pypi.org"`,
	} {
		for _, cfg := range []Config{ruled(false, "", denying(when)), ruled(true, rules.Deny, allowing(when))} {
			all, _ := recorded(t, f, cfg, []string{"x-environment"}, []string{"force"}, requests...)
			if len(all) < 12 {
				t.Fatalf("%d lines", len(all))
			}
			for _, j := range all {
				x := NewExplainer(cfg).Replay(j)
				excused := x.Verdict == rules.CannotTell && (strings.Contains(when, "x-other") || strings.Contains(when, "all"))
				if !excused && (x.Verdict != j.Verdict || x.Rule != j.Rule || x.DryRun != j.DryRun || !j.DryRun && x.Reason != j.Reason) {
					t.Errorf("%s: %+v\nis replayed as %+v", when, j, x)
				}
			}
		}
	}
}

// What waits is held, and what cannot is refused, under dry_run too.
func TestReplayOfHeld(t *testing.T) {
	f := newFixture(t)
	for _, dry := range []bool{false, true} {
		cfg := ruled(dry, "", rules.Rule{Name: "h", Action: rules.Hold, Words: "somebody looks at it"})
		all, _ := recorded(t, f, cfg, nil, nil,
			f.anthropic("GET", "/v1/models", "authorization", "Bearer "+f.claude()), connectTo("pypi.org:443"), request{method: "GET", authority: "plain.example.org", scheme: "http", path: "/a"})
		if len(all) != 3 || all[0].Verdict != rules.Hold || all[0].Reason != "" || all[1].Verdict != rules.Deny || all[2].Verdict != rules.Deny {
			t.Fatalf("%+v", all)
		}
		for i, j := range all {
			x := NewExplainer(cfg).Replay(j)
			if x.Verdict != j.Verdict || x.DryRun != dry || i == 0 && x.Words != "somebody looks at it" || i > 0 && !strings.Contains(x.Words, "cannot wait") {
				t.Errorf("%+v is replayed as %+v", j, x)
			}
		}
	}
}

// Other configurations, other outcomes.
func TestReplayOfOtherConfigurations(t *testing.T) {
	f := newFixture(t)
	lines, _ := recorded(t, f, ruled(false, ""), nil, nil,
		f.anthropic("GET", "/v1/models", "authorization", "Bearer "+f.claude()),
		f.anthropic("GET", "/v1/organizations", "authorization", "Bearer "+f.claude()),
		f.keyed("GET", ""),
		connectTo("pypi.org:443"), connectTo("nowhere.example.com:443"),
	)
	model, organizations, tunnel, nowhere := lines[0], lines[1], lines[2], lines[3]
	if len(lines) != 4 || tunnel.Facts.Host != "pypi.org" || nowhere.Reason != hostNotAllowed {
		t.Fatalf("%+v", lines)
	}
	changed := func(change func(*Config)) Config {
		cfg := ruled(false, "")
		cfg.Routes = slices.Clone(cfg.Routes)
		change(&cfg)
		return cfg
	}
	for _, c := range []struct {
		name    string
		cfg     Config
		line    rules.Judged
		verdict rules.Action
		says    string
	}{
		{"the worker is gone", changed(func(c *Config) { c.Workers = map[string]string{} }), model, rules.Deny, "worker ci is not in the configuration"},
		{"another profile", changed(func(c *Config) { c.Workers = map[string]string{"ci": "poor"} }), model, rules.Deny, "may not be reached"},
		{"no route", changed(func(c *Config) { c.Routes = c.Routes[1:] }), model, rules.Deny, "may not be reached"},
		{"a tunnel now", changed(func(c *Config) { c.Routes, c.Tunnel = c.Routes[1:], []string{"api.anthropic.com"} }), model, rules.Allow, ""},
		{"a tunnel now, and a rule", func() Config {
			c := ruled(false, "", denying(`path == "/v1/models"`))
			c.Routes, c.Tunnel = c.Routes[1:], []string{"api.anthropic.com"}
			return c
		}(), model, rules.Deny, "inside the tunnel"},
		{"a method less", changed(func(c *Config) { c.Routes[0].Methods = []string{"POST"} }), model, rules.Deny, "GET is not among the methods"},
		{"a path rule less", changed(func(c *Config) { c.Routes[0].Rules = nil }), organizations, rules.Allow, ""},
		{"a path rule less, and a rule", func() Config {
			c := ruled(false, "", denying(`credential == "claude"`))
			c.Routes = slices.Clone(c.Routes)
			c.Routes[0].Rules = nil
			return c
		}(), organizations, rules.CannotTell, "credential"},
		{"the tunnel is routed", changed(func(c *Config) { c.Tunnel = nil; c.Routes[0].Hosts = []string{"pypi.org"} }), tunnel, rules.CannotTell, "each request inside"},
		{"it is a tunnel", changed(func(c *Config) { c.Tunnel = []string{"nowhere.example.com"} }), nowhere, rules.Allow, ""},
		{"by headers", ruled(false, "", denying(`headers[?"x"].hasValue()`)), model, rules.CannotTell, "headers"},
		{"by query", ruled(false, rules.Deny, allowing(`query[?"x"].hasValue()`)), model, rules.CannotTell, "query"},
		{"tried out", ruled(true, rules.Deny), model, rules.Deny, "no rule of profile default"},
		{"held", ruled(false, "", rules.Rule{Name: "h", When: `method == "GET"`, Action: rules.Hold, Words: "somebody looks at it"}), model, rules.Hold, "somebody looks at it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := NewExplainer(c.cfg).Replay(c.line)
			if x.Verdict != c.verdict || !strings.Contains(x.Words, c.says) {
				t.Errorf("%+v", x)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	f := rules.Facts{
		Worker: "ci", Host: "api.anthropic.com", Port: 443, Method: "GET", Now: now,
		Known: map[string][]string{"headers": {}, "session": {}},
	}
	e := NewExplainer(ruled(false, "", allowing(`method == "PUT"`), denying(`path.startsWith("/v1/admin")`)))
	x := e.Explain(f, "/v1/x/../admin?a=1", false)
	if x.Verdict != rules.Deny || x.As != "route" || x.Route != "anthropic" || x.Credential != "claude" || x.Reason != policyDenied || !strings.Contains(x.Words, "more than one way") {
		t.Errorf("%+v", x)
	}
	want := []ExplainedReading{
		{Reading: rules.Reading{Path: "/v1/x/../admin"}, Verdict: rules.Allow, Steps: []ExplainedStep{{"r", "does not hold"}, {"r", "does not hold"}}},
		{Reading: rules.Reading{Path: "/v1/admin"}, Verdict: rules.Deny, Rule: "r", Steps: []ExplainedStep{{"r", "does not hold"}, {"r", "holds"}}},
	}
	if diff := cmp.Diff(want, x.Readings); diff != "" {
		t.Error(diff)
	}
	f.Host, f.Port = "plain.example.org", 80
	if x := e.Explain(f, "/v1/x/../admin", true); x.Verdict != rules.Deny || x.As != "plain" || x.Credential != "" {
		t.Errorf("plain: %+v", x)
	}
	if x := e.Explain(f, "/v1/x/../admin?a=1", false); x.Reason != hostNotAllowed || !strings.Contains(x.Words, "by an http URL") {
		t.Errorf("plain, over TLS: %+v", x)
	}
	f.Host, f.Port = "api.anthropic.com", 443
	if x := e.Explain(f, "/v1/x/../admin", true); x.Reason != hostNotAllowed || !strings.Contains(x.Words, "use https") {
		t.Errorf("in the clear: %+v", x)
	}
	// As it is decided: in any letter case, and with what stands for another method.
	for target, words := range map[string]string{"/V1/Admin": "the operator's words", "/v1/models?_method=put": "asks the server for another"} {
		if x := e.Explain(f, target, false); x.Verdict != rules.Deny || !strings.Contains(x.Words, words) {
			t.Errorf("%s: %+v", target, x)
		}
	}
}
