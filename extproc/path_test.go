package extproc

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadings(t *testing.T) {
	for in, want := range map[string][]string{
		"/":                      {"/"},
		"/a/b?c=%41":             {"/a/b"},
		"/.well-known/x":         {"/.well-known/x"},
		"/a/":                    {"/a/"},
		"/a//b":                  {"/a//b", "/a/b"},
		"/a/./b":                 {"/a/./b", "/a/b"},
		"/a/../b":                {"/a/../b", "/b"},
		"/../../b":               {"/../../b", "/b"},
		"/a/..":                  {"/a/..", "/"},
		"/a/b/..":                {"/a/b/..", "/a/"},
		`/a\b`:                   {`/a\b`, "/a/b"},
		"/a;x/b;y":               {"/a;x/b;y", "/a/b"},
		"/%61":                   {"/%61", "/a"},
		"/%2561":                 {"/%2561", "/%61", "/a"},
		"/a%2f..%2fb":            {"/a%2f..%2fb", "/a/../b", "/b"},
		"/a%3fb":                 {"/a%3fb", "/a"},
		"/%zz%61":                {"/%zz%61", "/%zza"},
		"/%c1%a1":                {"/%c1%a1", "/\xc1\xa1", "/a"},
		"/a/%c0%ae%c0%ae%c0%afb": {"/a/%c0%ae%c0%ae%c0%afb", "/a/\xc0\xae\xc0\xae\xc0\xafb", "/a/../b", "/b"},
		"/%":                     {"/%"},
		"*":                      {"*"},
		// Not every server takes \ or what follows ; for what it is to others, or slashes in a row for one.
		"/a//../b":             {"/a//../b", "/a/b", "/b"},
		`/a/..\x/../b`:         {`/a/..\x/../b`, "/a/b", "/b"},
		"/a/..;x/../b":         {"/a/..;x/../b", "/a/b", "/b"},
		"/%61;%2f../b":         {"/%61;%2f../b", "/%61/b", "/a;/../b", "/b", "/a/b"},
		"/a;%2f%2e%2e/b;":      {"/a;%2f%2e%2e/b;", "/a/b", "/a;/../b;", "/b;", "/b"},
		"/" + "%2525252525252": {"/%2525252525252", "/%25252525252", "/%252525252", "/%2525252"},
	} {
		got, few := readings(in)
		if diff := cmp.Diff(want, got); diff != "" || !few {
			t.Errorf("%s: %s", in, diff)
		}
	}
	if all, few := readings(strings.Repeat(`//a\..;x%2f%252f%5c`, 5_000)); few {
		t.Errorf("%d readings are few", len(all))
	}
}

