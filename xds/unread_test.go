package xds

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// A worker that says that a connection is for one request alone gets all of the answer, however long it does not read: what the upstream
// was rid of by then is Envoy's to keep. How much the system keeps in place of it is not known here, so several lengths are tried.
func TestAnswersWaitToBeRead(t *testing.T) {
	l := startLeaves(t, 0)
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var size int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &size)
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(make([]byte, size))
	}))
	up.TLS = &tls.Config{Certificates: []tls.Certificate{l.upstream.ca.certificate(t, "*.provider.test")}}
	up.StartTLS()
	t.Cleanup(up.Close)
	for i := range l.config.Routes {
		l.config.Routes[i].ConnectTo = up.Listener.Addr().String()
	}
	l.publish()
	l.await("the upstream", Node.Current)

	read := func(w way, host string, size int64) error {
		c, err := w.dial(host)
		if err != nil {
			return err
		}
		if err := c.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
			return err
		}
		inside := l.over(c, host)
		if _, err := fmt.Fprintf(inside, "GET /%d HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", size, host); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(inside), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		time.Sleep(2 * time.Second) // longer than the second after which Envoy would not wait any more
		if err := c.(*net.TCPConn).SetReadBuffer(1 << 20); err != nil {
			return err
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return nil
	}
	var wg sync.WaitGroup
	for _, w := range l.ways()[:2] { // there are no requests inside the third
		for size := int64(1 << 20); size <= 6<<20; size += 128 << 10 {
			host := w.host()
			wg.Go(func() {
				if err := read(w, host, size); err != nil {
					t.Errorf("%s, %d bytes: %v", w.name, size, err)
				}
			})
		}
	}
	wg.Wait()
}
