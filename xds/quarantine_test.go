package xds

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"wayleave/envoy/envoytest"
)

// A fault of one host or route takes out what it is about, in whatever it is, and nothing else.
func TestQuarantine(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		fault  string
		out    []string // refused
		served []string // by routes
	}{
		"capitals":        {func(c *Config) { c.Routes[0].Hosts = append(c.Routes[0].Hosts, "Bad.Example.com") }, `route "a": host "Bad.Example.com"`, []string{"bad.example.com"}, []string{"a.example.com", "b.example.com"}},
		"a final dot":     {func(c *Config) { c.Routes[0].Hosts = []string{"a.example.com.:8443"} }, `"a.example.com.:8443"`, []string{"a.example.com:8443"}, []string{"b.example.com"}},
		"no such port":    {func(c *Config) { c.Routes[0].Hosts = []string{"*.a.example.com:https"} }, `no port`, []string{"*.a.example.com"}, []string{"b.example.com"}},
		"no hosts":        {func(c *Config) { c.Routes[0].Hosts = nil }, `route "a": it has no hosts`, nil, []string{"b.example.com"}},
		"route name":      {func(c *Config) { c.Routes[0].Name = "A/b" }, `route "A/b"`, []string{"a.example.com"}, []string{"b.example.com"}},
		"same route name": {func(c *Config) { c.Routes[2].Name = "a"; c.Routes[2].Hosts = []string{"c.example.com"} }, "used twice", []string{"a.example.com", "c.example.com"}, []string{"b.example.com"}},
		"same host":       {func(c *Config) { c.Routes[1].Hosts = append(c.Routes[1].Hosts, "a.example.com") }, `"a.example.com" port 443 is in route "a" and in route "b"`, []string{"a.example.com"}, []string{"b.example.com"}},
		"same host at one of two ports": {func(c *Config) {
			c.Routes[0].Hosts = append(c.Routes[0].Hosts, "a.example.com:8443")
			c.Routes[1].Hosts = append(c.Routes[1].Hosts, "a.example.com")
		}, `port 443`, []string{"a.example.com"}, []string{"a.example.com:8443", "b.example.com"}},
		"same name, other ALPN": {func(c *Config) {
			c.Routes[1].Hosts = append(c.Routes[1].Hosts, "a.example.com:8443")
			c.Routes[1].ALPN = []string{"h2"}
		}, "by its name only", []string{"a.example.com", "a.example.com:8443"}, []string{"b.example.com"}},
		"routed and tunnelled": {func(c *Config) { c.Tunnel = []string{"b.example.com:8443"} }, `route "b" and in the tunnel of port 8443`, []string{"b.example.com", "b.example.com:8443"}, []string{"a.example.com"}},
		"tunnel at two ports":  {func(c *Config) { c.Tunnel = []string{"t.example.com", "t.example.com:8443"} }, `"t.example.com"`, []string{"t.example.com", "t.example.com:8443"}, []string{"a.example.com", "b.example.com"}},
		"tunnel":               {func(c *Config) { c.Tunnel = []string{"T.example.com", "u.example.com"} }, `tunnel: host "T.example.com"`, []string{"t.example.com"}, []string{"a.example.com", "b.example.com"}},
		"plain":                {func(c *Config) { c.Plain = []string{"P.example.com:80"} }, `plain: host "P.example.com:80"`, []string{"p.example.com:80"}, []string{"a.example.com", "b.example.com"}},
		"ALPN":                 {func(c *Config) { c.Routes[0].ALPN = []string{"h2", "h3"} }, `"h3"`, []string{"a.example.com"}, []string{"b.example.com"}},
		"connect_to":           {func(c *Config) { c.Routes[0].ConnectTo = "backend" }, `"backend" is not host:port`, []string{"a.example.com"}, []string{"b.example.com"}},
		"withheld":             {func(c *Config) { c.Routes[0].Withheld = []string{"content-length"} }, "frames the message", []string{"a.example.com"}, []string{"b.example.com"}},
		"a fault, and a double": {func(c *Config) {
			c.Routes[0].ConnectTo = "backend"
			c.Routes[1].Hosts = append(c.Routes[1].Hosts, "a.example.com")
		}, "backend", []string{"a.example.com"}, []string{"b.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig(t)
			c.Routes = []Route{{Name: "a", Hosts: []string{"a.example.com"}}, {Name: "b", Hosts: []string{"b.example.com"}}, {Name: "c"}}
			tt.change(&c)
			if len(c.Routes[2].Hosts) == 0 {
				c.Routes = c.Routes[:2]
			}
			p, err := c.plan()
			if err != nil {
				t.Fatal(err)
			}
			var served, fenced []string
			for _, r := range p.routes {
				for _, h := range r.hosts {
					served = append(served, h.String())
				}
			}
			slices.Sort(served)
			for _, h := range p.fenced {
				fenced = append(fenced, h.String())
			}
			if diff := cmp.Diff(tt.served, served); diff != "" {
				t.Errorf("served (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.out, fenced); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if !slices.ContainsFunc(p.quarantined, func(q Quarantined) bool { return strings.Contains(q.Fault.Error(), tt.fault) }) {
				t.Errorf("no %q in %v", tt.fault, p.quarantined)
			}
			if _, err := Build(c); err != nil {
				t.Error(err)
			}
		})
	}
}

