package xds

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// However many tunnels and requests come on few connections of workers, Envoy makes as many to hosts as it is told, by this machine's files: tunnels
// beyond are closed, and requests wait for their turn.
func TestConnectionsToHostsAreBounded(t *testing.T) {
	const most = 5
	var asked atomic.Int64
	answer := make(chan struct{})
	answerAll := sync.OnceFunc(func() { close(answer) })
	slow := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			asked.Add(1)
			<-answer
		}
	}))
	_, port, _ := net.SplitHostPort(slow.Listener.Addr().String())
	var tunnelled string
	s := start(t, func(c *Config) {
		_, tunnelled, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes = append(c.Routes, Route{Name: "wild", Hosts: []string{"*.wild.localhost:" + port}})
		c.Tunnel = []string{"localhost:" + tunnelled}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}, nil)
	slow.TLS = &tls.Config{Certificates: []tls.Certificate{s.upstream.ca.certificate(t, "*.wild.localhost")}, NextProtos: []string{"http/1.1"}}
	slow.StartTLS()
	t.Cleanup(slow.Close)
	t.Cleanup(answerAll)
	s.killEnvoy()
	s.most = map[string]int64{clusterUpstream: most, clusterTunnel: most}
	s.startEnvoy()

	t.Run("tunnels", func(t *testing.T) {
		var held []net.Conn
		for range 2 * most {
			if conn, err := s.connect("localhost:"+tunnelled, "localhost", s.upstream.ca.pool()); err == nil {
				held = append(held, conn)
			}
		}
		if len(held) != most {
			t.Fatalf("%d tunnels", len(held))
		}
		_ = held[0].Close()
		envoytest.Await(t, "a tunnel in the place of one that has ended", func() error {
			_, err := s.connect("localhost:"+tunnelled, "localhost", s.upstream.ca.pool())
			return err
		})
	})
	t.Run("requests", func(t *testing.T) {
		const requests = 4 * most
		ann, target := s.worker("ann"), "https://one.wild.localhost:"+port+"/"
		if resp, err := ann.Head(target); err != nil { // so that all are in one tunnel
			t.Fatal(err)
		} else if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
		failures := make(chan error, requests)
		for range requests {
			go func() {
				resp, err := ann.Get(target)
				if err == nil {
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", resp.StatusCode)
					}
				}
				failures <- err
			}()
		}
		const waiting = "cluster." + clusterUpstream + ".upstream_rq_pending_active"
		envoytest.Await(t, "the others to wait", func() error {
			stats, err := envoy.Stats(t.Context(), s.bootstrap().AdminSocket, waiting)
			if err != nil || stats[waiting] != requests-most || asked.Load() != most {
				return fmt.Errorf("%d asked, %v wait, %d ended: %w", asked.Load(), stats[waiting], len(failures), err)
			}
			return nil
		})
		answerAll()
		for range requests {
			if err := <-failures; err != nil {
				t.Error(err)
			}
		}
	})
}
