package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"wayleave/demo"
	"wayleave/freeport"
)

// upstream is a TLS server of the test's own, for what the demo API does not do.
type upstream struct {
	address  string // 127.0.0.1:port
	requests atomic.Int32
	accepts  atomic.Int32 // connections
	saw      sync.Map     // Authorization values
}

// newUpstream serves HTTP by the protocols in alpn, without any by HTTP/2 and HTTP/1.1.
func newUpstream(t *testing.T, ca *demo.CA, host string, handler http.HandlerFunc, alpn ...string) *upstream {
	t.Helper()
	up := &upstream{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up.requests.Add(1)
		up.saw.Store(r.Header.Get("Authorization"), true)
		handler(w, r)
	}))
	if len(alpn) == 0 {
		alpn = []string{"h2", "http/1.1"}
	}
	srv.TLS = strictTLS(t, ca, host, alpn...)
	srv.EnableHTTP2 = slices.Contains(alpn, "h2")
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			up.accepts.Add(1)
		}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	up.address = srv.Listener.Addr().String()
	return up
}

// strictTLS ends the handshake with who offers protocols but none of these; Go's own servers make an exception.
func strictTLS(t *testing.T, ca *demo.CA, host string, alpn ...string) *tls.Config {
	t.Helper()
	cert, err := ca.Issue(host)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		NextProtos:   alpn,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(hello.SupportedProtos) > 0 && !slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(alpn, p) }) {
				return nil, fmt.Errorf("none of %q is spoken here", hello.SupportedProtos)
			}
			return nil, nil
		},
	}
}

// newRawUpstream is a server without HTTP: handle gets each connection, after the handshake as for one that speaks alpn,
// by default HTTP/1.1. It returns the address.
func newRawUpstream(t *testing.T, ca *demo.CA, host string, handle func(net.Conn), alpn ...string) string {
	t.Helper()
	if len(alpn) == 0 {
		alpn = []string{"http/1.1"}
	}
	return serveRaw(t, strictTLS(t, ca, host, alpn...), handle)
}

// serveRaw has handle serve each connection, after its handshake, and returns the address.
func serveRaw(t *testing.T, settings *tls.Config, handle func(net.Conn)) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// sawText reports whether a credential with s in it arrived.
func (up *upstream) sawText(s string) (found bool) {
	up.saw.Range(func(value, _ any) bool {
		found = strings.Contains(value.(string), s)
		return !found
	})
	return found
}

func (up *upstream) port() string { return port(up.address) }

// resolver is a DNS server that answers as the test says. Names it does not know do not exist.
type resolver struct {
	address string
	mu      sync.Mutex
	names   map[string][]netip.Addr
	count   map[string]int // of questions
}

func newResolver(t *testing.T) *resolver {
	t.Helper()
	c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := &resolver{address: c.LocalAddr().String(), names: map[string][]netip.Addr{}, count: map[string]int{}}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, ok := r.answer(buf[:n]); ok {
				_, _ = c.WriteTo(reply, from)
			}
		}
	}()
	return r
}

func (r *resolver) set(name string, addresses ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = nil
	for _, a := range addresses {
		r.names[name] = append(r.names[name], netip.MustParseAddr(a))
	}
}

// asked is how many questions about name were answered.
func (r *resolver) asked(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[name]
}

