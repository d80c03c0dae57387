package xds

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"
)

// What comes out of a tunnel in an HTTP/2 connection comes whole, also when whoever sent it has closed long before the worker reads it, if the worker's
// client has room for it: what it has no room for Envoy 1.40 throws away.
func TestLastBytesOfTunnelsOverHTTP2(t *testing.T) {
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var size int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &size)
		_ = http.NewResponseController(w).Flush() // chunked
		_, _ = w.Write(make([]byte, size))
	}))
	_, port, _ := net.SplitHostPort(up.Listener.Addr().String())
	s := start(t, func(c *Config) {
		c.Routes[0].ConnectTo = up.Listener.Addr().String()
		c.Tunnel = []string{"localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}, nil)
	up.TLS = &tls.Config{Certificates: []tls.Certificate{s.upstream.ca.certificate(t, apiHost), s.upstream.ca.certificate(t, "localhost")}, NextProtos: []string{"http/1.1"}}
	up.StartTLS()
	t.Cleanup(up.Close)

	proxy := s.proxyOverHTTP2() // of Go, which has room for 4 MiB

	read := func(authority string, roots *x509.CertPool, size int64) error {
		tunnel, status, err := connectOver(t.Context(), proxy, "ann", authority)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("status %d, %w", status, err)
		}
		host := (&url.URL{Host: authority}).Hostname()
		inside := tls.Client(tunnel, &tls.Config{ServerName: host, RootCAs: roots})
		if _, err := fmt.Fprintf(inside, "GET /%d HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", size, authority); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(inside), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		time.Sleep(2 * time.Second) // longer than the second after which Envoy would not wait any more
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return nil
	}
	var wg sync.WaitGroup
	for authority, roots := range map[string]*x509.CertPool{apiHost + ":443": s.leaves.pool(), "localhost:" + port: s.upstream.ca.pool()} {
		for size := int64(256 << 10); size < 4<<20; size += 256 << 10 {
			wg.Go(func() {
				if err := read(authority, roots, size); err != nil {
					t.Errorf("%s, %d bytes: %v", authority, size, err)
				}
			})
		}
	}
	wg.Wait()
}
