package xds

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/envoy/envoytest"
)

// What becomes of handshakes when leaves cannot be had, on a real Envoy and by every way that leads to one: through a
// tunnel, redirected, and to the proxy itself.

const (
	handshakeFailure = "remote error: tls: handshake failure" // an alert, at once
	noAnswer         = "EOF"                                  // Envoy has waited long enough
)

// leafStack is a stack whose leaves a test can spoil, by host.
type leafStack struct {
	*stack
	mu      sync.Mutex
	spoiled map[string]Minter
	made    map[string]int
	names   int // handed out so far
}

// startLeaves gives handshakes as long as patience to complete; zero: as long as they have.
func startLeaves(t *testing.T, patience time.Duration) *leafStack {
	t.Helper()
	l := &leafStack{spoiled: map[string]Minter{}, made: map[string]int{}}
	l.stack = start(t, func(c *Config) {
		c.Routes = append(c.Routes, Route{Name: "wild", Hosts: []string{"*.provider.test"}, ConnectTo: c.Routes[0].ConnectTo})
		c.Transparent = &Transparent{Address: freeAddress(t), Sources: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
		c.ProxyTLS = &ProxyTLS{Address: freeAddress(t)}
		for i := range 40 {
			c.ProxyTLS.Names = append(c.ProxyTLS.Names, fmt.Sprintf("gate%d.example.test", i))
		}
	}, func(r *Resources) {
		for _, listener := range r.Listeners {
			for _, chain := range listener.GetFilterChains() {
				if chain.GetTransportSocketConnectTimeout() != nil && patience != 0 {
					chain.TransportSocketConnectTimeout.Seconds = int64(patience / time.Second)
				}
			}
		}
	})
	l.mint = func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		l.mu.Lock()
		l.made[host]++
		mint := l.spoiled[host]
		l.mu.Unlock()
		if mint == nil {
			mint = l.leaves.mint
		}
		return mint(host, root)
	}
	return l
}

// spoil makes the leaves of host by m; nil: as all others.
func (l *leafStack) spoil(host string, m Minter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spoiled[host] = m
}

func (l *leafStack) timesMade(host string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.made[host]
}

// way is how a connection for a name comes to Envoy.
type way struct {
	name string
	host func() string                       // returns one that was not asked for yet
	dial func(host string) (net.Conn, error) // and the handshake is the caller's
}

func (l *leafStack) ways() []way {
	to := func(address string) func(string) (net.Conn, error) {
		return func(string) (net.Conn, error) {
			c, err := dialerTo(address)(l.t.Context(), "tcp", "")
			if err == nil {
				l.t.Cleanup(func() { _ = c.Close() })
				err = c.SetDeadline(time.Now().Add(20 * time.Second))
			}
			return c, err
		}
	}
	routed := func() string { l.names++; return fmt.Sprintf("host%d.provider.test", l.names) }
	proxy := 0
	return []way{
		{"tunnel", routed, func(host string) (net.Conn, error) { return l.dialTunnel(host + ":443") }},
		{"redirected", routed, to(l.config.Transparent.Address)},
		{"proxy over TLS", func() string { proxy++; return l.config.ProxyTLS.Names[proxy-1] }, to(l.config.ProxyTLS.Address)},
	}
}

// handshake makes a connection for host, and returns what became of it.
func (l *leafStack) handshake(w way, host string) error {
	c, err := w.dial(host)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return l.over(c, host).HandshakeContext(l.t.Context())
}

func (l *leafStack) over(c net.Conn, host string) *tls.Conn {
	return tls.Client(c, &tls.Config{ServerName: host, RootCAs: l.leaves.pool()})
}

func ended(err error, want string) bool { return err != nil && err.Error() == want }

// spoiler makes leaves that cannot be used, and says is what the gate's log says of them.
type spoiler struct {
	mint Minter
	says string
}

func (l *leafStack) spoilers() map[string]spoiler {
	return map[string]spoiler{
		"refused": {func(string, string) (c, k []byte, notAfter time.Time, err error) {
			return nil, nil, time.Time{}, errors.New("not this one")
		}, "not this one"},
		"not a certificate": {func(host, root string) (c, k []byte, notAfter time.Time, err error) {
			_, k, notAfter, err = l.leaves.mint(host, root)
			return []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), k, notAfter, err
		}, "Failed to load certificate chain"},
		"no certificate": {func(host, root string) (c, k []byte, notAfter time.Time, err error) {
			_, k, notAfter, err = l.leaves.mint(host, root)
			return nil, k, notAfter, err
		}, "certificate chain not set"},
		"the key of another": {func(host, root string) (c, k []byte, notAfter time.Time, err error) {
			_, other, _, err := l.leaves.mint(host, root)
			if err != nil {
				return nil, nil, time.Time{}, err
			}
			c, _, notAfter, err = l.leaves.mint(host, root)
			return c, other, notAfter, err
		}, "KEY_VALUES_MISMATCH"},
	}
}

