package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
	"wayleave/extproc"
	"wayleave/grant"
	hidden "wayleave/secret"
)

// account is what a gate decided, and what Envoy told of the ends, by the names of the requests.
type account struct {
	mu      sync.Mutex
	decided []extproc.Decided          // guarded by mu
	ended   map[string][]extproc.Ended // guarded by mu
}

func newAccount() *account { return &account{ended: map[string][]extproc.Ended{}} }

// options are of the gate whose account it is.
func (a *account) options(gate string) extproc.Options {
	return extproc.Options{
		Gate: gate,
		Decided: func(d extproc.Decided) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.decided = append(a.decided, d)
			return nil
		},
		Ended: func(x extproc.Ended) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.ended[x.RequestID] = append(a.ended[x.RequestID], x)
		},
	}
}

// last waits until everything that was decided has come to its end, and returns what was decided last with its end.
func (a *account) last(t *testing.T) (extproc.Decided, extproc.Ended) {
	t.Helper()
	envoytest.Await(t, "the ends", func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.decided) != len(a.ended) || len(a.decided) == 0 {
			return fmt.Errorf("%d decisions and %d ends", len(a.decided), len(a.ended))
		}
		return nil
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.decided[len(a.decided)-1]
	if len(a.ended[d.RequestID]) != 1 {
		t.Fatalf("%d ends of %+v", len(a.ended[d.RequestID]), d)
	}
	return d, a.ended[d.RequestID][0]
}

// twoTokens are one, and another one in its place.
type twoTokens struct{}

func (twoTokens) Token(context.Context, string, string, []string) (grant.Token, error) {
	return grant.Token{Access: hidden.New(realToken), Version: "1", Fingerprint: "first", Replaceable: true}, nil
}

func (twoTokens) Replace(context.Context, string, string, string, []string) (grant.Token, error) {
	return grant.Token{Access: hidden.New(realToken), Version: "2", Fingerprint: "second"}, nil
}

func (twoTokens) Reject(string, string, string) {}

