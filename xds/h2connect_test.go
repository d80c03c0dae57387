package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Several users on one HTTP/2 connection to the proxy, a tunnel each: every one has its own credential, and who has none
// has no tunnel.
func TestUsersOfOneHTTP2Connection(t *testing.T) {
	s := start(t, nil, nil)
	proxy := s.proxyOverHTTP2()
	if _, status, err := connectOver(t.Context(), proxy, "", apiHost+":443"); err != nil || status != http.StatusProxyAuthRequired {
		t.Errorf("nobody: %d, %v", status, err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		user := []string{"ann", "bob", "eve"}[i%3]
		wg.Go(func() {
			for range 8 {
				tunnel, status, err := connectOver(t.Context(), proxy, user, apiHost+":443")
				if err != nil || status != http.StatusOK {
					t.Errorf("%s: %d, %v", user, status, err)
					return
				}
				tr := &http.Transport{
					DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						c := tls.Client(tunnel, &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool()})
						return c, c.HandshakeContext(ctx)
					},
				}
				for range 2 {
					if got, err := credentialSeen(t.Context(), &http.Client{Transport: tr, Timeout: 20 * time.Second}, user); err != nil || got != "Bearer real-"+user {
						t.Errorf("%s: the upstream saw %q, %v", user, got, err)
					}
				}
				tr.CloseIdleConnections()
			}
		})
	}
	wg.Wait()
}

// A client that opens tunnels by the thousand, and resets them, is sent to another connection in time: no request fails,
// and no tunnel beside them is lost.
func TestManyShortTunnels(t *testing.T) {
	s := start(t, nil, nil)
	proxy, connections := s.proxyOverHTTP2(), 1
	open := func() net.Conn {
		t.Helper()
		tunnel, status, err := connectOver(t.Context(), proxy, "ann", apiHost+":443")
		if err != nil { // it was sent away, and has sent nothing
			connections++
			proxy = s.proxyOverHTTP2()
			tunnel, status, err = connectOver(t.Context(), proxy, "ann", apiHost+":443")
		}
		if err != nil || status != http.StatusOK {
			t.Fatalf("on connection %d: %d, %v", connections, status, err)
		}
		return tunnel
	}
	kept := tls.Client(open(), &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool()})
	r := bufio.NewReader(kept)
	const tunnels = 3000
	for range tunnels {
		_ = open().Close()
	}
	if want := tunnels/requestsPerProxy + 1; connections != want {
		t.Errorf("%d connections, want %d", connections, want)
	}
	if a := ask(t, kept, r, apiHost); a.status != http.StatusOK {
		t.Errorf("the first tunnel answers %d", a.status)
	}
}

// One header may be as long as all of them, whatever HTTP it comes in.
func TestLongHeader(t *testing.T) {
	s := start(t, nil, nil)
	for _, alpn := range []string{"h2", "http/1.1"} {
		w := s.worker("ann")
		w.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{alpn}
		a := get(t, w, "https://"+apiHost+"/", "X-Long", strings.Repeat("~", maxHeadersKiB<<10-1000)) // HPACK makes no shorter
		if a.status != http.StatusOK || s.upstream.last.Load().Header.Get("X-Long") == "" {
			t.Errorf("%s: got %d %q", alpn, a.status, a.body)
		}
	}
}

// proxyOverHTTP2 is one connection to the proxy.
func (s *stack) proxyOverHTTP2() *http.ClientConn {
	s.t.Helper()
	only := &http.Protocols{}
	only.SetUnencryptedHTTP2(true)
	proxy, err := (&http.Transport{Protocols: only}).NewClientConn(s.t.Context(), "http", s.config.ProxyAddress)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = proxy.Close() })
	return proxy
}

// connectOver opens a tunnel as user, a stream of an HTTP/2 connection.
func connectOver(ctx context.Context, proxy *http.ClientConn, user, authority string) (net.Conn, int, error) {
	out, in := io.Pipe()
	req := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: authority}, Host: authority, Header: http.Header{}, Body: out, ContentLength: -1}).WithContext(ctx)
	if user != "" {
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":pw")))
	}
	resp, err := proxy.RoundTrip(req) //nolint:bodyclose // the stream closes it
	if err != nil {
		return nil, 0, fmt.Errorf("CONNECT: %w", err)
	}
	return &streamConn{Reader: resp.Body, in: in, body: resp.Body}, resp.StatusCode, nil
}

// streamConn is a CONNECT stream as a connection without deadlines.
type streamConn struct {
	io.Reader
	in   *io.PipeWriter
	body io.Closer
}

func (c *streamConn) Write(p []byte) (int, error)      { return c.in.Write(p) }
func (c *streamConn) Close() error                     { _ = c.in.Close(); return c.body.Close() }
func (c *streamConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *streamConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *streamConn) SetDeadline(time.Time) error      { return nil }
func (c *streamConn) SetReadDeadline(time.Time) error  { return nil }
func (c *streamConn) SetWriteDeadline(time.Time) error { return nil }
