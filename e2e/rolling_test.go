package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// house is gates in one run directory, and the one Envoy that asks them.
type house struct {
	*fleet
	gates map[string]*gate
	envoy *gate
}

func (f *fleet) runDir() string { return f.saved("run") }

// newHouse starts everything and connects the grant. No replicas: one gate without a name.
func newHouse(t *testing.T, replicas ...string) *house {
	t.Helper()
	return newHouseOf(t, fleetConfig, replicas...)
}

func newHouseOf(t *testing.T, config string, replicas ...string) *house {
	t.Helper()
	f := newFleet(t)
	f.world = f.with("WAYLEAVE_GATE=http://" + f.proxy)
	if len(replicas) > 0 {
		config = strings.Replace(config, "{proxy: $PROXY}", "{proxy: $PROXY, replicas: ["+strings.Join(replicas, ", ")+"]}", 1)
	}
	if err := f.configure(config); err != nil {
		t.Fatal(err)
	}
	s := &house{fleet: f, gates: map[string]*gate{}}
	if len(replicas) == 0 {
		replicas = []string{""}
	}
	for _, name := range replicas {
		s.serve(t, name)
	}
	s.envoy = f.start(t, f.world, "envoy.log", "wayleave", "envoy", "--run-dir", f.runDir(), "--drain", "8s") // a client that shares its processor reads late that it is to go elsewhere
	if err := eventually(func() error {
		out, err := f.command("wayleave", "run", "--", "true").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.connect(t, time.Hour)
	return s
}

// serve starts a gate, in place of the one of this name before it.
func (s *house) serve(t *testing.T, replica string) {
	t.Helper()
	s.gates[replica] = s.begin(t, replica)
	if err := s.gates[replica].waitOutput("msg=serving"); err != nil {
		t.Fatal(err)
	}
}

func (s *house) begin(t *testing.T, replica string) *gate {
	t.Helper()
	return s.start(t, s.with("VAULT_TOKEN="), "gate."+replica+".log", "wayleave", "serve", "--replica", replica, "--run-dir", s.runDir())
}

// steady is an open loop: requests begin at a steady rate, however long the answers take. None can be sent again by the
// client unseen, since their bodies can be read but once.
type steady struct {
	wg      sync.WaitGroup
	end     chan struct{}
	begun   atomic.Int64
	served  atomic.Int64
	mu      sync.Mutex
	failed  []error
	clients []*http.Client
}

const steadyRate = 200 // requests per second

func startSteady(t *testing.T, w worker) *steady {
	t.Helper()
	var clients []*http.Client
	for i := range 20 {
		clients = append(clients, w.client(t, i%2 == 0))
	}
	return startSteadyOver(w, clients, steadyRate)
}

func startSteadyOver(w worker, clients []*http.Client, rate time.Duration) *steady {
	s := &steady{end: make(chan struct{}), clients: clients}
	s.wg.Go(func() {
		tick := time.NewTicker(time.Second / rate)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-s.end:
				return
			case <-tick.C:
			}
			client := s.clients[i%len(s.clients)]
			s.begun.Add(1)
			s.wg.Go(func() {
				began := time.Now()
				a, err := do(client, w.request(http.MethodPost, "https://api.demo.test/echo", strings.NewReader("once")))
				if err == nil && (a.status != http.StatusOK || !strings.Contains(a.body, "authorization_sha256")) {
					err = fmt.Errorf("got %v", a)
				}
				if err != nil {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.failed = append(s.failed, fmt.Errorf("after %v: %w", time.Since(began).Round(time.Millisecond), err))
					return
				}
				s.served.Add(1)
			})
		}
	})
	return s
}

