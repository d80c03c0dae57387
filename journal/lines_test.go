package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func openLines(t *testing.T, path string, limit int64, keep int) *Lines {
	t.Helper()
	l, err := OpenLines("audit.file", path, limit, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func put(t *testing.T, l *Lines, lines string) (before string) {
	t.Helper()
	if err := l.Put(func(last []byte) []byte { before = string(last); return []byte(lines) }); err != nil {
		t.Fatal(err)
	}
	return before
}

// Whoever writes is told the line before, whoever wrote it, and wherever it is now.
func TestLineBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	a, b := openLines(t, path, 100, 1), openLines(t, path, 100, 1)
	for i, step := range []struct {
		by           *Lines
		lines, after string
	}{
		{a, "one\n", ""},
		{a, "two\nthree\n", "one"},
		{b, "four\n", "three"},
		{a, strings.Repeat("x", 30) + "\n", "four"},
		{b, strings.Repeat("y", 30) + "\n", strings.Repeat("x", 30)}, // begins it anew
		{a, "five\n", strings.Repeat("y", 30)},
		{openLines(t, path, 100, 1), "six\n", "five"},
	} {
		if got := put(t, step.by, step.lines); got != step.after {
			t.Errorf("step %d: after %q, want %q", i, got, step.after)
		}
	}
	if old, err := os.ReadFile(path + ".1"); err != nil || !strings.HasPrefix(string(old), "one\ntwo\nthree\nfour\nxxx") {
		t.Errorf("%s, %v", old, err)
	}
}

// What a killed process left of a line is a line by itself.
func TestPartOfALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(path, []byte("one\ntw"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLines(t, path, 1000, 1)
	if got := put(t, l, "three\n"); got != "tw" {
		t.Errorf("after %q", got)
	}
	if text, _ := os.ReadFile(path); string(text) != "one\ntw\nthree\n" {
		t.Errorf("%q", text)
	}
}

func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	l := openLines(t, path, 40, 3) // of 10 bytes each
	for i := range 7 {
		put(t, l, fmt.Sprintf("line %d\n", i))
	}
	for i, want := range []string{"line 6\n", "line 5\n", "line 4\n", "line 3\n"} {
		if text, err := os.ReadFile(Files(path, 3)[i]); err != nil || string(text) != want {
			t.Errorf("%q, want %q: %v", text, want, err)
		}
	}
}

// Several that write one file and begin it anew lose no line, and tear none.
func TestLinesOfSeveral(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	const writers, each, keep = 4, 200, 9
	var wg sync.WaitGroup
	for w := range writers {
		l := openLines(t, path, 20_000*(keep+1), keep)
		wg.Go(func() {
			for i := range each {
				line := fmt.Sprintf("%d %d %s\n", w, i, strings.Repeat("x", 100))
				if err := l.Put(func([]byte) []byte { return []byte(line) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	files, next := Files(path, keep), [writers]int{}
	for n := len(files) - 1; n >= 0; n-- {
		text, err := os.ReadFile(files[n])
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			var w, i int
			if _, err := fmt.Sscanf(line, "%d %d x", &w, &i); err != nil || next[w] != i {
				t.Fatalf("line %q, want %d of %d: %v", line, next[w], w, err)
			}
			next[w]++
		}
	}
	if next != [writers]int{each, each, each, each} {
		t.Errorf("%v", next)
	}
}

// What cannot be written whole is not written.
func TestWholeOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	l := openLines(t, path, 1000, 1)
	put(t, l, "one\n")
	closed := l.file
	closed.Close()
	if err := l.Put(func([]byte) []byte { return []byte("two\n") }); err == nil {
		t.Error("written to a closed file")
	}
	if _, err := OpenLines("audit.file", os.DevNull, 1000, 1); err == nil {
		t.Error("no regular file")
	}
}
