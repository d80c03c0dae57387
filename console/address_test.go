package console

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestClientOf(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")}
	for name, c := range map[string]struct {
		peer      string
		forwarded []string
		want      string
	}{
		"nobody trusted between":       {"192.0.2.1", nil, "192.0.2.1"},
		"a client that calls itself x": {"192.0.2.1", []string{"198.51.100.7"}, "192.0.2.1"},
		"a proxy":                      {"10.1.1.1", []string{"198.51.100.7"}, "198.51.100.7"},
		"a proxy that says nothing":    {"10.1.1.1", nil, "10.1.1.1"},
		"two proxies":                  {"10.1.1.1", []string{"198.51.100.7, 10.2.2.2"}, "198.51.100.7"},
		"two proxies, two headers":     {"10.1.1.1", []string{"198.51.100.7", "10.2.2.2"}, "198.51.100.7"},
		"what the client wrote itself": {"10.1.1.1", []string{"203.0.113.9, 10.9.9.9", "198.51.100.7"}, "198.51.100.7"},
		"a client inside":              {"10.1.1.1", []string{"10.3.3.3"}, "10.3.3.3"},
		"with a port":                  {"10.1.1.1", []string{"198.51.100.7:4711"}, "198.51.100.7"},
		"IPv6":                         {"2001:db8:1::1", []string{"2001:db8:2::7"}, "2001:db8:2::7"},
		"IPv6 with a port":             {"2001:db8:1::1", []string{"[2001:db8:2::7]:4711"}, "2001:db8:2::7"},
		"IPv6 in brackets":             {"10.1.1.1", []string{"[2001:db8:2::7]"}, "2001:db8:2::7"},
		"IPv4 as IPv6":                 {"10.1.1.1", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		"a zone":                       {"10.1.1.1", []string{"fe80::1%eth0"}, "fe80::1"},
		"unknown":                      {"10.1.1.1", []string{"203.0.113.9, unknown"}, "10.1.1.1"},
		"unknown behind a proxy":       {"10.1.1.1", []string{"203.0.113.9, unknown, 10.2.2.2"}, "10.2.2.2"},
		"empty":                        {"10.1.1.1", []string{""}, "10.1.1.1"},
	} {
		if got := clientOf(netip.MustParseAddr(c.peer), c.forwarded, trusted); got.String() != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Behind a reverse proxy, an address that guesses makes itself wait and nobody else, whatever it says of itself; and the audit has
// the addresses of operators.
func TestBehindAReverseProxy(t *testing.T) {
	proxy := httptest.NewUnstartedServer(nil)
	at := &url.URL{Scheme: "http", Host: proxy.Listener.Addr().String()}
	w := newWorld(t, func(c *Config) {
		c.URL, c.TrustedProxies = at, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	console, _ := url.Parse(w.address)
	proxy.Config.Handler = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(console)
		r.Out.Host = r.In.Host
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"] // to which the peer is added, as proxies mostly do
		r.SetXForwarded()
	}}
	proxy.Start()
	t.Cleanup(proxy.Close)
	w.address = at.String()
	from := func(address string) *browser {
		b := w.browser()
		local := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		if c, err := local.DialContext(t.Context(), "tcp", at.Host); err != nil {
			t.Skipf("this system has one address of loopback only: %v", err)
		} else {
			c.Close()
		}
		b.http.Transport = &http.Transport{DisableKeepAlives: true, DialContext: local.DialContext}
		return b
	}
	guess := func(b *browser, says string) int {
		r := b.request(http.MethodPost, "/login", "token=guess")
		if says != "" {
			r.Header.Set("X-Forwarded-For", says)
		}
		return b.do(r).status
	}
	attacker, operator := from("127.0.0.2"), from("127.0.0.3")
	for range triesAtOnce {
		if status := guess(attacker, ""); status != http.StatusForbidden {
			t.Fatal(status)
		}
	}
	for _, says := range []string{"", "127.0.0.3", "198.51.100.7, 127.0.0.1"} {
		if status := guess(attacker, says); status != http.StatusTooManyRequests {
			t.Errorf("guessing goes on as %q: %d", says, status)
		}
	}
	if a := operator.post("/login", "token", w.once()); a.status != http.StatusSeeOther {
		t.Errorf("the operator is shut out: %d", a.status)
	}
	if got := w.events(); !strings.Contains(got, "login  by local operator via link from 127.0.0.3: <nil>") || strings.Contains(got, "from 127.0.0.1") {
		t.Errorf("the audit has other addresses:\n%s", got)
	}

	// Who reaches the console without the proxy is who it is.
	direct := from("127.0.0.4")
	r := direct.request(http.MethodPost, w.address+"/login", "token=guess")
	r.URL.Host, r.Host = console.Host, at.Host
	r.Header.Set("X-Forwarded-For", "198.51.100.7")
	direct.do(r)
	if got := w.events(); !strings.Contains(got, "from 127.0.0.4: this link") || strings.Contains(got, "198.51.100.7") {
		t.Errorf("a client that is no proxy is believed:\n%s", got)
	}

	// Tokens of the API are counted alike.
	guesser, program := &program{attacker, "wlop_guess"}, w.as(Viewer)
	program.http.Transport = operator.http.Transport
	if status := guesser.call("GET", "/me", "", nil); status != http.StatusTooManyRequests {
		t.Errorf("guessing tokens goes on: %d", status)
	}
	if status := program.call("GET", "/me", "", nil); status != http.StatusOK {
		t.Errorf("a program elsewhere is shut out: %d", status)
	}
	w.later(time.Minute)
	for i := range triesAtOnce + 1 {
		want := http.StatusUnauthorized
		if i == triesAtOnce {
			want = http.StatusTooManyRequests
		}
		if status := guesser.call("GET", "/me", "", nil); status != want {
			t.Errorf("guess %d: %d, want %d", i+1, status, want)
		}
	}
}

// A console knows itself by what browsers and reverse proxies write as its Host, and by nothing else.
func TestCalled(t *testing.T) {
	for address, hosts := range map[string]map[string]bool{
		"https://gate.example.com":      {"gate.example.com": true, "Gate.Example.COM": true, "gate.example.com:443": true, "gate.example.com:8443": false, "evil.example": false, "gate.example.com.evil.example": false, "": false, "10.0.0.7:3180": false},
		"https://gate.example.com:8443": {"gate.example.com:8443": true, "gate.example.com": true, "gate.example.com:443": true, "gate.example.com:80": false},
		"https://[2001:db8::1]:8443":    {"[2001:db8::1]:8443": true, "[2001:db8::1]": true, "[2001:db8::2]": false},
		"http://127.0.0.1:3180":         {"127.0.0.1:3180": true, "127.0.0.1": false, "127.0.0.1:443": false},
	} {
		at, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		for host, want := range hosts {
			if got := (&Server{Config: Config{URL: at}}).called(host); got != want {
				t.Errorf("%s is called %q: %v", address, host, got)
			}
		}
	}
}

// Addresses of IPv6 that one customer has are one source: else there would be no end of them.
func TestSource(t *testing.T) {
	for address, want := range map[string]string{"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::9": "2001:db8:1:2::/64", "nobody": "nobody"} {
		if got := source(&http.Request{RemoteAddr: address}); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
