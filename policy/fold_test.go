package policy

import (
	"testing"
	"unicode"
)

// Letter case is nobody's way around a rule: what is denied is denied in any, and what is allowed is allowed in its own where that is not
// another way of writing what is not.
func TestPathsInAnyCase(t *testing.T) {
	for _, c := range []struct {
		action Action // of the rule; the other one is the default
		when   string
		path   string
		want   Action
	}{
		{Deny, `path.startsWith("/v1/admin")`, "/v1/admin/x", Deny},
		{Deny, `path.startsWith("/v1/admin")`, "/V1/ADMIN/x", Deny},
		{Deny, `path.startsWith("/v1/admin")`, "/v1/adm\u0131n", Deny}, // whose upper case is I
		{Deny, `path == "/kiss"`, "/\u212ai\u017f\u017f", Deny},        // Kelvin, and the long s
		{Deny, `path.startsWith("/v1/admin")`, "/v1/administer", Deny},
		{Deny, `path.startsWith("/v1/admin")`, "/v1/items", Allow},
		{Deny, `path.startsWith("/v1/Admin")`, "/v1/admin", Deny},
		{Deny, `path.startsWith("/v1/Admin")`, "/v1/aDMIN", Deny},
		{Deny, `path == "/A"`, "/a", Deny},
		{Deny, `path in ["/A", "/B"]`, "/b", Deny},
		{Deny, `path.matches("^/v1/[a-c]+/Admin$")`, "/V1/ABC/admin", Deny},
		{Deny, `path.matches("^/v1/[a-c]+/Admin$")`, "/v1/abd/admin", Allow},
		{Deny, `"Admin" in path.split("/")`, "/v1/admin/x", Deny},
		{Deny, `path.split("/")[1] == "Admin"`, "/ADMIN", Deny},
		{Deny, `path.split("/").exists(s, s == "Admin" || s.startsWith("Root"))`, "/v1/rooted", Deny},
		{Deny, `path.endsWith(".Json") && method == "POST"`, "/a.JSON", Deny},
		{Deny, `path.endsWith(".json") && method == "post"`, "/a.json", Allow},
		{Deny, `!path.startsWith("/v1/Public")`, "/v1/Public/x", Allow},
		{Deny, `!path.startsWith("/v1/Public")`, "/v1/public/x", Deny},
		{Deny, `path.lowerAscii() == "/admin"`, "/ADMIN", Deny},
		{Deny, `path.upperAscii() == "/ADMIN"`, "/admin", Deny},
		{Deny, `path.contains(headers["content-type"])`, "/APPLICATION/json", Allow}, // which is not written in the rule
		{Deny, `timestamp("2026-01-01T00:00:00Z") < now && path == "/A"`, "/a", Deny},
		{Hold, `path.endsWith("/merge")`, "/x/Merge", Hold},

		{Allow, `path.startsWith("/repos/Acme/")`, "/repos/Acme/x", Allow},
		{Allow, `path.startsWith("/repos/Acme/")`, "/repos/Acme/X", Allow},
		{Allow, `path.startsWith("/repos/Acme/")`, "/repos/acme/x", Deny},
		{Allow, `path.matches("^/repos/Acme/[^/]+$")`, "/repos/Acme/X", Allow},
		{Allow, `!path.startsWith("/v1/admin")`, "/v1/Admin", Deny},
		{Allow, `!path.startsWith("/v1/admin")`, "/v1/Items", Allow},
		{Allow, `path != "/Admin"`, "/admin", Deny},
		{Allow, `!(path in ["/Admin"]) && method == "POST"`, "/other", Allow},
		{Allow, `!path.split("/").exists(s, s == "admin")`, "/v1/ADMIN", Deny},
		{Allow, `!path.matches("/admin")`, "/Admin", Deny},
		{Allow, `path.lowerAscii() == "/admin"`, "/ADMIN", Allow},
	} {
		fallback := Allow
		if c.action == Allow {
			fallback = Deny
		}
		s, err := Compile([]Rule{{Name: "r", When: c.when, Action: c.action}}, fallback)
		if err != nil {
			t.Errorf("%s: %v", c.when, err)
			continue
		}
		f := request()
		f.Path = c.path
		if v := s.Decide(f); v.Action != c.want || v.Err != nil {
			t.Errorf("%s %s: %s is %+v, want %s", c.action, c.when, c.path, v, c.want)
		}
	}
}

// A path that is not known is not known in any case.
func TestUnknownPathsInAnyCase(t *testing.T) {
	s, err := Compile([]Rule{{Name: "r", When: `method == "POST" || path == "/A"`, Action: Deny}}, Allow)
	if err != nil {
		t.Fatal(err)
	}
	f := request()
	f.Method, f.Path, f.Known = "GET", "", map[string][]string{"path": {}}
	if v := s.Decide(f); v.Action != CannotTell {
		t.Errorf("%+v", v)
	}
	if v := s.Decide(&Facts{Opaque: true}); v.Action != Deny {
		t.Errorf("in a tunnel: %+v", v)
	}
}

// Letters that some fold into one another (Unicode's simple case folding) are one.
func TestFold(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		folded := Fold(string(r))
		if again := Fold(folded); again != folded {
			t.Errorf("%U becomes %+q, which becomes %+q", r, folded, again)
		}
		if other := Fold(string(unicode.SimpleFold(r))); other != folded {
			t.Errorf("%U becomes %+q, and %U %+q", r, folded, unicode.SimpleFold(r), other)
		}
	}
}
