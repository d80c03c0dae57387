package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// wiretap is an upstream for HTTP/1.1 that keeps all that arrives, byte for byte.
type wiretap struct {
	recorder
	mu    sync.Mutex
	bytes strings.Builder
}

func (w *wiretap) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes.Write(p)
}

// tapped returns what arrived since it was last asked.
func (w *wiretap) tapped() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.bytes.String()
	w.bytes.Reset()
	return s
}

type tappedConn struct {
	net.Conn
	from io.Reader
}

func (c tappedConn) Read(p []byte) (int, error) { return c.from.Read(p) }

func (w *wiretap) serve(c net.Conn) {
	w.recorder.serve(tappedConn{c, io.TeeReader(c, w)})
}

// What Envoy decides by itself it decides as the gate does: of all that the corpus has, sent when a lease is live, each request is
// answered, refused and sent on alike in both lanes, and what arrives is the same byte for byte.
func TestLanesAreAlike(t *testing.T) {
	t.Parallel()
	g, w, taps := startLanes(t)

	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	run := func(e entry, host string) (answers []string, arrived string) {
		fill := strings.NewReplacer("{ph}", w.placeholder, "{PH}", strings.ToUpper(w.placeholder), "{host}", host, "{HOST}", strings.ToUpper(host), "{smuggled}", fmt.Sprint(len(smuggle)-len("{host}{ph}")+len(host)+len(w.placeholder)),
			"{basic}", b64("u:"+w.placeholder), "{basicx}", b64("u:"+w.placeholder+"x"), "{%2577}", strings.ReplaceAll(w.placeholder, "w", "%2577")).Replace
		named := strings.NewReplacer(host, "{host}", strings.ToUpper(host), "{HOST}").Replace
		conn := g.primed(t, w, host)
		tap := taps[host]
		tap.tapped()
		got, _ := converse(conn, host, fill(e.text), len(e.want))
		conn.Close()
		for _, a := range got {
			text := fmt.Sprintf("%d %s %s", a.status, a.reason, named(a.body))
			if id := a.header.Get("X-Request-Id"); id != "" {
				text = strings.ReplaceAll(text, id, "{id}")
			}
			answers = append(answers, text)
		}
		return answers, named(tap.tapped())
	}
	plain := []entry{
		{"a query", get("/a?b=c&d=e", bearer), good("/a?b=c&d=e")},
		{"a body", post("/a", "abcd", bearer, "Content-Length: 4", "Content-Type: application/json"), good("/a")},
		{"an odd path", get("/a/../b;c//d", bearer), good("/a/../b;c//d")},
		{"of messages", get("/v1/messages", bearer), good("/v1/messages")},
		{"of messages, with what it needs", get("/v1/messages?beta=true", bearer, "anthropic-beta: a, oauth-2025-04-20"), good("/v1/messages?beta=true")},
		{"of messages, with something else", get("/v1/messages", "anthropic-beta: a", bearer, "User-Agent: x"), good("/v1/messages")},
		{"of messages, with something else twice", get("/v1/messages", "anthropic-beta: a", bearer, "anthropic-beta: b"), good("/v1/messages")},
		{"a head in another order", get("/a", "Accept: */*", "X-A: 1", bearer, "X-B: 2", "Cookie: a=b"), good("/a")},
		{"percent signs", get("/a?b=%20", bearer, "X: 100%"), good("/a?b=%20")},
	}
	for _, e := range slices.Concat(plain, corpusHTTP1) {
		inBothLanes(t, e.name, func(host string) ([]string, string) {
			answers, arrived := run(e, host)
			if strings.HasPrefix(e.name, "chunks that are none/") { // the head may have gone on before the fault is read
				arrived = ""
			}
			return answers, arrived
		})
	}
	if fast, slow := g.lanesTaken(t); fast < slow/2 {
		t.Errorf("%d requests took the fast lane, and %d the other: of those that were let out nearly half should", fast, slow)
	}
}

// inBothLanes compares what is answered, and what arrives, at the two hosts of startLanes.
func inBothLanes[A any](t *testing.T, name string, run func(host string) (answered A, arrived string)) {
	t.Helper()
	fastAnswer, fastBytes := run("fast.demo.test")
	slowAnswer, slowBytes := run("slow.demo.test")
	if diff := cmp.Diff(slowAnswer, fastAnswer); diff != "" {
		t.Errorf("%s: the fast lane answers otherwise:\n%s", name, diff)
	}
	if diff := cmp.Diff(slowBytes, fastBytes); diff != "" {
		t.Errorf("%s: the fast lane sends on otherwise:\n%s", name, diff)
	}
}

