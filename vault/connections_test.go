package vault

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// line is the way to a server, on which connections can be made to carry nothing any more without an end, as when a firewall forgets them or a
// machine loses its power, and on which new ones may lead to another server.
type line struct {
	net.Listener
	to atomic.Pointer[string]

	mu  sync.Mutex
	cut chan struct{} // guarded by mu; closed when those of now are to carry nothing more
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	l := &line{cut: make(chan struct{})}
	l.to.Store(&to)
	var err error
	if l.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go l.carry(t, c)
		}
	}()
	return l
}

func (l *line) carry(t *testing.T, c net.Conn) {
	defer c.Close()
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	s, err := net.Dial("tcp", *l.to.Load())
	if err != nil {
		return
	}
	defer s.Close()
	ended := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				ended <- struct{}{}
				return
			}
			select {
			case <-cut: // it goes nowhere
			default:
				_, _ = to.Write(buf[:n])
			}
		}
	}
	go pass(s, c)
	go pass(c, s)
	select {
	case <-ended:
		select {
		case <-cut: // nor does its end
			<-t.Context().Done()
		default:
		}
	case <-t.Context().Done():
	}
}

// silence has what is connected now carry nothing more.
func (l *line) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.cut)
	l.cut = make(chan struct{})
}

// overLine opens a client that comes to the servers by the line, in this version of HTTP.
func overLine(t *testing.T, http2 bool, servers ...http.HandlerFunc) (*Client, *line, []*httptest.Server) {
	t.Helper()
	var all []*httptest.Server
	for _, h := range servers {
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = http2
		s.StartTLS()
		t.Cleanup(s.Close)
		all = append(all, s)
	}
	l := newLine(t, all[0].Listener.Addr().String())
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: all[0].Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return openAt(t, Config{Address: "https://" + l.Addr().String(), CAFile: ca}), l, all
}

// versions are those of HTTP.
var versions = map[string]bool{"HTTP/1.1": false, "HTTP/2": true}

// works calls until a call works, and says how many did not.
func works(t *testing.T, c *Client) (failed int) {
	t.Helper()
	for ; ; failed++ {
		if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); err == nil && v == 3 {
			return failed
		}
		if failed == 8 {
			t.Fatal("calls go on failing although the server answers")
		}
	}
}

// Connections that die without a word are left as soon as a call has failed for it, however many there are, and whatever goes on meanwhile.
func TestConnectionsDie(t *testing.T) {
	t.Parallel()
	for name, two := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var held sync.WaitGroup
			c, l, _ := overLine(t, two, vaultHandler(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Held") != "" {
					held.Done()
					held.Wait()
				}
				fmt.Fprint(w, aDocument)
			}))
			// As many connections as calls at once, where they do not share one.
			const calls = 8
			held.Add(calls)
			var all sync.WaitGroup
			for range calls {
				all.Go(func() {
					r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.cfg.Address+"/v1/wayleave/data/grants/a", nil)
					r.Header.Set("X-Held", "1")
					if resp, err := c.http.Do(r); err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			}
			all.Wait()
			l.silence()
			stop, cancel := context.WithCancel(t.Context())
			defer cancel()
			for range 4 { // others who keep it in use
				all.Go(func() {
					for stop.Err() == nil {
						_, _ = c.Get(stop, "grants/a", &struct{}{})
						sleep(stop, 100*time.Millisecond)
					}
				})
			}
			if failed := works(t, c); failed > 2 {
				t.Errorf("%d calls failed", failed)
			}
			cancel()
			all.Wait()
		})
	}
}

// A server that says that it does not serve any more is left for whichever its name leads to by now, though its connections stay.
func TestAddressLeadsElsewhere(t *testing.T) {
	t.Parallel()
	for name, two := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var demoted atomic.Bool
			well := vaultHandler(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, aDocument) })
			c, l, servers := overLine(t, two, func(w http.ResponseWriter, r *http.Request) {
				if demoted.Load() {
					w.WriteHeader(472) // of a cluster that only copies another one
					return
				}
				well(w, r)
			}, well)
			works(t, c)
			to := servers[1].Listener.Addr().String()
			l.to.Store(&to)
			demoted.Store(true)
			if failed := works(t, c); failed > 3 {
				t.Errorf("%d calls failed", failed)
			}
		})
	}
}
