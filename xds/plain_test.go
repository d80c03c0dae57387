package xds

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// A plain host is reached by who may, in the absolute form of http, with what is for the proxy taken away and never with a
// placeholder; and in no other way.
func TestPlainHosts(t *testing.T) {
	var requests atomic.Int64
	var last atomic.Pointer[http.Request]
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		last.Store(r)
		w.Header().Set("Server", "origin")
		w.Header().Set("Proxy-Authenticate", "Basic")
		fmt.Fprint(w, "from the origin")
	}))
	t.Cleanup(origin.Close)
	port := origin.Listener.Addr().(*net.TCPAddr).Port
	host := fmt.Sprintf("localhost:%d", port)
	s := start(t, func(c *Config) {
		c.Plain = []string{host, "private.test:80"}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.ProxyTLS = &ProxyTLS{Address: freeAddress(t), Names: []string{gateName}}
	}, nil)
	ann := s.worker("ann")

	t.Run("forwarded", func(t *testing.T) {
		const path = "/a//b/%2f%20?q=1"
		a := get(t, ann, "http://"+host+path, "Authorization", "Bearer of-the-worker", "X-Envoy-Retry-On", "5xx", "X-Wayleave-Identity", "bob", "X-Forwarded-For", "1.2.3.4", "X-Request-Id", "mine", "Forwarded", "for=1.2.3.4")
		if a.status != 200 || a.body != "from the origin" || a.header.Get("Server") != "origin" || a.header.Get("Proxy-Authenticate") != "" {
			t.Fatalf("got %d %q %v", a.status, a.body, a.header)
		}
		r := last.Load()
		if r.Host != host || r.RequestURI != path || r.Header.Get("Authorization") != "Bearer of-the-worker" {
			t.Errorf("the origin saw %s %s %v", r.Host, r.RequestURI, r.Header)
		}
		for name := range r.Header {
			for _, prefix := range []string{"X-Forwarded", "X-Envoy", "Proxy-", "X-Wayleave", "Forwarded", "X-Request-Id"} {
				if strings.HasPrefix(name, prefix) {
					t.Errorf("the origin saw %s", name)
				}
			}
		}
	})
	t.Run("over the proxy's TLS", func(t *testing.T) {
		if a := get(t, s.workerOverTLS("ann"), "http://"+host+"/"); a.status != 200 {
			t.Errorf("got %d %q", a.status, a.body)
		}
	})

	before := requests.Load()
	raw := func(t *testing.T, text string) *http.Response {
		t.Helper()
		conn, err := dialerTo(s.config.ProxyAddress)(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		fmt.Fprint(conn, text)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	const me = "Proxy-Authorization: Basic YW5uOnB3\r\n"
	t.Run("nobody", func(t *testing.T) {
		resp := raw(t, "GET http://"+host+"/ HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if resp.StatusCode != http.StatusProxyAuthRequired || resp.Header.Get("Proxy-Authenticate") == "" {
			t.Errorf("got %d %v", resp.StatusCode, resp.Header)
		}
	})
	for name, c := range map[string]struct {
		text   string
		status int
		reason string
	}{
		"a placeholder in a credential header": {"GET http://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n" + me + "Authorization: Bearer " + testMarker + "x\r\n\r\n", 403, reasonBarrier},
		"a placeholder in the path":            {"GET http://" + host + "/" + testMarker + "x HTTP/1.1\r\nHost: " + host + "\r\n" + me + "\r\n", 403, reasonBarrier},
		"a placeholder in a cookie":            {"GET http://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n" + me + "Cookie: a=" + testMarker + "x\r\n\r\n", 403, reasonBarrier},
		"https in the clear":                   {"GET https://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n" + me + "\r\n", 403, reasonUseConnect},
		"another host":                         {"GET http://other.test/ HTTP/1.1\r\nHost: " + host + "\r\n" + me + "\r\n", 403, reasonUseConnect},
		"another port":                         {"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n" + me + "\r\n", 403, reasonUseConnect},
		"a name that does not exist":           {"GET http://private.test/ HTTP/1.1\r\nHost: private.test\r\n" + me + "\r\n", 503, reasonUpstreamUnreachable},
	} {
		t.Run(name, func(t *testing.T) { replyOf(t, raw(t, c.text), c.status, c.reason) })
	}
	t.Run("through a tunnel", func(t *testing.T) { // TLS is what tunnels are for
		conn, err := s.dialTunnel(host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		replyOf(t, resp, 400, reasonUseConnect)
	})
	if n := requests.Load() - before; n != 0 {
		t.Errorf("%d requests reached the origin", n)
	}
}