// startLanes is a gate with two hosts that differ in their lanes alone, and what arrives at them.
func startLanes(t *testing.T) (*gate, worker, map[string]*wiretap) {
	t.Helper()
	made := makeWorld(t)
	taps := map[string]*wiretap{"fast.demo.test": {}, "slow.demo.test": {}}
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [fast.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [slow.demo.test], grant: claude, connect_to: "%s", lane: ext_proc}
`, newRawUpstream(t, made.CA, "fast.demo.test", taps["fast.demo.test"].serve), newRawUpstream(t, made.CA, "slow.demo.test", taps["slow.demo.test"].serve)), "", "audit: {file: audit.jsonl}\n"), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	g.awaitLane(t, w, "fast.demo.test")
	return g, w, taps
}

// lanesTaken ends the gate, and counts by lanes the requests that were let out.
func (g *gate) lanesTaken(t *testing.T) (fast, slow int) {
	t.Helper()
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	for _, l := range auditLines(t, g.saved("audit.jsonl")) {
		switch {
		case l.Kind != "request" || l.Outcome != "swapped" || l.Path == "/prime":
		case l.Lane == "":
			slow++
		case l.Host != "fast.demo.test":
			t.Errorf("a request to %s took the fast lane", l.Host)
		default:
			fast++
		}
	}
	t.Logf("%d requests took the fast lane, %d the other", fast, slow)
	return fast, slow
}

// The same of the header fields that only HTTP/2 can have.
func TestLanesAreAlikeOverHTTP2(t *testing.T) {
	t.Parallel()
	g, w, taps := startLanes(t)
	run := func(e fieldsEntry, host string) (said, arrived string) {
		fill := strings.NewReplacer("{ph}", w.placeholder, "{host}", host).Replace
		named := strings.NewReplacer(host, "{host}").Replace
		tap := taps[host]
		tap.tapped()
		first := encode(fieldsEntry{fields: also(":path", "/prime")}.request(fill))
		conn := tls.Client(g.tunnel(t, w, host+":443"), &tls.Config{ServerName: host, RootCAs: w.roots, NextProtos: []string{"h2"}})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		defer conn.Close()
		block := encode(e.request(fill))
		const head, settings = 9, len(http2.ClientPreface) + 9
		// Where the first request has arrived, its answer was leased.
		held := &heldConn{Conn: conn, first: settings + head + len(first), held: func() error {
			return eventually(func() error {
				if arrived += named(tap.tapped()); !strings.Contains(arrived, "/prime") {
					return errors.New("the first request does not arrive")
				}
				return nil
			})
		}}
		answers := speak(held, func(f *http2.Framer) error {
			err := whole(f, 1, first)
			pieces := slices.Collect(slices.Chunk(block, 16<<10))
			err = errors.Join(err, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: pieces[0], EndHeaders: len(pieces) == 1, EndStream: true}))
			for i, piece := range pieces[1:] {
				err = errors.Join(err, f.WriteContinuation(3, i == len(pieces)-2, piece))
			}
			return err
		}, false, 3)
		a := answers[3]
		said = fmt.Sprintf("%d %s %s", a.status, a.reason, named(a.body))
		if id := a.header.Get("X-Request-Id"); id != "" {
			said = strings.ReplaceAll(said, id, "{id}")
		}
		return said, arrived + named(tap.tapped())
	}
	plain := []fieldsEntry{
		{"a query", also(":path", "/a?b=c&d=e"), ""},
		{"of messages", also(":path", "/v1/messages"), ""},
		{"of messages, with what it needs", also(":path", "/v1/messages?beta=true", "anthropic-beta", "a, oauth-2025-04-20"), ""},
		{"of messages, with something else twice", also(":path", "/v1/messages", "anthropic-beta", "a", "anthropic-beta", "b"), ""},
		{"an odd path", also(":path", "/a/../b;c//d"), ""},
		{"many headers", also("accept", "*/*", "x-a", "1", "user-agent", "x", "cookie", "a=b"), ""},
	}
	for _, e := range slices.Concat(plain, corpusFields) {
		inBothLanes(t, e.name, func(host string) (string, string) { return run(e, host) })
	}
	if fast, _ := g.lanesTaken(t); fast == 0 {
		t.Error("no request took the fast lane")
	}
}

// heldConn writes so many bytes at first, and more only when held returns.
type heldConn struct {
	net.Conn
	first int
	held  func() error
}

func (c *heldConn) Write(p []byte) (int, error) {
	if c.first == 0 {
		return c.Conn.Write(p)
	}
	n := min(c.first, len(p))
	c.first = 0
	if _, err := c.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	if err := c.held(); err != nil {
		return n, err
	}
	more, err := c.Conn.Write(p[n:])
	return n + more, err
}

// primed is a connection on which the gate has just decided, inside the tunnel to host.
func (g *gate) primed(t *testing.T, w worker, host string) *tls.Conn {
	t.Helper()
	conn, err := g.inside(t, w, host, host)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /prime HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", host, w.placeholder)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the request before: status %d, %v", resp.StatusCode, err)
	}
	return conn
}

// awaitLane makes requests until one takes the fast lane.
func (g *gate) awaitLane(t *testing.T, w worker, host string) {
	t.Helper()
	if err := eventually(func() error {
		conn := g.primed(t, w, host)
		defer conn.Close()
		fmt.Fprintf(conn, "GET /prime HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", host, w.placeholder)
		_, _ = io.Copy(io.Discard, conn)
		for _, l := range auditLines(t, g.saved("audit.jsonl")) {
			if l.Lane == "fast" && l.Host == host {
				return nil
			}
		}
		return fmt.Errorf("no request to %s has taken the fast lane", host)
	}); err != nil {
		t.Fatal(err)
	}
}

// busy is a connection over which one request follows another.
type busy struct {
	stop  func()
	mu    sync.Mutex
	count int       // of answers, since the last change of them
	last  time.Time // when the last request was sent that was served
	until time.Time // when the first answer was another one; zero: there is none
	other string    // it
}

func (w worker) keepBusy(t *testing.T, host string) *busy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b, done := &busy{}, make(chan struct{})
	b.stop = func() { cancel(); <-done }
	t.Cleanup(b.stop)
	client := w.client(t, false)
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			sent := time.Now()
			a, err := do(client, w.request(http.MethodGet, "https://"+host+"/echo", nil))
			b.note(sent, a, err)
		}
	}()
	return b
}

func (b *busy) note(sent time.Time, a answer, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	switch {
	case err == nil && a.status == http.StatusOK:
		b.last = sent
	case b.until.IsZero():
		b.until, b.other, b.count = time.Now(), fmt.Sprintf("%v, %v", a, err), 1
	}
}

// answered waits for so many answers: of requests that were served, or from the first on that was not.
func (b *busy) answered(t *testing.T, served bool, n int) {
	t.Helper()
	if err := eventually(func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if served != b.until.IsZero() || b.count < n {
			return fmt.Errorf("%d answers, the last served was to a request of %v, the first other one is %s", b.count, b.last, b.other)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// refusedBy waits until the requests of both connections are refused, for this reason, and compares since when.
func refusedBy(t *testing.T, fast, slow *busy, reason string) {
	t.Helper()
	for _, b := range []*busy{fast, slow} {
		b.answered(t, false, 20)
		b.stop()
		if !strings.Contains(b.other, reason) {
			t.Errorf("the first answer that is another one is %s; want %s", b.other, reason)
		}
	}
	late := fast.last.Sub(slow.until)
	t.Logf("%s: the last request that the fast lane served began %v after the first that the slow lane refused", reason, late)
	if late > staleness {
		t.Errorf("the fast lane served for %v longer than the slow lane; want at most %v", late, staleness)
	}
}

// staleness is how much later than in the slow lane a change holds in the fast one, at the latest: a lease lasts a second.
const staleness = 2 * time.Second

// Whatever takes a worker's right to a credential holds on a busy connection in the fast lane soon after it holds in the slow one.
func TestChangesReachTheFastLane(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	const fastHost, slowHost = "fast.demo.test", "slow.demo.test"
	upstream := func(host string) string { return newRawUpstream(t, made.CA, host, new(recorder).serve) }
	file := base(fmt.Sprintf(`
  - {hosts: [fast.demo.test], grant: claude, connect_to: "%s"}
  - {hosts: [slow.demo.test], grant: claude, connect_to: "%s", lane: ext_proc}
`, upstream(fastHost), upstream(slowHost)), "", "  x: {profile: default}\naudit: {file: audit.jsonl}\nrollout: {steps: [{share: 100, dwell: 1s}]}\n")
	made.Provider.AllowScopes("user:inference")
	g := startIn(t, made, file, "claude")
	// held opens two connections of a worker, and changes something when they are in their lanes.
	held := func(t *testing.T, worker, reason string, change func(created) error) {
		t.Helper()
		c := g.createSession(t, "--worker", worker)
		g.awaitLane(t, c.worker, fastHost)
		fast, slow := c.keepBusy(t, fastHost), c.keepBusy(t, slowHost)
		for _, b := range []*busy{fast, slow} {
			b.answered(t, true, 20)
		}
		if err := change(c); err != nil {
			t.Fatal(err)
		}
		refusedBy(t, fast, slow, reason)
	}
	command := func(args ...string) error {
		if out, err := g.command("wayleave", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	rollout := func(text, force string) error {
		next := g.with("WAYLEAVE_CONFIG=" + g.saved("next.yaml"))
		if err := next.configure(text); err != nil {
			return err
		}
		args := []string{"rollout", "start", "next.yaml", "--watch"}
		if force != "" {
			args = append(args, "--force", force)
		}
		return command(args...)
	}
	t.Run("a session is revoked", func(t *testing.T) {
		held(t, "w", "session_revoked", func(c created) error { return command("session", "revoke", c.session) })
	})
	t.Run("a scope is required", func(t *testing.T) {
		held(t, "w", "scope", func(created) error {
			return rollout(strings.ReplaceAll(file, "grant: claude,", "grant: claude, required_scopes: [user:sessions:claude_code],"), "needs_reconnect")
		})
	})
	t.Run("a worker is shut out", func(t *testing.T) {
		if err := rollout(file, ""); err != nil {
			t.Fatal(err)
		}
		held(t, "x", "session_expired", func(created) error {
			return rollout(strings.Replace(file, "  x: {profile: default}\n", "", 1), "drops_worker")
		})
	})
	t.Run("the grant is disconnected", func(t *testing.T) {
		held(t, "w", "never_connected", func(created) error { return command("grant", "disconnect", "claude", "--yes", "--no-revoke") })
	})
}

// inFastLane counts the requests that took it, as far as is written.
func (w *world) inFastLane(t *testing.T) (n int) {
	t.Helper()
	for _, l := range auditLines(t, w.saved("audit*.jsonl")) {
		if l.Lane == "fast" {
			n++
		}
	}
	return n
}

// awaitFast waits until n further requests have taken the fast lane.
func (w *world) awaitFast(t *testing.T, n int) {
	t.Helper()
	before := w.inFastLane(t)
	if err := eventually(func() error {
		if now := w.inFastLane(t); now < before+n {
			return fmt.Errorf("%d requests took the fast lane, of %d more", now-before, n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A token is replaced while many requests are in the fast lane, at a provider where the one before ends with that, and one is revoked there:
// none fails, whichever gate refreshes.
func TestRotationInTheFastLane(t *testing.T) {
	t.Parallel()
	s := newHouseOf(t, fleetConfig+"audit: {file: audit.jsonl}\n", "a", "b")
	s.Provider.FailCalls(func(_ http.ResponseWriter, params map[string]string) bool {
		if params["grant_type"] == "refresh_token" {
			s.Provider.ExpireAccess()
		}
		return false
	})
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	var clients []*http.Client
	for i := range 8 {
		clients = append(clients, w.client(t, i%2 == 0))
	}
	load := startSteadyOver(w, clients, steadyRate/2)
	for range 2 {
		s.awaitFast(t, 50)
		s.must(t, "wayleave", "grant", "refresh", "claude")
		load.more(t, 200)
		load.report(t, "a token was replaced", 0)
	}
	s.awaitFast(t, 50)
	s.Provider.ExpireAccess()
	load.more(t, 200)
	load.report(t, "a token was revoked at the provider", 0)
	s.awaitFast(t, 50)
	load.stop()
	load.report(t, "at the end", 0)
	t.Logf("%d refreshes", s.Provider.Stats().Refreshes)
	if st := s.Provider.Stats(); st.Refreshes != 3 || st.MaxPresented() != 1 || st.Reuses != 0 {
		t.Errorf("%d refreshes, a refresh token was presented %d times; want 3, each once", st.Refreshes, st.MaxPresented())
	}
}

// Without a gate the fast lane ends with its leases.
func TestGateIsKilledInTheFastLane(t *testing.T) {
	t.Parallel()
	s := newHouseOf(t, fleetConfig+"audit: {file: audit.jsonl}\n")
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	b := w.keepBusy(t, "api.demo.test")
	b.answered(t, true, 20)
	s.awaitFast(t, 20)
	s.gates[""].kill()
	killed := time.Now()
	b.answered(t, false, 20)
	b.stop()
	late := b.last.Sub(killed)
	t.Logf("the last request that was served began %v after the gate was gone", late)
	if late > staleness || !strings.Contains(b.other, "gate_unavailable") {
		t.Errorf("served for %v without a gate, then %s", late, b.other)
	}
	s.serve(t, "")
	w.works(t)
}
