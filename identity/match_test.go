package identity

import (
	"encoding/json"
	"slices"
	"testing"
)

func match(pairs ...string) Match {
	m := Match{Issuer: "ci", Claims: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		m.Claims[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestMatchAccepts(t *testing.T) {
	proof := Proof{Issuer: "ci", Subject: "repo:acme/app:ref:refs/heads/main", Claims: map[string]any{
		"sub": "not looked at", "repository": "acme/app", "protected": true, "run": float64(12345678901), "big": json.Number("123456789012345678"),
		"groups": []any{"readers", "writers", []any{"nested"}}, "object": map[string]any{"a": "b"}, "star": "a*", "nothing": nil,
	}}
	for _, c := range []struct {
		name string
		m    Match
		want bool
	}{
		{"subject", match("sub", "repo:acme/app:ref:refs/heads/main"), true},
		{"beginning of the subject", match("sub", "repo:acme/app:*"), true},
		{"whole subject and *", match("sub", "repo:acme/app:ref:refs/heads/main*"), true},
		{"longer than the subject", match("sub", "repo:acme/app:ref:refs/heads/main/*"), false},
		{"part of the subject without *", match("sub", "repo:acme/app"), false},
		{"case", match("sub", "REPO:acme/app:*"), false},
		{"claim", match("repository", "acme/app"), true},
		{"another value", match("repository", "acme/ap"), false},
		{"both", match("repository", "acme/app", "sub", "repo:*"), true},
		{"one of two", match("repository", "acme/other", "sub", "repo:*"), false},
		{"claim that is not there", match("environment", "production"), false},
		{"no value", match("nothing", ""), false},
		{"true", match("protected", "true"), true},
		{"a number", match("run", "12345678901"), true},
		{"a long number", match("big", "123456789012345678"), true},
		{"in a list", match("groups", "writers"), true},
		{"in no list", match("groups", "admins"), false},
		{"in a list in a list", match("groups", "nested"), false},
		{"an object", match("object", "map[a:b]"), false},
		{"a * in a value is not one in a pattern", match("star", "ab"), false},
		{"of another issuer", Match{Issuer: "other", Claims: map[string]string{"repository": "acme/app"}}, false},
		{"of a certificate", Match{Claims: map[string]string{"repository": "acme/app"}}, false},
		{"no condition", Match{Issuer: "ci"}, false},
	} {
		if got := c.m.Accepts(proof); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestMatchesCompare(t *testing.T) {
	const narrower, disjoint, ambiguous = "narrower", "disjoint", "ambiguous"
	for _, c := range []struct {
		name string
		a, b Match
		want string
	}{
		{"other value", match("r", "a"), match("r", "b"), disjoint},
		{"value below a pattern", match("r", "acme/app"), match("r", "acme/*"), narrower},
		{"longer pattern", match("r", "acme/app-*"), match("r", "acme/*"), narrower},
		{"patterns side by side", match("r", "acme/*"), match("r", "other/*"), disjoint},
		{"further condition", match("r", "a", "ref", "main"), match("r", "a"), narrower},
		{"further condition, wider other", match("r", "acme/*", "ref", "main"), match("r", "acme/app"), ambiguous},
		{"other claims", match("r", "a"), match("env", "prod"), ambiguous},
		{"the same", match("r", "a"), match("r", "a"), ambiguous},
		{"one wider, one narrower", match("r", "a*", "e", "prod"), match("r", "ab", "e", "p*"), ambiguous},
		{"one claim tells them apart", match("r", "a*", "e", "prod"), match("r", "ab", "e", "test"), disjoint},
		{"another issuer", match("r", "a"), Match{Issuer: "x", Claims: map[string]string{"r": "a"}}, disjoint},
	} {
		got := ambiguous
		switch {
		case c.a.Disjoint(c.b):
			got = disjoint
		case c.a.Narrower(c.b):
			got = narrower
		}
		if got != c.want || c.a.Ambiguous(c.b) != (c.want == ambiguous) || c.b.Ambiguous(c.a) != (c.want == ambiguous) || c.b.Narrower(c.a) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []Match{
		match("repository", "acme/*"), match("repository", "acme/app"), match("repository", "acme/app", "ref", "refs/heads/main"),
		match("groups", "a"), match("groups", "b"),
	}
	proof := func(pairs ...any) Proof {
		p := Proof{Issuer: "ci", Claims: map[string]any{}}
		for i := 0; i < len(pairs); i += 2 {
			p.Claims[pairs[i].(string)] = pairs[i+1]
		}
		return p
	}
	for _, c := range []struct {
		name    string
		p       Proof
		chosen  int
		several []int
	}{
		{"widest", proof("repository", "acme/other"), 0, nil},
		{"middle", proof("repository", "acme/app", "ref", "refs/heads/x"), 1, nil},
		{"narrowest", proof("repository", "acme/app", "ref", "refs/heads/main"), 2, nil},
		{"none", proof("repository", "evil/app"), -1, nil},
		{"two by a list", proof("groups", []any{"a", "b"}), -1, []int{3, 4}},
	} {
		if chosen, several := Choose(c.p, all); chosen != c.chosen || !slices.Equal(several, c.several) {
			t.Errorf("%s: %d %v", c.name, chosen, several)
		}
	}
}

func TestPatternFault(t *testing.T) {
	for pattern, bad := range map[string]bool{"a": false, "a*": false, "a/*": false, "": true, "*": true, "**": true, "a*b": true, "*a": true, "a**": true} {
		if what, fix := PatternFault(pattern); (what != "") != bad || (fix != "") != bad {
			t.Errorf("%q: %q, %q", pattern, what, fix)
		}
	}
}
