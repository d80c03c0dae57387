package extproc

import (
	"bytes"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	rules "wayleave/policy"
)

// ruled is testConfig with rules for its profile.
func ruled(dry bool, fallback rules.Action, list ...rules.Rule) Config {
	cfg := testConfig
	cfg.Plain = []string{"plain.example.org:80"}
	p := cfg.Profiles["default"]
	p.Rules, p.Default, p.DryRun = list, fallback, dry
	cfg.Profiles = map[string]Profile{"default": p, "poor": cfg.Profiles["poor"]}
	return cfg
}

func denying(when string) rules.Rule {
	return rules.Rule{Name: "r", When: when, Action: rules.Deny, Words: "the operator's words"}
}

func allowing(when string) rules.Rule { return rules.Rule{Name: "r", When: when, Action: rules.Allow} }

// Each fact, as a rule sees it of a request that is swapped.
func TestRulesSeeFacts(t *testing.T) {
	f := newFixture(t)
	claude := f.claude()
	good := f.anthropic("POST", "/v1/messages?beta=true&tag=a+b&tag=%2F", "authorization", "Bearer "+claude,
		"content-type", "application/json", "x-note", "one", "x-note", "two", "cookie", "a=b", "private-token", "k")
	good.source = "10.1.2.3"
	keyed := f.to("queried.example.com", "GET", "/x?key="+f.placeholder("queried", "")+"&q=1")
	foreign := f.anthropic("GET", "/v1/models", "authorization", "Bearer other")
	for _, c := range []struct {
		request request
		when    string
	}{
		{good, `worker == "ci" && profile == "default" && session == "` + f.session.ID + `"`},
		{good, `credential == "claude" && route != ""`},
		{good, `host == "api.anthropic.com" && port == 443`},
		{good, `method == "POST" && path == "/v1/messages"`},
		{good, `query == {"beta": ["true"], "tag": ["a b", "/"]}`},
		{good, `headers == {"content-type": "application/json", "x-note": "one, two"}`},
		{good, `source == "10.1.2.3" && subject == "repo:acme/app"`},
		{good, `now == timestamp("` + now.Format(time.RFC3339) + `")`},
		{keyed, `credential == "queried" && query == {"q": ["1"]}`},
		{foreign, `credential == "" && route != "" && !("authorization" in headers)`},
	} {
		d := decide(newPolicy(ruled(false, rules.Deny, allowing(c.when))), f.sessions, &c.request, now)
		if d.refusal != nil || d.rule != "r" {
			t.Errorf("%s: refused: %+v", c.when, d.refusal)
		}
	}
}

