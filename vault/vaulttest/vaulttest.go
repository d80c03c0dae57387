// Package vaulttest owns the Vaults that tests run against: a store in memory with faults on demand ([NewMemory]), and a
// real OpenBao in the three forms that differ: the one `up` brings ([Start]), one with TLS ([StartDev]) and a cluster
// ([StartRaft]). All pass the same suite, which is why the first may stand for the others.
package vaulttest

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wayleave/program"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/embedded"
)

// Server is a running OpenBao that has been set up for the product.
type Server struct {
	Address string // unix:///…

	// How each role connects, for tests that open clients themselves. Root may do anything.
	RootConfig, GatewayConfig, OperatorConfig, ViewerConfig vault.Config
	// One open client for each.
	Root, Gateway, Operator, Viewer *vault.Client

	unseal secret.Text
}

// Seal closes the store, as an operator does in an emergency; Unseal opens it again. Only for one made by Start.
func (s *Server) Seal(t testing.TB) { s.Raw(t, http.MethodPut, "sys/seal", "{}") }

// Unseal undoes Seal.
func (s *Server) Unseal(t testing.TB) {
	t.Helper()
	seal, err := vault.NewSeal(s.RootConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer seal.Close()
	if sealed, err := seal.Unseal(t.Context(), s.unseal); err != nil || sealed {
		t.Fatalf("sealed %v, %v", sealed, err)
	}
}

// Start runs an OpenBao of its own for the test and ends it with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	// Not t.TempDir: a test's name makes its path too long for a unix socket.
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	bao, err := embedded.Start(ctx, embedded.Config{StateDir: dir, Binary: Binary(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bao.Stop)

	s := &Server{Address: bao.Gateway().Address}
	if s.RootConfig, err = bao.Root(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "vault", "init.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		Unseal string `json:"unseal_key"`
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	s.unseal = secret.New(keys.Unseal)
	s.Root = Open(t, s.RootConfig)
	s.setUp(t)
	return s
}

// Open opens a client that ends with the test.
func Open(t testing.TB, cfg vault.Config) *vault.Client {
	t.Helper()
	c, err := vault.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Binary returns the bao executable for tests: $WAYLEAVE_BAO, the one in $PATH, or what `make tools` fetched. The test
// fails when there is none.
func Binary(t testing.TB) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; root != filepath.Dir(root); root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
	}
	bao, err := program.Find(context.Background(), embedded.Program, os.Getenv("WAYLEAVE_BAO"), filepath.Join(root, ".tools", "bin"))
	if err != nil {
		t.Fatal(err) // names `make tools`
	}
	return bao.Path
}
