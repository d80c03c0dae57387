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
	oldLoad := s.handshakes(t, old)

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
	load, held, socket := s.handshakes(t, w), startSteadyOver(w, []*http.Client{w.client(t, false), w.client(t, true)}, handshakeRate), s.openSocket(t, w)
	load.more(t, handshakeRate)
	oldLoad.more(t, handshakeRate)
	s.chainsTo(t, w, prepared[0])
	oldLoad.stop()
	oldLoad.report(t, "prepared, a worker with the old root alone", 0)
	load.report(t, "prepared, a worker with both roots", 0)
	s.endSession(t, old)

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
	s.refuses(t, "no gate has an intermediate", "retire")
	s.eachGate(t, "replaced the intermediate CA")
	if err := eventually(func() error { return s.chain(t, w, prepared[1]) }); err != nil {
		t.Error(err)
	}
	load.more(t, handshakeRate)
	s.chainsTo(t, w, prepared[1])
	load.report(t, "active, a worker with both roots", 0)

	s.refuses(t, "gates may serve", "retire")
	s.forgetGates()
	s.must(t, "wayleave", "ca", "retire", "--now") // each gate was seen to have an intermediate of the new root
	s.eachGate(t, "the root CAs have changed")
	young := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	if left := s.roots(t); len(left) != 1 || !left[0].Equal(prepared[1]) || !holds(young, left[0]) || holds(young, prepared[0]) {
		t.Errorf("%d roots are handed out after retire", len(left))
	}
	s.chainsTo(t, young, prepared[1])
	youngLoad := s.handshakes(t, young)
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
func (s *house) handshakes(t *testing.T, w worker) *steady {
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
func (s *house) endSession(t *testing.T, w worker) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+s.proxy+"/.wayleave/v1/sessions", nil)
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
func (s *house) roots(t *testing.T) (roots []*x509.Certificate) {
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
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, c)
	}
	return roots
}

// holds reports whether a worker trusts a root.
func holds(w worker, root *x509.Certificate) bool {
	_, err := root.Verify(x509.VerifyOptions{Roots: w.roots})
	return err == nil
}

// chain makes a handshake and says whether what the worker sees is of this root.
func (s *house) chain(t *testing.T, w worker, root *x509.Certificate) error {
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

func (s *house) chainsTo(t *testing.T, w worker, root *x509.Certificate) {
	t.Helper()
	if err := s.chain(t, w, root); err != nil {
		t.Error(err)
	}
}

// refuses runs a ca command that must say text and exit with 3.
func (s *house) refuses(t *testing.T, text string, args ...string) {
	t.Helper()
	out, err := s.command("wayleave", append([]string{"ca"}, args...)...).CombinedOutput()
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
