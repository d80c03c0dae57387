package extproc

import (
	"strings"
	"testing"
)

func TestFindPrefersTheSpecific(t *testing.T) {
	route := func(name string, hosts ...string) Route { return Route{Name: name, Hosts: hosts} }
	p := newPolicy(Config{
		Routes: []Route{route("exact", "a.b.example.com"), route("short", "*.example.com"), route("long", "*.b.example.com"), route("port", "*.example.com:8443")},
		Tunnel: []string{"t.example.com", "*.t.example.com"},
		Deny:   []string{"d.example.com", "*.d.example.com", "*.t.example.com"},
	})
	for in, want := range map[string]string{
		"a.b.example.com:443":   "exact",
		"x.b.example.com:443":   "long",
		"b.example.com:443":     "short",
		"x.y.example.com:443":   "short",
		"x.example.com:8443":    "port",
		"a.b.example.com:8443":  "port",
		"a.b.example.com:80":    "",
		"example.com:443":       "",
		"xexample.com:443":      "",
		"t.example.com:443":     "tunnel",
		"x.t.example.com:443":   "", // the same pattern twice: denied
		"d.example.com:443":     "",
		"x.y.d.example.com:443": "",
	} {
		e, err := parseAuthority(in, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if target := p.find(e); target.tunnel {
			got = "tunnel"
		} else if len(target.routes) > 0 {
			got = target.routes[0].Name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// The most specific pattern decides, whatever the order in which they are written.
func FuzzFind(f *testing.F) {
	f.Add("a.b.example.com:443", "*.example.com *.b.example.com a.b.example.com")
	f.Add("x.example.com:8443", "*.example.com *.example.com:8443 example.com:8443")
	f.Add("A.b:443", "*.b b a.B")
	f.Fuzz(func(t *testing.T, authority, patterns string) {
		e, err := parseAuthority(authority, httpsPort)
		if err != nil {
			return
		}
		var cfg Config
		best, specific := "", -1
		for _, pattern := range strings.Fields(patterns) {
			suffix, wild := strings.CutPrefix(pattern, "*.")
			of, err := parseAuthority(suffix, httpsPort)
			if err != nil {
				continue // the configuration has none
			}
			cfg.Routes = append(cfg.Routes, Route{Name: of.String(), Hosts: []string{pattern}})
			how := len(of.host)
			switch {
			case of.port != e.port:
			case !wild && of.host == e.host:
				best, specific = of.String(), 1000
			case wild && strings.HasSuffix(e.host, "."+of.host) && how > specific:
				best, specific = of.String(), how
			}
		}
		got := ""
		if found := newPolicy(cfg).find(e); len(found.routes) > 0 {
			got = found.routes[0].Name
		}
		if got != best {
			t.Errorf("%v among %q: found %q, want %q", e, patterns, got, best)
		}
	})
}