// What cannot be refused by name refuses the whole; what leaves nothing is told.
func TestNotQuarantined(t *testing.T) {
	c := testConfig(t)
	for _, host := range []string{"*", "a.*.com", "", "10.0.0.1"} {
		c.Routes = []Route{{Name: "a", Hosts: []string{"a.example.com", host}}}
		if r, err := Build(c); err == nil || r != nil {
			t.Errorf("%q: built", host)
		}
	}
	c.Routes = []Route{{Name: "a", Hosts: []string{"A.example.com"}}, {Name: "tokens", Hosts: []string{"tokens.example.com"}, Answered: true}}
	for _, tunnel := range [][]string{nil, {"t.example.com"}} {
		c.Tunnel = tunnel
		if r, err := Build(c); err != nil || r.Served != len(tunnel) {
			t.Errorf("%d tunnels: %v, %v", len(tunnel), r, err)
		}
	}
}

// Envoy's own rules count, before Envoy refuses all routes for one.
func TestRulesOfEnvoy(t *testing.T) {
	good, bad := plannedRoute{name: "a", hosts: []host{{"a.example.com", 443}}, dial: &dialTarget{host: "b", port: 1}}, plannedRoute{}
	for _, r := range []plannedRoute{good, bad} {
		err := valid(appendMessages([]proto.Message{r.virtualHost()}, r.clusters(dnsSettings{}, secretUpstreamCA, nil)))
		if (err == nil) != (r.name == "a") {
			t.Errorf("%q: %v", r.name, err)
		}
	}
}

// What is taken out is the same whatever the order of the routes.
func TestQuarantineIsDeterministic(t *testing.T) {
	c := readConfig(t, "testdata/quarantine.in.yaml")
	first, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		shuffle(c.Routes)
		shuffle(c.Tunnel)
		again, err := Build(c)
		if err != nil {
			t.Fatal(err)
		}
		if first.Revision() != again.Revision() || fmt.Sprint(first.Quarantined) != fmt.Sprint(again.Quarantined) {
			t.Fatalf("%v became %v", first.Quarantined, again.Quarantined)
		}
	}
}

// The certificates of what is taken out are withdrawn, and none is made, but for what is served below a wildcard.
func TestNoLeafForQuarantined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		hosts := []string{"*.example.com", "a.example.com", "good.bad.example.com", "gate.example.net"}
		b.server.secrets.setHosts(hosts, nil)
		e := b.connect()
		e.ask("a.example.com", "A.Example.com", "x.example.com", "x.bad.example.com", "good.bad.example.com", "gate.example.net")
		synctest.Wait()
		b.server.secrets.setHosts([]string{"*.example.com", "good.bad.example.com", "gate.example.net"}, []string{"a.example.com", "*.bad.example.com", "*.example.net"})
		synctest.Wait()
		if got := e.names(); !slices.Equal(got, []string{"gate.example.net", "good.bad.example.com", "x.example.com"}) {
			t.Errorf("left: %q", got)
		}
		e.ask("a.example.com", "y.bad.example.com", "y.example.com")
		synctest.Wait()
		b.server.RotateLeaves()
		synctest.Wait()
		if got := e.names(); !slices.Equal(got, []string{"gate.example.net", "good.bad.example.com", "x.example.com", "y.example.com"}) {
			t.Errorf("held: %q", got)
		}
		if n, m := b.minter.made["a.example.com"], b.minter.made["y.bad.example.com"]; n != 2 || m != 0 {
			t.Errorf("%d and %d certificates were made, want the two of before", n, m)
		}
		b.server.secrets.setHosts(hosts, nil)
		e.ask("a.example.com")
		synctest.Wait()
		if e.held("a.example.com") == "" {
			t.Error("none after it was mended")
		}
		b.finish()
	})
}

