package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// A host without TLS is reached by http URLs from the environment of a worker, and nothing that is worth anything goes
// there: neither a real token nor a placeholder nor the session.
func TestPlainHosts(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	dns := newResolver(t)
	var mu sync.Mutex
	var arrived []string
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		arrived = append(arrived, fmt.Sprint(r.Method, " ", r.Host, r.RequestURI, " ", r.Header))
		fmt.Fprint(w, "plainly")
	}))
	t.Cleanup(origin.Close)
	p := port(origin.Listener.Addr().String())
	for name, address := range map[string]string{"plain": "127.0.0.1", "inside": "10.0.0.1", "api": "127.0.0.1"} {
		dns.set(name+".demo.test", address)
	}
	g := startIn(t, w, base("  - {hosts: [api.demo.test], grant: claude, connect_to: \"$API\"}\n",
		fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.0/8]`, dns.address),
		fmt.Sprintf("plain: [\"plain.demo.test:%s\", \"inside.demo.test:%[1]s\"]\n", p)), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	for _, client := range []string{"curl -sSf http://plain.demo.test:" + p + "/a%2fb?c", "$PYTHON -c \"import requests; print(requests.get('http://plain.demo.test:" + p + "/a%2fb?c').text)\""} {
		c := g.command("wayleave", "run", "--", "sh", "-c", client)
		if out, err := c.Output(); err != nil || !strings.Contains(string(out), "plainly") {
			t.Errorf("%s: %v %s", client, err, out)
		}
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(arrived)
	}
	if count() != 2 || !strings.Contains(arrived[0], "/a%2fb?c") {
		t.Errorf("arrived: %q", arrived)
	}

	name, auth := "plain.demo.test:"+p, me.proxyAuthorization()
	for _, c := range []struct {
		first, head string
		status      int
		reason      string
	}{
		{"GET http://" + name + "/ HTTP/1.1", "", 407, "proxy_auth_required"},
		{"GET http://" + name + "/ HTTP/1.1", auth + "Authorization: Bearer " + me.placeholder + "\r\n", 400, "misplaced_placeholder"},
		{"GET http://" + name + "/ HTTP/1.1", auth + "X-Any: " + me.placeholder + "\r\n", 400, "misplaced_placeholder"},
		{"GET http://" + name + "/?" + me.placeholder + " HTTP/1.1", auth, 400, "misplaced_placeholder"},
		{"TRACE http://" + name + "/ HTTP/1.1", auth, 403, "policy_denied"},
		{"GET https://" + name + "/ HTTP/1.1", auth, 403, "use_connect"},
		{"GET http://api.demo.test/echo HTTP/1.1", auth, 403, "use_connect"},
		{"GET http://api.demo.test:443/echo HTTP/1.1", auth, 403, "use_connect"},
		{"GET http://plain.demo.test/ HTTP/1.1", auth, 403, "use_connect"},
		{"GET http://127.0.0.1:" + p + "/ HTTP/1.1", auth, 403, "use_connect"},
		{"GET http://inside.demo.test:" + p + "/ HTTP/1.1", auth, 503, "upstream_unreachable"},
		{"CONNECT " + name + " HTTP/1.1", auth, 403, "host_not_allowed"},
		{"GET http://" + name + "/ HTTP/1.1", auth + "Connection: Upgrade\r\nUpgrade: websocket\r\n", 403, "malformed"},
		{"GET http://" + name + "/ HTTP/1.1", auth + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400, "malformed"},
	} {
		a := ask(t, g.dial(t), c.first+"\r\nHost: "+name+"\r\n"+c.head+"\r\n")
		if a.status != c.status || a.reason != c.reason || !a.explained() {
			t.Errorf("%.60q %.40q: %v; want %d %s, explained", c.first, c.head, a, c.status, c.reason)
		}
	}
	// Each of several requests in one connection is looked at.
	t.Run("in a row", func(t *testing.T) {
		before := count()
		c := g.dial(t)
		first := "GET http://" + name + "/first HTTP/1.1\r\nHost: " + name + "\r\n" + auth + "\r\n"
		fmt.Fprint(c, first, "GET http://"+name+"/second HTTP/1.1\r\nHost: "+name+"\r\n"+auth+"X: "+me.placeholder+"\r\n\r\n")
		in := bufio.NewReader(c)
		for _, want := range []int{200, 400} {
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != want {
				t.Fatalf("%v, %v; want %d", resp, err, want)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		c = g.dial(t)
		fmt.Fprint(c, first, "GET http://evil.example/ HTTP/1.1\r\nHost: "+name+"\r\n"+auth+"\r\n")
		in = bufio.NewReader(c)
		for _, want := range []int{200, 403} {
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != want {
				t.Fatalf("%v, %v; want %d", resp, err, want)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := len(arrived) - before; n != 2 {
			t.Errorf("%d requests arrived of two that may", n)
		}
		arrived = arrived[:before]
	})
	// Host is not what counts (RFC 9112 section 3.2.2), and a user in the URL is not for us.
	if a := ask(t, g.dial(t), "GET http://u:p@"+name+"/ HTTP/1.1\r\nHost: evil.example\r\nProxy-Connection: x\r\nX-Wayleave-Identity: a\r\n"+auth+"\r\n"); a.status != 200 {
		t.Errorf("with another Host: %v", a)
	}
	// An offer to go on with TLS is not taken, and the request is answered as if it were not there.
	const offer = "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"
	if a := ask(t, g.dial(t), "GET http://"+name+"/offer HTTP/1.1\r\nHost: "+name+"\r\n"+offer+auth+"\r\n"); a.status != 200 {
		t.Errorf("with an offer of TLS: %v", a)
	}
	if a := ask(t, g.dial(t), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: api.demo.test:443\r\n"+offer+auth+"\r\n"); a.status != 200 {
		t.Errorf("CONNECT with an offer of TLS: %v", a)
	}
	fields := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", name}, {":path", "/h2"}, {"proxy-authorization", strings.TrimSpace(strings.TrimPrefix(auth, "Proxy-Authorization: "))}}
	if a, err := exchange(g.dial(t), fields); err != nil || a.status != 200 {
		t.Errorf("over HTTP/2: %v, %v", a, err)
	}
	for _, scheme := range []string{"https", "ftp", ""} {
		fields[1][1] = scheme
		if a, err := exchange(g.dial(t), fields); err == nil && a.status < 400 {
			t.Errorf("over HTTP/2 with the scheme %q: %v", scheme, a)
		}
	}

	mu.Lock()
	defer mu.Unlock()
	if len(arrived) != 5 {
		t.Errorf("%d requests arrived: %q", len(arrived), arrived)
	}
	for _, r := range arrived {
		for _, never := range []string{placeholderMarker, "Proxy", "wls1", "Wayleave", "evil", "X-Forwarded", "X-Envoy", "X-Request-Id", "u:p", "Upgrade"} {
			if strings.Contains(r, never) {
				t.Errorf("%s arrived: %s", never, r)
			}
		}
	}
}
