package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wayleave/freeport"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// wayleave is this one, as a process of its own.
func wayleave(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "wayleave")
	if err := os.Symlink(self, name); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), name, args...)
}

// closedPipe is an output that nobody reads any more.
func closedPipe(t *testing.T) *os.File {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	t.Cleanup(func() { writer.Close() })
	return writer
}

// servedGate is a `wayleave serve` that can log in at a Vault.
type servedGate struct {
	*exec.Cmd
	figures string
	ended   chan error
}

// startGate starts one, whose output goes to out.
func startGate(t *testing.T, vault, caFile string, token secret.Text, out io.Writer) servedGate {
	t.Helper()
	isolated(t)
	dir := t.TempDir()
	figures, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "wayleave.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "vault: {address: %q, ca_file: %q}\ngrants: {claude: {provider: anthropic}}\nroutes: [{hosts: [api.anthropic.com], grant: claude}]\nmetrics: {listen: %q}\n", vault, caFile, figures), 0o600); err != nil {
		t.Fatal(err)
	}
	g := servedGate{wayleave(t, "serve", "-c", file, "--run-dir", filepath.Join(dir, "run")), figures, make(chan error, 1)}
	g.Env = append(os.Environ(), "VAULT_TOKEN="+token.Reveal())
	g.Stdout, g.Stderr = out, out
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Process.Kill() })
	go func() { g.ended <- g.Wait() }()
	return g
}

// until waits for /readyz to answer with this status, and these words in it.
func (g servedGate) until(t *testing.T, status int, words string) {
	t.Helper()
	for late := time.After(2 * time.Minute); ; {
		select {
		case err := <-g.ended:
			t.Fatalf("the gate ended: %v", err)
		case <-late:
			t.Fatalf("the gate is not %d %q", status, words)
		case <-time.After(10 * time.Millisecond):
		}
		answer, err := http.Get("http://" + g.figures + "/readyz") //nolint:noctx // on loopback
		if err != nil {
			continue
		}
		said, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode == status && strings.Contains(string(said), words) {
			return
		}
	}
}

// stops sends the signals, of which the last is to end it.
func (g servedGate) stops(t *testing.T, signals ...os.Signal) {
	t.Helper()
	for _, s := range signals {
		if err := g.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-g.ended; err != nil {
		t.Errorf("the gate ended with %v", err)
	}
}

// A gate goes on when whoever read its log is gone, and at a SIGHUP, and is told to stop as always.
func TestGateOutlivesWhoReadsItsLog(t *testing.T) {
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	gate := startGate(t, s.Address, s.RootConfig.CAFile, s.RootConfig.Auth.Token, closedPipe(t))
	gate.until(t, http.StatusOK, "") // by then it has logged that it serves
	gate.stops(t, syscall.SIGHUP, syscall.SIGTERM)
}

// A gate that is told to stop while it starts has not failed: a supervisor would say that it has.
func TestGateIsStoppedWhileItStarts(t *testing.T) {
	asked := make(chan struct{}, 1)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { // a Vault that takes its time
		select {
		case asked <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	}))
	defer silent.Close()
	gate := startGate(t, silent.URL, "", secret.New("t"), io.Discard)
	select {
	case <-asked:
	case err := <-gate.ended:
		t.Fatalf("the gate ended: %v", err)
	}
	gate.stops(t, syscall.SIGTERM)
}

// A gate that starts before its Vault, as when a machine or a cluster does, waits for it, and says so.
func TestGateWaitsForVault(t *testing.T) {
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	at, err := url.Parse(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	pem, err := os.ReadFile(s.RootConfig.CAFile)
	if err != nil || !trusted.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate of the Vault's: ", err)
	}
	real := httputil.NewSingleHostReverseProxy(at)
	real.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}
	var there atomic.Bool
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !there.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		real.ServeHTTP(w, r)
	}))
	defer vault.Close()
	said := new(bytes.Buffer)
	gate := startGate(t, vault.URL, "", s.RootConfig.Auth.Token, said)
	gate.until(t, http.StatusServiceUnavailable, "waits for vault")
	there.Store(true)
	gate.until(t, http.StatusOK, "")
	gate.stops(t, syscall.SIGTERM)
	if !strings.Contains(said.String(), "the gate starts as soon as vault answers") {
		t.Errorf("it said nothing of the wait:\n%s", said)
	}
}

// A command in front of `head` ends without a word.
func TestCommandEndsWithItsReader(t *testing.T) {
	isolated(t)
	c := wayleave(t, "config", "schema")
	c.Stdout = closedPipe(t)
	said, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	words, err := io.ReadAll(said)
	if err != nil || len(words) > 0 {
		t.Errorf("it said %q, %v", words, err)
	}
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGPIPE {
		t.Errorf("it ended with %v", err)
	}
}
