package main

import (
	"context"
	"os"
	"path/filepath"

	"wayleave/envoy"
	"wayleave/program"
	"wayleave/vault/embedded"
)

// toolsDir is where `make tools` puts Envoy and OpenBao: beside the bin directory of a built checkout.
func toolsDir() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(filepath.Dir(exe)), ".tools", "bin")
}

// findEnvoy is the Envoy that would run: the configured one, $WAYLEAVE_ENVOY, or the first supported one.
func findEnvoy(ctx context.Context, configured string) (program.Binary, error) {
	if configured == "" {
		configured = os.Getenv("WAYLEAVE_ENVOY")
	}
	return program.Find(ctx, envoy.Program, configured, toolsDir())
}

// findBao is the OpenBao that would run.
func findBao(ctx context.Context) (program.Binary, error) {
	return program.Find(ctx, embedded.Program, os.Getenv("WAYLEAVE_BAO"), toolsDir())
}
