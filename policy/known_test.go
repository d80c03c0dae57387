package policy

import (
	"slices"
	"strings"
	"testing"
)

// What is not known decides nothing, and what is decides as before.
func TestKnown(t *testing.T) {
	const yes, no = "yes", "no"
	for _, c := range []struct{ when, want string }{
		{`headers["x-mode"] == "safe"`, yes},
		{`headers["x-mode"] == "other"`, no},
		{`headers[?"x-mode"].orValue("") == "safe"`, yes},
		{`"x-mode" in headers`, yes},
		{`"x-absent" in headers`, no},
		{`headers[?"x-absent"].orValue("none") == "none"`, yes},
		{`headers["x-other"] == "a"`, "headers"},
		{`headers[?"x-other"].orValue("none") == "none"`, "headers"},
		{`headers[?"x-other"].hasValue()`, "headers"},
		{`"x-other" in headers`, "headers"},
		{`!("x-other" in headers) || true`, yes},
		{`"x-other" in headers && method == "GET"`, no},
		{`["x-mode", "x-other"].exists(k, k in headers)`, yes},
		{`["x-mode", "x-other"].all(k, k in headers)`, "headers"},
		{`headers[method] == ""`, "headers"},
		{`has(headers.other)`, "headers"},
		{`headers.other == ""`, "headers"},
		{`size(headers) == 1`, "headers"},
		{`headers == {"x-mode": "safe"}`, "headers"},
		{`{"x-mode": "safe"} == headers`, "headers"},
		{`headers in [{"x-mode": "safe"}]`, "headers"},
		{`headers.exists(k, k == "x-mode")`, "headers"},
		{`headers.all(k, headers[k] != "x")`, "headers"},
		{`(true ? headers : {"a": "b"}).size() == 1`, "headers"},
		{`query["dry"] == ["1", "2"]`, "query"},
		{`query[?"dry"].orValue([]) == []`, "query"},
		{`query["dry"][0].startsWith("1")`, "query"},
		{`query.exists(k, k == "dry")`, "query"},
		{`source == "10.1.2.3"`, "source"},
		{`cidr("10.0.0.0/8").containsIP(source)`, "source"},
		{`source.matches("^10")`, "source"},
		{`source in ["a", "b"]`, "source"},
		{`source == "10.1.2.3" && query["dry"][0] == "1"`, "query and source"},
		{`source == "10.1.2.3" || path == "/v1/items/7"`, yes},
		{`now.getHours() == 12`, yes},
	} {
		f := request()
		f.Headers = map[string]string{"x-mode": "safe"}
		f.Known = map[string][]string{"headers": {"x-mode", "x-absent"}, "query": {}, "source": {}}
		s, err := Compile([]Rule{{Name: "r", When: c.when, Action: Deny, Words: "denied"}}, Allow)
		if err != nil {
			t.Fatal(err)
		}
		v, steps := s.Steps(f, f.Reading)
		if len(steps) != 1 || v != s.Decide(f) {
			t.Fatalf("%s: %v, %v", c.when, v, steps)
		}
		got := map[Action]string{Deny: yes, Allow: no}[v.Action]
		if v.Action == CannotTell {
			got = strings.TrimSuffix(strings.TrimPrefix(v.Words, "rule r depends on "), ", which is not known of it")
		}
		if got != c.want {
			t.Errorf("%s: %q (%v), want %q", c.when, got, steps[0].Err, c.want)
		}
	}
}

// Inside a tunnel nothing is known, which rules decide about; what is not known besides cannot be told.
func TestKnownOfTunnels(t *testing.T) {
	for when, want := range map[string]Action{
		`method == "DELETE"`:                         Deny,
		`method == "DELETE" && source == "10.1.2.3"`: CannotTell,
		`source == "10.1.2.3"`:                       CannotTell,
		`headers["a"] == "b"`:                        Deny,
		`host == "elsewhere.example.com"`:            Allow,
	} {
		f := request()
		f.Opaque, f.Known = true, map[string][]string{"source": {}, "headers": {}}
		s, err := Compile([]Rule{{Name: "r", When: when, Action: Deny}}, Allow)
		if err != nil {
			t.Fatal(err)
		}
		if v := s.Decide(f); v.Action != want {
			t.Errorf("%s: %+v, want %s", when, v, want)
		}
	}
}

func TestSteps(t *testing.T) {
	s, err := Compile([]Rule{
		{Name: "a", When: `method == "GET"`, Action: Allow},
		{Name: "b", When: `headers["x"] == "1"`, Action: Allow},
		{Name: "c", When: `true`, Action: Allow},
	}, Deny)
	if err != nil {
		t.Fatal(err)
	}
	f := request()
	v, steps := s.Steps(f, f.Reading)
	if v.Action != Deny || v.Rule != "b" || len(steps) != 2 || steps[0].Found != "does not hold" || steps[1].Found != "fails" || steps[1].Err == nil {
		t.Errorf("%+v, %+v", v, steps)
	}
	f.Headers = map[string]string{"x": "1"}
	if v, steps = s.Steps(f, f.Reading); v.Rule != "b" || steps[1].Found != "holds" {
		t.Errorf("%+v, %+v", v, steps)
	}
	if v, steps := (*Set)(nil).Steps(f, f.Reading); v.Action != Allow || len(steps) != 0 {
		t.Errorf("%+v, %+v", v, steps)
	}
	// A reading of which it cannot be told leaves the whole so.
	s, err = Compile([]Rule{{Name: "d", When: `path == "/b" && source == "x"`, Action: Deny}}, Allow)
	if err != nil {
		t.Fatal(err)
	}
	f.Others, f.Known = []Reading{{Path: "/b"}}, map[string][]string{"source": nil}
	if v := s.Decide(f); v.Action != CannotTell || !slices.Contains(strings.Fields(v.Words), "source,") {
		t.Errorf("%+v", v)
	}
}
