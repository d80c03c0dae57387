package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"wayleave/freeport"
)

const sixteen = 16

// at is the worker at an address, where it knows of no proxy and takes the hosts to be elsewhere.
func (n *network) at(source string, w worker) worker {
	w.dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return n.dial(ctx, source, net.JoinHostPort(elsewhere(source), port(address)))
	}
	return w
}

// elsewhere is an address of the source's kind where nobody is.
func elsewhere(source string) string {
	if netip.MustParseAddr(source).Is6() {
		return bogus6
	}
	return bogus
}

// handshake opens a TLS connection from a source to port 443.
func (n *network) handshake(t *testing.T, source string, c *tls.Config) (*tls.Conn, error) {
	t.Helper()
	raw, err := n.dial(t.Context(), source, net.JoinHostPort(elsewhere(source), "443"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	conn := tls.Client(raw, c)
	return conn, conn.HandshakeContext(t.Context())
}

// Workers that know of no proxy, in a network that redirects them.
func TestTransparent(t *testing.T) {
	t.Parallel()
	if !namespaced(t) {
		return
	}
	n := newNetworkOf(t, sixteen+2) // two of them are nobody
	w := makeWorld(t)
	dns := newResolver(t)
	dns.set("tunnel.demo.test", "127.0.0.1")
	up := newUpstream(t, w.CA, "tunnel.demo.test", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	free, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort("[::]:" + port(free))
	redirect(t, listen.Port(), 443, netip.MustParseAddrPort(up.address).Port(), 8443)

	var workers strings.Builder
	for i := range sixteen {
		fmt.Fprintf(&workers, "  w%d: {profile: %s, addresses: [%s, \"%s\"]}\n", i, []string{"blue", "red"}[i%2], n.source(i), n.source6(i))
	}
	fmt.Fprintf(&workers, "  beside: {profile: blue, addresses: [%s]}\n", gateSide)
	g := startIn(t, w, `
listen: {proxy: "0.0.0.0:`+port(w.proxy)+`", transparent: "`+listen.String()+`"}
upstream: {ca_files: [api-ca.pem], dns_resolvers: ["`+dns.address+`"], allow_private: [127.0.0.0/8]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  blue: {provider: anthropic}
  red: {provider: anthropic}
routes:
  - {name: blue, hosts: [api.demo.test, "api.demo.test:8443"], grant: blue, connect_to: "$API"}
  - {name: own, hosts: [other.demo.test], grant: blue, connect_to: "$API"}
  - {name: red, hosts: [api.demo.test], grant: red, connect_to: "$API"}
tunnel: ["tunnel.demo.test:`+up.port()+`"]
profiles:
  blue: {grants: [blue]}
  red: {grants: [red], rules: [{name: not-red, when: 'host == "tunnel.demo.test" && worker.startsWith("w") && session == ""', deny: red workers do not go there}]}
audit: {file: audit.jsonl}
workers:
`+workers.String(), "blue", "red")

	all := make([]worker, sixteen)
	for i := range all {
		all[i] = g.enrolByAPI(t, fmt.Sprintf("w%d", i))
	}
	me, here := all[0], n.source(0)
	get := func(source string, http2 bool, change func(*http.Request)) (answer, error) {
		req := me.request(http.MethodGet, "https://api.demo.test/echo", nil)
		if change != nil {
			change(req)
		}
		return do(n.at(source, me).client(t, http2), req)
	}

	t.Run("swapped", func(t *testing.T) {
		for _, source := range []string{here, n.source6(0)} {
			for _, http2 := range []bool{true, false} {
				if a, err := get(source, http2, nil); err != nil || a.status != http.StatusOK || a.proto != map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[http2] {
					t.Errorf("from %s: %v, %v", source, a, err)
				}
			}
		}
		if a, err := do(n.at(here, me).client(t, true), me.request(http.MethodGet, "https://api.demo.test:8443/echo", nil)); err != nil || a.status != http.StatusOK {
			t.Errorf("another port: %v, %v", a, err)
		}
	})
	t.Run("in the fast lane", func(t *testing.T) {
		b := n.at(here, me).keepBusy(t, "other.demo.test") // a host of two routes has no lane
		g.awaitFast(t, 20)
		b.answered(t, true, 20)
		b.stop()
	})
	t.Run("a command", func(t *testing.T) {
		c := g.searched(n.command(g.command("wayleave", "run", "--transparent", "--gate", "http://"+gateSide+":"+port(g.proxy), "--worker", "w0", "--",
			"sh", "-c", `test -z "$HTTPS_PROXY$https_proxy" && curl -sS --resolve api.demo.test:443:`+bogus+` -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" https://api.demo.test/echo`).Cmd))
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "authorization_sha256") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("beside the gate", func(t *testing.T) {
		beside := g.enrolByAPI(t, "beside")
		ca, err := os.CreateTemp("", "wl*.pem") // where another user may read it
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(ca.Name()) }()
		pem, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), "ca.pem"))
		if _, more := ca.Write(pem); err != nil || more != nil || ca.Chmod(0o644) != nil || ca.Close() != nil {
			t.Fatal(err, more)
		}
		c := exec.CommandContext(t.Context(), "curl", "-sS", "--cacert", ca.Name(), "--resolve", "api.demo.test:443:"+bogus,
			"-H", "Authorization: Bearer "+beside.placeholder, "https://api.demo.test/echo")
		c.Dir, c.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: sidecarUser, Gid: sidecarUser}}
		out, err := g.searched(c).CombinedOutput()
		if c.Process == nil {
			t.Skipf("no other user may be: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "authorization_sha256") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		if status, err := n.at(here, me).echoes(t, "api.demo.test", "one", "two"); err != nil || status != http.StatusSwitchingProtocols {
			t.Errorf("%d, %v", status, err)
		}
	})
	t.Run("tunnelled", func(t *testing.T) {
		outside := me
		outside.roots = x509.NewCertPool()
		outside.roots.AppendCertsFromPEM(w.CA.PEM())
		req := me.request(http.MethodGet, "https://tunnel.demo.test:"+up.port()+"/", nil)
		req.Header.Del("Authorization")
		if a, err := do(n.at(here, outside).client(t, true), req); err != nil || a.status != http.StatusOK {
			t.Errorf("%v, %v", a, err)
		}
		if _, err := do(n.at(n.source(sixteen), outside).client(t, true), req); err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("from an unknown address: %v", err)
		}
		if _, err := do(n.at(n.source(1), outside).client(t, true), req); err == nil {
			t.Error("a tunnel against a rule")
		} else if err := g.waitOutput("rule=not-red"); err != nil {
			t.Error(err)
		}
		if _, err := n.handshake(t, here, &tls.Config{ServerName: "tunnel.demo.test", RootCAs: outside.roots}); err == nil {
			t.Error("the host is reached at another port than its own")
		}
	})
	t.Run("alerts", func(t *testing.T) {
		for name, c := range map[string]struct{ source, serverName string }{
			"unknown source": {n.source(sixteen), "api.demo.test"}, "unknown source in IPv6": {n.source6(sixteen), "api.demo.test"},
			"unknown name": {here, "evil.example"}, "no name": {here, ""}, "an address": {here, bogus},
		} {
			if _, err := n.handshake(t, c.source, &tls.Config{ServerName: c.serverName, InsecureSkipVerify: true}); err == nil || err.Error() != "remote error: tls: access denied" {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct {
			name   string
			source string
			change func(*http.Request)
			status int
			reason string
		}{
			{"another Host", here, func(r *http.Request) { r.Host = "other.demo.test" }, 421, "misdirected"},
			{"another port in Host", here, func(r *http.Request) { r.Host = "api.demo.test:8443" }, 421, "misdirected"},
			{"another worker's placeholder", here, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+all[2].placeholder) }, 400, "not_your_placeholder"},
			{"a worker's placeholder elsewhere", n.source(2), nil, 400, "not_your_placeholder"},
			{"a placeholder for another grant", here, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+all[1].placeholder) }, 400, "not_your_placeholder"},
			{"a changed placeholder", here, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+me.placeholder+"a") }, 400, "not_your_placeholder"},
			{"a placeholder somewhere", here, func(r *http.Request) { r.Header.Set("X-Note", me.placeholder) }, 400, "misplaced_placeholder"},
			{"another's identity claimed", n.source(2), func(r *http.Request) {
				for _, h := range []string{"X-Wayleave-Identity", "Wayleave.identity", "X-Forwarded-For", "Forwarded", "X-Envoy-External-Address", "X-Real-Ip"} {
					r.Header.Set(h, "address|"+here)
				}
				r.Header["Proxy-Authorization"] = []string{strings.TrimSpace(strings.TrimPrefix(me.proxyAuthorization(), "Proxy-Authorization: "))}
			}, 400, "not_your_placeholder"},
		} {
			for _, http2 := range []bool{true, false} {
				if a, err := get(c.source, http2, c.change); err != nil || a.status != c.status || a.reason != c.reason {
					t.Errorf("%s: %v, %v; want %d %s", c.name, a, err, c.status, c.reason)
				}
			}
		}
	})
	t.Run("in the clear", func(t *testing.T) {
		conn, err := n.dial(t.Context(), here, bogus+":443")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if a := ask(t, conn, "GET / HTTP/1.1\r\nHost: api.demo.test\r\n\r\n"); a.status != 400 || a.reason != "use_connect" {
			t.Errorf("got %v", a)
		}
	})
	t.Run("other bytes", func(t *testing.T) { // whatever they are, the next connection is served
		hello := "\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03"
		for _, bytes := range []string{
			"PROXY TCP4 " + n.source(2) + " 198.51.100.9 5555 443\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x63\x00\x03\xc6\x33\x64\x09\x15\xb3\x01\xbb",
			"\x00\x01\x02", strings.Repeat("\xff", 100_000), hello, "", "CONNECT api.demo.test:443 HTTP/1.1\r\n\r\n", "\x05\x01\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		} {
			conn, err := n.dial(t.Context(), here, bogus+":443")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, bytes)
			_ = conn.(*net.TCPConn).CloseWrite()
			if out, _ := io.ReadAll(conn); strings.Contains(string(out), " 200 ") {
				t.Errorf("%.20q: %q", bytes, out)
			}
			_ = conn.Close()
		}
		for range 100 { // who says nothing holds up nobody
			conn, err := n.dial(t.Context(), here, bogus+":443")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		if a, err := get(here, true, nil); err != nil || a.status != http.StatusOK {
			t.Errorf("afterwards: %v, %v", a, err)
		}
	})
	t.Run("isolated", func(t *testing.T) { isolated(t, n, all) })
	if g.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}