// servers read a path as programs that are not ours do.
var servers = map[string]func(string) string{
	"as it is":     func(s string) string { return s },
	"decodes":      unescaped,
	"net/http":     func(s string) string { return pathCleaned(unescaped(s)) },
	"RFC 3986":     withoutDots,
	"decodes last": func(s string) string { return unescaped(pathCleaned(s)) },
	"matrix":       func(s string) string { return pathCleaned(unescaped(parameter.ReplaceAllString(s, ""))) },
	"backslash":    func(s string) string { return pathCleaned(strings.ReplaceAll(unescaped(s), `\`, "/")) },
	"twice":        func(s string) string { return pathCleaned(unescaped(pathCleaned(unescaped(s)))) },
}

var parameter = regexp.MustCompile(`;[^/]*`)

// unescaped is s decoded, or as it is where a strict server would refuse it.
func unescaped(s string) string {
	if decoded, err := url.PathUnescape(s); err == nil {
		return decoded
	}
	return s
}

// withoutDots is RFC 3986 section 5.2.4, for a path that begins with a slash.
func withoutDots(in string) (out string) {
	for in != "" {
		segment := in
		if i := strings.IndexByte(in[1:], '/'); i >= 0 {
			segment = in[:i+1]
		}
		in = in[len(segment):]
		switch segment {
		case "/..":
			out = out[:max(0, strings.LastIndexByte(out, '/'))]
			fallthrough
		case "/.":
			if in == "" {
				in = "/"
			}
		default:
			out += segment
		}
	}
	return out
}

// pathCleaned is path.Clean with the final slash kept.
func pathCleaned(s string) string {
	clean := path.Clean("/" + s)
	if clean != "/" && (strings.HasSuffix(s, "/") || strings.HasSuffix(s, "/.") || strings.HasSuffix(s, "/..")) {
		clean += "/"
	}
	return clean
}

// careless read a path as others do, and then any that differ in letter case or a final slash as one.
var careless = map[string]func(string) string{
	"in lower case": strings.ToLower,
	"in upper case": strings.ToUpper,
	"in both":       func(s string) string { return strings.ToLower(strings.ToUpper(s)) },
	"without slash": func(s string) string { return strings.TrimSuffix(s, "/") },
	"with one":      func(s string) string { return strings.TrimSuffix(s, "/") + "/" },
}

// Whatever a server makes of a path: a request that passes is judged by the rule for that, and no denied path or token
// endpoint is reached by another way of writing it.
func FuzzPaths(f *testing.F) {
	rules := []Rule{{PathPrefix: "/a/b/", Deny: "denied"}, {PathExact: "/b"}, {PathPrefix: "/a", Scopes: []string{"a"}}, {PathPrefix: "/tokens/"}}
	for _, s := range []string{"/a/../b%2e%2e;x?y", "/a//../b", `/a/..\x/../b`, "/a/..;x/../b", "/%61;%2f../b", "/tokens;/x", "/a%252fb", "/x/%2e%2e/a/b", "*", "", "/A/B", "/a/%42", "/a/../A/b/"} {
		f.Add(s)
	}
	f.Add("/..//a0//../")
	f.Fuzz(func(t *testing.T, in string) {
		all, few := readings(in)
		if len(all) == 0 {
			t.Fatal("no reading")
		}
		for _, r := range all {
			if strings.Contains(r, "?") {
				t.Errorf("%q has a query", r)
			}
			for c := range everyCleaning + 1 {
				if once := c.clean(r); c.clean(once) != once {
					t.Errorf("cleaner %b: %q becomes %q, which becomes %q", c, r, once, c.clean(once))
				}
			}
		}
		if !few || !strings.HasPrefix(in, "/") {
			return // refused
		}
		sent, _, _ := strings.Cut(in, "?")
		for name, read := range servers {
			reading, _, _ := strings.Cut(read(sent), "?")
			if underAny([]string{reading}, []string{"/tokens/"}) && !underAny(all, []string{"/tokens/"}) {
				t.Errorf("%s reads %q as %q, a token endpoint", name, sent, reading)
			}
			for _, rules := range [][]Rule{rules, rules[:1]} {
				rule, plain := ruleFor(rules, []string{"GET"}, all)
				if want, _ := ruleFor(rules, []string{"GET"}, []string{reading}); plain && rule != want {
					t.Errorf("%s reads %q as %q, which is for another rule; we read %q", name, sent, reading, all)
				}
			}
			for how, takes := range careless {
				taken := takes(reading)
				rule, plain := ruleFor(rules[:1], []string{"GET"}, all)
				if strings.HasPrefix(strings.ToLower(taken), rules[0].PathPrefix) && plain && rule == nil {
					t.Errorf("%s, %s, takes %q for %q, which is denied; we read %q", name, how, sent, taken, all)
				}
			}
		}
	})
}

// Some servers make one slash of those at the start, once dots are resolved, and keep the others.
func TestReadingsOfLeadingSlashes(t *testing.T) {
	for path, want := range map[string]string{"/..//oauth//token": "/oauth//token", "/a/..//oauth//token": "/oauth//token", "//oauth//token": "/oauth//token"} {
		if all, few := readings(path); !few || !slices.Contains(all, want) {
			t.Errorf("%s: %q lacks %s", path, all, want)
		}
	}
}