// Each thing that was decided comes to one end, of which Envoy says what there is to say; and of nothing else is an end told.
func TestEnds(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "plain") }))
	t.Cleanup(server.Close)
	origin := strings.Replace(strings.TrimPrefix(server.URL, "http://"), "127.0.0.1", "localhost", 1)
	p := startPhases(t, false, nil, func(c *extproc.Config) {
		c.Routes[0].Methods = []string{"GET", "POST", "PROPFIND"}
		c.Addresses = map[string][]netip.Prefix{"ci": {netip.MustParsePrefix("127.1.0.0/16")}}
		c.Replayable = 1 << 20
		c.Plain = []string{origin}
	})
	_, port, _ := net.SplitHostPort(p.config.Routes[0].ConnectTo)
	tunnelled := "localhost:" + port
	p.config.Tunnel, p.config.Plain, p.config.AllowPrivate = []string{tunnelled}, []string{origin}, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	p.config.Transparent = &Transparent{Address: "127.0.0.2:" + port, Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
	p.policy.Tunnel = []string{tunnelled}
	a := newAccount()
	p.gate.real = extproc.New(p.policy, p.sessions, twoTokens{}, a.options(""))
	p.publish()
	c := p.client(true)
	envoytest.Await(t, "the tunnels", func() error {
		conn, err := p.dialFrom("127.1.0.1")(t.Context(), "", "")
		if err != nil {
			return err
		}
		defer conn.Close()
		return tls.Client(conn, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}).HandshakeContext(t.Context())
	})
	ask := func(method, path string, size int64) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			resp, err := p.send(c, method, path, io.LimitReader(endless{}, size), size)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	leave := func(path string) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			_, stop := p.begin(t, true, path, nil)
			stop()
		}
	}
	connect := func(host string) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			conn, err := dialerTo(p.config.ProxyAddress)(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: %s\r\n\r\n", host, "Basic "+base64.StdEncoding.EncodeToString([]byte(p.session.ID+":"+p.token.Reveal())))
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // it has none
			if err != nil || resp.StatusCode != http.StatusOK {
				return
			}
			if err := overTLS(conn, tunnelled); err != nil {
				t.Fatal(err)
			}
		}
	}
	type x = extproc.Ended
	for _, test := range []struct {
		name     string
		do       func(*testing.T)
		want     x
		received int64 // at least
		sent     int64
	}{
		{name: "a request", do: ask("GET", "/token?q=secret", 0), want: x{Status: 200, Details: "via_upstream", Attempts: 1, Protocol: "HTTP/2"}, received: 50, sent: 50},
		{name: "a body there and back", do: ask("POST", "/echo", 100_000), want: x{Status: 200, Details: "via_upstream", Attempts: 1, Protocol: "HTTP/2"}, received: 100_000, sent: 100_000},
		{name: "another method", do: ask("PROPFIND", "/echo", 0), want: x{Status: 200, Details: "via_upstream", Attempts: 1, Protocol: "HTTP/2"}, received: 10, sent: 10},
		{name: "a refusal", do: ask("DELETE", "/", 0), want: x{Status: 403, Details: "wayleave_policy_denied", Protocol: "HTTP/2"}, received: 10, sent: 100},
		{name: "an answer that broke off", do: ask("GET", "/broken-off", 0), want: x{Status: 200, Details: "upstream_reset_after_response_started{remote_reset}", Flags: "UR", Attempts: 1, Protocol: "HTTP/2"}, received: 10, sent: 10},
		{name: "a rejected token", do: ask("GET", "/refused", 0), want: x{Status: 401, Details: "via_upstream", Flags: "URX", Attempts: 3, Protocol: "HTTP/2"}, received: 10, sent: 10},
		{name: "a worker that leaves an event stream", do: leave("/events"), want: x{Status: 200, Details: "http2.remote_reset", Flags: "DR", Attempts: 1, Protocol: "HTTP/2"}, received: 10, sent: 10},
		{name: "a WebSocket", do: func(t *testing.T) {
			t.Helper()
			if err := p.socket(); err != nil {
				t.Fatal(err)
			}
		}, want: x{Status: 101, Details: "downstream_remote_disconnect", Flags: "DC", Attempts: 1, Protocol: "HTTP/1.1"}, received: 100_000, sent: 100_000},
		{name: "a tunnel", do: connect(tunnelled), want: x{Status: 200, Details: "via_upstream", Attempts: 1, Protocol: "HTTP/1.1"}, received: 500, sent: 500},
		{name: "a tunnel that is refused", do: connect("nowhere.test:443"), want: x{Status: 403, Details: "ext_authz_denied", Flags: "UAEX", Protocol: "HTTP/1.1"}, received: 100, sent: 100},
		{name: "a request without TLS", do: func(t *testing.T) {
			t.Helper()
			resp, err := c.Get("http://" + origin + "/plain?q=secret")
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}, want: x{Status: 200, Details: "via_upstream", Attempts: 1, Protocol: "HTTP/1.1"}, received: 100, sent: 100},
		{name: "a redirected tunnel", do: func(t *testing.T) {
			t.Helper()
			conn, err := p.dialFrom("127.1.0.1")(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := overTLS(conn, tunnelled); err != nil {
				t.Fatal(err)
			}
		}, want: x{}, received: 500, sent: 500},
		{name: "a redirected tunnel that is refused", do: func(t *testing.T) {
			t.Helper()
			p.policy.Tunnel = nil
			p.gate.real.(*extproc.Server).Update("", map[string]extproc.Config{"": p.policy})
			conn, err := p.dialFrom("127.1.0.1")(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := overTLS(conn, tunnelled); err == nil {
				t.Error("it is not refused")
			}
		}, want: x{Flags: "UAEX"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := time.Now()
			test.do(t)
			d, got := a.last(t)
			if got.BytesReceived < test.received || got.BytesSent < test.sent || got.Duration <= 0 || got.Duration > time.Since(before) || got.At.Before(before.Add(-time.Second)) {
				t.Errorf("%d bytes received and %d sent, in %s from %s on", got.BytesReceived, got.BytesSent, got.Duration, got.At)
			}
			if swapped := d.Swapped && got.Attempts > 0; swapped && got.Upstream != p.config.Routes[0].ConnectTo {
				t.Errorf("the upstream is %q", got.Upstream)
			}
			want := test.want
			want.Decided, want.Node = d, "test"
			want.At, want.Took = got.At, 0
			want.BytesReceived, want.BytesSent, want.Duration, want.Upstream = got.BytesReceived, got.BytesSent, got.Duration, got.Upstream
			if d.Swapped && got.Attempts > 1 {
				want.Token, want.Fingerprint = "2", "second"
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if d.Worker != "ci" || strings.Contains(got.Path, "?") {
				t.Errorf("decided %+v", d)
			}
		})
	}
}

// overTLS asks for something over TLS in a connection to the upstream, which then ends it.
func overTLS(conn net.Conn, host string) error {
	name, _, _ := strings.Cut(host, ":")
	inside := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	fmt.Fprintf(inside, "GET /empty HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	resp, err := http.ReadResponse(bufio.NewReader(inside), nil)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	_, err = io.Copy(io.Discard, conn)
	return err
}

// gateOf is a gate of its own, among others of one Envoy.
type gateOf struct {
	*account
	rpc *grpc.Server
}

// serveGate runs a gate at the socket that the configuration has for it.
func (p *phaseStack) serveGate(name string) *gateOf {
	p.t.Helper()
	g := &gateOf{newAccount(), newGate()}
	p.server.Register(g.rpc)
	healthpb.RegisterHealthServer(g.rpc, health.NewServer())
	extproc.New(p.policy, p.sessions, twoTokens{}, g.options(name)).Register(g.rpc)
	l, err := net.Listen("unix", p.config.GateSockets[name])
	if err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = g.rpc.Serve(l) }()
	p.t.Cleanup(func() { g.rpc.Stop(); <-done })
	return g
}

// told is how many decisions and ends a gate knows.
func (a *account) told() (decided, ended int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.decided), len(a.ended)
}

// Of several gates each is told of the ends of what it decided, and of no others. What ends while it is away Envoy tells its successor,
// with all that is known of the decision.
func TestEndsComeToTheGateThatDecided(t *testing.T) {
	p := startPhases(t, false, nil)
	p.killEnvoy()
	p.config.APISockets = append(p.config.APISockets, filepath.Join(p.dir, "api.b.sock"))
	p.config.GateSockets = map[string]string{"a": filepath.Join(p.dir, "gate.a.sock"), "b": filepath.Join(p.dir, "gate.b.sock")}
	p.publish()
	a, b := p.serveGate("a"), p.serveGate("b")
	boot := p.bootstrap()
	boot.GateSockets = slices.Collect(maps.Values(p.config.GateSockets))
	envoytest.Start(t, boot)
	clients := []*http.Client{p.client(true), p.client(true), p.client(true), p.client(true)} // of both threads of Envoy
	ask := func(i int) error {
		resp, err := p.send(clients[i%len(clients)], http.MethodGet, "/empty", nil, 0)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			return fmt.Errorf("answered %d", resp.StatusCode)
		}
		return nil
	}
	envoytest.Await(t, "the listener", func() error { return ask(0) })
	for i := range 60 {
		if err := ask(i); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*gateOf{a, b} {
		g.last(t)
		if decided, _ := g.told(); decided < 10 {
			t.Errorf("one of the gates decided about %d requests", decided)
		}
		for _, d := range g.decided {
			if len(g.ended[d.RequestID]) != 1 {
				t.Errorf("%d ends of %+v", len(g.ended[d.RequestID]), d)
			}
		}
	}

	// Requests that are under way while b goes.
	before := b.decided
	leaving, leave := context.WithCancel(t.Context())
	var asked sync.WaitGroup
	for i := range 40 {
		asked.Go(func() {
			req, err := http.NewRequestWithContext(leaving, http.MethodGet, "https://"+apiHost+"/silent", nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+p.placeholder)
			if resp, err := clients[i%len(clients)].Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	envoytest.Await(t, "the requests to be at the upstream", func() error {
		n := 0
		for _, g := range []*gateOf{a, b} {
			decided, ended := g.told()
			n += decided - ended
		}
		if n != 40 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	under := b.decided[len(before):]
	b.rpc.Stop()
	envoytest.Await(t, "Envoy to know that b is away", func() error { // what it tells in that moment is lost
		stats, err := envoy.Stats(t.Context(), boot.AdminSocket, "^cluster."+endsCluster("b")+".(membership_healthy|upstream_cx_active)$")
		for _, n := range stats {
			if n != 0 {
				err = fmt.Errorf("%v", stats)
			}
		}
		return err
	})
	for i := range 2 * len(clients) { // all of its threads, which hear of it before they take these
		if err := ask(i); err != nil {
			t.Fatal(err)
		}
	}
	leave()
	asked.Wait()
	a.last(t) // whose own do not wait for b
	successor := p.serveGate("b")
	envoytest.Await(t, "the ends that b was not there for", func() error {
		successor.mu.Lock()
		defer successor.mu.Unlock()
		for _, d := range under {
			if got := successor.ended[d.RequestID]; len(got) != 1 {
				return fmt.Errorf("%d ends of %+v", len(got), d)
			} else if x := got[0]; x.Worker != d.Worker || x.Session != d.Session || x.Grant != d.Grant || x.Route != d.Route || x.Host != d.Host || x.Path != d.Path || x.Fingerprint != d.Fingerprint || !x.Swapped {
				t.Errorf("told of %+v, which was %+v", x, d)
			}
		}
		return nil
	})
	if len(under) == 0 {
		t.Error("b decided about none")
	}
}
