package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a hostile worker can write by hand, byte for byte, where clients write what is right.

// dial opens a connection to the proxy listener.
func (g *gate) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", g.proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask writes text and reads one response; status 0 means that the connection was closed without one.
func ask(t *testing.T, c net.Conn, text string) answer {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		return answer{body: err.Error()}
	}
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	var b []byte
	if method != http.MethodConnect || resp.StatusCode != http.StatusOK {
		b, _ = io.ReadAll(resp.Body)
	}
	return answer{resp.StatusCode, resp.Header.Get("x-wayleave-reason"), resp.Proto, resp.Header, string(b)}
}

// proxyAuthorization is the header with which w opens tunnels.
func (w worker) proxyAuthorization() string {
	password, _ := w.proxy.User.Password()
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":"+password)) + "\r\n"
}

// tunnel opens a tunnel to authority.
func (g *gate) tunnel(t *testing.T, w worker, authority string) net.Conn {
	t.Helper()
	c := g.dial(t)
	if a := ask(t, c, "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n"+w.proxyAuthorization()+"\r\n"); a.status != http.StatusOK {
		t.Fatalf("CONNECT %s: %v", authority, a)
	}
	return c
}

// inside opens a tunnel and speaks TLS in it, as HTTP/1.1.
func (g *gate) inside(t *testing.T, w worker, host, serverName string) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(g.tunnel(t, w, host+":443"), &tls.Config{ServerName: serverName, RootCAs: w.roots, NextProtos: []string{"http/1.1"}})
	return c, c.HandshakeContext(t.Context())
}

const severalHosts = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    client_id: $CLIENT_ID
    redirect_url: ""
    allow_insecure: true
    refused_hosts: [api.demo.test/v1/oauth/token]
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test, other.demo.test], grant: claude, connect_to: "$API"}
  - {name: keyed, hosts: [a.wild.demo.test], grant: claude, connect_to: "$API", header: {in: x-api-key, out: authorization}}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
