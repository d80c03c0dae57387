package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

func TestWriteFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	e := Enrolment{CA: testCA(t), Credentials: []Credential{
		{Grant: "claude", Files: map[string]string{".credentials.json": `{"token":"` + Marker + `"}`, "deep/er/x": "in {files}", "program": "#!/bin/sh\necho {files}"}},
		{Grant: "github"},
	}}
	roots := append(testCA(t), testCA(t)...)
	f, err := WriteFiles(dir, "", e, roots, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(read(f.CA), e.CA) {
		t.Error("the CA file is not the CA")
	}
	if got := certificates(read(f.Bundle)); len(got) != 3 {
		t.Errorf("the bundle holds %d certificates, want 3", len(got))
	}
	if f.Alone {
		t.Error("the CA is said to be alone")
	}
	if got := string(read(f.WgetRC)); got != "ca_certificate = "+f.Bundle+"\n" {
		t.Errorf("wgetrc: %q", got)
	}
	if got, err := pkcs12.DecodeTrustStore(read(f.TrustStore), trustStorePassword); err != nil || len(got) != 3 {
		t.Errorf("the trust store holds %d certificates (%v), want 3", len(got), err)
	}
	if _, has := f.Credentials["github"]; has {
		t.Error("a credential without files has a directory")
	}
	if got := read(filepath.Join(f.Credentials["claude"], "deep/er/x")); string(got) != "in "+f.Credentials["claude"] {
		t.Errorf("deep file: %q", got)
	}
	if out, err := exec.Command(filepath.Join(f.Credentials["claude"], "program")).Output(); string(out) != f.Credentials["claude"]+"\n" {
		t.Errorf("a program says %q, %v", out, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.Contains(filepath.Base(path), ".pem.") {
			t.Errorf("%s was left behind", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WriteFiles(dir, "", e, roots, noVariables); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

// Where a machine has no roots, as in a small image, programs would lose those that they bring along, and nobody would know why.
func TestNoRootsAreSaid(t *testing.T) {
	e := testEnrolment("http://gate:3128")
	e.CA = testCA(t)
	for _, roots := range [][]byte{nil, testCA(t)} {
		f, err := WriteFiles(filepath.Join(t.TempDir(), "run"), "", e, roots, noVariables)
		if err != nil {
			t.Fatal(err)
		}
		_, report := Environment(e, nil, f)
		if said := strings.Contains(strings.Join(report, "\n"), "there are no root certificates here"); said != (roots == nil) {
			t.Errorf("with %d bytes of roots: %q", len(roots), report)
		}
	}
}

// A file of JSON may name files in a directory whose name is not plain.
func TestWriteFilesOfJSON(t *testing.T) {
	e := Enrolment{CA: testCA(t), Credentials: []Credential{{Grant: "google", Files: map[string]string{"own.json": `{"file":"{files}/own.json","token":"` + Marker + `"}`}}}}
	f, err := WriteFiles(filepath.Join(t.TempDir(), `an "odd" \ place`), "", e, nil, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.Credentials["google"], "own.json")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var own struct{ File string }
	if err := json.Unmarshal(content, &own); err != nil || own.File != path {
		t.Errorf("%s names %q, %v", path, own.File, err)
	}
}

// Authorities that whoever starts the worker trusts, of a company's own proxy for instance, are trusted by the worker's programs too.
func TestInheritedAuthorities(t *testing.T) {
	e, roots, corporate, nodes := Enrolment{CA: testCA(t)}, testCA(t), testCA(t), testCA(t)
	dir := t.TempDir()
	env := map[string]string{"NIX_SSL_CERT_FILE": filepath.Join(dir, "gone"), "NODE_EXTRA_CA_CERTS": filepath.Join(dir, "nodes"), "REQUESTS_CA_BUNDLE": filepath.Join(dir, "bundle"), "GIT_SSL_CAINFO": dir}
	for name, content := range map[string][]byte{"nodes": append([]byte("# ours\n"), nodes...), "bundle": append(slices.Clone(roots), corporate...)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	getenv := func(name string) string { return env[name] }
	for range 2 { // and again where an earlier session's files are named
		f, err := WriteFiles(filepath.Join(dir, "files"), "", e, roots, getenv)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string][][]byte{f.CA: {e.CA, nodes}, f.Bundle: {roots, e.CA, corporate, nodes}} {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := certificates(content); len(got) != len(want) {
				t.Errorf("%s holds %d certificates, want %d", path, len(got), len(want))
			}
			for i, c := range want {
				if !bytes.Contains(content, bytes.TrimSpace(c)) {
					t.Errorf("%s lacks the %d. of its certificates", path, i+1)
				}
			}
		}
		env = map[string]string{"NODE_EXTRA_CA_CERTS": f.CA, "REQUESTS_CA_BUNDLE": f.Bundle}
	}
}

func TestWriteFilesRefuses(t *testing.T) {
	credential := func(name, content string) Enrolment {
		return Enrolment{CA: testCA(t), Credentials: []Credential{{Grant: "claude", Files: map[string]string{name: content}}}}
	}
	private := func(t *testing.T) string {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	put := func(t *testing.T, dir, content string) string {
		path := filepath.Join(dir, "credentials", "claude", "login.json")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("a real login", func(t *testing.T) {
		dir := private(t)
		path := put(t, dir, `{"accessToken":"real"}`)
		if _, err := WriteFiles(dir, "", credential("login.json", Marker), nil, noVariables); err == nil || !strings.Contains(err.Error(), "real login") {
			t.Errorf("err = %v", err)
		}
		if got, _ := os.ReadFile(path); string(got) != `{"accessToken":"real"}` {
			t.Error("the real login was changed")
		}
	})
	t.Run("a real login behind a link", func(t *testing.T) {
		dir := private(t)
		path := put(t, dir, "")
		real := filepath.Join(dir, "real.json")
		if err := os.WriteFile(real, []byte("real"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, path); err != nil {
			t.Fatal(err)
		}
		if _, err := WriteFiles(dir, "", credential("login.json", Marker), nil, noVariables); err == nil {
			t.Error("no error")
		}
		if got, _ := os.ReadFile(real); string(got) != "real" {
			t.Error("the real login was changed")
		}
	})
	t.Run("a placeholder is replaced", func(t *testing.T) {
		dir := private(t)
		put(t, dir, "old "+Marker)
		if _, err := WriteFiles(dir, "", credential("login.json", "new "+Marker), nil, noVariables); err != nil {
			t.Error(err)
		}
	})
	t.Run("settings that their program has written anew are replaced", func(t *testing.T) {
		dir := private(t)
		path := put(t, dir, `{"onboarded":true,"theme":"dark"}`)
		if _, err := WriteFiles(dir, "", credential("login.json", `{"onboarded":true}`), nil, noVariables); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(path); string(got) != `{"onboarded":true}` {
			t.Errorf("they are %s", got)
		}
	})
	t.Run("a file outside", func(t *testing.T) {
		dir := private(t)
		if _, err := WriteFiles(dir, "", credential("../../ca.pem", "x"), nil, noVariables); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a directory open to others", func(t *testing.T) {
		dir := private(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := WriteFiles(dir, "", credential("x", "x"), nil, noVariables); err == nil || !strings.Contains(err.Error(), "chmod 0700") {
			t.Errorf("err = %v", err)
		}
	})
}

func TestSystemRoots(t *testing.T) {
	dir := t.TempDir()
	good, empty := filepath.Join(dir, "good.pem"), filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(good, testCA(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, []byte("# nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(kv ...string) func(string) string {
		m := environ(kv)
		return func(name string) string { return m[name] }
	}
	for name, chosen := range map[string]string{"SSL_CERT_FILE": good, "NIX_SSL_CERT_FILE": good} {
		if roots, path, err := SystemRoots(env(name + "=" + chosen)); err != nil || path != good || len(certificates(roots)) != 1 {
			t.Errorf("%s: %s, %v", name, path, err)
		}
	}
	for _, bad := range []string{empty, filepath.Join(dir, "missing.pem")} {
		if _, _, err := SystemRoots(env("SSL_CERT_FILE=" + bad)); err == nil || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
			t.Errorf("%s: err = %v", bad, err)
		}
	}
	// Whether this machine has a store is its own affair; an error is none in either case, nor in a shell of Nix.
	for _, get := range []func(string) string{env(), env("SSL_CERT_FILE=/no-cert-file.crt", "NIX_SSL_CERT_FILE=/no-cert-file.crt")} {
		if roots, path, err := SystemRoots(get); err != nil || (path == "") != (len(roots) == 0) {
			t.Errorf("without a file that is named: %s, %d bytes, %v", path, len(roots), err)
		}
	}
}

func TestBundle(t *testing.T) {
	for _, c := range []struct{ roots, ca, want string }{
		{"", "CA\n", "CA\n"},
		{"A\nB", "CA", "A\nB\nCA\n"},
		{"A\n\n", "\nCA\n\n", "A\nCA\n"},
		{"A\nCA\nB\n", "CA\n", "A\nCA\nB\n"},
	} {
		if got := string(Bundle([]byte(c.roots), []byte(c.ca))); got != c.want {
			t.Errorf("Bundle(%q, %q) = %q, want %q", c.roots, c.ca, got, c.want)
		}
	}
}

func TestKeepFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	f, err := WriteFiles(dir, "", Enrolment{CA: testCA(t), Credentials: []Credential{{Grant: "claude", Files: map[string]string{"deep/x": Marker}}}}, nil, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		all := []string{dir, f.CA, f.Bundle, filepath.Join(f.Credentials["claude"], "deep", "x")}
		for _, path := range all {
			if err := os.Chtimes(path, began, began); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		go KeepFiles(ctx, dir)
		time.Sleep(10 * 24 * time.Hour)
		stop()
		for _, path := range all {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if age := time.Since(info.ModTime()); age > time.Hour {
				t.Errorf("%s looks %v old", path, age)
			}
		}
	})
}

func noVariables(string) string { return "" }
