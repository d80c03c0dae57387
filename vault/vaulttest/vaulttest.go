// Package vaulttest owns the two Vaults that tests run against: a store in memory with faults on demand ([NewMemory])
// and a real OpenBao ([Start]). Both pass the same suite, which is why the first may stand for the second.
package vaulttest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wayleave/program"
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

	s := &Server{GatewayConfig: bao.Gateway()}
	s.Address = s.GatewayConfig.Address
	if s.RootConfig, err = bao.Root(); err != nil {
		t.Fatal(err)
	}
	if s.OperatorConfig, err = bao.Operator(); err != nil {
		t.Fatal(err)
	}
	s.Root = Open(t, s.RootConfig)
	token, err := vault.IssueToken(ctx, s.Root, vault.Viewer, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.ViewerConfig = vault.Config{Address: s.Address, Auth: vault.Auth{Method: "token", Token: token}}
	s.Gateway, s.Operator, s.Viewer = Open(t, s.GatewayConfig), Open(t, s.OperatorConfig), Open(t, s.ViewerConfig)
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
