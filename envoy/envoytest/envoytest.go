// Package envoytest runs a real Envoy in tests. What Envoy is told is the test's business.
package envoytest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave/envoy"
)

// Binary returns the Envoy to test with: $WAYLEAVE_ENVOY, else .tools/bin/envoy in the repository, else one in
// $PATH. It fails the test when there is none, because a test of Envoy that did not run has shown nothing.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("WAYLEAVE_ENVOY"); path != "" {
		return path
	}
	tools := filepath.Join(repository(), ".tools", "bin", "envoy")
	if _, err := os.Stat(tools); err == nil {
		return tools
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path
	}
	t.Fatal("no envoy to test with: run `make tools`, or set WAYLEAVE_ENVOY")
	return ""
}

// repository is the folder above this file's.
func repository() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Dir returns a directory with a path short enough for sockets in it, removed after the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Start runs Envoy from b until the test ends, with args after those of b, and returns once it is live.
// Its log, which log returns so far, is shown when the test fails.
func Start(t testing.TB, b envoy.Bootstrap, args ...string) (log func() string) {
	t.Helper()
	log, _ = StartToKill(t, b, args...)
	return log
}

// StartToKill is Start for an Envoy that kill ends as a crash does.
func StartToKill(t testing.TB, b envoy.Bootstrap, args ...string) (log func() string, kill func()) {
	t.Helper()
	config, err := b.YAML()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(Dir(t), "envoy.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append(b.Args(file), append([]string{"--concurrency", "2"}, args...)...)

	// Not the test's context: that one ends before the clean-ups, and Envoy should outlive its neighbours.
	ctx, stop := context.WithCancel(context.Background())
	out := &buffer{}
	cmd := exec.CommandContext(ctx, Binary(t), args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		// Envoy dies with the thread that started it (PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		_ = cmd.Wait() // it is told to end, which some call a failure
	}()
	if err := <-started; err != nil {
		stop()
		t.Fatalf("starting envoy: %v", err)
	}
	t.Cleanup(func() {
		stop()
		<-done
		if t.Failed() {
			t.Logf("envoy's log:\n%s", out)
		}
	})
	Await(t, "envoy to be live", func() error {
		select {
		case <-done:
			t.Fatal("envoy ended at once")
		default:
		}
		return envoy.Ready(context.Background(), b.AdminSocket)
	})
	return out.String, func() {
		_ = cmd.Process.Kill() // it may be gone
		<-done
	}
}

// Await calls ready until it returns nil, and fails the test with its last error after half a minute.
func Await(t testing.TB, what string, ready func() error) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	end := time.After(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// buffer is a bytes.Buffer for two writers and a reader.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
