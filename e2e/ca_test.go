package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The root CA is replaced under steady requests over new connections, and under connections that stay. Nothing fails, and
// nothing is restarted.
func TestRootIsReplaced(t *testing.T) {
	t.Parallel()
	s := newHouse(t, "a", "b")
	before := s.roots(t)
	if len(before) != 1 {
		t.Fatalf("%d roots at first", len(before))
	}
	old := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	oldLoad := handshakes(t, old)

	s.forgetGates()
	s.must(t, "wayleave", "ca", "prepare")
	s.eachGate(t, "the root CAs have changed")
	prepared := s.roots(t)
	if len(prepared) != 2 || !bytes.Equal(prepared[0].Raw, before[0].Raw) {
		t.Fatalf("%d roots are handed out after prepare", len(prepared))
	}

	// The new root may not sign as long as there is a worker that does not trust it.
	s.refuses(t, "gates may not give it to workers before", "activate")
	if err := inMinutes(func() error {
		out, err := s.command("wayleave", "ca", "show").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "began before gates gave it to workers: 1 (w)") {
			err = fmt.Errorf("%s", out)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	s.refuses(t, "began before gates gave it to workers: 1 (w)", "activate")
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	for _, r := range prepared {
		if !holds(w, r) {
			t.Errorf("a worker that began after prepare does not trust %s", r.Subject)
		}
	}
	load, held, socket := handshakes(t, w), startSteadyOver(w, []*http.Client{w.client(t, false), w.client(t, true)}, handshakeRate), openSocket(t, w)
	load.more(t, handshakeRate)
	oldLoad.more(t, handshakeRate)
	w.chainsTo(t, prepared[0])
	oldLoad.stop()
	oldLoad.report(t, "prepared, a worker with the old root alone", 0)
	load.report(t, "prepared, a worker with both roots", 0)
	old.endSession(t)

	s.forgetGates()
	if err := eventually(func() error {
		out, err := s.command("wayleave", "ca", "activate").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "gates may serve", "retire")
	load.more(t, handshakeRate)
	w.chainsTo(t, prepared[1])
	load.report(t, "active, a worker with both roots", 0)

	s.forgetGates()
	s.must(t, "wayleave", "ca", "retire", "--now") // the rollout was seen to end
	s.eachGate(t, "the root CAs have changed")
	young := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	if left := s.roots(t); len(left) != 1 || !left[0].Equal(prepared[1]) || !holds(young, left[0]) || holds(young, prepared[0]) {
		t.Errorf("%d roots are handed out after retire", len(left))
	}
	young.chainsTo(t, prepared[1])
	youngLoad := handshakes(t, young)
	youngLoad.more(t, handshakeRate)
	load.more(t, handshakeRate)
	for _, l := range []*steady{load, held, youngLoad} {
		l.stop()
	}
	load.report(t, "retired, a worker with both roots", 0)
	youngLoad.report(t, "retired, a worker with the new root alone", 0)
	held.report(t, "connections that stayed all the time", 0)
	socket(t)
}

const handshakeRate = 20 // new connections per second

// handshakes is a steady load in which each request has a connection of its own.
func handshakes(t *testing.T, w worker) *steady {
	t.Helper()
	var clients []*http.Client
	for i := range 20 {
		c := w.client(t, i%2 == 0)
		c.Transport.(*http.Transport).DisableKeepAlives = true
		clients = append(clients, c)
	}
	return startSteadyOver(w, clients, handshakeRate)
}

// endSession ends a worker's session, as `wayleave run` does when its command has ended.
func (w worker) endSession(t *testing.T) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+w.proxy.Host+"/.wayleave/v1/sessions", nil)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := w.proxy.User.Password()
	req.SetBasicAuth(w.proxy.User.Username(), password)
	if a, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req); err != nil || a.status >= 300 {
		t.Fatal(a, err)
	}
}

// roots are those that the gates hand out: in the run directory, to whoever asks, and by what Vault has.
func (s *house) roots(t *testing.T) []*x509.Certificate {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(s.runDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.proxy+"/.wayleave/v1/ca.pem", nil)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req)
	if printed := s.must(t, "wayleave", "ca", "print"); err != nil || strings.TrimSpace(asked.body) != printed || strings.TrimSpace(string(file)) != printed {
		t.Errorf("the file has\n%s\nthe gate gives\n%s\nVault has\n%s\n%v", file, asked.body, printed, err)
	}
	return parsedRoots(t, string(file))
}

// holds reports whether a worker trusts a root.
func holds(w worker, root *x509.Certificate) bool {
	_, err := root.Verify(x509.VerifyOptions{Roots: w.roots})
	return err == nil
}