// A leaf that is refused, by us or by Envoy, fails its handshake at once and no other. Envoy's words are logged, nothing
// is sent again, and the name works as soon as there is a good leaf.
func TestSpoiledLeaf(t *testing.T) {
	for name, spoiler := range (&leafStack{}).spoilers() {
		says := spoiler.says
		t.Run(name, func(t *testing.T) {
			l := startLeaves(t, 0)
			spoiled := l.spoilers()[name].mint
			for _, w := range l.ways() {
				t.Run(w.name, func(t *testing.T) {
					good, bad := w.host(), w.host()
					if err := l.handshake(w, good); err != nil {
						t.Fatalf("another host: %v", err)
					}
					l.await("everything acknowledged", Node.Current)
					l.spoil(bad, spoiled)
					for range 2 {
						before := l.secretState()
						if err := l.handshake(w, bad); !ended(err, handshakeFailure) {
							t.Errorf("the handshake ended with %v, want an alert", err)
						}
						l.await("everything acknowledged", Node.Current)
						// The leaf that Envoy refuses, and its removal.
						if sends := l.secretState().Sends - before.Sends; sends > 2 {
							t.Errorf("%d responses for one handshake", sends)
						}
						if err := l.handshake(w, good); err != nil {
							t.Errorf("another host: %v", err)
						}
						if err := l.handshake(w, w.host()); err != nil {
							t.Errorf("another host's first handshake: %v", err)
						}
					}
					if made := l.timesMade(bad); made != 2 {
						t.Errorf("%d leaves were made for two handshakes", made)
					}
					l.spoil(bad, nil)
					if err := l.handshake(w, bad); err != nil {
						t.Errorf("with a good leaf: %v", err)
					}
					if made := l.timesMade(good); made != 1 {
						t.Errorf("%d leaves were made for the other host", made)
					}
				})
			}
			if log := l.logged.String(); strings.Count(log, says) != 1 || !strings.Contains(log, "host=host2.provider.test") && !strings.Contains(log, "host=gate1.example.test") {
				t.Errorf("the log does not name the host and say %q once in the minute:\n%s", says, log)
			}
			if strings.Contains(l.logged.String(), "PRIVATE KEY") || strings.Contains(l.log(), "PRIVATE KEY") {
				t.Error("a log holds a key")
			}
		})
	}
}

func (s *stack) secretState() TypeState {
	for _, n := range s.server.Nodes() {
		if i := slices.IndexFunc(n.Types, func(t TypeState) bool { return t.Type == "Secret" }); i >= 0 {
			return n.Types[i]
		}
	}
	return TypeState{}
}

// Leaves that are sent together do not share their fate, at first or after the stream was lost.
func TestSpoiledLeafAmongOthers(t *testing.T) {
	l := startLeaves(t, 0)
	redirected := l.ways()[1]
	spoilers := l.spoilers()
	var bad []string
	for range 8 { // Envoy would look at the secrets of one response in no order
		// While one leaf is being made, the next names collect.
		blocking, reached, release := redirected.host(), make(chan struct{}), make(chan struct{})
		l.spoil(blocking, func(host, root string) (c, k []byte, notAfter time.Time, err error) {
			close(reached)
			<-release
			return l.leaves.mint(host, root)
		})
		results := make(chan string)
		handshake := func(host, want string) {
			err := l.handshake(redirected, host)
			if fmt.Sprint(err) != want {
				results <- fmt.Sprintf("%s: %v, want %v", host, err, want)
				return
			}
			results <- ""
		}
		go handshake(blocking, "<nil>")
		<-reached
		waiting := map[string]string{}
		for range 6 {
			waiting[redirected.host()] = "<nil>"
		}
		for _, s := range spoilers {
			host := redirected.host()
			l.spoil(host, s.mint)
			waiting[host], bad = handshakeFailure, append(bad, host)
		}
		for host, want := range waiting {
			go handshake(host, want)
		}
		envoytest.Await(t, "all names to be asked for", func() error {
			l.server.secrets.mu.Lock()
			defer l.server.secrets.mu.Unlock()
			for sub := range l.server.secrets.subscribers {
				if len(sub.owed) == len(waiting) {
					return nil
				}
			}
			return errors.New("not yet")
		})
		l.spoil(blocking, nil)
		close(release)
		for range len(waiting) + 1 {
			if fault := <-results; fault != "" {
				t.Error(fault)
			}
		}
	}
	l.await("everything acknowledged", Node.Current)

	// All names come at once now. Those that go bad with the new leaves are lost alone.
	good, gone := redirected.host(), redirected.host()
	for _, host := range []string{good, gone} {
		if err := l.handshake(redirected, host); err != nil {
			t.Fatal(err)
		}
	}
	l.stop()
	l.spoil(gone, spoilers["the key of another"].mint)
	l.serve()
	envoytest.Await(t, "the host with a spoiled leaf to be lost", func() error { // Envoy has the old one until it is sent the new
		switch err := l.handshake(redirected, gone); {
		case err == nil:
			return errors.New("its handshakes are done still")
		case !ended(err, handshakeFailure):
			t.Fatalf("a host with a spoiled leaf: %v", err)
		}
		return nil
	})
	if err := l.handshake(redirected, good); err != nil {
		t.Error(err)
	}
	for _, host := range append(bad, gone) {
		l.spoil(host, nil)
		if err := l.handshake(redirected, host); err != nil {
			t.Errorf("%s with a good leaf: %v", host, err)
		}
	}
}

