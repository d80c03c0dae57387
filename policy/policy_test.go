package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday

// request is what the tests vary.
func request() *Facts {
	return &Facts{
		Worker: "ci", Profile: "agents", Session: "s123456789012345", Credential: "claude", Route: "anthropic",
		Host: "api.example.com", Port: 443, Method: "POST",
		Reading: Reading{Path: "/v1/items/7", Query: map[string][]string{"dry": {"1", "2"}}},
		Headers: map[string]string{"content-type": "application/json"}, Source: "10.1.2.3", Now: noon,
	}
}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		when string
		want bool
	}{
		{`true`, true},
		{``, true},
		{`worker == "ci" && profile == "agents" && session != ""`, true},
		{`credential == "claude" && route == "anthropic"`, true},
		{`host == "api.example.com" && port == 443`, true},
		{`host.endsWith(".example.com")`, true},
		{`host in ["a.example.com", "b.example.com"]`, false},
		{`method in ["POST", "PUT"] && path.startsWith("/v1/")`, true},
		{`path.matches("^/v1/items/[0-9]+$")`, true},
		{`"dry" in query && query["dry"][0] == "1" && size(query["dry"]) == 2`, true},
		{`query[?"none"].hasValue()`, false},
		{`query[?"dry"].orValue([]) == ["1", "2"]`, true},
		{`query.exists(k, k.startsWith("d"))`, true},
		{`headers["content-type"] == "application/json"`, true},
		{`headers[?"x-mode"].orValue("safe") == "safe"`, true},
		{`headers.all(k, !headers[k].contains("bad"))`, true},
		{`cidr("10.0.0.0/8").containsIP(source)`, true},
		{`cidr("192.168.0.0/16").containsIP(source)`, false},
		{`now.getHours("Europe/Berlin") == 13 && now.getDayOfWeek() == 1`, true},
		{`now < timestamp("2026-01-01T00:00:00Z")`, false},
		{`path.split("/")[2] == "items"`, true},
	} {
		for _, f := range Check(c.when) {
			if c.when != "" {
				t.Errorf("%s: %v", c.when, f)
			}
		}
		s, err := Compile([]Rule{{Name: "r", When: c.when, Action: Deny, Words: "no"}}, Allow)
		if err != nil {
			t.Errorf("%s: %v", c.when, err)
			continue
		}
		v := s.Decide(request())
		if v.Err != nil || (v.Action == Deny) != c.want {
			t.Errorf("%s: %+v, want it to be %v", c.when, v, c.want)
		}
	}
}

func TestFirstRuleDecides(t *testing.T) {
	rules := []Rule{
		{Name: "people", When: `worker == "alice"`, Action: Allow},
		{Name: "deletes", When: `method == "DELETE"`, Action: Deny, Words: "nothing is deleted"},
		{Name: "payments", When: `path.startsWith("/pay")`, Action: Hold, Words: "a payment", For: time.Minute},
		{Name: "reading", When: `method == "GET"`, Action: Allow},
	}
	for _, c := range []struct {
		worker, method, path string
		fallback             Action
		want                 Verdict
	}{
		{"alice", "DELETE", "/pay", Deny, Verdict{Action: Allow, Rule: "people"}},
		{"ci", "DELETE", "/pay", Deny, Verdict{Action: Deny, Rule: "deletes", Words: "nothing is deleted"}},
		{"ci", "GET", "/pay", Deny, Verdict{Action: Hold, Rule: "payments", Words: "a payment", For: time.Minute}},
		{"ci", "GET", "/", Deny, Verdict{Action: Allow, Rule: "reading"}},
		{"ci", "POST", "/", Allow, Verdict{Action: Allow}},
		{"ci", "POST", "/", Deny, Verdict{Action: Deny, Words: "no rule of profile agents allows it; an operator writes one"}},
	} {
		s, err := Compile(rules, c.fallback)
		if err != nil {
			t.Fatal(err)
		}
		f := request()
		f.Worker, f.Method, f.Path = c.worker, c.method, c.path
		if got := s.Decide(f); got != c.want {
			t.Errorf("%s %s by %s: %+v, want %+v", c.method, c.path, c.worker, got, c.want)
		}
	}
	if got := (*Set)(nil).Decide(request()); got.Action != Allow {
		t.Errorf("without rules: %+v", got)
	}
}

// What is sent in a tunnel is unknown. A rule that needs it denies when it would deny or hold, and is passed over when it
// would allow.
func TestTunnels(t *testing.T) {
	for _, c := range []struct {
		when   string
		action Action
		want   Action
		rule   string
	}{
		{`method == "DELETE"`, Deny, Deny, "r"},
		{`host == "other.example.com" && method == "DELETE"`, Deny, Allow, ""},
		{`method == "DELETE" && host == "other.example.com"`, Deny, Allow, ""},
		{`host == "api.example.com" || path == "/"`, Deny, Deny, "r"},
		{`path.startsWith("/v1")`, Hold, Deny, "r"},
		{`worker == "ci"`, Hold, Hold, "r"},
		{`"x" in headers`, Deny, Deny, "r"},
		{`size(query) > 0`, Deny, Deny, "r"},
		{`credential == "claude"`, Deny, Allow, ""},
	} {
		s, err := Compile([]Rule{{Name: "r", When: c.when, Action: c.action}}, Allow)
		if err != nil {
			t.Fatal(err)
		}
		got := s.Decide(&Facts{Worker: "ci", Host: "api.example.com", Port: 443, Method: "CONNECT", Opaque: true, Now: noon})
		if got.Action != c.want || got.Rule != c.rule || got.Err != nil {
			t.Errorf("%s %s: %+v, want %s by %q", c.action, c.when, got, c.want, c.rule)
		}
	}
	s, err := Compile([]Rule{{Name: "reads", When: `method == "GET"`, Action: Allow}}, Deny)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Decide(&Facts{Opaque: true}); got.Action != Deny || got.Rule != "" {
		t.Errorf("a rule that would allow what is not seen: %+v", got)
	}
}