// isolated has all workers at work at once, among connections that end as soon as they have begun: what was opened for
// those inside Envoy must not be given to somebody else. There are so many of them for each request: they wait for no answer, and would
// otherwise be made faster than a busy Envoy takes them, until those of the workers have waited too long behind them.
func isolated(t *testing.T, n *network, all []worker) {
	const rounds, reuse, begun = 12, 4, 8
	var wg sync.WaitGroup
	seen := make([][]string, len(all))
	for i, w := range all {
		requests := make(chan struct{})
		wg.Go(func() {
			for range requests {
				for range begun {
					conn, err := n.dial(t.Context(), n.source(i), bogus+":443")
					if err != nil {
						t.Errorf("worker %d: %v", i, err)
						continue
					}
					_ = tls.Client(hasty{conn.(*net.TCPConn)}, &tls.Config{ServerName: "api.demo.test", RootCAs: w.roots}).HandshakeContext(t.Context())
					_ = conn.Close()
				}
			}
		})
		wg.Go(func() {
			defer close(requests)
			client := n.at(n.source(i), w).client(t, i%4 < 2)
			for range rounds {
				for range reuse {
					requests <- struct{}{}
					credential, err := arrived(client, w)
					if err != nil {
						t.Errorf("worker %d: %v", i, err)
						return
					}
					seen[i] = append(seen[i], credential)
				}
				client.CloseIdleConnections()
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	blue, red := seen[0][0], seen[1][0]
	if blue == red {
		t.Fatal("both grants have one credential: the test would see nothing")
	}
	for i, credentials := range seen {
		if slices.ContainsFunc(credentials, func(c string) bool { return c != []string{blue, red}[i%2] }) {
			t.Errorf("worker %d: another credential arrived", i)
		}
	}
}

// hasty is a connection that is reset once its first bytes are written.
type hasty struct{ *net.TCPConn }

func (h hasty) Read([]byte) (int, error) { return 0, errors.Join(io.EOF, h.SetLinger(0), h.Close()) }
