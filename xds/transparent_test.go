package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Without a packet filter the port that was dialled is the listener's own, which is as good as any: e2e redirects.

func startTransparent(t *testing.T, mutate func(*Resources)) *stack {
	t.Helper()
	return start(t, func(c *Config) {
		c.Transparent = &Transparent{Address: freeAddress(t), Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16"), netip.MustParsePrefix("127.2.0.1/32")}}
		_, port, _ := net.SplitHostPort(c.Transparent.Address)
		c.Routes[0].Hosts = append(c.Routes[0].Hosts, apiHost+":"+port)
		c.Tunnel = []string{"*.tunnel.test", "*.a.no.tunnel.test", "tokens.test"}
		c.Deny = []string{"no.tunnel.test", "*.no.tunnel.test", "other-port.tunnel.test:8443", "tokens.test", apiHost}
	}, mutate)
}

// dialFrom connects to the transparent listener from an address, as a worker there.
func (s *stack) dialFrom(source string) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", s.config.Transparent.Address)
	}
}

// workerAt is a client at an address.
func (s *stack) workerAt(source string) *http.Client {
	tr := &http.Transport{DialContext: s.dialFrom(source), TLSClientConfig: &tls.Config{RootCAs: s.leaves.pool()}, ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (s *stack) transparentURL() string {
	_, port, _ := net.SplitHostPort(s.config.Transparent.Address)
	return "https://" + apiHost + ":" + port + "/"
}

func TestTransparent(t *testing.T) {
	s := startTransparent(t, nil)
	var mu sync.Mutex
	var seen request
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		mu.Lock()
		defer mu.Unlock()
		seen = r
		if r.header.Get("X-Refuse") != "" {
			return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
				ImmediateResponse: &extprocv3.ImmediateResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_BadRequest}, Body: []byte("no")},
			}}
		}
		return swap(strings.TrimPrefix(r.identity, "address|"))
	}
	t.Run("known", func(t *testing.T) {
		a := get(t, s.workerAt("127.1.2.3"), s.transparentURL())
		if a.status != 200 || a.body != "Bearer real-127.1.2.3" {
			t.Fatalf("got %d %q", a.status, a.body)
		}
		_, port, _ := net.SplitHostPort(s.config.Transparent.Address)
		if seen.identity != "address|127.1.2.3" || seen.authority != apiHost+":"+port || !strings.HasPrefix(seen.source, "127.1.2.3:") {
			t.Errorf("the gate saw %+v", seen)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for name, c := range map[string]struct{ source, serverName string }{
			"unknown source": {"127.2.0.2", apiHost},
			"unknown name":   {"127.1.0.1", "unknown.test"},
			"no name":        {"127.1.0.1", ""},
		} {
			conn, err := s.dialFrom(c.source)(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			err = tls.Client(conn, &tls.Config{ServerName: c.serverName, InsecureSkipVerify: true}).HandshakeContext(t.Context())
			if err == nil || err.Error() != "remote error: tls: access denied" {
				t.Errorf("%s: %v, want the alert access_denied", name, err)
			}
			_ = conn.Close()
		}
	})
	t.Run("a denied name below a tunnelled one", func(t *testing.T) {
		for name, denied := range map[string]bool{"no.tunnel.test": true, "a.no.tunnel.test": true, "x.a.no.tunnel.test": false, "yes.tunnel.test": false, "other-port.tunnel.test": false, "tokens.test": true, apiHost: false} {
			conn, err := s.dialFrom("127.1.0.1")(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			err = tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}).HandshakeContext(t.Context())
			if alert := err != nil && err.Error() == "remote error: tls: access denied"; alert != denied {
				t.Errorf("%s: %v", name, err)
			}
			_ = conn.Close()
		}
	})
	t.Run("answered as Envoy closes", func(t *testing.T) { // as it does after 400 over HTTP/1.1
		conn, err := s.dialFrom("127.1.0.1")(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		inside := tls.Client(conn, &tls.Config{ServerName: apiHost, RootCAs: s.leaves.pool()})
		fmt.Fprintf(inside, "GET / HTTP/1.1\r\nHost: %s\r\nX-Refuse: yes\r\n\r\n", apiHost)
		resp, err := http.ReadResponse(bufio.NewReader(inside), nil)
		if err != nil {
			t.Fatal(err)
		}
		replyOf(t, resp, 400, reasonMalformed)
	})
	t.Run("no TLS", func(t *testing.T) {
		conn, err := s.dialFrom("127.1.0.1")(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", apiHost)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		replyOf(t, resp, 400, reasonUseConnect)
	})
	if n := s.gate.checks.Load(); n != 3 {
		t.Errorf("the gate was asked about %d connections, want those to the three tunnels that are not denied", n)
	}
}

// The gate is asked about each redirected connection to a tunnel, and nothing of it goes on before it has answered.
func TestRedirectedTunnelsAreAsked(t *testing.T) {
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Tunnel = []string{"localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Transparent = &Transparent{Address: "127.0.0.2:" + port, Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
	}, nil)
	asked, answers := make(chan string, 1), make(chan bool, 1)
	s.gate.tunnel = func(a *authv3.AttributeContext) bool {
		source, to := a.GetSource().GetAddress().GetSocketAddress(), a.GetDestination().GetAddress().GetSocketAddress()
		asked <- fmt.Sprintf("%s to %s:%d", source.GetAddress(), a.GetTlsSession().GetSni(), to.GetPortValue())
		return <-answers
	}
	begin := func(source string) chan error {
		conn, err := s.dialFrom(source)(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			defer func() { _ = conn.Close() }()
			inside := tls.Client(conn, &tls.Config{ServerName: "localhost", RootCAs: s.upstream.ca.pool()})
			fmt.Fprint(inside, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(inside), nil)
			if err == nil {
				err = resp.Body.Close()
			}
			ended <- err
		}()
		return ended
	}
	for _, allowed := range []bool{true, false, true} {
		requests := s.upstream.requests.Load()
		ended := begin("127.1.0.7")
		if got := <-asked; got != "127.1.0.7 to localhost:"+port {
			t.Errorf("the gate is asked about %q", got)
		}
		if got := s.gate.asker.Load(); got != "test" {
			t.Errorf("the gate is asked by %q", got)
		}
		select {
		case err := <-ended:
			t.Errorf("it did not wait: %v", err)
		default:
		}
		answers <- allowed
		if err := <-ended; (err == nil) != allowed || allowed && s.upstream.requests.Load() != requests+1 {
			t.Errorf("allowed %v: %v", allowed, err)
		}
	}
	s.stop()
	requests := s.upstream.requests.Load()
	if err := <-begin("127.1.0.7"); err == nil || s.upstream.requests.Load() != requests {
		t.Errorf("without a gate: %v", err)
	}
	s.stop = func() {}
}

// The recipe of tunnelState holds for redirected connections too: each of its parts is enough, and without any of them
// the test finds requests with another worker's credential.
func TestTransparentWorkersAreIsolated(t *testing.T) {
	for name, keep := range map[string][]guard{
		"as it is": guards, "hashed identity": {hashedIdentity}, "a value of its own": {hashedTunnel}, "address": {hashedAddress}, "nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := startTransparent(t, func(r *Resources) { keepGuards(r, keep...) })
			requests, wrong := s.manySources(4)
			if requests < 256 || wrong > 0 != (keep == nil) {
				t.Errorf("%d of %d requests carried another worker's credential", wrong, requests)
			}
		})
	}
}

