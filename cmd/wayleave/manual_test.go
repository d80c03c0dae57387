package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var manualDir = flag.String("manual", "", "directory to write manual pages and completions into; `make manual` does")

// Packages bring a manual page for each command, and completions. They are made here, so that the program carries no generator.
func TestManual(t *testing.T) {
	dir := *manualDir
	if dir == "" {
		dir = t.TempDir()
	}
	man, completions := filepath.Join(dir, "man"), filepath.Join(dir, "completions")
	for _, d := range []string{man, completions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := newRoot()
	root.DisableAutoGenTag = true
	// Their date is SOURCE_DATE_EPOCH, or now.
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "WAYLEAVE", Section: "1", Source: "Wayleave", Manual: "Wayleave"}, man); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(string) error{
		"wayleave.bash": func(path string) error { return root.GenBashCompletionFileV2(path, true) },
		"_wayleave":     root.GenZshCompletionFile,
		"wayleave.fish": func(path string) error { return root.GenFishCompletionFile(path, true) },
	} {
		path := filepath.Join(completions, name)
		if err := write(path); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "wayleave") {
			t.Errorf("%s completes nothing: %v", name, err)
		}
	}

	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		page := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(man, page))
		if err != nil || !strings.Contains(string(text), ".SH SYNOPSIS") {
			t.Errorf("%s is no manual page: %v", page, err)
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(root)
}