// A route with a fault comes to an Envoy that serves: its hosts are refused on every way in, where before a tunnel and
// another route took their names in, and nothing of them reaches the upstream. Everything else goes on.
func TestQuarantineLive(t *testing.T) {
	var port string
	origin := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(origin.Close)
	_, plainPort, _ := net.SplitHostPort(origin.Listener.Addr().String())
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes[0].Hosts = append(c.Routes[0].Hosts, "*.provider.test")
		c.Tunnel = []string{"*.localhost:" + port}
		c.Plain = []string{"*.localhost:" + plainPort}
		c.Transparent = &Transparent{Address: freeAddress(t), Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, nil)
	anyone := &tls.Config{InsecureSkipVerify: true}
	h2 := s.proxyOverHTTP2()

	ways := map[string]func(name, port string) (net.Conn, error){
		"CONNECT": func(name, port string) (net.Conn, error) { return s.dialTunnel(name + ":" + port) },
		"HTTP/2": func(name, port string) (net.Conn, error) {
			conn, _, err := connectOver(t.Context(), h2, "ann", name+":"+port)
			return conn, err
		},
		"redirected": func(string, string) (net.Conn, error) { return s.dialFrom("127.1.0.1")(t.Context(), "", "") },
	}
	// reach sends a placeholder to a host, and returns the status.
	reach := func(way, name, port string) (int, error) {
		raw, err := ways[way](name, port)
		if err != nil {
			return 0, err
		}
		defer func() { _ = raw.Close() }()
		config := anyone.Clone()
		config.ServerName = name
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(t.Context()); err != nil {
			return 0, err
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s:%s\r\nX-Tunnelled: %sx\r\n\r\n", name, port, testMarker)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	plain := func(name string) testAnswer { return get(t, s.worker("ann"), "http://"+name+":"+plainPort+"/") }

	for _, way := range []string{"CONNECT", "HTTP/2"} {
		if status, err := reach(way, "bad.localhost", port); status != 200 {
			t.Fatalf("%s: before, the tunnel does not reach the host: %d, %v", way, status, err)
		}
	}
	if a := plain("bad.localhost"); a.status != 200 {
		t.Fatalf("before, the plain host answers %d", a.status)
	}
	open, err := s.connect("bad.provider.test:443", "bad.provider.test", s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(open)
	if a := ask(t, open, r, "bad.provider.test"); a.status != 200 {
		t.Fatalf("before: %d", a.status)
	}

	s.config.Routes = append(s.config.Routes,
		Route{Name: "bad", Hosts: []string{"bad.localhost:" + port, "bad.localhost:" + plainPort, "bad.provider.test", "*.wild.localhost:" + port}, ConnectTo: "nowhere"},
		Route{Name: "mended", Hosts: []string{"good.wild.localhost:" + port}, ConnectTo: s.upstream.address})
	s.publish()
	envoytest.Await(t, "the host to be refused", func() error {
		if status, err := reach("CONNECT", "bad.localhost", port); err == nil {
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
	s.await("the rest of the configuration", Node.Current)
	requests := s.upstream.requests.Load()

	for way := range ways {
		for _, name := range []string{"bad.localhost", "x.wild.localhost", "bad.provider.test"} {
			p := port
			if strings.HasSuffix(name, ".test") {
				p = "443"
			}
			if status, err := reach(way, name, p); err == nil || !strings.Contains(err.Error(), "access denied") {
				t.Errorf("%s for %s: %d, %v, want the alert access_denied", way, name, status, err)
			}
		}
	}
	replied(t, plain("bad.localhost"), 403, reasonUseConnect)
	replied(t, ask(t, open, r, "bad.provider.test"), 421, reasonMisdirected)
	if n := s.upstream.requests.Load() - requests; n != 0 {
		t.Errorf("%d requests for hosts that are taken out reached the upstream", n)
	}

	for _, name := range []string{"good.localhost", "good.wild.localhost"} {
		for _, way := range []string{"CONNECT", "HTTP/2"} {
			if status, err := reach(way, name, port); status != 200 {
				t.Errorf("%s for %s: %d, %v", way, name, status, err)
			}
		}
	}
	for _, name := range []string{apiHost, "other.provider.test"} {
		if a := get(t, s.worker("ann"), "https://"+name+"/"); a.body != "Bearer real-ann" {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
	}
	if a := plain("good.localhost"); a.status != 200 {
		t.Errorf("plain: %d", a.status)
	}
}

// A worker that has shaken hands for a host cannot take that up again once the host is withdrawn: no session is resumed.
func TestNoSessionIsResumed(t *testing.T) {
	s := start(t, func(c *Config) {
		c.Routes = append(c.Routes, Route{Name: "goes", Hosts: []string{"goes.provider.test"}, ConnectTo: c.Routes[0].ConnectTo})
	}, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{ServerName: "goes.provider.test", RootCAs: s.leaves.pool(), ClientSessionCache: tls.NewLRUClientSessionCache(10), MaxVersion: version}
		shake := func() error {
			raw, err := s.dialTunnel("goes.provider.test:443")
			if err != nil {
				return err
			}
			conn := tls.Client(raw, config)
			defer conn.Close()
			if err := conn.HandshakeContext(t.Context()); err != nil {
				return err
			}
			if conn.ConnectionState().DidResume {
				t.Error("a session was resumed")
			}
			if a := ask(t, conn, bufio.NewReader(conn), "goes.provider.test"); a.status != 200 {
				t.Errorf("got %d", a.status)
			}
			return nil
		}
		for range 3 {
			if err := shake(); err != nil {
				t.Fatal(err)
			}
		}
		all := s.config.Routes
		s.config.Routes = all[:1]
		s.publish()
		envoytest.Await(t, "the host to be withdrawn", func() error {
			raw, err := s.dialTunnel("goes.provider.test:443")
			if err != nil {
				return err
			}
			conn := tls.Client(raw, config)
			defer conn.Close()
			if err := conn.HandshakeContext(t.Context()); err == nil {
				return fmt.Errorf("it is served, resumed: %v", conn.ConnectionState().DidResume)
			}
			return nil
		})
		s.config.Routes = all
		s.publish()
		envoytest.Await(t, "the host to be back", shake)
	}
}
