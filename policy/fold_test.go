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
		// Texts in several pieces, or by way of a variable.
		{Deny, `["/admin", "/keys"].exists(p, path.startsWith(p))`, "/Admin", Deny},
		{Deny, `["/Admin", "/Keys", "/Keys"].exists(p, path.startsWith(p))`, "/keys/1", Deny},
		{Deny, `["/Admin", "/Keys"].exists(p, path.startsWith("/V1" + p))`, "/v1/admin", Deny},
		{Deny, `["/Admin", "/Keys"].exists(p, path.startsWith(p))`, "/items", Allow},
		{Deny, `["^/Admin$", "^/K" + "eys$"].exists(p, path.matches(p))`, "/keys", Deny},
		{Deny, `["Admin"].exists(p, path.split("/").exists(s, s == p))`, "/x/admin", Deny},
		{Deny, `["/Admin"].filter(p, path == p).size() == 1`, "/admin", Deny},
		{Deny, `["/Admin", "POST"].exists(p, path == p) && ["GET", "POST"].exists(p, method == p)`, "/admin", Deny},
		{Deny, `["/Admin"].exists(p, path == p && ["POST"].exists(p, method == p) && path == p)`, "/admin", Deny},
		{Deny, `["POST"].exists(p, method == p && path.endsWith(p))`, "/post", Deny}, // p is a method, too
		{Deny, `[headers["content-type"]].exists(p, path.contains(p))`, "/APPLICATION/json", Allow},
		{Deny, `path.startsWith("/v1" + "/Admin")`, "/V1/admin", Deny},
		{Deny, `path.matches("^/[A" + "B]pi$")`, "/api", Deny},
		{Deny, `path == (method == "POST" ? "/Admin" : "/Keys")`, "/admin", Deny},
		{Deny, `path.split("/").filter(s, s != "").exists(s, s == "Admin")`, "/admin", Deny},
		{Deny, `path.split("/").map(s, s + "!").exists(s, s == "Admin!")`, "/admin", Deny},
		{Deny, `path.substring(path.lastIndexOf("/")) == "/Admin"`, "/v1/admin", Deny},
		{Deny, `path.split("/")[?1].optMap(s, s == "Admin").orValue(false)`, "/admin", Deny},
		{Deny, `path.split("/")[?1].optFlatMap(s, optional.of(s)).orValue("") == "Admin"`, "/admin", Deny},
		// Patterns.
		{Deny, `path.matches("^/v1/[a-z]+/delete$")`, "/v1/Users/Delete", Deny},
		{Deny, `!path.matches("^/[a-z]+$")`, "/items", Allow},
		{Deny, `path.matches("[A-Z]")`, "/items", Allow},
		{Deny, `path.matches("[A-Z]")`, "/Items", Deny},
		{Deny, `!path.matches("[A-Z]")`, "/Items", Allow},
		{Deny, `!path.matches("x|(/[0-9[:upper:]]+)*")`, "/ITEMS", Allow},
		{Deny, `path.matches("^/\\p{Lu}")`, "/items", Allow},
		{Deny, `["[A-Z]"].exists(p, path.matches(p))`, "/items", Allow},
		{Deny, `path.matches("(?i)^/[A-Z]+$")`, "/items", Deny},
		{Deny, `path.matches("^/Admin/[^/]+$")`, "/admin/x", Deny},

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
		{Allow, `!["/Admin"].exists(p, path == p)`, "/admin", Deny},
		{Allow, `path.matches("[A-Z]")`, "/Items", Allow},
		{Allow, `!path.matches("[A-Z]")`, "/items", Allow},
		{Allow, `path.split("/")[?1].optMap(s, s == "Acme").orValue(false)`, "/Acme", Allow},
		{Allow, `path.split("/")[?1].optFlatMap(s, optional.of(s == "Acme")).orValue(false)`, "/Acme", Allow},
		// What is not of the path keeps its case.
		{Allow, `path.split("/").exists(s, s == "v1") && headers["x-team"].split(",").exists(s, s == "Acme")`, "/v1/x", Allow},
		{Allow, `path.split("/").exists(s, s == "v1") && headers[?"x-team"].optMap(s, s == "Other,Acme").orValue(false)`, "/v1/x", Allow},
		{Allow, `["Acme", "v1"].exists(p, path.contains(p)) && ["Acme"].exists(p, headers["x-team"].contains(p))`, "/v1/x", Allow},
		{Allow, `["Acme"].exists(p, path.contains(p) && headers["x-team"].contains(p))`, "/Acme", Allow},
		{Allow, `(path == "/Acme" ? "Yes" : "No") == "Yes"`, "/Acme", Allow},
		{Allow, `{"/Acme": "POST"}[path] == method`, "/Acme", Allow},
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
		f.Path, f.Headers["x-team"] = c.path, "Other,Acme"
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