func TestRulesDecide(t *testing.T) {
	f := newFixture(t)
	claude := f.claude()
	send := func(method, path string) request { return f.anthropic(method, path, "authorization", "Bearer "+claude) }
	for _, c := range []struct {
		name     string
		rules    Config
		request  request
		reason   string // "": forwarded
		words    string
		rule     string
		dry      bool // it would have been refused
		swapping bool
	}{
		{"none holds", ruled(false, "", denying(`method == "DELETE"`)), send("GET", "/v1/models"), "", "", "", false, true},
		{"denied", ruled(false, "", denying(`method == "DELETE"`)), send("DELETE", "/v1/models"), policyDenied, "the operator's words", "r", false, false},
		{"denied by default", ruled(false, rules.Deny, allowing(`method == "GET"`)), send("POST", "/v1/models"), policyDenied, "no rule of profile default allows it", "", false, false},
		{"allowed", ruled(false, rules.Deny, allowing(`method == "GET"`)), send("GET", "/v1/models"), "", "", "r", false, true},
		{"default alone", ruled(false, rules.Deny), send("GET", "/v1/models"), policyDenied, "no rule", "", false, false},
		{"fails", ruled(false, "", allowing(`headers["x-missing"] == ""`)), send("GET", "/v1/models"), policyDenied, "rule r cannot be decided", "r", false, false},
		{"tried out", ruled(true, "", denying(`method == "DELETE"`)), send("DELETE", "/v1/models"), "", "", "r", true, true},
		{"tried out, allowed", ruled(true, "", denying(`method == "DELETE"`)), send("GET", "/v1/models"), "", "", "", false, true},
		{"does not compile", ruled(false, "", allowing(`nonsense`)), send("GET", "/v1/models"), policyDenied, "no rule", "", false, false},
		{"refused before", ruled(true, "", allowing(`true`)), send("TRACE", "/v1/models"), policyDenied, "TRACE", "", false, false},
		{"not the session's profile", ruled(false, rules.Deny), func() request {
			r := f.to("pypi.org", "GET", "/")
			return r
		}(), hostNotAllowed, "", "", false, false},

		{"another method in a header", ruled(false, "", denying(`method == "DELETE"`)), f.anthropic("POST", "/v1/models", "authorization", "Bearer "+claude, "x-http-method-override", "DELETE"), policyDenied, "asks the server for another", "", false, false},
		{"another path in a header", ruled(false, "", denying(`path == "/v1/admin"`)), f.anthropic("GET", "/v1/models", "x-rewrite-url", "/v1/admin"), policyDenied, "asks the server for another", "", false, false},
		{"another query in a header", ruled(false, "", denying(`query[?"all"].hasValue()`)), f.anthropic("GET", "/v1/models", "x-original-url", "/v1/models?all=1"), policyDenied, "asks the server for another", "", false, false},
		{"another method in a header, tried out", ruled(true, "", denying(`method == "DELETE"`)), f.anthropic("POST", "/v1/models", "authorization", "Bearer "+claude, "x-http-method-override", "DELETE"), "", "", "", true, true},
		{"another method in a header, where no rule looks", ruled(false, "", denying(`path == "/v1/admin"`)), f.anthropic("POST", "/v1/models", "authorization", "Bearer "+claude, "x-http-method-override", "GET"), "", "", "", false, true},
		{"another way of writing it", ruled(false, "", denying(`path.startsWith("/v1/admin")`)), send("GET", "/v1/x/../admin"), policyDenied, "more than one way", "", false, false},
		{"encoded", ruled(false, "", denying(`path.startsWith("/v1/admin")`)), send("GET", "/v1/%61dmin"), policyDenied, "more than one way", "", false, false},
		{"harmless encoding", ruled(false, "", denying(`path.startsWith("/v1/admin")`)), send("GET", "/v1/a%20b"), "", "", "", false, true},
		{"odd, where no rule looks", ruled(false, "", denying(`method == "DELETE"`)), send("GET", "/v1/x/../admin"), "", "", "", false, true},
		{"in too many ways", ruled(false, "", denying(`path == "/x"`)), send("GET", `/v1/a;b\..//%2e%2e/%5c..%3b;x/%2f%2f..;/b/%252e%252e/%255c..%253b/%25252e%25252e%25253b/..`), policyDenied, "too many ways", "", false, false},
		{"another method in the query", ruled(false, "", denying(`method == "DELETE"`)), send("POST", "/v1/models?a=1&_METHOD=delete"), policyDenied, "asks the server for another", "", false, false},
		{"another method in the query, encoded", ruled(false, "", denying(`method == "DELETE"`)), send("POST", "/v1/models?%5fmetho%64=delete"), policyDenied, "asks the server for another", "", false, false},
		{"a parameter that is of something else", ruled(false, "", denying(`method == "DELETE"`)), send("POST", "/v1/models?_method=a.search&method=delete"), "", "", "", false, true},
		{"a method in lower case", ruled(false, "", denying(`method == "DELETE"`)), send("delete", "/v1/models"), policyDenied, "asks the server for another", "", false, false},
		{"a method in lower case, where no rule looks", ruled(false, "", denying(`path == "/x"`)), send("patch", "/v1/models"), "", "", "", false, true},
		{"another case", ruled(false, "", denying(`path.startsWith("/v1/admin")`)), send("GET", "/V1/Admin/x"), policyDenied, "the operator's words", "r", false, false},
		{"another case, encoded", ruled(false, "", denying(`path.startsWith("/v1/admin")`)), send("GET", "/v1/%41dmin"), policyDenied, "more than one way", "", false, false},
		{"allowed in its own case", ruled(false, rules.Deny, allowing(`path.startsWith("/v1/Models")`)), send("GET", "/v1/Models/x"), "", "", "r", false, true},
		{"allowed in no other case", ruled(false, rules.Deny, allowing(`path.startsWith("/v1/Models")`)), send("GET", "/v1/models/x"), policyDenied, "no rule", "", false, false},
		{"semicolons", ruled(false, "", denying(`query[?"all"].hasValue()`)), send("GET", "/v1/models?a=1;all=2"), policyDenied, "more than one way", "", false, false},
		{"an encoded name", ruled(false, "", denying(`query[?"all"].hasValue()`)), send("GET", "/v1/models?%61ll=2"), policyDenied, "the operator's words", "r", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(newPolicy(c.rules), f.sessions, &c.request, now)
			reason, words := "", ""
			if d.refusal != nil {
				reason, words = d.refusal.reason, d.refusal.message()
			}
			if reason != c.reason || !strings.Contains(words, c.words) || d.rule != c.rule || (d.wouldRefuse != nil) != c.dry || (d.swap != nil) != c.swapping {
				t.Errorf("reason %q, words %q, rule %q, dry run %+v, swap %v", reason, words, d.rule, d.wouldRefuse, d.swap != nil)
			}
		})
	}
}

