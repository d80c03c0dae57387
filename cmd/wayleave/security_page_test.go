package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each guarantee of docs/security.md names tests, and all of them exist.
func TestSecurityPageNamesTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	exists := testsOf(t, "../..")
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9/]+\\.(?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1) {
		named[m[1]] = true
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if !exists[name] {
			t.Errorf("docs/security.md names %s, and there is no such test", name)
		}
	}
	if len(named) < 50 {
		t.Errorf("only %d tests found: the test is not looking", len(named))
	}
	guarantees := false
	for line := range strings.Lines(string(page)) {
		heading := strings.HasPrefix(line, "| guarantee |")
		guarantees = heading || guarantees && strings.HasPrefix(line, "|")
		if guarantees && !heading && !strings.HasPrefix(line, "|--") && !strings.Contains(line, ".Test") {
			t.Errorf("no test shows it: %s", line)
		}
	}
}

// testsOf are the tests below a directory, as <package's directory>.<name>.
func testsOf(t *testing.T, root string) map[string]bool {
	t.Helper()
	found, declared := map[string]bool{}, regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."): // tools, and what version control keeps
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, m := range declared.FindAllSubmatch(text, -1) {
			found[filepath.ToSlash(dir)+"."+string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
