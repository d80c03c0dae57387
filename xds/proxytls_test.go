package xds

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/envoy/envoytest"
)

const gateName = "gate.example.test"

// workerOverTLS is worker by way of the proxy over TLS; protocols are what its client offers the proxy.
func (s *stack) workerOverTLS(user string) *http.Client {
	c := s.worker(user)
	tr := c.Transport.(*http.Transport)
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: "https", User: url.UserPassword(user, "pw"), Host: net.JoinHostPort(gateName, "443")})
	tr.DialContext = dialerTo(s.config.ProxyTLS.Address)
	return c
}

// The proxy over TLS is the proxy, and shows its certificate for its own names only.
func TestProxyOverTLS(t *testing.T) {
	s := start(t, func(c *Config) {
		c.ProxyTLS = &ProxyTLS{Address: freeAddress(t), Names: []string{gateName, "other.example.test"}}
	}, nil)
	dial := func(t *testing.T, c *tls.Config) (*tls.Conn, error) {
		t.Helper()
		var d net.Dialer
		raw, err := d.DialContext(t.Context(), "tcp", s.config.ProxyTLS.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = raw.Close() })
		conn := tls.Client(raw, c)
		return conn, conn.HandshakeContext(t.Context())
	}

	t.Run("a client", func(t *testing.T) {
		if a := get(t, s.workerOverTLS("ann"), "https://"+apiHost+"/"); a.status != 200 || a.body != "Bearer real-ann" {
			t.Errorf("got %d %q", a.status, a.body)
		}
	})
	t.Run("by each name", func(t *testing.T) {
		for _, name := range s.config.ProxyTLS.Names {
			for _, alpn := range []string{"h2", "http/1.1"} {
				conn, err := dial(t, &tls.Config{ServerName: name, RootCAs: s.leaves.pool(), NextProtos: []string{alpn}})
				if err != nil || conn.ConnectionState().NegotiatedProtocol != alpn {
					t.Errorf("%s: %v, %q", name, err, conn.ConnectionState().NegotiatedProtocol)
				}
			}
		}
	})
	t.Run("by no name", func(t *testing.T) {
		conn, err := dial(t, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname(gateName); err != nil {
			t.Error(err)
		}
	})
	t.Run("by the name of a host", func(t *testing.T) {
		if _, err := dial(t, &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool()}); err == nil || err.Error() != "remote error: tls: access denied" {
			t.Errorf("got %v, want the alert access_denied", err)
		}
	})
	t.Run("in the clear", func(t *testing.T) {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", s.config.ProxyTLS.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		fmt.Fprintf(conn, "CONNECT %s:443 HTTP/1.1\r\nHost: %[1]s:443\r\n\r\n", apiHost)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		replyOf(t, resp, 400, reasonUseTLS)
	})
	t.Run("absolute form of https", func(t *testing.T) { // TLS here ends at us: it says nothing about the way on
		conn, err := dial(t, &tls.Config{ServerName: gateName, RootCAs: s.leaves.pool(), NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET https://%s/ HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic YW5uOnB3\r\n\r\n", apiHost)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		replyOf(t, resp, 403, reasonUseConnect)
	})
	t.Run("other bytes", func(t *testing.T) { // whatever they are, the next connection is served
		for _, bytes := range []string{
			"PROXY TCP4 127.0.0.1 127.0.0.1 5555 443\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", "\x00\x01\x02", "\x05\x01\x00", "",
			"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03", strings.Repeat("\xff", 100_000), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		} {
			conn, err := dialerTo(s.config.ProxyTLS.Address)(t.Context(), "tcp", "")
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
		if a := get(t, s.workerOverTLS("ann"), "https://"+apiHost+"/"); a.status != 200 {
			t.Errorf("afterwards: %d %q", a.status, a.body)
		}
	})
	t.Run("isolated", func(t *testing.T) {
		if requests, wrong := s.manyWorkers(4, s.workerOverTLS); requests < 200 || wrong != 0 {
			t.Errorf("%d of %d requests carried another worker's credential", wrong, requests)
		}
	})
}

// A certificate of the operator's is read from its files, and read again when they are replaced, as Kubernetes does it: a link to the directory in which
// all of them are is replaced by renaming.
func TestProxyOverTLSWithOwnCertificate(t *testing.T) {
	own, dir := newAuthority(t), t.TempDir()
	version := 0
	replace := func() *x509.Certificate {
		t.Helper()
		certPEM, keyPEM, _, err := own.mint(gateName, "")
		if err != nil {
			t.Fatal(err)
		}
		version++
		data, next := fmt.Sprintf("..%d", version), filepath.Join(dir, "..next")
		if err := errors.Join(
			os.Mkdir(filepath.Join(dir, data), 0o700),
			os.WriteFile(filepath.Join(dir, data, "tls.crt"), certPEM, 0o600), os.WriteFile(filepath.Join(dir, data, "tls.key"), keyPEM, 0o600),
			os.Symlink(data, next), os.Rename(next, filepath.Join(dir, "..data")),
		); err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(certPEM)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	replace()
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, func(c *Config) {
		c.ProxyTLS = &ProxyTLS{Address: freeAddress(t), CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	}, nil)
	c := s.workerOverTLS("ann")
	pool := s.leaves.pool()
	pool.AddCert(own.cert)
	c.Transport.(*http.Transport).TLSClientConfig.RootCAs = pool
	if a := get(t, c, "https://"+apiHost+"/"); a.status != 200 || a.body != "Bearer real-ann" {
		t.Errorf("got %d %q", a.status, a.body)
	}
	want := replace()
	envoytest.Await(t, "the other certificate", func() error {
		conn, err := tls.Dial("tcp", s.config.ProxyTLS.Address, &tls.Config{ServerName: gateName, RootCAs: pool})
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(want) {
			return fmt.Errorf("it has %v", got.SerialNumber)
		}
		return nil
	})
}

// replyOf reads an answer that must be one of our own.
func replyOf(t *testing.T, resp *http.Response, status int, reason string) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || resp.Header.Get(reasonHeader) != reason || len(body) == 0 {
		t.Errorf("got %d %s %q, want %d %s", resp.StatusCode, resp.Header.Get(reasonHeader), body, status, reason)
	}
}