// more waits until n further requests were served.
func (s *steady) more(t *testing.T, n int64) {
	t.Helper()
	before := s.served.Load()
	if err := eventually(func() error {
		if s.served.Load() < before+n {
			return fmt.Errorf("%d requests were served of %d more", s.served.Load()-before, n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// report says how many requests have failed since the last report, and returns it. More than most fail the test.
func (s *steady) report(t *testing.T, what string, most int) int {
	t.Helper()
	s.mu.Lock()
	failed := s.failed
	s.failed = nil
	s.mu.Unlock()
	t.Logf("%s: %d failed, %d served so far", what, len(failed), s.served.Load())
	if len(failed) > most {
		for _, err := range failed[:min(5, len(failed))] {
			t.Error(err)
		}
	}
	return len(failed)
}

// openSocket opens a WebSocket through the gate; the function it returns sees that it still works.
func openSocket(t *testing.T, w worker) func(*testing.T) {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), "wss://api.demo.test/ws", &websocket.DialOptions{
		HTTPClient: w.client(t, false), HTTPHeader: http.Header{"Authorization": {"Bearer " + w.placeholder}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return func(t *testing.T) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := conn.Write(ctx, websocket.MessageText, []byte("still there?")); err != nil {
			t.Fatal(err)
		}
		if _, echo, err := conn.Read(ctx); err != nil || string(echo) != "still there?" {
			t.Errorf("the WebSocket says %q, %v", echo, err)
		}
	}
}

func (s *steady) stop() {
	close(s.end)
	s.wg.Wait()
}

// admin asks Envoy.
func (s *house) admin(t *testing.T, path string) string {
	t.Helper()
	return askAdmin(t, s.runDir(), path)
}

// askAdmin asks the Envoy of a run directory.
func askAdmin(t *testing.T, dir, path string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := do(client, req)
	if err != nil {
		t.Fatal(err)
	}
	return a.body
}

// active is how many questions Envoy has open at the gate that has this socket.
func (s *house) active(t *testing.T, socket string) int {
	t.Helper()
	for line := range strings.Lines(s.admin(t, "/clusters")) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "gate::"+filepath.Join(s.runDir(), socket)+"::rq_active::"); ok {
			active, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			return active
		}
	}
	t.Fatalf("Envoy does not know of %s", socket)
	return 0
}

// asksAgain waits until the Envoy of a run directory knows that a gate is there again, as it looks once a second: until then it has the other one alone.
func asksAgain(t *testing.T, dir, name string) {
	t.Helper()
	if err := eventually(func() error {
		if !strings.Contains(askAdmin(t, dir, "/clusters"), "gate::"+filepath.Join(dir, "gate."+name+".sock")+"::health_flags::healthy\n") {
			return fmt.Errorf("Envoy does not ask gate %s yet", name) //nolint:staticcheck,revive // a name
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Gates of one Envoy are restarted, killed and frozen, one at a time, while requests come at a steady rate.
func TestRestarts(t *testing.T) {
	t.Parallel()
	s := newHouse(t, "a", "b")
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	socket := openSocket(t, w)
	l := startSteady(t, w)
	l.more(t, steadyRate)
	both := []string{"a", "b"}

	for _, name := range both {
		if err := s.gates[name].stop(); err != nil {
			t.Error(err)
		}
		s.serve(t, name)
		asksAgain(t, s.runDir(), name)
		l.more(t, steadyRate)
	}
	l.report(t, "both gates restarted", 0)

	// Questions pile up at a gate that does not answer, and then it is killed.
	for _, name := range both {
		_ = s.gates[name].cmd.Process.Signal(syscall.SIGSTOP)
		var pending int
		if err := eventually(func() error {
			if pending = s.active(t, "gate."+name+".sock"); pending < 20 {
				return fmt.Errorf("only %d questions are open", pending)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		s.gates[name].kill()
		(&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN") // at the other one
		l.more(t, steadyRate)
		s.serve(t, name)
		asksAgain(t, s.runDir(), name)
		l.more(t, steadyRate)
		l.report(t, fmt.Sprintf("gate %s killed with %d questions open or more", name, pending), pending)
	}

	// A gate that is frozen is asked no more, and what it was asked is asked of the other.
	_ = s.gates["a"].cmd.Process.Signal(syscall.SIGSTOP)
	before := l.begun.Load()
	l.more(t, 2*steadyRate)
	if err := eventually(func() error {
		if open := s.active(t, "gate.a.sock"); open > 0 {
			return fmt.Errorf("%d questions still wait for the frozen gate", open)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("gate a frozen: the last question was taken from it within %d requests", l.begun.Load()-before)
	_ = s.gates["a"].cmd.Process.Signal(syscall.SIGCONT)
	l.more(t, steadyRate)
	l.report(t, "gate a frozen and resumed", 0)

	socket(t)

	for range 2 {
		s.envoy.forget()
		if err := s.envoy.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := s.envoy.waitOutput("the new Envoy has taken over"); err != nil {
			t.Fatal(err)
		}
		if err := s.envoy.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := s.envoy.waitOutput("ask again when it has ended"); err != nil {
			t.Fatal(err)
		}
		if err := s.envoy.waitOutput("the Envoy before has ended"); err != nil {
			t.Fatal(err)
		}
		l.more(t, steadyRate)
		l.report(t, "Envoy restarted", 0)
	}
	l.stop()
	l.report(t, "all", 0)
}

// A gate without replicas hands over to a second one that waits for it.
func TestHandOver(t *testing.T) {
	t.Parallel()
	s := newHouse(t)
	if err := s.gates[""].waitOutput("an Envoy has connected"); err != nil {
		t.Fatal(err)
	}
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	l := startSteady(t, w)
	l.more(t, steadyRate)
	for range 2 {
		before, next := s.gates[""], s.begin(t, "")
		if err := next.waitOutput("takes over as soon as"); err != nil {
			t.Fatal(err)
		}
		if err := before.stop(); err != nil {
			t.Error(err)
		}
		if err := next.waitOutput("msg=serving"); err != nil {
			t.Fatal(err)
		}
		s.gates[""] = next
		l.more(t, steadyRate)
	}
	l.report(t, "one gate handed over twice", 0)

	// An Envoy that cannot start takes nothing away.
	broken := "#!/bin/sh\ncase \"$*\" in *--version*|*validate*) exec envoy \"$@\";; esac\necho broken >&2\nexit 1\n"
	if err := os.WriteFile(s.saved("broken-envoy"), []byte(broken), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.configure(fleetConfig + "envoy: {binary: " + s.saved("broken-envoy") + "}\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.envoy.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := s.envoy.waitOutput("not restarted: the new Envoy did not start"); err != nil {
		t.Fatal(err)
	}
	l.more(t, steadyRate)
	l.stop()
	l.report(t, "a broken Envoy did not take over", 0)

	// One that finds no gate does not take over before there is one.
	if err := s.configure(fleetConfig); err != nil {
		t.Fatal(err)
	}
	if err := s.gates[""].stop(); err != nil {
		t.Error(err)
	}
	if err := s.envoy.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := s.envoy.waitOutput("Envoy is not live yet"); err != nil {
		t.Fatal(err)
	}
	if a, err := do(w.client(t, true), w.request(http.MethodGet, "https://api.demo.test/echo", nil)); err == nil || a.status != 0 {
		t.Errorf("without a gate: %v, %v; want a refused CONNECT", a, err)
	}
	if seen, _ := s.envoy.out.contains("the new Envoy has taken over"); seen {
		t.Error("an Envoy without a configuration has taken over")
	}
	s.serve(t, "")

	// One that dies is started again.
	if err := s.envoy.waitOutput("the new Envoy has taken over"); err != nil {
		t.Fatal(err)
	}
	s.envoy.forget()
	record, err := os.ReadFile(filepath.Join(s.runDir(), "envoy.1.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var child struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(record, &child); err != nil || child.PID == 0 {
		t.Fatalf("%q: %v", record, err)
	}
	if err := syscall.Kill(child.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.envoy.waitOutput("Envoy is live"); err != nil {
		t.Fatal(err)
	}
	if err := eventually(func() error { // the one that took over may have been called live only now
		_, err := arrived(w.client(t, true), w)
		return err
	}); err != nil {
		t.Error(err)
	}

	// What the store holds is no token: the worker is told so, and its placeholder goes nowhere.
	for _, c := range []struct{ stored, reason string }{
		{"no\ntoken", "bad_credential_stored"}, {strings.Repeat("x", 80<<10), "bad_credential_stored"}, {"x-" + placeholderMarker, "bad_credential_stored"},
		{"newline\n", "bad_credential_stored"}, {" ", "bad_credential_stored"}, {"", "needs_reconnect"},
	} {
		s.must(t, "bao", "kv", "patch", "-method=rw", "-mount=wayleave", "grants/claude", "access_token="+c.stored, "refresh_token=")
		if err := eventually(func() error {
			a, err := do(w.client(t, true), w.request(http.MethodGet, "https://api.demo.test/echo", nil))
			if err == nil && (a.reason != c.reason || !strings.Contains(a.body, "message")) {
				err = fmt.Errorf("with %.40q stored: %v", c.stored, a)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if s.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
}
