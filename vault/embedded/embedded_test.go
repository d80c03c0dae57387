package embedded_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave/vault"
	"wayleave/vault/embedded"
	"wayleave/vault/vaulttest"
)

type thing struct {
	K string `json:"k"`
}

func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl") // short enough for a unix socket, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, dir string) (*embedded.Server, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := embedded.Start(ctx, embedded.Config{StateDir: dir, Binary: vaulttest.Binary(t), Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err == nil {
		t.Cleanup(s.Stop)
	}
	return s, err
}

func mustStart(t *testing.T, dir string) *embedded.Server {
	t.Helper()
	s, err := start(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// logged is what all servers of this test binary logged.
var logged lockedBuffer

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// pid is the number of the bao process, from the PID file.
func pid(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "vault", "openbao.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var p struct{ PID int }
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	return p.PID
}

// What was stored survives kill -9 of the process, which comes back unsealed by itself, and a stop and start.
func TestSurvives(t *testing.T) {
	dir := stateDir(t)
	s := mustStart(t, dir)
	ctx := t.Context()
	gateway := vaulttest.Open(t, s.Gateway())
	if err := gateway.Preflight(ctx, vault.Gateway); err != nil {
		t.Error(err)
	}
	if _, err := gateway.Put(ctx, "grants/g", thing{"kept"}, 0); err != nil {
		t.Fatal(err)
	}
	roots, err := gateway.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}

	first := pid(t, dir)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var got thing
	for err = vault.ErrUnavailable; errors.Is(err, vault.ErrUnavailable) && ctx.Err() == nil; {
		_, err = gateway.Get(ctx, "grants/g", &got)
	}
	if err != nil || got.K != "kept" {
		t.Errorf("after kill -9: %+v, %v", got, err)
	}
	if pid(t, dir) == first {
		t.Error("it was not the process that was killed")
	}

	operator, err := s.Operator()
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Stop() // harmless
	if _, err := gateway.Get(ctx, "grants/g", &got); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("after Stop: %v", err)
	}

	s = mustStart(t, dir)
	gateway = vaulttest.Open(t, s.Gateway())
	if _, err := gateway.Get(ctx, "grants/g", &got); err != nil || got.K != "kept" {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	if again, err := gateway.Roots(ctx); err != nil || len(again) != 1 || !again[0].Equal(roots[0]) {
		t.Errorf("another root CA after a restart (%v)", err)
	}
	again, err := embedded.Operator(dir)
	if err != nil || !again.Auth.Token.Equal(operator.Auth.Token) || again.Address != s.Gateway().Address {
		t.Errorf("the operator's token changed with a restart (%v)", err)
	}
	if err := vaulttest.Open(t, again).Preflight(ctx, vault.Operator); err != nil {
		t.Error(err)
	}

	administrator, err := embedded.Administrator(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vaulttest.Open(t, administrator).PrepareRoot(ctx); err != nil {
		t.Errorf("the administrator: %v", err)
	}

	// A token that no longer works is replaced by the next start.
	s.Stop()
	if err := os.WriteFile(filepath.Join(dir, "vault", "operator.token"), []byte("s.dead\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = mustStart(t, dir)
	if again, err = s.Operator(); err != nil {
		t.Fatal(err)
	}
	if err := vaulttest.Open(t, again).Preflight(ctx, vault.Operator); err != nil {
		t.Error(err)
	}
	checkSecrecy(t, dir)
}

// Nobody else may read the directory, and no key is in a log, ours or the server's.
func checkSecrecy(t *testing.T, dir string) {
	t.Helper()
	var keys map[string]string
	text, err := os.ReadFile(filepath.Join(dir, "vault", "init.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &keys); err != nil || len(keys) != 2 {
		t.Fatalf("init.json: %d keys, %v", len(keys), err)
	}
	operator, err := os.ReadFile(filepath.Join(dir, "vault", "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	keys["operator"] = strings.TrimSpace(string(operator))
	theirs, err := os.ReadFile(filepath.Join(dir, "vault", "openbao.log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range keys {
		if strings.Contains(logged.String(), key) || bytes.Contains(theirs, []byte(key)) {
			t.Errorf("%s is in a log", name)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "vault")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "vault"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().IsRegular() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, want 0600", e.Name(), info.Mode())
		}
		if strings.HasPrefix(e.Name(), "init.started") {
			t.Errorf("%s is still there", e.Name())
		}
	}
}

// Each way in which store and keys can part is told apart, and nothing is overwritten.
func TestLostKeys(t *testing.T) {
	dir := stateDir(t)
	in := func(name string) string { return filepath.Join(dir, "vault", name) }
	mustStart(t, dir).Stop()
	keys, err := os.ReadFile(in("init.json"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fails := func(want string) {
		t.Helper()
		if s, err := start(t, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
			if err == nil {
				s.Stop()
			}
		}
	}
	if err := os.Remove(in("init.json")); err != nil {
		t.Fatal(err)
	}
	fails("restore that file from a backup")
	write("init.started", "") // as if the first start had been cut off
	fails("nothing was stored in it yet")
	write("init.json", `{"unseal_key":"cut o`)
	fails("holds no keys")
	write("init.json", `{"unseal_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","root_token":"s.x"}`)
	fails("is not that of the store")
	write("init.json", string(keys))
	mustStart(t, dir).Stop()
	if _, err := os.Stat(in("init.started")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the marker of a first start is there after a good one: %v", err)
	}
	if err := os.RemoveAll(in("data")); err != nil {
		t.Fatal(err)
	}
	fails("the store in")
}

// A state directory too deep for a socket address works all the same.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(stateDir(t), strings.Repeat("long/", 25))
	s := mustStart(t, dir)
	address := strings.TrimPrefix(s.Gateway().Address, "unix://")
	if strings.HasPrefix(address, dir) {
		t.Errorf("the socket is at %s", address)
	}
	if info, err := os.Stat(filepath.Dir(address)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's directory: %v, %v", info, err)
	}
	operator, err := embedded.Operator(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := vaulttest.Open(t, operator).Preflight(t.Context(), vault.Operator); err != nil {
		t.Error(err)
	}
	s.Stop()
	if _, err := os.Stat(filepath.Dir(address)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
}

// A second one for the same directory is refused and does not disturb the first.
func TestOneAtATime(t *testing.T) {
	dir := stateDir(t)
	s := mustStart(t, dir)
	if _, err := start(t, dir); err == nil || !strings.Contains(err.Error(), "already runs") {
		t.Errorf("second start: %v", err)
	}
	if err := vaulttest.Open(t, s.Gateway()).Preflight(t.Context(), vault.Gateway); err != nil {
		t.Error(err)
	}
}

func TestWrongBinary(t *testing.T) {
	script := filepath.Join(t.TempDir(), "bao")
	for out, want := range map[string]string{
		"Vault v1.20.0 (abc)":    "does not tell its version as bao does",
		"OpenBao v2.6.1 (abc)":   "supported are 2.7.0",
		"OpenBao v3.0.0 (abc)":   "supported are 2.7.0",
		"OpenBao v2.99.0 (fake)": "last words",
	} {
		body := "#!/bin/sh\nif [ \"$1\" = version ]; then echo '" + out + "'; else echo unknown storage type; exit 1; fi\n"
		if err := os.WriteFile(script, []byte(body), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := embedded.Start(t.Context(), embedded.Config{StateDir: stateDir(t), Binary: script})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", out, err, want)
		}
	}
	_, err := embedded.Start(t.Context(), embedded.Config{StateDir: stateDir(t), Binary: filepath.Join(t.TempDir(), "none")})
	if err == nil || !strings.Contains(err.Error(), "VAULT_ADDR") {
		t.Errorf("no binary: %v", err)
	}
}

// Nothing listens on the network.
func TestNoTCPListener(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	dir := stateDir(t)
	mustStart(t, dir)
	p := pid(t, dir)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
	if err != nil || len(fds) == 0 {
		t.Fatalf("no open files of process %d (%v)", p, err)
	}
	sockets := map[string]bool{}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil {
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p, table))
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 9 && sockets[f[9]] {
				t.Errorf("%s socket: %s", table, line)
			}
		}
	}
}
