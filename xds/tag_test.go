package xds

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// revisions is what a gate was told with the questions of Envoy's.
type revisions struct {
	mu   sync.Mutex
	seen map[string]string // by question
}

func (r *revisions) note(question, revision string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[question] = revision
}

// take returns and forgets.
func (r *revisions) take(question string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	revision, asked := r.seen[question]
	delete(r.seen, question)
	if !asked {
		return "not asked"
	}
	return revision
}

// passOn changes nothing of an answer.
func passOn(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	switch m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_ResponseBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{}}
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{}}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{}}
}

// redirect opens a redirected connection from source, and TLS for serverName in it.
func (s *stack) redirect(t *testing.T, source, serverName string, roots *x509.CertPool) *tls.Conn {
	t.Helper()
	c, err := s.dialFrom(source)(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	conn := tls.Client(c, &tls.Config{ServerName: serverName, RootCAs: roots})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Every question to the gate names the revision that Envoy was told, and leading an Envoy to another revision, with another
// upstream CA and another set of hosts, cuts no tunnel, no WebSocket and no answer that goes on.
func TestRevisionReachesTheGate(t *testing.T) {
	next := make(chan struct{})
	var tunnelPort string
	s, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			onlyNew(w, r)
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
	}, func(c *Config) {
		_, tunnelPort, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Tunnel = []string{"localhost:" + tunnelPort}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Transparent = &Transparent{Address: "127.0.0.2:" + tunnelPort, Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}}
		// A route with settings of its own for ext_proc.
		c.Routes = append(c.Routes, Route{Name: "bodies", Hosts: []string{"bodies.provider.test"}, ConnectTo: c.Routes[0].ConnectTo, Bodies: true})
	})
	s.serveAPI(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Values(RevisionHeader)) }))
	told := &revisions{seen: map[string]string{}}
	s.gate.asked = told.note
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		switch {
		case r.part != nil:
			return passOn(r.part)
		case r.answered == "" && r.header.Get("x-old") != "":
			return retrying()
		}
		out := forward("authorization", newToken)
		out.DynamicMetadata = verdict("swap")
		return out
	}

	build := func(revision string, change func(*Config)) *Resources {
		t.Helper()
		c := s.config
		c.Revision = revision
		c.Routes = slices.Clone(c.Routes)
		if change != nil {
			change(&c)
		}
		r, err := Build(c)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	live := map[string]*Resources{
		"":   build("", nil),
		"r1": build("r1", nil),
		"r2": build("r2", func(c *Config) {
			c.UpstreamCA = slices.Concat(c.UpstreamCA, newAuthority(t).pem)
			c.Routes = append(c.Routes, Route{Name: "more", Hosts: []string{"more.provider.test"}, ConnectTo: c.Routes[0].ConnectTo})
		}),
	}
	var now atomic.Pointer[string]
	lead := func(to string) {
		t.Helper()
		now.Store(&to)
		if err := s.server.Serve(live, func(Node) Assignment { return Assignment{Revision: *now.Load()} }); err != nil {
			t.Fatal(err)
		}
		s.await("revision "+to, func(n Node) bool { return n.Revision == to && n.Has == to && n.Listening && n.Current() })
	}

	// What stays open through it all.
	lead("")
	upgrade := func() (*tls.Conn, *bufio.Reader) {
		t.Helper()
		conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", apiHost)
		r := bufio.NewReader(conn)
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols { //nolint:bodyclose // the connection is the body
			t.Fatalf("%v, %v", resp, err)
		}
		return conn, r
	}
	conn, socket := upgrade()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := s.worker("ann")
	client.Timeout = 0
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiHost+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewReader(resp.Body)
	if line, err := events.ReadString('\n'); err != nil || line != "0\n" {
		t.Fatalf("%q, %v", line, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.config.UpstreamCA)
	tunnel, err := s.connect("localhost:"+tunnelPort, "localhost", roots)
	if err != nil {
		t.Fatal(err)
	}
	redirected := s.redirect(t, "127.1.0.7", "localhost", roots)

	said := 0
	alive := func(after string) {
		t.Helper()
		fmt.Fprintln(conn, after)
		if line, err := socket.ReadString('\n'); err != nil || line != after+"\n" {
			t.Errorf("%s, the WebSocket: %q, %v", after, line, err)
		}
		next <- struct{}{}
		said++
		if line, err := events.ReadString('\n'); err != nil || line != fmt.Sprintln(said) {
			t.Errorf("%s, the answer: %q, %v", after, line, err)
		}
		for what, c := range map[string]*tls.Conn{"the tunnel": tunnel, "the redirected tunnel": redirected} {
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: %s\r\n\r\n", newToken)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s, %s: %v", after, what, err)
				continue
			}
			_ = resp.Body.Close()
		}
	}
	for _, revision := range []string{"", "r1", "r2", "r1"} {
		lead(revision)
		alive("revision " + revision)
		ann := s.worker("ann")
		if a := get(t, ann, "https://"+apiHost+"/"); a.status != 200 {
			t.Errorf("request: %d %s", a.status, a.body)
		}
		for _, question := range []string{"connect", "request"} {
			if got := told.take(question); got != revision {
				t.Errorf("%s: the gate was told %q, not %q", question, got, revision)
			}
		}
		if a := get(t, ann, "https://"+apiHost+"/", "x-old", "1"); a.status != 200 {
			t.Errorf("request with an old token: %d %s", a.status, a.body)
		}
		for _, question := range []string{"request", "again"} {
			if got := told.take(question); got != revision {
				t.Errorf("%s, of a retry: the gate was told %q, not %q", question, got, revision)
			}
		}
		_, _ = upgrade()
		if got := told.take("request"); got != revision {
			t.Errorf("a WebSocket: the gate was told %q, not %q", got, revision)
		}
		if a := get(t, ann, "https://bodies.provider.test/"); a.status != 200 {
			t.Errorf("request with a body that is searched: %d %s", a.status, a.body)
		}
		if got := told.take("request"); got != revision {
			t.Errorf("a route with settings of its own: the gate was told %q, not %q", got, revision)
		}
		if got := told.take("answer"); got != revision {
			t.Errorf("the answer there: the gate was told %q, not %q", got, revision)
		}
		_ = s.redirect(t, "127.1.0.8", "localhost", roots)
		if got := told.take("tunnel"); got != revision {
			t.Errorf("redirected tunnel: the gate was told %q, not %q", got, revision)
		}
		want := "[" + revision + "]"
		direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if a := get(t, direct, "http://"+s.config.ProxyAddress+"/.wayleave/v1/sessions", RevisionHeader, "forged"); a.status != 200 || a.body != want {
			t.Errorf("the worker API: %d %q, want %q", a.status, a.body, want)
		}
	}
	if log := s.logged.String(); strings.Contains(log, "refused") {
		t.Error(log)
	}
}
