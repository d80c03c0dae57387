package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the generated pages and golden files")

// Pages that describe what the code knows are made from it.
func TestGeneratedPagesAreCurrent(t *testing.T) {
	pages := map[string]string{
		"refusals.md":      refusalsPage(t),
		"configuration.md": configurationPage(t),
		"cli.md":           cliPage(),
		"environment.md":   environmentPage(t),
	}
	for _, name := range reasonNames() {
		page, _ := reasonPage(name)
		heading, text, _ := strings.Cut(page, "\n\n")
		pages["errors/"+name+".md"] = heading + "\n\n" + generated + "\n" + text
	}
	for name, page := range pages {
		path := filepath.Join("..", "..", "docs", name)
		if *update {
			if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != page {
			t.Errorf("docs/%s is not what the code says (%v); run 'go test ./cmd/wayleave -update'", name, err)
		}
	}
}

const generated = "<!-- Made by 'go test ./cmd/wayleave -update'; do not edit. -->\n"

// cell makes text fit a table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(strings.TrimSpace(s))
}
