package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A state directory belongs to one gate, and to one user.
func TestStateLock(t *testing.T) {
	st := state{dir: filepath.Join(t.TempDir(), "a", "state")}
	release, err := st.lock()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(st.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
	if _, err := st.lock(); err == nil || !strings.Contains(err.Error(), "--state") {
		t.Errorf("a second lock: %v; want an error that names --state", err)
	}
	release()
	release, err = st.lock()
	if err != nil {
		t.Errorf("after the release: %v", err)
	}
	release()
}

// Sockets get a short directory of their own when the state's path leaves no room for them.
func TestSocketDir(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp")
	for _, c := range []struct {
		name, dir string
		below     bool // the state directory
	}{
		{"short", filepath.Join(t.TempDir(), "s"), true},
		{"long", filepath.Join(t.TempDir(), strings.Repeat("long", 30)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.below && len(c.dir) > maxSocketPath()-10 {
				t.Skip("the temporary directory is long itself")
			}
			dir, remove, err := state{dir: c.dir}.socketDir()
			if err != nil {
				t.Fatal(err)
			}
			defer remove()
			if below := strings.HasPrefix(dir, c.dir); below != c.below || len(dir) > maxSocketPath() {
				t.Errorf("got %s", dir)
			}
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("mode %v, %v; want 0700", info, err)
			}
		})
	}
}

func TestWorkerToken(t *testing.T) {
	st := state{dir: t.TempDir()}
	if _, err := st.workerToken(""); err == nil || !strings.Contains(err.Error(), "WAYLEAVE_TOKEN") {
		t.Errorf("none: %v", err)
	}
	made, err := st.ensureWorkerToken("one")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(st.workerTokenPath("one")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info, err)
	}
	if again, err := st.ensureWorkerToken("one"); err != nil || !again.Equal(made) {
		t.Errorf("made anew at the second start: %v", err)
	}
	if got, err := st.workerToken(""); err != nil || !got.Equal(made) {
		t.Errorf("the only one: %v", err)
	}
	if _, err := st.ensureWorkerToken("two"); err != nil {
		t.Fatal(err)
	}
	if _, err := st.workerToken(""); err == nil || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("several: %v", err)
	}
}

// Mistakes on the command line end with 2 and say where help is; failures of the work end with 1.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("nonsense: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WAYLEAVE_CONFIG", "")
	t.Setenv("WAYLEAVE_GATE", "")
	t.Setenv("WAYLEAVE_TOKEN", "")
	t.Setenv("WAYLEAVE_STATE", filepath.Join(dir, "state"))
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--version", 0, ""},
		{"config schema", 0, ""},
		{"config check", 2, "-c or WAYLEAVE_CONFIG"},
		{"config check --nonsense", 2, "config check --help"},
		{"config check extra -c x", 2, "config check --help"},
		{"config check -c " + bad, 1, "bad.yaml:1:1: nonsense: unknown key"},
		{"config check -c " + dir + "/none.yaml", 1, "none.yaml"},
		{"nonsense", 2, "unknown command"},
		{"run", 2, "run wants a command"},
		{"run --gate ftp://x -- true", 2, "http://host:3128"},
		{"run -- true", 1, "wayleave up"},
		{"run --gate http://127.0.0.1:1 -- true", 1, "WAYLEAVE_TOKEN"},
		{"grant connect -c x", 2, "NAME"},
		{"worker token", 0, ""},
		{"grant conect", 2, "did you mean 'wayleave grant connect'?"},
		{"connect claude", 2, "did you mean 'wayleave grant connect'?"},
		{"grants", 2, "did you mean 'wayleave grant'?"},
		{"validate", 2, "did you mean 'wayleave config check'?"},
		{"ls", 2, "see 'wayleave --help'"},   // is like many
		{"list", 2, "see 'wayleave --help'"}, // and is many
		{"version", 0, ""},
		{"__complete grant connect -c testdata/example.yaml ", 0, ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(t.Context(), strings.Split(c.args, " "), strings.NewReader(""), &out, &errs)
			if strings.HasPrefix(c.args, "__complete") && !strings.HasPrefix(out.String(), "acme\nclaude\n") {
				t.Errorf("completes to %q; want the grants of the configuration", out.String())
			}
			if code != c.code || !strings.Contains(errs.String(), c.says) {
				t.Errorf("exit code %d, said %q; want %d and %q", code, errs.String(), c.code, c.says)
			}
		})
	}
}