// chain makes a handshake and says whether what the worker sees is of this root.
func (w worker) chain(t *testing.T, root *x509.Certificate) error {
	t.Helper()
	c := w.client(t, true)
	c.Transport.(*http.Transport).DisableKeepAlives = true
	resp, err := c.Do(w.request(http.MethodGet, "https://api.demo.test/echo", nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	chain := resp.TLS.VerifiedChains[0]
	if got := chain[len(chain)-1]; !got.Equal(root) || len(chain) != 3 {
		return fmt.Errorf("a chain of %d leads to %s; want %s", len(chain), got.Subject, root.Subject)
	}
	return nil
}

func (w worker) chainsTo(t *testing.T, root *x509.Certificate) {
	t.Helper()
	if err := w.chain(t, root); err != nil {
		t.Error(err)
	}
}

// refuses runs a ca command that must say text and exit with 3.
func (f *fleet) refuses(t *testing.T, text string, args ...string) {
	t.Helper()
	out, err := f.command("wayleave", append([]string{"ca"}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(string(out), text) {
		t.Errorf("wayleave ca %s: %v, %s; want a refusal: %s", strings.Join(args, " "), err, out, text)
	}
}

func (s *house) forgetGates() {
	for _, g := range s.gates {
		g.forget()
	}
}

// eachGate waits until each gate has logged text. They look once a minute.
func (s *house) eachGate(t *testing.T, text string) {
	t.Helper()
	for name, g := range s.gates {
		if err := inMinutes(func() error { return g.waitOutput(text) }); err != nil {
			t.Fatalf("gate %s: %v", name, err)
		}
	}
}

// inMinutes is eventually for what takes gates two minutes.
func inMinutes(ok func() error) (err error) {
	for range 3 {
		if err = eventually(ok); err == nil {
			return nil
		}
	}
	return err
}

const rootConfig = fleetConfig + `
envoy: {name: $NODE, group: $NODE}
rollout: {steps: [{group: canary, dwell: 5s}, {share: 100, dwell: 2s}], min_requests: 40, take_time: 20s}
`

// Another root comes to the Envoys of one group first. A worker there that does not trust it is noticed, and all go back; without such a
// worker all get it, and no connection fails.
func TestRootIsRolledOut(t *testing.T) {
	e := &edges{fleet: newFleet(t)}
	e.config = rootConfig
	for _, node := range []string{"canary", "main"} {
		e.replica(t, "NODE="+node)
	}
	e.connect(t, time.Hour)
	if err := e.with("NODE=none").configure(e.config); err != nil {
		t.Fatal(err)
	}
	canary := e.replicas[0]
	old := canary.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	oldLoad := handshakes(t, old)

	e.must(t, "wayleave", "ca", "prepare")
	for _, r := range e.replicas {
		if err := inMinutes(func() error { return r.waitOutput("the root CAs have changed") }); err != nil {
			t.Fatal(err)
		}
	}
	var workers []worker // with both roots, one behind each Envoy
	var both []*steady
	begin := func() {
		for _, r := range e.replicas {
			w := r.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
			workers, both = append(workers, w), append(both, handshakes(t, w))
		}
	}
	end := func() {
		for i, w := range workers {
			both[i].stop()
			w.endSession(t)
		}
		workers, both = nil, nil
	}
	begin()
	roots := parsedRoots(t, e.must(t, "wayleave", "ca", "print"))
	if len(roots) != 2 || !holds(workers[0], roots[1]) || holds(old, roots[1]) {
		t.Fatalf("%d roots, and workers do not trust what they should", len(roots))
	}
	unharmed := func(when string) {
		t.Helper()
		for i, load := range both {
			load.more(t, handshakeRate)
			load.report(t, fmt.Sprintf("%s, a worker with both roots behind %d", when, i), 0)
		}
	}
	activate := func(args ...string) (string, int) {
		t.Helper()
		began := time.Now()
		c := e.command("wayleave", append([]string{"ca", "activate"}, args...)...)
		out, err := c.CombinedOutput()
		t.Logf("activate %v after %v: %v\n%s", args, time.Since(began).Round(time.Second/10), err, out)
		return string(out), c.ProcessState.ExitCode()
	}

	if out, code := activate(); code != 3 {
		t.Errorf("with a worker that has the old root alone: exit code %d, %s", code, out)
	}
	oldLoad.report(t, "refused, a worker with the old root alone", 0)

	// Overruled: the handshakes of that worker fail, and all go back by themselves.
	out, code := activate("--force")
	if code != 21 || !strings.Contains(out, "was rolled back: ") || !strings.Contains(out, "failed with it") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if err := eventually(func() error { return old.chain(t, roots[0]) }); err != nil {
		t.Errorf("rolled back: %v", err)
	}
	oldLoad.more(t, 1)
	oldLoad.report(t, "rolled back, a worker with the old root alone", int(oldLoad.begun.Load()))
	oldLoad.more(t, handshakeRate)
	oldLoad.report(t, "a second later, a worker with the old root alone", 0)
	unharmed("rolled back")
	workers[0].chainsTo(t, roots[0])
	workers[1].chainsTo(t, roots[0])
	oldLoad.stop()
	old.endSession(t)

	// Without that worker, all get it. Those of the half minute after prepare may be without it too.
	if err := eventually(func() error {
		out, _ := e.command("wayleave", "ca", "activate").CombinedOutput()
		if !strings.Contains(string(out), "began before gates gave it to workers: 2 (w)") {
			return fmt.Errorf("%s", out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	end()
	if err := eventually(func() error { // gates write down a moment later who has ended
		out, err := e.command("wayleave", "ca", "show").CombinedOutput()
		if err == nil && strings.Contains(string(out), "began before gates gave it to workers") {
			err = fmt.Errorf("%s", out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	begin()
	out, code = activate()
	if code != 0 || !strings.Contains(out, "step 1 of 2 (group canary)") || !strings.Contains(out, "step 2 of 2 (100 %)") || !strings.Contains(out, `"Wayleave egress CA 2" signs from now on`) {
		t.Errorf("exit code %d, %s", code, out)
	}
	for _, w := range workers {
		w.chainsTo(t, roots[1])
	}
	unharmed("active")

	// And back.
	if out, code := activate(); code != 0 || !strings.Contains(out, `"Wayleave egress CA" signs from now on`) {
		t.Errorf("exit code %d, %s", code, out)
	}
	for _, w := range workers {
		w.chainsTo(t, roots[0])
	}
	unharmed("back")
	end()
}

func parsedRoots(t *testing.T, text string) (roots []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, c)
	}
	return roots
}
