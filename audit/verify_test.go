package audit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/journal"
)

// account writes an account of so many records by two runs, and returns its lines.
func account(t *testing.T, path string, chain bool, each int) (lines []string) {
	t.Helper()
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			to, err := journal.OpenLines("audit.file", path, 1<<20, 1)
			if err != nil {
				t.Fatal(err)
			}
			run, err := StartRun(path, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			l := begin(t, "", LogOptions{File: to, Run: run, Chain: chain})
			for range each {
				_ = l.Decided(decided(uuid(), Swapped))
			}
			l.stop()
		})
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func TestVerify(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func([]string) []string
		broken int // line; 0: none is
		why    string
		plain  bool // seen without a chain too
	}{
		"nothing":                  {func(l []string) []string { return l }, 0, "", true},
		"one was changed":          {func(l []string) []string { l[3] = strings.Replace(l[3], `"w"`, `"x"`, 1); return l }, 4, "its hash is another", false},
		"one was taken away":       {func(l []string) []string { return slices.Delete(l, 3, 4) }, 4, "", true},
		"the first was taken away": {func(l []string) []string { return l[1:] }, 0, "", true},
		"a run was taken away":     {func(l []string) []string { return l[5:] }, 0, "", true},
		"one was added": {func(l []string) []string {
			return slices.Insert(l, 3, `{"time":"2026-01-02T03:04:05Z","kind":"request","outcome":"swapped"}`)
		}, 5, "does not follow", false},
		"two were swapped":          {func(l []string) []string { l[2], l[3] = l[3], l[2]; return l }, 3, "", true},
		"a part of one is left":     {func(l []string) []string { return append(l, l[2][:20]) }, 0, "", true},
		"a run lacks its beginning": {func(l []string) []string { return slices.Delete(l, 5, 7) }, 6, "", true},
	} {
		for _, chain := range []bool{true, false} {
			dir := t.TempDir()
			path := filepath.Join(dir, "audit.jsonl")
			lines := account(t, path, chain, 5)
			if len(lines) != 10 {
				t.Fatalf("%d lines", len(lines))
			}
			if err := os.WriteFile(path, []byte(strings.Join(c.change(lines), "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Verify(t.Context(), []string{path, path + ".1"}, "")
			if err != nil {
				t.Fatal(err)
			}
			want := c.broken
			if !chain && !c.plain {
				want = 0
			}
			if line := got.Broken.line(); line != want || want > 0 && chain && !strings.Contains(got.Broken.Why, c.why) {
				t.Errorf("%s, chained %v: %+v, want line %d", name, chain, got.Broken, want)
			}
			if name == "nothing" && (len(got.Runs) != 2 || got.Runs[1].Lines != 5 || got.Runs[1].Last != 5 || chain && got.Chained != 10) {
				t.Errorf("%+v", got)
			}
		}
	}
}

func (b *Break) line() int {
	if b == nil {
		return 0
	}
	return b.Line
}

// A hash that was noted elsewhere shows that nothing was taken away at the end.
func TestHead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	lines := account(t, path, true, 3)
	files := []string{path}
	all, err := Verify(t.Context(), files, "")
	if err != nil || all.Broken != nil {
		t.Fatalf("%+v, %v", all, err)
	}
	if got, err := Verify(t.Context(), files, all.Head); err != nil || got.Broken != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines[:5], "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(t.Context(), files, all.Head); err != nil || got.Broken == nil || !strings.Contains(got.Broken.Why, "taken away at the end") {
		t.Errorf("%+v, %v", got, err)
	}
}

// The chain goes through the files, and through two processes that write one.
func TestChainOfSeveral(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	const keep = 5
	files := journal.Files(path, keep)
	synctest.Test(t, func(t *testing.T) {
		var gates []fixture
		for range 2 {
			to, err := journal.OpenLines("audit.file", path, 20_000*(keep+1), keep)
			if err != nil {
				t.Fatal(err)
			}
			run, err := StartRun(path, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			gates = append(gates, begin(t, "", LogOptions{File: to, Run: run, Chain: true}))
		}
		for i := range 200 {
			gates[i%2].Ended(ended(uuid(), 200))
			synctest.Wait()
		}
		for _, g := range gates {
			g.stop()
		}
	})
	got, err := Verify(t.Context(), files, "")
	if err != nil || got.Broken != nil || got.Chained != 200 || len(got.Runs) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(files[2]); err != nil {
		t.Errorf("it was not begun anew: %v", err)
	}
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(t.Context(), files, ""); err != nil || got.Broken == nil {
		t.Errorf("a file in the middle was taken away: %+v, %v", got, err)
	}
}

// Whatever is in a file is looked at, and the hash of a line does not depend on whether it says it.
func FuzzLine(f *testing.F) {
	for _, line := range []string{"", "{}", `{"time":"2026-01-02T03:04:05Z","kind":"request"}`, `{"time":"2026-01-02T03:04:05Z","kind":"gap","dropped":3,"run":"r","seq":3}`, `,"hash":"` + strings.Repeat("0", 64) + `"}`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		v := verifier{runs: map[string]int{}}
		v.line([]byte(line))
		v.line([]byte(line))
		text, ends := strings.CutSuffix(line, "}")
		if !ends || string(unhashed([]byte(line))) != line {
			return
		}
		if hash := hashOf([]byte(line)); hashOf([]byte(text+hashField+hash+`"}`)) != hash {
			t.Errorf("%q has two hashes", line)
		}
	})
}