// A handshake waits for its leaf, for so long, and no longer; the leaf that came too late is for the next.
func TestLateLeaf(t *testing.T) {
	l := startLeaves(t, time.Second)
	for _, w := range l.ways() {
		t.Run(w.name, func(t *testing.T) {
			known, late := w.host(), w.host()
			if err := l.handshake(w, known); err != nil {
				t.Fatal(err)
			}
			release := make(chan struct{})
			l.spoil(late, func(host, root string) (c, k []byte, notAfter time.Time, err error) {
				<-release
				return l.leaves.mint(host, root)
			})
			for range 2 {
				if err := l.handshake(w, late); !ended(err, noAnswer) {
					t.Errorf("the handshake ended with %v", err)
				}
				if err := l.handshake(w, known); err != nil {
					t.Errorf("a host that is known: %v", err)
				}
			}
			close(release)
			envoytest.Await(t, "the late host", func() error { return l.handshake(w, late) })
			if made := l.timesMade(late); made != 1 {
				t.Errorf("%d leaves were made", made)
			}
		})
	}
}

// While the control plane is away, hosts that are known complete their handshakes and new ones wait, for so long. None
// needs another Envoy afterwards.
func TestHandshakeWithoutControlPlane(t *testing.T) {
	for _, outage := range []string{"short", "long"} {
		t.Run(outage, func(t *testing.T) {
			patience := time.Duration(0)
			if outage == "long" {
				patience = time.Second
			}
			l := startLeaves(t, patience)
			ways := l.ways()
			known, fresh := map[string]string{}, map[string]string{}
			waiting := map[string]net.Conn{}
			for _, w := range ways {
				known[w.name], fresh[w.name] = w.host(), w.host()
				if err := l.handshake(w, known[w.name]); err != nil {
					t.Fatal(err)
				}
				c, err := w.dial(fresh[w.name]) // a tunnel can be opened only while there is a gate
				if err != nil {
					t.Fatal(err)
				}
				waiting[w.name] = c
			}
			l.stop()

			// A new tunnel is refused in words.
			if _, err := l.dialTunnel(known["tunnel"] + ":443"); err == nil || !strings.Contains(err.Error(), " 503 ") {
				t.Errorf("a new tunnel: %v", err)
			}
			// Where nobody asks the gate first, the handshake is done, and the request is refused in words.
			for _, w := range ways[1:] {
				c, err := w.dial(known[w.name])
				if err != nil {
					t.Fatal(err)
				}
				conn := l.over(c, known[w.name])
				if err := conn.HandshakeContext(t.Context()); err != nil {
					t.Errorf("%s: a host that is known: %v", w.name, err)
				} else if w.name == "redirected" {
					replied(t, ask(t, conn, bufio.NewReader(conn), known[w.name]), 503, reasonGateUnavailable)
				}
			}

			type result struct {
				way string
				err error
			}
			results, written := make(chan result), make(chan struct{})
			for _, w := range ways {
				go func() {
					c := &tellWrite{Conn: waiting[w.name], wrote: written}
					results <- result{w.name, l.over(c, fresh[w.name]).HandshakeContext(context.WithoutCancel(t.Context()))}
				}()
				<-written // the ClientHello is on its way
			}
			if outage == "short" {
				l.serve()
			}
			for range ways {
				r := <-results
				if outage == "short" && r.err != nil || outage == "long" && !ended(r.err, noAnswer) {
					t.Errorf("%s: the first handshake for a host: %v", r.way, r.err)
				}
			}
			if outage == "long" {
				l.serve()
			}
			for _, w := range ways {
				for _, host := range []string{fresh[w.name], known[w.name], w.host()} {
					envoytest.Await(t, w.name, func() error { return l.handshake(w, host) })
				}
			}
			if a := get(t, l.worker("ann"), "https://"+known["tunnel"]+"/"); a.body != "Bearer real-ann" {
				t.Errorf("afterwards: %d %q", a.status, a.body)
			}
		})
	}
}

// tellWrite says when the first bytes have been written.
type tellWrite struct {
	net.Conn
	once  sync.Once
	wrote chan<- struct{}
}

func (c *tellWrite) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.once.Do(func() { c.wrote <- struct{}{} })
	return n, err
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
