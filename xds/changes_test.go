package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"

	"wayleave/envoy/envoytest"
)

// What changes while connections are open, on a real Envoy.

// Hosts come and go, each with a cluster of its own, while requests are made: none finds that its host is only half there.
func TestHostsComeAndGoUnderLoad(t *testing.T) {
	s := start(t, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var requests atomic.Int64
	for i := range 4 {
		client := s.worker(fmt.Sprintf("w%d", i))
		load.Go(func() {
			for ctx.Err() == nil {
				resp, err := client.Get("https://" + apiHost + "/")
				if err != nil {
					t.Errorf("a host that stays: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("a host that stays: %d", resp.StatusCode)
					return
				}
				requests.Add(1)
			}
		})
	}
	ann := s.worker("ann")
	fixed := s.config.Routes[0]
	for i := range 30 {
		// One host more, and the one before goes: its cluster after its route.
		name := fmt.Sprintf("host%d.provider.test", i)
		s.config.Routes = []Route{fixed, {Name: fmt.Sprintf("route%d", i), Hosts: []string{name}, ConnectTo: s.upstream.address}}
		s.publish()
		envoytest.Await(t, "the new host", func() error {
			c, err := s.connect(name+":443", name, s.leaves.pool())
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		// From its first handshake on: the listener knows of it last.
		if a := get(t, ann, "https://"+name+"/"); a.status != 200 {
			t.Fatalf("a new host: %d %q", a.status, a.body)
		}
	}
	cancel()
	load.Wait()
	if requests.Load() == 0 {
		t.Error("there was no load")
	}
}

// The virtual hosts, which come one by one, are at each moment those of the configuration: added, moved from one route to
// another, taken out, refused, and after a restart of the control plane, which finds out what Envoy has.
func TestVirtualHostsFollow(t *testing.T) {
	const wild, named = "x.wild.localhost", "y.wild.localhost"
	s := start(t, nil, nil)
	fixed := s.config.Routes[0]
	route := func(name string, hosts ...string) Route {
		return Route{Name: name, Hosts: hosts, ConnectTo: s.upstream.address}
	}
	conns := map[string]*tls.Conn{}
	steps := []struct {
		what    string
		routes  []Route
		restart bool
		want    map[string]int
	}{
		{"added", []Route{fixed, route("a", wild), route("b", named)}, false, map[string]int{apiHost: 200, wild: 200, named: 200}},
		{"one is taken out", []Route{fixed, route("a", wild)}, false, map[string]int{apiHost: 200, wild: 200, named: 421}},
		{"one moves", []Route{fixed, route("b", wild, named)}, false, map[string]int{apiHost: 200, wild: 200, named: 200}},
		{"back, over a restart", []Route{fixed, route("a", wild), route("c", named)}, true, map[string]int{apiHost: 200, wild: 200, named: 200}},
		{"a wildcard", []Route{fixed, route("w", "*.wild.localhost")}, false, map[string]int{apiHost: 200, wild: 200, named: 200}},
		{"one is fenced", []Route{fixed, route("w", "*.wild.localhost"), route("d", named), {Name: "d", Hosts: []string{named}, ALPN: []string{"h3"}}}, false, map[string]int{apiHost: 200, wild: 200, named: 421}},
		{"none but one, over a restart", []Route{fixed}, true, map[string]int{apiHost: 200, wild: 421, named: 421}},
	}
	for i, step := range steps {
		s.config.Routes, s.config.Revision = step.routes, fmt.Sprintf("r%d", i)
		if step.restart {
			s.stop()
			s.serve()
		} else {
			s.publish()
		}
		s.await(step.what, func(n Node) bool { return n.Has == s.config.Revision })
		for _, host := range sortedKeys(step.want) {
			if conns[host] == nil { // the first time, and kept: a request on it finds the routes of the moment
				conn, err := s.connect(host+":443", host, s.leaves.pool())
				if err != nil {
					t.Fatalf("%s: %s: %v", step.what, host, err)
				}
				conns[host] = conn
			}
			if a := ask(t, conns[host], bufio.NewReader(conns[host]), host); a.status != step.want[host] {
				t.Errorf("%s: %s answers %d %s, want %d", step.what, host, a.status, a.body, step.want[host])
			}
		}
	}
}

// A WebSocket and an answer that goes on live through ten publications of the same, and through one that adds a host.
func TestPublishingKeepsStreams(t *testing.T) {
	next := make(chan struct{})
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			_, _ = io.Copy(c, rw)
			return
		}
		for i := 0; ; i++ {
			fmt.Fprintln(w, i)
			w.(http.Flusher).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", apiHost)
	socket := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(socket, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	client := s.worker("ann")
	client.Timeout = 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiHost+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewReader(resp.Body)
	said := 0
	alive := func(after string) {
		t.Helper()
		fmt.Fprintln(conn, after)
		if line, err := socket.ReadString('\n'); err != nil || line != after+"\n" {
			t.Fatalf("%s, the WebSocket: %q, %v", after, line, err)
		}
		if said > 0 {
			select {
			case next <- struct{}{}:
			case <-req.Context().Done():
			}
		}
		if line, err := events.ReadString('\n'); err != nil || line != fmt.Sprintln(said) {
			t.Fatalf("%s, the answer: %q, %v", after, line, err)
		}
		said++
	}
	alive("before")
	s.await("everything acknowledged", Node.Current)
	sends := listenerState(s).Sends
	for i := range 10 {
		s.publish()
		alive(fmt.Sprintf("publication %d", i))
	}
	if now := listenerState(s).Sends; now != sends {
		t.Errorf("the same listeners were sent %d times again", now-sends)
	}
	s.config.Routes = append(s.config.Routes, Route{Name: "new", Hosts: []string{"new.provider.test"}})
	s.publish()
	envoytest.Await(t, "the new host", func() error {
		c, err := s.connect("new.provider.test:443", "new.provider.test", s.leaves.pool())
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	alive("with a new host")
}

// A leaf that lives for seconds is replaced in time: every handshake gets one that is good.
func TestShortLeaves(t *testing.T) {
	s := start(t, nil, nil)
	s.mint = func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		return s.leaves.issue(10*time.Second, host)
	}
	seen := map[string]bool{}
	envoytest.Await(t, "the second leaf", func() error {
		conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool()) // which verifies it
		if err != nil {
			t.Fatalf("with %d leaves so far: %v", len(seen), err)
		}
		seen[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		_ = conn.Close()
		if len(seen) < 2 {
			return fmt.Errorf("%d so far", len(seen))
		}
		return nil
	})
}

// However often a secret is replaced, Envoy ends up with the last one: a leaf, and the authorities that upstreams are
// verified against.
func TestLastSecretCounts(t *testing.T) {
	s := start(t, nil, nil)
	var last atomic.Pointer[string]
	s.mint = func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		certPEM, keyPEM, notAfter, err = s.leaves.mint(host, root)
		if pair, err := tls.X509KeyPair(certPEM, keyPEM); err == nil {
			serial := pair.Leaf.SerialNumber.String()
			last.Store(&serial)
		}
		return certPEM, keyPEM, notAfter, err
	}
	if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 200 {
		t.Fatalf("got %d %q", a.status, a.body)
	}
	good, other := s.config.UpstreamCA, newAuthority(t).pem
	for i := range 100 {
		s.server.RotateLeaves()
		s.config.UpstreamCA = good
		if i%2 == 0 {
			s.config.UpstreamCA = other
		}
		s.publish()
	}
	s.await("everything acknowledged", Node.Current)
	envoytest.Await(t, "the last leaf and the last authority", func() error {
		conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].SerialNumber.String(); got != *last.Load() {
			return fmt.Errorf("the leaf %s, not %s", got, *last.Load())
		}
		if a := get(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != 200 {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
}

// Two control planes with the same configuration, written down in another order, send the same versions.
func TestReplicasAgreeOnVersions(t *testing.T) {
	ca := newAuthority(t).pem
	versions := func(reverse bool) map[string]string {
		config := Config{ProxyAddress: "127.0.0.1:3128", APISockets: []string{"/run/api.sock"}, GateSockets: map[string]string{"": "/run/gate.sock"}, Marker: testMarker, UpstreamCA: ca}
		for i := range 5 {
			config.Routes = append(config.Routes, Route{Name: fmt.Sprintf("r%d", i), Hosts: []string{fmt.Sprintf("a%d.test", i), fmt.Sprintf("b%d.test", i)}})
		}
		if reverse {
			slices.Reverse(config.Routes)
		}
		r, err := Build(config)
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(nil, Options{})
		if err := s.Serve(alone(r)); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for k, url := range typeURLs {
			out[url] = s.revisions[""].sets[k].version
		}
		for name, one := range s.secrets.static {
			out[name] = one.version
		}
		return out
	}
	if diff := cmp.Diff(versions(false), versions(true)); diff != "" {
		t.Errorf("versions (-one +other):\n%s", diff)
	}
}

// An answer that goes on holds no stream of the gate's, so that it outlives a restart of the gate and any number fit.
func TestLongAnswersHoldNoStream(t *testing.T) {
	p := startPhases(t, false, nil)
	counted := &countedGate{realGate: p.gate.real}
	p.gate.real = counted
	c := p.client(true)
	for range 200 {
		resp, err := p.send(c, http.MethodGet, "/events", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "data: 1\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	envoytest.Await(t, "the streams to end", func() error {
		if n := counted.open.Load(); n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// More requests than Envoy's own limits, of 1,024, may wait for the gate at once, and for the upstream.
func TestManyAtOnce(t *testing.T) {
	const clients, each = 11, 100
	const patience = 5 * time.Minute // a loaded machine takes its time for so many handshakes
	type gathering struct {
		here atomic.Int32
		all  chan struct{}
	}
	gather := func(g *gathering, over <-chan struct{}) { // until all are here
		if g.here.Add(1) == clients*each {
			close(g.all)
		}
		select {
		case <-g.all:
		case <-over:
		}
	}
	asked, arrived := &gathering{all: make(chan struct{})}, &gathering{all: make(chan struct{})}
	between := make(chan struct{}, 20) // so many connections are made at once
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		<-between
		gather(arrived, r.Context().Done())
		fmt.Fprint(w, r.Header.Get("Authorization"))
	}, func(c *Config) { c.MessageTimeout = patience })
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		gather(asked, t.Context().Done())
		between <- struct{}{}
		return swap(r.identity)
	}
	failures := make(chan error, clients*each)
	for i := range clients {
		name := fmt.Sprintf("w%d", i)
		client := s.worker(name)
		client.Timeout = patience
		for range each {
			go func() {
				resp, err := client.Get("https://" + apiHost + "/")
				if err == nil {
					var b []byte
					b, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && string(b) != "Bearer real-"+name {
						err = fmt.Errorf("%d %q", resp.StatusCode, b)
					}
				}
				failures <- err
			}()
		}
	}
	failed := 0
	for range clients * each {
		if err := <-failures; err != nil {
			if failed++; failed < 5 {
				t.Error(err)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d failed; %d were at the gate at once, %d at the upstream", failed, clients*each, asked.here.Load(), arrived.here.Load())
	}
}

// countedGate counts the streams that are open.
type countedGate struct {
	realGate
	open atomic.Int64
}

func (c *countedGate) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	c.open.Add(1)
	defer c.open.Add(-1)
	return c.realGate.Process(stream)
}
