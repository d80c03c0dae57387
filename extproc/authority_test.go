package extproc

import (
	"cmp"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	for _, c := range []struct {
		in          string
		defaultPort uint16
		want        string // "" : refused
	}{
		{"api.example.com:443", 0, "api.example.com:443"},
		{"api.example.com", 443, "api.example.com:443"},
		{"API.Example.COM:8443", 0, "api.example.com:8443"},
		{"localhost:1", 0, "localhost:1"},
		{"a_b.example.com:443", 0, "a_b.example.com:443"},
		{"xn--bcher-kva.example:443", 0, "xn--bcher-kva.example:443"},
		{"1.example.com:443", 0, "1.example.com:443"},
		{"0x.example.com:443", 0, "0x.example.com:443"},
		{"deadbeef:443", 0, "deadbeef:443"},
		{"", 443, ""},
		{"api.example.com", 0, ""},
		{"api.example.com:", 443, ""},
		{"api.example.com:0", 443, ""},
		{"api.example.com:00443", 443, ""},
		{"api.example.com:+443", 443, ""},
		{"api.example.com: 443", 443, ""},
		{"api.example.com:65536", 443, ""},
		{"api.example.com:443:443", 443, ""},
		{"api.example.com:https", 443, ""},
		{"api.example.com.:443", 0, ""},
		{".api.example.com:443", 0, ""},
		{"api..example.com:443", 0, ""},
		{"user@api.example.com:443", 0, ""},
		{"user:pass@api.example.com:443", 0, ""},
		{"api.example.com/x:443", 0, ""},
		{"api.example.com:443/x", 0, ""},
		{"*.example.com:443", 0, ""},
		{"-a.example.com:443", 0, ""},
		{"a-.example.com:443", 0, ""},
		{"bücher.example:443", 0, ""},
		{"api.example.com%2e:443", 0, ""},
		{"a b.example.com:443", 0, ""},
		{"api.example.com\x00:443", 0, ""},
		{"127.0.0.1:443", 0, ""},
		{"127.1:443", 0, ""},
		{"2852039166:443", 0, ""},
		{"0x7f000001:443", 0, ""},
		{"0X7F.1:443", 0, ""},
		{"0x:443", 0, ""},
		{"017700000001:443", 0, ""},
		{"foo.0x7f:443", 0, ""},
		{"foo.1:443", 0, ""},
		{"[::1]:443", 0, ""},
		{"[::ffff:169.254.169.254]:80", 0, ""},
		{"::1", 443, ""},
		{"fe80::1%eth0", 443, ""},
		{strings.Repeat("a", 64) + ".com:443", 0, ""},
		{strings.Repeat("a.", 127) + "com:443", 0, ""},
	} {
		got, err := parseAuthority(c.in, c.defaultPort)
		if err != nil && c.want != "" || err == nil && got.String() != c.want {
			t.Errorf("parseAuthority(%q, %d) = %v, %v, want %q", c.in, c.defaultPort, got, err, c.want)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"api.example.com:443", "[::1]:443", "127.1:443", "A.b:1", "a@b:443", "a.:443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := parseAuthority(in, httpsPort)
		if err != nil {
			return
		}
		again, err := parseAuthority(got.String(), 0)
		if err != nil || again != got {
			t.Errorf("%q is read as %v, which is read as %v (%v)", in, got, again, err)
		}
		if !strings.EqualFold(in, got.host) && !strings.EqualFold(in, got.String()) {
			t.Errorf("%q is read as %v", in, got)
		}
		// Others read the same.
		u, err := url.Parse("https://" + in + "/")
		if err != nil || !strings.EqualFold(u.Hostname(), got.host) || cmp.Or(u.Port(), "443") != strconv.Itoa(int(got.port)) || u.User != nil || u.Path != "/" {
			t.Errorf("%q is read as %v, and as %v (%v) by net/url", in, got, u, err)
		}
		if ip, err := netip.ParseAddr(got.host); err == nil {
			t.Errorf("%q is the address %v", in, ip)
		}
	})
}
