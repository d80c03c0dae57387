package main

import (
	"bytes"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
)

// Each reason has a page that says what people ask about a refusal, and there is no page of a reason that is none.
func TestEveryReasonIsExplained(t *testing.T) {
	for _, name := range reasonNames() {
		meaning, rest := about(name)
		if meaning == "" {
			t.Errorf("nobody wrote what %s means: write cmd/wayleave/explain/%s.txt", name, name)
			continue
		}
		for _, heading := range []string{"## Why it comes\n", "## What to do\n"} {
			if !strings.Contains(rest, heading) {
				t.Errorf("explain/%s.txt has no %q", name, heading)
			}
		}
		for _, who := range []string{"**Whoever runs the worker**", "**The operator**"} {
			if !strings.Contains(rest, who) {
				t.Errorf("explain/%s.txt does not say what %s does", name, who)
			}
		}
	}
	files, err := fs.Glob(explanations, "explain/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := strings.TrimSuffix(path.Base(file), ".txt"); !slices.Contains(reasonNames(), name) {
			t.Errorf("%s is about no reason", file)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string // in what is printed, on either output
	}{
		{[]string{"explain", "scope_missing"}, exitOK, "wayleave grant connect"},
		{[]string{"explain"}, exitOK, "scope_missing "},
		{[]string{"explain", "no_such"}, exitUsage, `no refusal has the reason "no_such"; 'wayleave explain' lists those there are`},
		{[]string{"explain", "barrier", "misdirected"}, exitUsage, "one reason at most"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), c.args, nil, &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%v ended with %d:\n%s", c.args, code, out.String())
		}
	}
}
