package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave/demo"
)

// explained reports whether a is an answer of ours that says what to do next.
func (a answer) explained() bool {
	var body struct {
		Message string // of the generic shape
		Error   any    // a reason, or an object with a message
	}
	if json.Unmarshal([]byte(a.body), &body) != nil || a.reason == "" {
		return false
	}
	message := body.Message
	if inner, ok := body.Error.(map[string]any); ok {
		message, _ = inner["message"].(string)
	}
	return len(message) > 60
}

// Whatever is refused is refused in words, and with a reason that is true; what can be done with it is done.
func TestAttacksAreAnsweredInWords(t *testing.T) {
	t.Parallel()
	g := start(t, severalHosts, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	me, bearer := w.proxyAuthorization(), "Authorization: Bearer "+w.placeholder+"\r\n"

	t.Run("at the proxy", func(t *testing.T) {
		for _, c := range []struct {
			first, head string
			reason      string
		}{
			{"POST https://api.demo.test/v1/messages HTTP/1.1", bearer, "use_connect"},
			{"GET https://u:p@api.demo.test/ HTTP/1.1", me + bearer, "use_connect"},
			{"GET https://api.demo.test/.wayleave/v1/ca.pem HTTP/1.1", "", "use_connect"},
			{"POST http://api.demo.test/echo HTTP/1.1", me + bearer, "use_connect"},
			{"POST http://api.demo.test:443/echo HTTP/1.1", me + bearer, "use_connect"},
			{"GET /.wayleave/../echo HTTP/1.1", bearer, "use_connect"},
			{"GET /.wayleave/%2e%2e/echo HTTP/1.1", bearer, "use_connect"},
			{"GET /.wayleave%2f..%2fecho HTTP/1.1", bearer, "use_connect"},
			{"GET //.wayleave/v1/ca.pem HTTP/1.1", bearer, "use_connect"},
			{"GET /.wayleave/v2/nothing HTTP/1.1", "", "no_such_request"},
			{"DELETE /.wayleave/v1/sessions HTTP/1.1", "", "unknown_session"},
			{"POST /.wayleave/v1/sessions/renew HTTP/1.1", "", "unknown_session"},
			{"PUT /.wayleave/v1/sessions HTTP/1.1", "", "no_such_request"},
			{"OPTIONS * HTTP/1.1", "", "malformed"},
			{"GET ftp://api.demo.test/ HTTP/1.1", me, "malformed"},
			{"GET api.demo.test HTTP/1.1", me, "malformed"},
			{"PRI * HTTP/1.1", "", "malformed"},
			{"\x05\x01\x00", "", "malformed"}, // SOCKS
			{"CONNECT api.demo.test HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test:65536 HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test:443:443 HTTP/1.1", me, "malformed"},
			{"CONNECT user@api.demo.test:443 HTTP/1.1", me, "malformed"},
			{"CONNECT https://api.demo.test:443 HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test:443/path HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test\x00:443 HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test\r:443 HTTP/1.1", me, "malformed"},
			{"CONNECT  HTTP/1.1", me, "malformed"},
			{"connect api.demo.test:443 HTTP/1.1", me, "malformed"},
			{"CONNECT " + strings.Repeat("a.", 60_000) + "test:443 HTTP/1.1", me, "malformed"},
			{"CONNECT api.demo.test:443 HTTP/1.1", me + "Content-Length: 5\r\n", "malformed"},
			{"CONNECT api.demo.test:443 HTTP/1.1", me + "Transfer-Encoding: chunked\r\n", "malformed"},
			{"CONNECT api.demo.test:443 HTTP/1.1", me + "X: a\x00b\r\n", "malformed"},
			{"CONNECT api.demo.test:443 HTTP/1.1", me + "Host : evil.example\r\n", "malformed"},
			{"POST /.wayleave/v1/sessions HTTP/1.1", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "malformed"},
			{"POST /.wayleave/v1/sessions HTTP/1.1", "Content-Length: 4\r\nContent-Length: 5\r\n", "malformed"},
			{"POST /.wayleave/v1/sessions HTTP/1.1", "Transfer-Encoding: xchunked\r\n", "malformed"},
			{"POST /.wayleave/v1/sessions HTTP/1.1", "Transfer-Encoding : chunked\r\n", "malformed"},
			{"CONNECT api.demo.test.:443 HTTP/1.1", me, "host_not_allowed"},
			{"CONNECT api.demo.test:80 HTTP/1.1", me, "host_not_allowed"},
			{"CONNECT evil.example:443 HTTP/1.1", me, "host_not_allowed"}, // whatever Host says
			{"CONNECT 0x7f.1:443 HTTP/1.1", me, "host_not_allowed"},
			{"CONNECT [::ffff:7f00:1]:443 HTTP/1.1", me, "host_not_allowed"},
			{"CONNECT " + strings.Repeat("a", 300) + ".test:443 HTTP/1.1", me, "host_not_allowed"},
			{"CONNECT api.demo.test:443 HTTP/1.1", me + me, "proxy_auth_required"},
			{"CONNECT api.demo.test:443 HTTP/1.1", strings.TrimSpace(me) + ", Basic eDp5\r\n", "proxy_auth_required"},
			{"CONNECT api.demo.test:443 HTTP/1.1", strings.TrimSpace(me) + "\r\n x\r\n", "proxy_auth_required"},
			{"CONNECT api.demo.test:443 HTTP/1.1", "Proxy_Authorization: " + strings.TrimPrefix(me, "Proxy-Authorization: "), "proxy_auth_required"},
		} {
			a := ask(t, g.dial(t), c.first+"\r\nHost: api.demo.test\r\n"+c.head+"\r\n")
			if a.reason != c.reason || a.status < 400 || a.status > 501 || !a.explained() {
				t.Errorf("%.60q: %v %v; want %s, explained", c.first, a, a.header, c.reason)
			}
			if a.header.Get("X-Should-Retry") == "true" {
				t.Errorf("%.60q: told to try again", c.first)
			}
		}
	})

	// The target is what counts (RFC 9112 section 3.2.2), for the tunnel as for what comes through it.
	t.Run("another Host", func(t *testing.T) {
		c := g.dial(t)
		if a := ask(t, c, "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: evil.example:443\r\n"+me+"\r\n"); a.status != http.StatusOK {
			t.Fatalf("got %v", a)
		}
		inside := tls.Client(c, &tls.Config{ServerName: "api.demo.test", RootCAs: w.roots, NextProtos: []string{"http/1.1"}})
		if a := ask(t, inside, "GET /echo HTTP/1.1\r\nHost: api.demo.test\r\n"+bearer+"\r\n"); a.status != http.StatusOK || strings.Contains(a.body, "evil") {
			t.Errorf("got %v", a)
		}
	})

	// Who opens tunnels for others, and does not wait for the answer, must not have their bytes taken for requests of its own
	// (RFC 9112 section 9.6.1).
	t.Run("behind a refused tunnel", func(t *testing.T) {
		for _, head := range []string{"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n" + me, "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: api.demo.test:443\r\n"} {
			c := g.dial(t)
			_, _ = io.WriteString(c, head+"\r\nGET /.wayleave/v1/ca.pem HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n")
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode < 400 {
				t.Fatalf("%.30q: %v, %v", head, resp, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if rest, _ := io.ReadAll(in); len(rest) > 0 {
				t.Errorf("%.30q: what was behind it was answered: %.60q", head, rest)
			}
		}
	})

	// Clients that do not wait for the tunnel before they speak in it.
	t.Run("an eager client", func(t *testing.T) {
		c := &eager{Conn: g.dial(t), head: "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: api.demo.test:443\r\n" + me + "\r\n"}
		a := ask(t, tls.Client(c, &tls.Config{ServerName: "api.demo.test", RootCAs: w.roots}), "GET /echo HTTP/1.1\r\nHost: api.demo.test\r\n"+bearer+"\r\n")
		if a.status != http.StatusOK {
			t.Errorf("got %v", a)
		}
	})

	// An answer to HEAD has no body, a refusal neither, or it would be taken for the next answer.
	t.Run("HEAD", func(t *testing.T) {
		conn, err := g.inside(t, w, "api.demo.test", "api.demo.test")
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		for head, status := range map[string]int{
			"HEAD /echo?k=" + w.placeholder + " HTTP/1.1\r\nHost: api.demo.test\r\n":              400, // by the gate
			"HEAD /echo HTTP/1.1\r\nHost: evil.example\r\n" + bearer:                              421,
			"HEAD /v1/oauth/token HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer:                   0,
			"HEAD /echo HTTP/1.1\r\nHost: api.demo.test\r\nUpgrade: x\r\nConnection: Upgrade\r\n": 403, // by Envoy
			"HEAD /echo HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer:                             200,
		} {
			if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodHead})
			if err != nil || status != 0 && resp.StatusCode != status || status == 0 && resp.Header.Get("X-Wayleave-Reason") != "token_endpoint" {
				t.Fatalf("%.40q: %v, %v; want %d", head, resp, err, status)
			}
			if resp.Close { // as Envoy does after a 400, and some others
				if conn, err = g.inside(t, w, "api.demo.test", "api.demo.test"); err != nil {
					t.Fatal(err)
				}
				in = bufio.NewReader(conn)
			}
			fmt.Fprint(conn, "GET /public HTTP/1.1\r\nHost: api.demo.test\r\n\r\n")
			if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("behind %.40q: %v, %v", head, resp, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
	})

	t.Run("a WebSocket without a key", func(t *testing.T) {
		conn, err := g.inside(t, w, "api.demo.test", "api.demo.test")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: api.demo.test\r\n"+bearer+"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("got %v, %v", resp, err)
		}
	})

	if g.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}

// eager is a connection that sends a request for a tunnel together with the first bytes for its inside.
type eager struct {
	net.Conn
	head string
	in   *bufio.Reader // after the answer to the request
}

func (e *eager) Write(p []byte) (int, error) {
	head := e.head
	e.head = ""
	n, err := e.Conn.Write(append([]byte(head), p...))
	return max(0, n-len(head)), err
}

func (e *eager) Read(p []byte) (int, error) {
	if e.in == nil {
		e.in = bufio.NewReader(e.Conn)
		resp, err := http.ReadResponse(e.in, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return 0, err
		}
		if resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("CONNECT: %s", resp.Status)
		}
	}
	return e.in.Read(p)
}

// What HTTP/2 can say that HTTP/1.1 cannot.
func TestAttacksOverHTTP2(t *testing.T) {
	t.Parallel()
	trailers := make(chan http.Header, 1)
	made := makeWorld(t)
	origin := newUpstream(t, made.CA, "trailers.demo.test", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		trailers <- r.Trailer
	})
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [api.demo.test, other.demo.test], grant: claude, connect_to: "$API"}
  - {hosts: [trailers.demo.test], grant: claude, connect_to: "%s"}