// manySources sends requests from sixteen addresses, some of whose connections end as soon as they are made, so that what
// was opened for them is left over.
func (s *stack) manySources(rounds int) (requests, wrong int64) {
	s.t.Helper()
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		return swap(strings.TrimPrefix(r.identity, addressIdentity))
	}
	var sources []string
	for i := range 16 {
		sources = append(sources, fmt.Sprintf("127.1.0.%d", i+1))
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	for _, source := range sources {
		wg.Go(func() {
			for ctx.Err() == nil {
				s.hurry(ctx, source)
			}
		})
	}
	requests, wrong = s.manyWorkers(rounds, s.workerAt, sources...)
	cancel()
	wg.Wait()
	return requests, wrong
}

// hurry makes a connection that ends as soon as it has begun.
func (s *stack) hurry(ctx context.Context, source string) {
	conn, err := s.dialFrom(source)(ctx, "", "")
	if err != nil {
		return
	}
	_ = tls.Client(hasty{conn.(*net.TCPConn)}, &tls.Config{ServerName: apiHost, InsecureSkipVerify: true}).HandshakeContext(ctx)
	_ = conn.Close()
}

// hasty is a connection that is reset once its first bytes are written.
type hasty struct{ *net.TCPConn }

func (h hasty) Read([]byte) (int, error) { return 0, errors.Join(io.EOF, h.SetLinger(0), h.Close()) }
