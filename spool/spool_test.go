package spool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

func open(t *testing.T, dir string, key Key) *Dir {
	t.Helper()
	d, err := Open(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestKeepReadDrop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	d := open(t, dir, Key{1})
	if _, err := d.Read("claude"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading nothing: %v", err)
	}
	for _, data := range []string{"first-token", "second-token"} {
		if err := d.Keep("claude", []byte(data)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Read("claude"); err != nil || string(got) != data {
			t.Errorf("read %q, %v", got, err)
		}
	}
	if err := d.Keep("other", []byte("third-token")); err != nil {
		t.Fatal(err)
	}

	// What is on the disk is closed to others and says nothing.
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte("token")) {
			t.Errorf("%s holds a token in clear", e.Name())
		}
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}

	// An entry under another name, or another key, is no entry.
	if err := os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("moved"); err == nil || strings.Contains(err.Error(), "token") {
		t.Errorf("a moved entry: %v", err)
	}

	id := d.ID()
	d.Close()
	d = open(t, dir, Key{2})
	if d.ID() != id {
		t.Error("the directory has another name than before")
	}
	if _, err := d.Read("claude"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with another key: %v", err)
	}
	for range 2 {
		if err := d.Drop("claude"); err != nil {
			t.Errorf("drop: %v", err)
		}
	}
	if _, err := d.Read("claude"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the drop: %v", err)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Key{1})
	if _, err := Open(dir, Key{1}); err == nil || !strings.Contains(err.Error(), "of its own") {
		t.Errorf("a second process: %v", err)
	}
}

func TestNames(t *testing.T) {
	d := open(t, t.TempDir(), Key{1})
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, ".lock", strings.Repeat("a", 201)} {
		if err := d.Keep(name, nil); err == nil {
			t.Errorf("%q was taken", name)
		}
		if _, err := d.Read(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
		if err := d.Drop(name); err == nil {
			t.Errorf("%q was dropped", name)
		}
	}
}

// A disk that takes nothing more leaves the entry that is there.
func TestUnwritable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	dir := t.TempDir()
	d := open(t, dir, Key{1})
	if err := d.Keep("claude", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := d.Keep("claude", []byte("second")); err == nil {
		t.Error("kept in a directory that cannot be written to")
	}
	if got, err := d.Read("claude"); err != nil || string(got) != "first" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestLoadKey(t *testing.T) {
	mem := vaulttest.NewMemory()
	first, err := LoadKey(t.Context(), mem)
	if err != nil || first == (Key{}) {
		t.Fatal(err)
	}
	if again, err := LoadKey(t.Context(), mem); err != nil || again != first {
		t.Errorf("another key the second time: %v", err)
	}

	// Two gates that start together end with the same key.
	mem = vaulttest.NewMemory()
	var theirs Key
	raced := false
	mem.Inject(func(op, _ string) vaulttest.Fault {
		if op == "put" && !raced {
			raced = true
			theirs, _ = LoadKey(t.Context(), mem)
		}
		return vaulttest.Fault{}
	})
	if ours, err := LoadKey(t.Context(), mem); err != nil || ours != theirs {
		t.Errorf("two keys: %v", err)
	}

	mem = vaulttest.NewMemory()
	if _, err := mem.Put(t.Context(), keyPath, map[string]string{"key": "c2hvcnQ="}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(t.Context(), mem); err == nil || strings.Contains(err.Error(), "c2hvcnQ") {
		t.Errorf("a short key: %v", err)
	}
	mem.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
	if _, err := LoadKey(t.Context(), mem); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("without a store: %v", err)
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	key := Key{'s', 'e', 'c', 'r', 'e', 't'}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{key, &key, struct{ K Key }{key}} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, "secret") || strings.Contains(out, "115") || strings.Contains(out, "0x73") {
				t.Errorf("%s prints %s", verb, out)
			}
		}
	}
	if b, err := json.Marshal(key); err == nil {
		t.Errorf("marshalled: %s", b)
	}
}

// A process that waits for the directory is seen by the one that has it, and gets it when that one lets go.
func TestNext(t *testing.T) {
	dir := t.TempDir()
	first, err := Open(dir, Key{1})
	if err != nil {
		t.Fatal(err)
	}
	if first.Awaited() {
		t.Error("awaited by nobody")
	}
	waiting := make(chan struct{})
	next := make(chan *Dir)
	go func() {
		d, err := OpenNext(t.Context(), dir, Key{1}, func() { close(waiting) })
		if err != nil {
			t.Error(err)
		}
		next <- d
	}()
	<-waiting
	if !first.Awaited() {
		t.Error("not awaited by the one that waits")
	}
	if _, err := OpenNext(t.Context(), dir, Key{1}, func() {}); err == nil || !strings.Contains(err.Error(), "waits already") {
		t.Errorf("a third process: %v", err)
	}
	first.Close()
	second := <-next
	defer second.Close()
	if second.Awaited() {
		t.Error("the second is awaited by nobody")
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = OpenNext(ctx, dir, Key{1}, cancel)
	if !errors.Is(err, ErrTaken) {
		t.Errorf("of one who gives up: %v", err)
	}
}