// What fails is denied, and what a worker is told of it holds nothing of the request.
func TestFailuresDeny(t *testing.T) {
	for _, when := range []string{
		`headers["x-missing"] == "a"`,
		`query["q"][0] == "x"`,
		`query["dry"][7] == "x"`,
		`int(path) > 3`,
		`now.getHours(path) == 3`,
		`cidr(path).containsIP(source)`,
		`path.matches(path + "[")`,
		`headers.exists(a, headers.exists(b, query.exists(c, c.contains(a + b))))`, // does not compile: see TestFaults
		`query.exists(a, query.exists(b, (a + b).matches("(x+x+)+y")))`,            // costs too much
	} {
		s, err := Compile([]Rule{{Name: "r", When: when, Action: Allow}}, Allow)
		if err != nil {
			continue
		}
		f := request()
		if strings.Contains(when, "query.exists") {
			f.Query = map[string][]string{}
			for i := range 3000 {
				f.Query[fmt.Sprintf("%0100d", i)] = nil
			}
		}
		v := s.Decide(f)
		if v.Action != Deny || v.Rule != "r" || v.Err == nil || strings.Contains(v.Words+v.Err.Error(), f.Path) {
			t.Errorf("%s: %+v, want it denied", when, v)
		}
	}
}

func TestReadingsMustAgree(t *testing.T) {
	s, err := Compile([]Rule{
		{Name: "a", When: `path.startsWith("/a/")`, Action: Deny, Words: "a"},
		{Name: "b", When: `path.startsWith("/b/")`, Action: Allow},
	}, Allow)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		paths []string
		want  Verdict
	}{
		{[]string{"/a/x", "/a/y"}, Verdict{Action: Deny, Rule: "a", Words: "a"}},
		{[]string{"/b/x", "/b/y"}, Verdict{Action: Allow, Rule: "b"}},
		{[]string{"/b/../a/x", "/a/x"}, Verdict{Action: Deny}},
		{[]string{"/b/x", "/c/x"}, Verdict{Action: Deny}}, // both allowed, but by different rules
		{[]string{"/c/x", "/d/x"}, Verdict{Action: Allow}},
	} {
		f := request()
		f.Path = c.paths[0]
		for _, other := range c.paths[1:] {
			f.Others = append(f.Others, Reading{Path: other})
		}
		got := s.Decide(f)
		if c.want.Action == Deny && c.want.Rule == "" {
			got.Words = ""
		}
		if got != c.want {
			t.Errorf("%v: %+v, want %+v", c.paths, got, c.want)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		when         string
		line, column int
		problem      string
	}{
		{`methd == "GET"`, 1, 1, "undeclared reference to 'methd'"},
		{"method == \"GET\" &&\n  pth == \"/\"", 2, 3, "undeclared reference to 'pth'"},
		{`method = "GET"`, 1, 8, "Syntax error"},
		{`port == "443"`, 1, 6, "no matching overload"},
		{`path.matches("[")`, 1, 14, "invalid matches argument"},
		{`method`, 1, 1, "it is of type string"},
		{`headers["a"]`, 1, 1, "it is of type string"},
		{`path == "` + strings.Repeat("x", maxLength) + `"`, 1, 1, "size"},
		{`headers.exists(a, headers.exists(b, query.exists(c, c == a + b)))`, 1, 49, "nesting"},
		{`now > timestamp("yesterday")`, 1, 17, "invalid timestamp argument"},
		{`path.matches("(a{30}){30}")`, 1, 14, "regex"},
	} {
		faults := Check(c.when)
		if len(faults) == 0 {
			t.Errorf("%s: no fault", c.when)
			continue
		}
		f := faults[0]
		if f.Line != c.line || f.Column != c.column || !strings.Contains(f.Problem, c.problem) || strings.Contains(f.Problem, "\n") {
			t.Errorf("%.60s: %v, want line %d, column %d, %q", c.when, f, c.line, c.column, c.problem)
		}
		if _, err := Compile([]Rule{{Name: "r", When: c.when}}, Allow); !errors.As(err, new(Fault)) {
			t.Errorf("%.60s: compiled: %v", c.when, err)
		}
	}
}

func TestLooksAt(t *testing.T) {
	s, err := Compile([]Rule{
		{Name: "a", When: `headers.exists(k, k == "x")`, Action: Deny},
		{Name: "b", When: `worker == "w" && ["query"].exists(path, path == "x")`, Action: Deny},
	}, Allow)
	if err != nil {
		t.Fatal(err)
	}
	for fact, want := range map[string]bool{"headers": true, "worker": true, "query": false, "host": false} {
		if s.LooksAt(fact) != want {
			t.Errorf("looks at %s: %v", fact, !want)
		}
	}
	if (*Set)(nil).LooksAt("headers") {
		t.Error("no rules look at headers")
	}
}

func BenchmarkDecide(b *testing.B) {
	s, err := Compile([]Rule{
		{Name: "a", When: `host == "other.example.com" && method == "DELETE"`, Action: Deny},
		{Name: "b", When: `path.matches("^/v1/admin/[a-z]+$")`, Action: Deny},
		{Name: "c", When: `headers[?"x-mode"].orValue("") == "danger"`, Action: Deny},
	}, Allow)
	if err != nil {
		b.Fatal(err)
	}
	f := request()
	b.ReportAllocs()
	for b.Loop() {
		if v := s.Decide(f); v.Action != Allow {
			b.Fatal(v)
		}
	}
}
