package xds

import (
	"encoding/base64"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
)

// Every fault of the whole is reported, and all at once.
func TestBuildReportsFaults(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   []string // in the error
	}{
		{"empty", func(c *Config) { *c = Config{} }, []string{"proxy address", "API socket", "marker", "upstream CA"}},
		{"host that names nothing", func(c *Config) { c.Routes[0].Hosts = []string{"*", "a.*.com", "10.0.0.1", ""} },
			[]string{`"*"`, `"a.*.com"`, `"10.0.0.1" is an address`, `host ""`}},
		{"bad deny", func(c *Config) { c.Deny = []string{"A.example.com"} }, []string{`deny: host "A.example.com"`}},
		{"bad headers", func(c *Config) {
			c.CredentialHeaders, c.EnsureHeaders = []string{"X-Key"}, []string{"content-length"}
		}, []string{`"X-Key"`, `"content-length" frames`}},
		{"pseudo header", func(c *Config) { c.CredentialHeaders = []string{":path"} }, []string{`":path"`}},
		{"bad resolver", func(c *Config) { c.DNSResolvers = []string{"8.8.8.8"} }, []string{`"8.8.8.8" is not ip:port`}},
		{"bad range", func(c *Config) { c.AllowPrivate = []netip.Prefix{{}} }, []string{"is not a prefix"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			c.Routes = []Route{{Name: "a", Hosts: []string{"a.example.com"}}, {Name: "b", Hosts: []string{"b.example.com"}}}
			tt.change(&c)
			r, err := Build(c)
			if err == nil || r != nil {
				t.Fatalf("built %v, error %v", r != nil, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in: %v", w, err)
				}
			}
		})
	}
}

// The order in which a configuration is written does not matter.
func TestBuildIsDeterministic(t *testing.T) {
	c := readConfig(t, "testdata/full.in.yaml")
	first, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		shuffle(c.Routes)
		shuffle(c.Tunnel)
		shuffle(c.CredentialHeaders)
		shuffle(c.EnsureHeaders)
		for i := range c.Routes {
			shuffle(c.Routes[i].Hosts)
			shuffle(c.Routes[i].ALPN)
		}
		again, err := Build(c)
		if err != nil {
			t.Fatal(err)
		}
		if first.Revision() != again.Revision() {
			t.Fatal("the same configuration, written in another order, has another revision")
		}
	}
	c.Tunnel = c.Tunnel[1:]
	other, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	if first.Revision() == other.Revision() {
		t.Error("another configuration has the same revision")
	}
}

func shuffle[T any](s []T) { rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }

