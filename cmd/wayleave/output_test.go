package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave/freeport"
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

// A gate goes on when whoever read its log is gone, and at a SIGHUP, and is told to stop as always.
func TestGateOutlivesWhoReadsItsLog(t *testing.T) {
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	isolated(t)
	dir := t.TempDir()
	figures, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	file, sockets := filepath.Join(dir, "wayleave.yaml"), filepath.Join(dir, "run")
	if err := os.WriteFile(file, fmt.Appendf(nil, "vault: {address: %q, ca_file: %q}\ngrants: {claude: {provider: anthropic}}\nroutes: [{hosts: [api.anthropic.com], grant: claude}]\nmetrics: {listen: %q}\n", s.Address, s.RootConfig.CAFile, figures), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := wayleave(t, "serve", "-c", file, "--run-dir", sockets)
	gate.Env = append(os.Environ(), "VAULT_TOKEN="+s.RootConfig.Auth.Token.Reveal())
	gate.Stdout, gate.Stderr = closedPipe(t), closedPipe(t)
	if err := gate.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- gate.Wait() }()
	for ready := false; !ready; { // by then it has logged that it serves
		select {
		case err := <-ended:
			t.Fatalf("the gate ended before it served: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		if answer, err := http.Get("http://" + figures + "/readyz"); err == nil { //nolint:noctx // on loopback
			answer.Body.Close()
			ready = answer.StatusCode == http.StatusOK
		}
	}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		if err := gate.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("the gate ended with %v", err)
	}
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
	isolated(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "wayleave.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "vault: {address: %q}\ngrants: {claude: {provider: anthropic}}\nroutes: [{hosts: [api.anthropic.com], grant: claude}]\n", silent.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := wayleave(t, "serve", "-c", file, "--run-dir", filepath.Join(dir, "run"))
	gate.Env = append(os.Environ(), "VAULT_TOKEN=t")
	var said strings.Builder
	gate.Stdout, gate.Stderr = &said, &said
	if err := gate.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := gate.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := gate.Wait(); err != nil {
		t.Errorf("the gate ended with %v:\n%s", err, &said)
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
