package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

func TestFill(t *testing.T) {
	got := fill(strings.Repeat("word ", 30), "▸ ")
	want := "▸ " + strings.TrimSuffix(strings.Repeat("word ", 18), " ") + " word\n  " + strings.TrimSuffix(strings.Repeat("word ", 11), " ")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// What the guide says and what happens are set apart, and each line has its colour to itself.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, colours: true}
	s.title(1, 2, "One")
	s.text("Look.")
	s.typed("worker", "echo a\necho b")
	s.printed("a\nb\n")
	s.typed("worker", "true")
	s.printed("")
	s.look("Nothing.")
	want := "\x1b[36m── 1 of 2 · One " + strings.Repeat("─", width-16) + "\x1b[0m\n\nLook.\n\n" +
		"\x1b[1mworker$ echo a\x1b[0m\n\x1b[1mecho b\x1b[0m\na\nb\n\x1b[1mworker$ true\x1b[0m\n\n\x1b[33m▸ Nothing.\x1b[0m\n"
	if out.String() != want {
		t.Errorf("got\n%q\nwant\n%q", out.String(), want)
	}
	if strings.Contains(s.transcript(), "\x1b") || !strings.Contains(s.transcript(), "worker$ echo a\necho b\na\nb\n") {
		t.Errorf("the transcript is %q", s.transcript())
	}
}

// A key goes on, q and Ctrl-C end the tour.
func TestKeys(t *testing.T) {
	for key, want := range map[byte]error{'c': nil, ' ': nil, 'q': errEnough, ctrlC: errEnough, ctrlD: errEnough} {
		person, k := terminal(t)
		pressed := make(chan struct{})
		go func() {
			defer close(pressed)
			if got, err := k.press(t.Context(), nil); want == nil && got != key || !errors.Is(err, want) {
				t.Errorf("%q gave %q, %v", key, got, err)
			}
		}()
		for waiting := true; waiting; { // what is pressed before it waits does not count
			if _, err := person.Write([]byte{key}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-pressed:
				waiting = false
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

func TestKeysAreNotWaitedFor(t *testing.T) {
	_, k := terminal(t)
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := k.press(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an end of the demo gave %v", err)
	}
	other := make(chan struct{})
	close(other)
	if key, err := k.press(t.Context(), other); key != 0 || err != nil {
		t.Errorf("a click gave %q, %v", key, err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "no terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if newKeyboard(file, k.tty) != nil || newKeyboard(k.tty, file) != nil {
		t.Error("a person is seen where none is")
	}
}

// terminal is a person at a keyboard.
func terminal(t *testing.T) (person *os.File, k *keyboard) {
	t.Helper()
	person, program, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close(); program.Close() })
	go func() { _, _ = io.Copy(io.Discard, person) }() // what the terminal echoes
	if k = newKeyboard(program, program); k == nil {
		t.Fatal("a terminal is taken for none")
	}
	return person, k
}

// A secret is found wherever it is: the tour's last words are worth something.
func TestLeaks(t *testing.T) {
	w := &world{dir: t.TempDir(), secrets: []string{"demo-at-1", "demo-rt-2"}}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("gate.log", "all is well: demo-at-…\n")
	found, tokens, files, err := w.leaks(map[string]string{"words": "a placeholder"})
	if len(found) > 0 || tokens != 2 || files != 1 || err != nil {
		t.Errorf("found %v of %d tokens in %d files: %v", found, tokens, files, err)
	}
	write("envoy.log", "authorization: Bearer demo-at-1\n")
	if found, _, _, err = w.leaks(map[string]string{"words": "see demo-rt-2"}); len(found) != 2 || err != nil {
		t.Errorf("found %v: %v", found, err)
	}
}

// A worker's shell keeps what was set in it, and gives what each line printed.
func TestShell(t *testing.T) {
	w := &world{dir: t.TempDir(), wayleave: filepath.Join(t.TempDir(), "wayleave")}
	if err := os.WriteFile(w.wayleave, []byte("#!/bin/sh\necho about this machine >&2\nshift 2\nexec \"$@\"\n"), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	if err := w.startWorker(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for _, c := range []struct{ line, want string }{
		{"say() { echo \"$1\"; }", ""},
		{"say one; echo two >&2", "one\ntwo\n"},
		{"printf unended", "unended"},
		{"false", ""},
	} {
		if got, err := w.worker.do(t.Context(), c.line); got != c.want || err != nil {
			t.Errorf("%s gave %q, %v", c.line, got, err)
		}
	}
	if got, err := w.worker.do(t.Context(), "echo last words; exit"); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("a shell that ended gave %q, %v", got, err)
	}
}

// The recording in the README is of this tour, and shows no secret, nor where it was made.
func TestRecordingIsOfThisTour(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "images", "tour.cast"))
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range steps {
		if title := fmt.Sprintf("── %d of %d · %s ", i+1, len(steps), s.title); !strings.Contains(string(b), title) {
			t.Errorf("%q is not in it: record it again with 'make tour'", title)
		}
	}
	for _, never := range []string{`demo-[a-z]{2}-[0-9a-f]{16}`, `wls1\.[A-Za-z0-9]{24}`, `login\?token=`, `/(home|root|Users|work)/`} {
		if found := regexp.MustCompile(never).Find(b); found != nil {
			t.Errorf("%s is in it", found)
		}
	}
}