func TestServeRefusesInconsistency(t *testing.T) {
	tests := map[string]func(*Resources){
		`cluster "upstream"`:              func(r *Resources) { r.Clusters = dropNamed(r.Clusters, "upstream") },
		`route configuration "intercept"`: func(r *Resources) { r.Routes = r.Routes[:1] },
		`extension "wayleave.ext_proc"`:   func(r *Resources) { r.Extensions = nil },
		`two clusters are named "extra"`: func(r *Resources) {
			r.Clusters = append(r.Clusters, &clusterv3.Cluster{Name: "extra"}, &clusterv3.Cluster{Name: "extra"})
		},
	}
	for want, spoil := range tests {
		r, err := Build(readConfig(t, "testdata/minimal.in.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(nil, Options{})
		if err := s.Serve(alone(r)); err != nil {
			t.Fatal(err)
		}
		spoilt := *r
		spoil(&spoilt)
		if err := s.Serve(alone(&spoilt)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func dropNamed(list []*clusterv3.Cluster, name string) []*clusterv3.Cluster {
	return slices.DeleteFunc(slices.Clone(list), func(c *clusterv3.Cluster) bool { return c.GetName() == name })
}

// Every host of every route is answered by its own virtual host, and every other by 421.
func TestVirtualHosts(t *testing.T) {
	routes := []plannedRoute{
		{name: "a", hosts: []host{{"a.example.com", 443}, {"*.b.example.com", 443}}},
		{name: "p", hosts: []host{{"a.example.com", 8443}}, dial: &dialTarget{}},
	}
	got := map[string][]string{}
	for _, vh := range interceptRoutes(plan{routes: routes}).GetVirtualHosts() {
		var targets []string
		for _, r := range vh.GetRoutes() {
			switch action := r.GetAction().(type) {
			case *routev3.Route_Route:
				targets = append(targets, action.Route.GetCluster())
			case *routev3.Route_DirectResponse:
				targets = append(targets, "421")
			}
		}
		for _, d := range vh.GetDomains() {
			got[d] = targets
		}
	}
	want := map[string][]string{
		"a.example.com": {"upstream_h1", "upstream", "upstream"}, "a.example.com:443": {"upstream_h1", "upstream", "upstream"},
		"*.b.example.com": {"upstream_h1", "upstream", "upstream"}, "*.b.example.com:443": {"upstream_h1", "upstream", "upstream"},
		"a.example.com:8443": {"to_p/h1", "to_p", "to_p"},
		"*":                  {"421"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSubtract(t *testing.T) {
	p := netip.MustParsePrefix
	tests := []struct{ ranges, allowed, want []netip.Prefix }{
		{[]netip.Prefix{p("10.0.0.0/8")}, nil, []netip.Prefix{p("10.0.0.0/8")}},
		{[]netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("10.0.0.0/8")}, nil},
		{[]netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("0.0.0.0/0")}, nil},
		{[]netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("192.168.0.0/16")}, []netip.Prefix{p("10.0.0.0/8")}},
		{[]netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("10.64.0.0/10")}, []netip.Prefix{p("10.0.0.0/10"), p("10.128.0.0/9")}},
		{[]netip.Prefix{p("127.0.0.0/30")}, []netip.Prefix{p("127.0.0.1/32")}, []netip.Prefix{p("127.0.0.0/32"), p("127.0.0.2/31")}},
		{[]netip.Prefix{p("fc00::/7")}, []netip.Prefix{p("fd00::/8")}, []netip.Prefix{p("fc00::/8")}},
		{[]netip.Prefix{p("fc00::/7")}, []netip.Prefix{p("10.0.0.0/8")}, []netip.Prefix{p("fc00::/7")}},
	}
	for _, tt := range tests {
		got := subtract(tt.ranges, tt.allowed)
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%v without %v (-want +got):\n%s", tt.ranges, tt.allowed, diff)
		}
	}
}

// What remains is exactly the refused addresses that are not allowed.
func FuzzSubtract(f *testing.F) {
	f.Add("10.1.0.0/16", "10.1.2.3")
	f.Add("::1/128", "::1")
	f.Add("127.0.0.0/9", "127.200.0.1")
	f.Fuzz(func(t *testing.T, prefix, address string) {
		allowed, err := netip.ParsePrefix(prefix)
		if err != nil {
			t.Skip()
		}
		a, err := netip.ParseAddr(address)
		if err != nil || a.Zone() != "" {
			t.Skip()
		}
		allowed = allowed.Masked()
		left := subtract(private, []netip.Prefix{allowed})
		if got, want := covers(left, a), covers(private, a) && !allowed.Contains(a); got != want {
			t.Errorf("%s with %s allowed: refused %v, want %v", a, allowed, got, want)
		}
	})
}

func covers(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// The addresses an attacker would have a name resolve to.
func TestPrivateAddressesAreRefused(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "0.0.0.0", "10.1.2.3", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
		"::1", "::", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "fe80::1", "224.0.0.1", "255.255.255.255",
		"::ffff:0:127.0.0.1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "64:ff9b:1::7f00:1", "192.88.99.1", "100::1", "5f00::1",
	} {
		if !covers(private, netip.MustParseAddr(a)) {
			t.Errorf("%s is not refused", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "172.32.0.1", "100.128.0.1", "192.88.98.1", "2606:4700::1111", "2001:4860:4860::8888"} {
		if covers(private, netip.MustParseAddr(a)) {
			t.Errorf("%s is refused", a)
		}
	}
}

// A marker is found in the base64 of anything around it.
func FuzzBase64Cores(f *testing.F) {
	f.Add("x-access-token:sk-", "abc")
	f.Add("", "")
	f.Add("\xff\x00", "\xff")
	f.Fuzz(func(t *testing.T, before, after string) {
		const marker = "wlplaceholder"
		found := 0
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding} {
			for _, core := range base64Cores(marker) {
				if strings.Contains(e.EncodeToString([]byte(before+marker+after)), core) {
					found++
				}
			}
		}
		if found < 2 {
			t.Errorf("the marker is not found between %q and %q", before, after)
		}
	})
}

// What a handshake asks for is either a host name, whose parts then have nothing special, or refused.
func FuzzHostName(f *testing.F) {
	for _, s := range []string{"api.example.com", "localhost", "*.example.com", "a..b", "-a.com", "1.2.3.4", "0x7f.1", "a_b.example.com", "static/x", strings.Repeat("a.", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !isHostName(s) {
			return
		}
		if len(s) > 253 || strings.ContainsAny(s, "*/:\x00 %@") || s != strings.ToLower(s) || strings.HasPrefix(s, staticPrefix) {
			t.Errorf("%q is taken for a host name", s)
		}
		if _, err := netip.ParseAddr(s); err == nil {
			t.Errorf("the address %q is taken for a host name", s)
		}
		if h, err := parseHost(s); err != nil || h != (host{s, 443}) {
			t.Errorf("%q is a host name, and as a host it is %v, %v", s, h, err)
		}
	})
}

// gRPC servers end a connection that is pinged more than once in five minutes while its streams are silent (gRFC A8).
func TestUpstreamsArePingedSeldom(t *testing.T) {
	if every := anyHTTP(nil).GetAutoConfig().GetHttp2ProtocolOptions().GetConnectionKeepalive().GetInterval().AsDuration(); every <= 5*time.Minute {
		t.Errorf("every %v", every)
	}
}