func (r *resolver) answer(query []byte) ([]byte, bool) {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil, false
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	r.mu.Lock()
	defer r.mu.Unlock()
	name := strings.TrimSuffix(q.Name.String(), ".")
	r.count[name]++
	addresses, known := r.names[name]
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addresses {
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	reply, err := m.Pack()
	return reply, err == nil
}

// base is a configuration with these routes and settings.
func base(routes, upstream, more string) string {
	return `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]` + upstream + `}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
routes:
` + routes + `
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
` + more
}

// A provider's host that is not who it says it is gets no request at all.
func TestUpstreamIsVerified(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	other, err := demo.NewCA("somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	right, wrongName, wrongCA := newUpstream(t, w.CA, "right.demo.test", ok), newUpstream(t, w.CA, "else.demo.test", ok), newUpstream(t, other, "ca.demo.test", ok)
	closed, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	redirecting := newUpstream(t, w.CA, "redirect.demo.test", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://right.demo.test/stolen", http.StatusTemporaryRedirect)
	})
	g := startIn(t, w, base(fmt.Sprintf(`
  - {hosts: [right.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [name.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [ca.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [closed.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [redirect.demo.test], grant: claude, connect_to: "%s"}
`, right.address, wrongName.address, wrongCA.address, closed, redirecting.address), "", ""), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := me.client(t, true)
	for _, c := range []struct {
		host   string
		status int
		reason string
	}{
		{"right.demo.test", 200, ""},
		{"name.demo.test", 503, "upstream_unreachable"},
		{"ca.demo.test", 503, "upstream_unreachable"},
		{"closed.demo.test", 503, "upstream_unreachable"},
		{"redirect.demo.test", 307, ""}, // the worker's to follow, with a placeholder that is worth nothing elsewhere
	} {
		a, err := do(client, me.request(http.MethodGet, "https://"+c.host+"/", nil))
		if err != nil || a.status != c.status || a.reason != c.reason {
			t.Errorf("%s: %v, %v; want %d %s", c.host, a, err, c.status, c.reason)
		}
	}
	if n := wrongName.requests.Load() + wrongCA.requests.Load(); n != 0 {
		t.Errorf("%d requests reached an upstream that is not who it should be", n)
	}
	if n := right.requests.Load(); n != 1 {
		t.Errorf("%d requests at the right one: the redirect was followed by the gate", n)
	}
}

// Names are resolved by the gate, and what they resolve to is judged: nothing inside is reached through a name.
func TestNamesThatPointInside(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	dns := newResolver(t)
	up := newUpstream(t, w.CA, "*.dns.demo.test", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	routes := fmt.Sprintf("  - {hosts: [\"*.dns.demo.test:%s\"], grant: claude}\n", up.port())

	t.Run("refused", func(t *testing.T) {
		inside := map[string][]string{
			"loopback": {"127.0.0.1"}, "loopback2": {"127.8.8.8"}, "loopback6": {"::1"}, "mapped": {"::ffff:127.0.0.1"}, "nat64": {"64:ff9b::7f00:1"},
			"metadata": {"169.254.169.254"}, "metadata6": {"fd00:ec2::254"}, "metadata-a": {"100.100.100.200"}, "metadata-b": {"168.63.129.16"},
			"ten": {"10.0.0.1"}, "seventeen": {"172.16.0.1"}, "one92": {"192.168.1.1"}, "cgnat": {"100.64.0.1"}, "zero": {"0.0.0.0"}, "zero6": {"::"},
			"ula": {"fc00::1"}, "linklocal6": {"fe80::1"}, "multicast": {"224.0.0.1"}, "broadcast": {"255.255.255.255"}, "several": {"10.0.0.1", "127.0.0.1"},
			"teredo": {"2001:0:4136:e378:8000:63bf:80ff:fffe"}, "translated": {"::ffff:0:7f00:1"}, "sixtofour": {"2002:7f00:1::"}, "nat64-local": {"64:ff9b:1::7f00:1"},
		}
		for name, addresses := range inside {
			dns.set(name+".dns.demo.test", addresses...)
			dns.set(name+".tunnel.demo.test", addresses...)
		}
		g := startIn(t, w, base(routes, fmt.Sprintf(`, dns_resolvers: ["%s"]`, dns.address), fmt.Sprintf("tunnel: [\"*.tunnel.demo.test:%s\"]\n", up.port())), "claude")
		me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		client := me.client(t, true)
		for name := range inside {
			a, err := do(client, me.request(http.MethodGet, "https://"+name+".dns.demo.test:"+up.port()+"/", nil))
			if err != nil || a.status != http.StatusServiceUnavailable || a.reason != "upstream_unreachable" {
				t.Errorf("%s: %v, %v; want it refused", name, a, err)
			}
		}
		var wg sync.WaitGroup
		for name := range inside {
			tunnel := g.tunnel(t, me, name+".tunnel.demo.test:"+up.port())
			wg.Go(func() {
				if err := tls.Client(tunnel, &tls.Config{ServerName: name + ".tunnel.demo.test", InsecureSkipVerify: true}).HandshakeContext(t.Context()); err == nil {
					t.Errorf("%s is reached through a tunnel", name)
				}
			})
		}
		wg.Wait()
		if n := up.accepts.Load(); n != 0 {
			t.Errorf("%d connections were made", n)
		}
	})

	t.Run("allowed as far as it is said", func(t *testing.T) {
		dns.set("ok.dns.demo.test", "127.0.0.1")
		dns.set("no.dns.demo.test", "10.0.0.1")
		dns.set("dead6.dns.demo.test", "127.0.0.1", "::1") // nobody listens on ::1
		g := startIn(t, w, base(routes, fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.0/8, "::1/128"]`, dns.address), ""), "claude")
		me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		client := me.client(t, true)
		for name, want := range map[string]int{"ok": 200, "no": 503, "dead6": 200, "unknown": 503} {
			a, err := do(client, me.request(http.MethodGet, "https://"+name+".dns.demo.test:"+up.port()+"/", nil))
			if err != nil || a.status != want {
				t.Errorf("%s: %v, %v; want %d", name, a, err, want)
			}
		}
		// An address that is dead is not kept: the name has moved, and the answer was good for a second.
		get := func() (answer, error) {
			return do(client, me.request(http.MethodGet, "https://moved.dns.demo.test:"+up.port()+"/", nil))
		}
		dns.set("moved.dns.demo.test", "127.0.0.9")
		if a, err := get(); err != nil || a.reason != "upstream_unreachable" {
			t.Errorf("where nobody listens: %v, %v", a, err)
		}
		dns.set("moved.dns.demo.test", "127.0.0.1")
		if err := eventually(func() error {
			if a, err := get(); err != nil || a.status != http.StatusOK {
				return fmt.Errorf("%v, %w", a, err)
			}
			return nil
		}); err != nil {
			t.Error("a name that has moved:", err)
		}
		up.saw.Range(func(value, _ any) bool {
			if strings.Contains(value.(string), placeholderMarker) {
				t.Error("a placeholder arrived")
			}
			return true
		})
	})
}

// A tunnelled host's bytes are not touched: the worker sees the host's own certificate. And nothing else is reached
// through its tunnel.
func TestTunnelledHosts(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	dns := newResolver(t)
	dns.set("tunnel.demo.test", "127.0.0.1")
	dns.set("half.demo.test", "127.0.0.1")
	up := newUpstream(t, w.CA, "tunnel.demo.test", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	half := newRawUpstream(t, w.CA, "half.demo.test", func(c net.Conn) {
		if b, err := io.ReadAll(c); err == nil { // to the client's end
			fmt.Fprintf(c, "%s, and an answer", b)
		}
	})
	config := base("  - {hosts: [api.demo.test], grant: claude, connect_to: \"$API\"}\n",
		fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.0/8]`, dns.address),
		fmt.Sprintf("tunnel: [\"tunnel.demo.test:%s\", \"half.demo.test:%s\", \"*.covered.demo.test:%[1]s\", \"named.covered.demo.test:%[1]s\"]\n", up.port(), port(half)))
	g := startIn(t, w, strings.Replace(config, "refused_hosts: []", "refused_hosts: [login.covered.demo.test/oauth/token, tokens.covered.demo.test, named.covered.demo.test/oauth/token]", 1), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	own := x509.NewCertPool()
	own.AppendCertsFromPEM(w.CA.PEM())
	outside := me
	outside.roots = own

	req := me.request(http.MethodGet, "https://tunnel.demo.test:"+up.port()+"/", nil)
	req.Header.Del("Authorization")
	if a, err := do(outside.client(t, true), req); err != nil || a.status != http.StatusOK {
		t.Errorf("through the tunnel: %v, %v", a, err)
	}
	c := tls.Client(g.tunnel(t, me, "half.demo.test:"+port(half)), &tls.Config{ServerName: "half.demo.test", RootCAs: own})
	question := strings.Repeat("a long question. ", 200_000) // which is not on its way when the client has ended
	if _, err := io.WriteString(c, question); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != question+", and an answer" {
		t.Errorf("after the client's end: %d bytes of %d, %v", len(b), len(question), err)
	}
	// What gives out tokens is no tunnel because a wildcard covers it: a client that refreshes by itself would reach its provider there.
	for name, status := range map[string]int{"login": 403, "tokens": 403, "LOGIN": 403, "named": 200, "other": 200} {
		authority := name + ".covered.demo.test:" + up.port()
		if a := ask(t, g.dial(t), "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n"+me.proxyAuthorization()+"\r\n"); a.status != status || status == 403 && !strings.Contains(a.body, "gives out tokens") {
			t.Errorf("CONNECT %s: %v; want %d", authority, a, status)
		}
	}
	for _, serverName := range []string{"api.demo.test", "evil.example"} {
		c := tls.Client(g.tunnel(t, me, "tunnel.demo.test:"+up.port()), &tls.Config{ServerName: serverName, RootCAs: own})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Errorf("the tunnel carries a connection to %s", serverName)
		}
	}
	if n := up.requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}