`, origin.address), "", ""), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	t.Run("names that disagree", func(t *testing.T) {
		for _, connect := range []string{"api.demo.test", "other.demo.test"} {
			for _, sni := range []string{"api.demo.test", "other.demo.test"} {
				for _, authority := range []string{"api.demo.test", "other.demo.test", "a.wild.demo.test", "evil.example", "api.demo.test:444", "api.demo.test.", "x@api.demo.test", "127.0.0.1", ""} {
					for _, host := range []string{"", "api.demo.test", "evil.example"} {
						named := cmp.Or(authority, host) // Envoy drops a host beside :authority
						agree := connect == sni && named == sni
						a, err := g.h2(t, w, connect, sni, [][2]string{
							{":method", "GET"}, {":scheme", "https"}, {":authority", authority}, {":path", "/echo"}, {"host", host}, {"authorization", "Bearer " + w.placeholder},
						})
						ok := err == nil && a.status == http.StatusOK
						if ok != agree || ok && (!strings.Contains(a.body, `"host":"`+connect+`"`) || strings.Contains(a.body, "evil")) {
							t.Errorf("CONNECT %s, SNI %s, :authority %q, host %q: %v, %v; want it to pass: %v", connect, sni, authority, host, a, err, agree)
						}
					}
				}
			}
		}
	})

	// The proxy listener speaks HTTP/2 too, to who begins with it.
	t.Run("at the proxy", func(t *testing.T) {
		password, _ := w.proxy.User.Password()
		me := "Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":"+password))
		connect := func(authority, authorization string) [][2]string {
			return [][2]string{{":method", "CONNECT"}, {":authority", authority}, {"proxy-authorization", authorization}, {"x-wayleave-identity", "admin"}}
		}
		for _, c := range []struct {
			name   string
			fields [][2]string
			status int // 0: the stream is reset
			reason string
		}{
			{"a tunnel", connect("api.demo.test:443", me), 200, ""},
			{"nobody", connect("api.demo.test:443", ""), 407, "proxy_auth_required"},
			{"twice", append(connect("api.demo.test:443", me), [2]string{"proxy-authorization", me}), 407, "proxy_auth_required"},
			{"another port", connect("api.demo.test:80", me), 403, "host_not_allowed"},
			{"no port", connect("api.demo.test", me), 403, "host_not_allowed"},
			{"port 0", connect("api.demo.test:0", me), 403, "host_not_allowed"},
			{"port 65979", connect("api.demo.test:65979", me), 403, "host_not_allowed"}, // 443 + 65536
			{"two ports", connect("api.demo.test:443:443", me), 403, "host_not_allowed"},
			{"user", connect("x@api.demo.test:443", me), 0, ""},
			{"final dot", connect("api.demo.test.:443", me), 403, "host_not_allowed"},
			{"address", connect("[::ffff:127.0.0.1]:443", me), 403, "host_not_allowed"},
			{"address as a number", connect("2130706433:443", me), 403, "host_not_allowed"},
			{"a NUL", connect("api.demo.test\x00:443", me), 0, ""},
			{"no authority", connect("", me), 0, ""},
			{"extended", [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "api.demo.test:443"}, {":path", "/echo"}, {"proxy-authorization", me}}, 403, "malformed"},
			{"https", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "api.demo.test"}, {":path", "/echo"}, {"proxy-authorization", me}}, 403, "use_connect"},
			{"http", [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "api.demo.test"}, {":path", "/echo"}}, 403, "use_connect"},
		} {
			a, err := exchange(g.dial(t), c.fields)
			if (err != nil) != (c.status == 0) || a.status != c.status || a.reason != c.reason || a.status > 200 && !a.explained() {
				t.Errorf("%s: %v, %v; want %d %s", c.name, a, err, c.status, c.reason)
			}
		}
	})

	// Nothing looks into trailers, so none goes on.
	t.Run("trailers", func(t *testing.T) {
		for _, http2 := range []bool{true, false} {
			req := w.request(http.MethodPost, "https://trailers.demo.test/", struct{ io.Reader }{strings.NewReader("body")})
			req.Trailer = http.Header{"Authorization": {"Bearer " + w.placeholder}, "X-Note": {w.placeholder}, "X-Api-Key": {"k"}}
			if a, err := do(w.client(t, http2), req); err != nil || a.status != http.StatusOK {
				t.Fatalf("%v, %v", a, err)
			}
			for name, values := range <-trailers { // names that were announced have no values
				if len(values) != 0 {
					t.Errorf("HTTP/2 %v: the trailer %s arrived", http2, name)
				}
			}
		}
	})

	if g.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}

// h2 sends one request of exactly these fields, empty ones left out, on a connection of its own. A stream or connection
// that ends without an answer is an error.
func (g *gate) h2(t *testing.T, w worker, connect, serverName string, fields [][2]string) (answer, error) {
	t.Helper()
	conn := tls.Client(g.tunnel(t, w, connect+":443"), &tls.Config{ServerName: serverName, RootCAs: w.roots, NextProtos: []string{"h2"}})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return exchange(conn, fields)
}

// A destination that is refused is refused for the true reason, whichever way its name leads there, and no connection
// is made to it.
func TestAttacksThroughNames(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	dns := newResolver(t)
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	up := newUpstream(t, w.CA, "*.dns.demo.test", ok)
	stranger, err := demo.NewCA("somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := newUpstream(t, stranger, "*.dns.demo.test", ok)
	g := startIn(t, w, base(fmt.Sprintf("  - {hosts: [\"*.dns.demo.test:%s\", \"*.dns.demo.test:%s\"], grant: claude}\n", up.port(), elsewhere.port()),
		fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.1/32]`, dns.address), ""), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := me.client(t, true)
	get := func(name, port string) (answer, error) {
		return do(client, me.request(http.MethodGet, "https://"+name+".dns.demo.test:"+port+"/", nil))
	}

	for name, addresses := range map[string][]string{
		"good": {"127.0.0.1"}, "mixed": {"10.0.0.1", "127.0.0.1"}, "next": {"127.0.0.2"}, "mapped": {"::ffff:127.0.0.1"}, "compatible": {"::127.0.0.1"},
		"six": {"::1"}, "nat64": {"64:ff9b::7f00:1"}, "sixtofour": {"2002:7f00:1::"}, "metadata": {"169.254.169.254"}, "empty": {},
	} {
		dns.set(name+".dns.demo.test", addresses...)
	}
	for _, c := range []struct {
		name, port string
		says       string // "": it is served
		again      string // x-should-retry
	}{
		{"good", up.port(), "", ""},
		{"mixed", up.port(), "", ""},
		{"next", up.port(), "upstream.allow_private", "false"},
		{"mapped", up.port(), "upstream.allow_private", "false"},
		{"compatible", up.port(), "upstream.allow_private", "false"},
		{"six", up.port(), "upstream.allow_private", "false"},
		{"nat64", up.port(), "upstream.allow_private", "false"},
		{"sixtofour", up.port(), "upstream.allow_private", "false"},
		{"metadata", up.port(), "upstream.allow_private", "false"},
		{"empty", up.port(), "look up the name", "true"},
		{"nobody", up.port(), "look up the name", "true"},
		{"good", elsewhere.port(), "upstream.ca_files", "false"},
		{"two.labels", up.port(), "upstream.ca_files", "false"}, // the certificate is for one
	} {
		if c.name == "two.labels" {
			dns.set("two.labels.dns.demo.test", "127.0.0.1")
		}
		a, err := get(c.name, c.port)
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says == "" && a.status != http.StatusOK,
			c.says != "" && (a.status != http.StatusServiceUnavailable || a.reason != "upstream_unreachable" || !a.explained() || !strings.Contains(a.body, c.says) || a.header.Get("X-Should-Retry") != c.again):
			t.Errorf("%s at %s: %v %v; want it to say %q", c.name, c.port, a, a.header, c.says)
		}
	}
	if n := elsewhere.requests.Load(); n != 0 {
		t.Errorf("%d requests reached a host of an unknown authority", n)
	}
	if n := up.requests.Load(); n != 2 {
		t.Errorf("%d requests arrived, want 2", n)
	}

	// A name that was good and then points inside: Envoy asks again every few seconds, and must not follow.
	t.Run("rebinding", func(t *testing.T) {
		dns.set("good.dns.demo.test", "127.0.0.2", "10.0.0.1", "::ffff:127.0.0.2")
		canary, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.2:"+up.port())
		if err != nil {
			t.Skip(err) // not every system has the whole of 127.0.0.0/8
		}
		defer canary.Close()
		go func() {
			if c, err := canary.Accept(); err == nil {
				c.Close()
				t.Error("a connection was made to the address that is refused")
			}
		}()
		asked := dns.asked("good.dns.demo.test")
		if err := eventually(func() error {
			if n := dns.asked("good.dns.demo.test") - asked; n < 4 { // A and AAAA, twice
				return fmt.Errorf("asked %d times", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if a, err := get("good", up.port()); err != nil || a.status != http.StatusOK && a.reason != "upstream_unreachable" {
			t.Errorf("%v, %v", a, err)
		}
	})
	up.saw.Range(func(value, _ any) bool {
		if strings.Contains(value.(string), placeholderMarker) {
			t.Error("a placeholder arrived")
		}
		return true
	})
}

// The gate's process stands still: what is asked meanwhile waits or is refused in words, nothing leaves with a
// placeholder, and when it goes on everything is as before.
func TestAttackOnAHungGate(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := w.client(t, false)
	if _, err := arrived(client, w); err != nil {
		t.Fatal(err)
	}
	sessions, err := g.inside(t, w, "api.demo.test", "api.demo.test")
	if err != nil {
		t.Fatal(err)
	}

	before := len(g.API.Requests())
	g.freeze()
	running := false
	goOn := func() {
		if !running {
			running = true
			_ = g.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
	defer goOn()

	// A request on a connection that was there waits for its verdict.
	waiting := make(chan answer, 1)
	go func() {
		waiting <- ask(t, sessions, "GET /echo HTTP/1.1\r\nHost: api.demo.test\r\nAuthorization: Bearer "+w.placeholder+"\r\n\r\n")
	}()
	// A new tunnel is refused once Envoy has waited long enough for the check.
	a := ask(t, g.dial(t), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: api.demo.test\r\n"+w.proxyAuthorization()+"\r\n")
	if a.status != http.StatusServiceUnavailable || a.reason != "gate_unavailable" || !a.explained() || a.header.Get("X-Should-Retry") != "true" {
		t.Errorf("a new tunnel: %v; want 503 gate_unavailable, explained", a)
	}
	if n := len(g.API.Requests()); n != before {
		t.Errorf("%d requests arrived without a gate", n-before)
	}
	goOn()
	if a := <-waiting; a.status != http.StatusOK {
		t.Errorf("the request that waited: %v", a)
	}
	if err := eventually(func() error { _, err := arrived(w.client(t, true), w); return err }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if g.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}

// A worker that goes away, or says nothing, takes nobody with it.
func TestAttackOfSilence(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	for range 200 {
		c := g.tunnel(t, w, "api.demo.test:443")
		_, _ = io.WriteString(c, "\x16\x03\x01") // the beginning of a ClientHello
	}
	for range 50 {
		c, err := g.inside(t, w, "api.demo.test", "api.demo.test")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /upload HTTP/1.1\r\nHost: api.demo.test\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\nx", w.placeholder)
		_ = c.NetConn().(*net.TCPConn).SetLinger(0)
		c.NetConn().Close()
	}
	if _, err := arrived(w.client(t, true), w); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// exchange makes one request over HTTP/2. A tunnel is not waited for to end.
func exchange(conn net.Conn, fields [][2]string) (answer, error) {
	answers := speak(conn, func(f *http2.Framer) error { return whole(f, 1, encode(fields)) }, fields[0][1] == http.MethodConnect, 1)
	a := answers[1]
	if a.status == 0 {
		return a, errors.New(cmp.Or(a.body, answers[0].body, "no answer"))
	}
	return a, nil
}

// encode writes fields as they are, in their order; fields without a value are left out, unless = is before their name.
func encode(fields [][2]string) []byte {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range fields {
		if name, empty := strings.CutPrefix(f[0], "="); empty || f[1] != "" {
			_ = e.WriteField(hpack.HeaderField{Name: name, Value: f[1]})
		}
	}
	return block.Bytes()
}