`

func TestAttacksOnTheWire(t *testing.T) {
	t.Parallel()
	g := start(t, severalHosts, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	bearer := "Authorization: Bearer " + w.placeholder + "\r\n"
	refresh := g.Provider.Stats()

	// The proxy forwards nothing but tunnels: whatever else asks it is answered by itself, and nothing is dialled.
	t.Run("without a tunnel", func(t *testing.T) {
		before := len(g.API.Requests())
		for _, head := range []string{
			"POST https://api.demo.test/v1/messages HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer,
			"POST https://api.demo.test/v1/messages HTTP/1.1\r\nHost: api.demo.test\r\n" + w.proxyAuthorization() + bearer,
			"GET http://api.demo.test/echo HTTP/1.1\r\nHost: api.demo.test\r\n" + w.proxyAuthorization() + bearer,
			"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n" + w.proxyAuthorization(),
			"GET /echo HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer,
			"OPTIONS * HTTP/1.1\r\nHost: api.demo.test\r\n",
			"GET https://api.demo.test/.wayleave/../echo HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer,
			"GET https://api.demo.test/%2ewayleave/v1/ca.pem HTTP/1.1\r\nHost: api.demo.test\r\n",
			"TRACE / HTTP/1.1\r\nHost: api.demo.test\r\n" + w.proxyAuthorization() + bearer,
			"GET / HTTP/1.1\r\nHost: api.demo.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		} {
			if a := ask(t, g.dial(t), head+"\r\n"); a.status < 400 || a.status > 499 {
				t.Errorf("%.60q: %v; want a refusal", head, a)
			}
		}
		if n := len(g.API.Requests()); n != before {
			t.Errorf("%d requests arrived", n-before)
		}
	})

	t.Run("tunnels to what is no allowed host and port", func(t *testing.T) {
		for _, authority := range []string{
			"unknown.example:443", "demo.test:443", "xapi.demo.test:443", "api.demo.test.evil.example:443", "wild.demo.test:443", "x.api.demo.test:443",
			"api.demo.test:444", "api.demo.test:0", "api.demo.test:65536", "api.demo.test:443:443", "api.demo.test:", "api.demo.test:+443", "api.demo.test:0443x",
			"api.demo.test.:443", "user@api.demo.test:443", "user:pass@api.demo.test:443", "api.demo.test@evil.example:443",
			"127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "[::ffff:169.254.169.254]:80", "169.254.169.254:80", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443",
			"100.100.100.200:80", "168.63.129.16:80", "[fd00:ec2::254]:80", "[fe80::1%25eth0]:443", "[64:ff9b::a9fe:a9fe]:80", "xn--80ak6aa92e.demo.test:443", "api.demo.test%00:443",
			"localhost:443", "*:443", "*.wild.demo.test:443", "api%2edemo.test:443", "api.demo.test/:443", "аpi.demo.test:443", strings.Repeat("a", 300) + ".demo.test:443",
		} {
			a := ask(t, g.dial(t), "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n"+w.proxyAuthorization()+"\r\n")
			if a.status < 400 || a.status > 499 || a.reason != "host_not_allowed" && a.reason != "malformed" || !a.explained() {
				t.Errorf("CONNECT %.60s: %v; want a refusal in words", authority, a)
			}
		}
		for _, authorization := range []string{
			"", "Proxy-Authorization: Basic\r\n", "Proxy-Authorization: Basic !!!\r\n", "Proxy-Authorization: Bearer " + w.placeholder + "\r\n",
			"Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":")) + "\r\n",
			"Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(w.proxy.User.Username()+":wls1.x.y")) + "\r\n",
			strings.Replace(w.proxyAuthorization(), "Basic ", "Basic A", 1), "X-Wayleave-Identity: admin\r\n", "Authorization: " + strings.TrimPrefix(w.proxyAuthorization(), "Proxy-Authorization: "),
		} {
			a := ask(t, g.dial(t), "CONNECT api.demo.test:443 HTTP/1.1\r\nHost: api.demo.test:443\r\n"+authorization+"\r\n")
			if a.status != http.StatusProxyAuthRequired || !strings.HasPrefix(a.header.Get("Proxy-Authenticate"), "Basic ") {
				t.Errorf("CONNECT with %.40q: %v; want 407 with a challenge", authorization, a)
			}
		}
	})

	// CONNECT, TLS and HTTP name the same host, or nothing is swapped and nothing is sent.
	t.Run("names that disagree", func(t *testing.T) {
		before := len(g.API.Requests())
		names := []string{"api.demo.test", "other.demo.test", "unknown.example"}
		for _, connect := range names[:2] {
			for _, sni := range append(names, "") {
				for _, host := range append(names, "api.demo.test:444", "api.demo.test.", "api.demo.test@evil.example", "127.0.0.1") {
					if connect == sni && sni == host {
						continue
					}
					c := tls.Client(g.tunnel(t, w, connect+":443"), &tls.Config{ServerName: sni, RootCAs: w.roots, InsecureSkipVerify: sni == ""})
					if c.HandshakeContext(t.Context()) != nil {
						continue // refused by TLS
					}
					a := ask(t, c, "GET /echo HTTP/1.1\r\nHost: "+host+"\r\n"+bearer+"\r\n")
					if a.status < 400 || a.status > 499 {
						t.Errorf("CONNECT %s, SNI %q, Host %s: %v; want a refusal", connect, sni, host, a)
					}
				}
			}
		}
		if n := len(g.API.Requests()); n != before {
			t.Errorf("%d requests arrived", n-before)
		}
	})

	// DNS has no upper case, and so the three names may differ in it.
	t.Run("names in other letters", func(t *testing.T) {
		for _, name := range []string{"API.demo.test", "api.DEMO.test"} {
			c, err := g.inside(t, w, name, "Api.demo.test")
			if err != nil {
				t.Fatal(err)
			}
			if a := ask(t, c, "GET /echo HTTP/1.1\r\nHost: apI.demo.test:443\r\n"+bearer+"\r\n"); a.status != http.StatusOK {
				t.Errorf("%s: %v", name, a)
			}
		}
	})

	t.Run("no TLS in the tunnel", func(t *testing.T) {
		before := len(g.API.Requests())
		for _, text := range []string{
			"GET /echo HTTP/1.1\r\nHost: api.demo.test\r\n" + bearer + "\r\n", "\x16\x03\x01\x00\x05hello", "SSH-2.0-x\r\n",
		} {
			if a := ask(t, g.tunnel(t, w, "api.demo.test:443"), text); a.status != http.StatusBadRequest || a.reason != "use_connect" || !a.explained() {
				t.Errorf("%.20q: %v; want it refused in HTTP's words", text, a)
			}
		}
		if n := len(g.API.Requests()); n != before {
			t.Errorf("%d requests arrived", n-before)
		}
	})

	t.Run("token endpoint", func(t *testing.T) {
		for _, path := range []string{"/v1/oauth/token", "/v1/oauth/token/", "/v1/oauth/%74oken", "/v1/./oauth/token", "/v1/x/../oauth/token", "//v1/oauth/token", "/v1/oauth/token?x=1"} {
			c, err := g.inside(t, w, "api.demo.test", "api.demo.test")
			if err != nil {
				t.Fatal(err)
			}
			body := `{"grant_type":"refresh_token","refresh_token":"` + w.placeholder + `"}`
			a := ask(t, c, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: api.demo.test\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body))
			if a.reason != "token_endpoint" && a.reason != "policy_denied" || a.status == http.StatusBadRequest && strings.Contains(a.body, "invalid_grant") {
				t.Errorf("POST %s: %v; want it refused, and never as invalid_grant", path, a)
			}
		}
		if s := g.Provider.Stats(); s.TokenCalls != refresh.TokenCalls {
			t.Errorf("%d calls reached the provider", s.TokenCalls-refresh.TokenCalls)
		}
	})

	t.Run("the right request still works", func(t *testing.T) {
		for host, header := range map[string]string{"api.demo.test": bearer, "other.demo.test": bearer, "a.wild.demo.test": "X-Api-Key: " + w.placeholder + "\r\n"} {
			c, err := g.inside(t, w, host, host)
			if err != nil {
				t.Fatal(err)
			}
			if a := ask(t, c, "GET /echo HTTP/1.1\r\nHost: "+host+"\r\n"+header+"\r\n"); a.status != http.StatusOK || strings.Contains(a.body, `"X-Api-Key"`) {
				t.Errorf("%s: %v", host, a)
			}
		}
	})

	if g.API.Saw(placeholderMarker) || g.API.Saw(strings.ToUpper(placeholderMarker)) {
		t.Error("a placeholder reached the API")
	}
}
