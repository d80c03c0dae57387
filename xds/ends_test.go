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
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

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