// Of a tunnel the rules know where it leads; of a request without TLS all there is; of a CONNECT to a routed host they are
// asked about what comes through it.
func TestRulesAtTheProxy(t *testing.T) {
	f := newFixture(t)
	auth := basicAuth(f.session.ID, f.token.Reveal())
	tunnel := request{method: "CONNECT", authority: "pypi.org:443", headers: []header{{"proxy-authorization", auth}}, source: "10.1.2.3"}
	routed := request{method: "CONNECT", authority: "api.anthropic.com:443", headers: []header{{"proxy-authorization", auth}}}
	plain := request{method: "GET", authority: "plain.example.org", scheme: "http", path: "/a?b=c", headers: []header{{"proxy-authorization", auth}, {"x-a", "1"}}}
	for _, c := range []struct {
		name    string
		rules   Config
		request request
		refused bool
	}{
		{"tunnel by host", ruled(false, rules.Deny, allowing(`host == "pypi.org" && port == 443 && worker == "ci" && source == "10.1.2.3" && credential == "" && route == ""`)), tunnel, false},
		{"tunnel by default", ruled(false, rules.Deny), tunnel, true},
		{"tunnel denied", ruled(false, "", denying(`host.endsWith("pypi.org")`)), tunnel, true},
		{"tunnel, what is inside", ruled(false, "", denying(`method == "DELETE"`)), tunnel, true},
		{"tunnel, allowed by what is inside", ruled(false, rules.Deny, allowing(`method == "GET"`)), tunnel, true},
		{"tunnel, tried out", ruled(true, rules.Deny), tunnel, false},
		{"routed", ruled(false, rules.Deny), routed, false},
		{"plain", ruled(false, rules.Deny, allowing(`host == "plain.example.org" && port == 80 && method == "GET" && path == "/a" && query["b"] == ["c"] && headers == {"x-a": "1"}`)), plain, false},
		{"plain by default", ruled(false, rules.Deny), plain, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := arrive(newPolicy(c.rules), f.sessions, &c.request, now)
			if got := d.refusal != nil; got != c.refused || got && d.refusal.reason != policyDenied {
				t.Errorf("refused: %v, %+v", got, d.refusal)
			}
		})
	}
}

// The log says which rule it was, also when it only would have been.
func TestRulesAreLogged(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		dry  bool
		want string
	}{{false, "level=WARN msg=\"request refused\""}, {true, "level=WARN msg=\"dry run: request would be refused\""}} {
		var log bytes.Buffer
		v := &vault{}
		s := New(ruled(c.dry, "", denying(`int(headers["x-n"]) > 3 || true`), denying("true")), f.sessions, v, Options{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil))})
		in := message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude(), "x-n", "not a number"))
		if _, err := s.processMessage(t.Context(), in, new(phases)); err != nil {
			t.Fatal(err)
		}
		line := log.String()
		for _, want := range []string{c.want, "reason=policy_denied", "rule=r", "worker=ci", "host=api.anthropic.com:443"} {
			if !strings.Contains(line, want) {
				t.Errorf("%q is not in %s", want, line)
			}
		}
		if strings.Contains(line, "not a number") || strings.Count(line, "\n") != 1 {
			t.Errorf("log: %s", line)
		}
	}
}

// A query is read as the standard library reads one, where that takes it.
func FuzzQueryReadings(f *testing.F) {
	for _, s := range []string{"", "a=1&b=2", "a=1&a=2", "a", "=b", "&&", "a=%2", "a=b+c;d=e", "%61=%25", "a=\x00\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		all := queryReadings(query)
		if len(all) == 0 || len(all) > 2 || (len(all) == 2) != strings.Contains(query, ";") {
			t.Fatalf("%d readings", len(all))
		}
		want, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		for name, values := range want {
			if strings.Join(all[0][name], "\x00") != strings.Join(values, "\x00") {
				t.Errorf("%q is %q, want %q", name, all[0][name], values)
			}
		}
		if len(all[0]) != len(want) {
			t.Errorf("%q, want %q", all[0], want)
		}
	})
}
