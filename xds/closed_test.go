package xds

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

// However connections end, by whichever way they came, nothing of them stays in Envoy.
func TestEndedConnectionsLeaveNothing(t *testing.T) {
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes[0].Hosts = append(c.Routes[0].Hosts, apiHost+":"+port)
		c.Tunnel = []string{"localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Transparent = &Transparent{Address: "127.0.0.2:" + port, Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
	}, nil)
	redirected := func() (net.Conn, error) { return s.dialFrom("127.1.0.7")(t.Context(), "", "") }
	tunnel := func(authority string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return s.dialTunnel(authority) }
	}
	for _, w := range []struct {
		name, host string
		roots      *x509.CertPool
		dial       func() (net.Conn, error)
	}{
		{"a tunnel to a routed host", apiHost, s.leaves.pool(), tunnel(apiHost + ":443")},
		{"a tunnel to a tunnelled host", "localhost", s.upstream.ca.pool(), tunnel("localhost:" + port)},
		{"redirected to a routed host", apiHost, s.leaves.pool(), redirected},
		{"redirected to a tunnelled host", "localhost", s.upstream.ca.pool(), redirected},
	} {
		for name, end := range map[string]func(raw *net.TCPConn, inside *tls.Conn){
			"before TLS":   func(raw *net.TCPConn, _ *tls.Conn) { _ = raw.Close() },
			"in its hello": func(raw *net.TCPConn, _ *tls.Conn) { _, _ = io.WriteString(raw, "\x16\x03\x01"); _ = raw.Close() },
			"closed":       func(_ *net.TCPConn, inside *tls.Conn) { s.served(inside, w.host); _ = inside.Close() },
			"cut off":      func(raw *net.TCPConn, inside *tls.Conn) { s.served(inside, w.host); _ = raw.Close() },
			"reset": func(raw *net.TCPConn, inside *tls.Conn) {
				s.served(inside, w.host)
				_ = raw.SetLinger(0)
				_ = raw.Close()
			},
			"closed halfway": func(raw *net.TCPConn, inside *tls.Conn) {
				s.served(inside, w.host)
				_ = raw.CloseWrite()
				_, _ = io.Copy(io.Discard, raw)
				_ = raw.Close()
			},
			"by the upstream": func(raw *net.TCPConn, inside *tls.Conn) { s.upstreamCloses(inside, w.host); _ = raw.Close() },
		} {
			for range 3 {
				raw, err := w.dial()
				if err != nil {
					t.Fatalf("%s, %s: %v", w.name, name, err)
				}
				end(raw.(*net.TCPConn), tls.Client(raw, &tls.Config{ServerName: w.host, RootCAs: w.roots, NextProtos: []string{"http/1.1"}}))
			}
		}
	}
	const of = `^(listener\..*downstream_cx_active|cluster\.(intercept|tunnel)\.upstream_cx_active|http\.(intercept|proxy)\.downstream_(cx|rq)_active)$`
	envoytest.Await(t, "nothing to be left", func() error {
		stats, err := envoy.Stats(t.Context(), s.bootstrap().AdminSocket, of)
		if err != nil {
			return err
		}
		for name, n := range stats {
			if n != 0 && !strings.Contains(name, "admin") {
				return fmt.Errorf("%s is %v", name, n)
			}
		}
		if len(stats) < 5 {
			return fmt.Errorf("no such figures: %v", stats)
		}
		return nil
	})
}

// A host that does not end its side of a tunnel when the worker is gone is let go all the same, if not at once.
func TestDeafHostIsLetGo(t *testing.T) {
	ca := newAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { close(done); _ = l.Close() })
	settings := &tls.Config{Certificates: []tls.Certificate{ca.certificate(t, "localhost")}}
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				_ = tls.Server(raw, settings).HandshakeContext(t.Context())
				<-done
			}()
		}
	}()
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	s := start(t, func(c *Config) {
		c.Tunnel = []string{"localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, func(r *Resources) { // a day is too long here
		for _, listener := range r.Listeners {
			for _, chain := range listener.GetFilterChains() {
				for _, filter := range chain.GetFilters() {
					var proxy tcpproxyv3.TcpProxy
					if packed := filter.GetTypedConfig(); packed.UnmarshalTo(&proxy) == nil && proxy.GetIdleTimeout().AsDuration() == 24*time.Hour {
						proxy.IdleTimeout = seconds(time.Second)
						filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(&proxy)}
					}
				}
			}
		}
	})
	conn, err := s.connect("localhost:"+port, "localhost", ca.pool())
	if err != nil {
		t.Fatal(err)
	}
	raw := conn.NetConn().(*net.TCPConn)
	_ = raw.SetLinger(0)
	_ = raw.Close()
	envoytest.Await(t, "the tunnel to end", func() error {
		stats, err := envoy.Stats(t.Context(), s.bootstrap().AdminSocket, `^cluster\.tunnel\.upstream_cx_(active|total)$`)
		if err == nil && (stats["cluster.tunnel.upstream_cx_total"] != 1 || stats["cluster.tunnel.upstream_cx_active"] != 0) {
			err = fmt.Errorf("%v", stats)
		}
		return err
	})
}

func (s *stack) served(inside *tls.Conn, host string) {
	s.t.Helper()
	if a := ask(s.t, inside, bufio.NewReader(inside), host); a.status != 200 {
		s.t.Errorf("%s answers %d", host, a.status)
	}
}

// upstreamCloses has the connection ended by the answer.
func (s *stack) upstreamCloses(inside *tls.Conn, host string) {
	s.t.Helper()
	fmt.Fprintf(inside, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	_, _ = io.Copy(io.Discard, inside)
}
