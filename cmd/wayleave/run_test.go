package main

import (
	"os"
	"path/filepath"
	"testing"

	"wayleave/worker"
)

// A PATH with relative directories is of use to people who work with node_modules/.bin, and a shell takes it.
func TestRunFindsWhatAShellFinds(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "node_modules", ".bin", "only-here")
	if err := os.MkdirAll(filepath.Dir(tool), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tool, []byte("#!/bin/sh\nexit 5\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("PATH", "./node_modules/.bin:"+os.Getenv("PATH"))
	if end, err := worker.RunChild(command(t.Context(), []string{"only-here"})); err != nil || end.Code != 5 {
		t.Errorf("code %d, %v", end.Code, err)
	}
	if end, err := worker.RunChild(command(t.Context(), []string{"nowhere"})); err == nil || end.Code != 127 {
		t.Errorf("code %d, %v", end.Code, err)
	}
}
