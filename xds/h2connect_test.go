package xds

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Several users on one HTTP/2 connection to the proxy, a tunnel each: every one has its own credential, and who has none
// has no tunnel.
func TestUsersOfOneHTTP2Connection(t *testing.T) {
	s := start(t, nil, nil)
	only := &http.Protocols{}
	only.SetUnencryptedHTTP2(true)
	proxy, err := (&http.Transport{Protocols: only}).NewClientConn(t.Context(), "http", s.config.ProxyAddress)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	if _, status, err := connectOver(t.Context(), proxy, ""); err != nil || status != http.StatusProxyAuthRequired {
		t.Errorf("nobody: %d, %v", status, err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		user := []string{"ann", "bob", "eve"}[i%3]
		wg.Go(func() {
			for range 8 {
				tunnel, status, err := connectOver(t.Context(), proxy, user)
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

// connectOver opens a tunnel as user, a stream of an HTTP/2 connection.
func connectOver(ctx context.Context, proxy *http.ClientConn, user string) (net.Conn, int, error) {
	out, in := io.Pipe()
	req := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: apiHost + ":443"}, Host: apiHost + ":443", Header: http.Header{}, Body: out, ContentLength: -1}).WithContext(ctx)
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
