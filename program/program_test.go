package program

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fake writes an executable that prints text.
func fake(t *testing.T, dir, text string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "thing")
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\necho '%s'\n", text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	spec := Spec{
		Name: "thing", VersionArgs: []string{"--version"}, Version: regexp.MustCompile(`thing (\d+\.\d+\.\d+(?:-\w+)?)`),
		Minimum: "1.40.0", Below: "2.0.0", Setting: "thing.binary",
	}
	dir := t.TempDir()
	old := fake(t, dir+"/old", "thing 1.39.9")
	early := fake(t, dir+"/early", "thing 1.40.0-dev")
	good := fake(t, dir+"/good", "thing 1.40.2")
	tools := fake(t, dir+"/tools", "thing 1.100.0")
	mute := fake(t, dir+"/mute", "something else")
	next := fake(t, dir+"/next", "thing 2.0.0")

	for _, c := range []struct {
		name           string
		path           string // of $PATH
		explicit       string
		tools          string
		want, why, err string
	}{
		{name: "explicit", explicit: good, want: good, why: "named by thing.binary"},
		{name: "explicit is not second-guessed", explicit: old, path: "good", err: "supported are 1.40.0"},
		{name: "explicit, and built before the release", explicit: early, path: "good", err: "which is thing 1.40.0-dev; supported are 1.40.0"},
		{name: "one built before the release is passed over", path: "early", tools: "tools", want: tools, why: "passed over: " + early},
		{name: "explicit and absent", explicit: dir + "/nothing", err: "does not tell its version"},
		{name: "PATH before tools", path: "good", tools: "tools", want: good, why: "$PATH"},
		{name: "an old one is passed over", path: "old", tools: "tools", want: tools, why: "passed over: " + old},
		{name: "a mute one is passed over", path: "mute", tools: "tools", want: tools, why: mute},
		{name: "a newer major is passed over", path: "next", err: next},
		{name: "none", path: "empty", err: "make tools"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("PATH", filepath.Join(dir, c.path)+":/bin:/usr/bin")
			toolsDir := ""
			if c.tools != "" {
				toolsDir = filepath.Join(dir, c.tools)
			}
			b, err := Find(t.Context(), spec, c.explicit, toolsDir)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v; want one with %q", err, c.err)
				}
				return
			}
			if err != nil || b.Path != c.want || !strings.Contains(b.Why, c.why) {
				t.Errorf("got %+v, %v; want %s because %s", b, err, c.want, c.why)
			}
		})
	}
}

func TestShell(t *testing.T) {
	unknown := &fs.PathError{Op: "fork/exec", Err: syscall.ENOEXEC}
	for text, want := range map[string]bool{"echo hello\n": true, "": true, "\x7fELF\x02\x01\x01\x00": false, "MZ\x90\x00": false} {
		file := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		shell, args, script := Shell(unknown, file, []string{"program", "-x"})
		if script != want || script && (shell != "/bin/sh" || !slices.Equal(args, []string{"sh", file, "-x"})) {
			t.Errorf("%q: %v, %s %q", text, script, shell, args)
		}
		if _, _, script := Shell(fs.ErrPermission, file, []string{"program"}); script {
			t.Errorf("%q: started by a shell, although it may not be", text)
		}
	}
	if _, _, script := Shell(unknown, filepath.Join(t.TempDir(), "none"), []string{"none"}); script {
		t.Error("a file that is not there")
	}
}
