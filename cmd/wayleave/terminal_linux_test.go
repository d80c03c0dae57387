package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave/operate"
)

// pseudoTerminal is a keyboard with a screen, and the terminal that a program has of them.
func pseudoTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// echoes reports whether the terminal shows what is typed.
func echoes(t *testing.T, tty *os.File) bool {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s.Lflag&unix.ECHO != 0
}

// What is typed is not shown, and stored.
func TestImportFromTerminal(t *testing.T) {
	person, program := pseudoTerminal(t)
	if _, err := person.WriteString("sk-ant-api03-hush-1\n"); err != nil { // typed ahead: shown by the terminal itself
		t.Fatal(err)
	}
	o := newOffice(t)
	d := o.desk("")
	d.in = program
	o.wants(d.importGrant(t.Context(), "key", "", false), 0, "which is not shown: ", "healthy")
	if !echoes(t, program) {
		t.Error("the terminal is left without an echo")
	}
	o.wants(d.importGrant(t.Context(), "acme", "", false), exitUsage, "--from-file")
}

// awaitEcho waits until what is typed is shown, or not.
func awaitEcho(t *testing.T, tty *os.File, want bool) {
	t.Helper()
	for echoes(t, tty) != want {
		if t.Context().Err() != nil {
			t.Fatalf("the echo of the terminal is %v", !want)
		}
	}
}

// longLine is more than a terminal takes as a line.
var longLine = strings.Repeat("0123456789", 700)

// A value longer than a terminal's lines is stored whole.
func TestLongLineUnseen(t *testing.T) {
	person, program := pseudoTerminal(t)
	var text []byte
	done := make(chan error, 1)
	go func() {
		var err error
		text, err = readUnseen(t.Context(), program)
		done <- err
	}()
	awaitEcho(t, program, false)
	if _, err := person.WriteString(longLine + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || string(text) != longLine {
		t.Errorf("%d bytes of %d, %v", len(text), len(longLine), err)
	}
	if !echoes(t, program) {
		t.Error("the terminal is left without an echo")
	}
}

// The answer of a consent page may be longer than a terminal's lines, and is shown as it is pasted.
func TestLongAnswerIsPasted(t *testing.T) {
	person, program := pseudoTerminal(t)
	var answered string
	shown := make(chan bool, 1) // on the terminal, wherever the words around it go
	go func() {
		var all []byte
		for part := make([]byte, 4096); !bytes.Contains(all, []byte(longLine+"\r\n")); {
			n, err := person.Read(part)
			if all = append(all, part[:n]...); err != nil {
				shown <- false
				return
			}
		}
		shown <- true
	}()
	words := new(strings.Builder)
	begin := func(context.Context, string) (pageConsent, error) {
		return pageConsent{url: "https://login.example/authorize", pasted: true, answer: func(answer string) (finisher, error) {
			answered = answer
			return func(context.Context) (operate.Stored, error) { return operate.Stored{}, nil }, nil
		}}, nil
	}
	done := make(chan error, 1)
	go func() {
		_, err := authorization{begin: begin, in: program, out: words}.run(t.Context())
		done <- err
	}()
	awaitEcho(t, program, false)
	if _, err := person.WriteString(longLine + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || answered != longLine {
		t.Errorf("%d bytes of %d, %v", len(answered), len(longLine), err)
	}
	if !<-shown || strings.Contains(words.String(), longLine) {
		t.Error("what is pasted is not shown there, or elsewhere")
	}
	if !echoes(t, program) {
		t.Error("the terminal is left without an echo")
	}
}

// What is typed can be corrected, as in any line.
func TestReadLine(t *testing.T) {
	for typed, want := range map[string]string{
		"code\n":               "code",
		"code\r":               "code",
		"coqe\x7f\x7fde\n":     "code",
		"\x7f\bcode\n":         "code",
		"no\x15code\n":         "code",
		"né\x7foon\x15\n":      "",
		"é\x7fcode\n":          "code",
		"co\x1b[A\x1b[3~de\n":  "code",
		"co\x1bOPde\n":         "code",
		"co\x04\x00de\n":       "code",
		"\x1b4/0A\n":           "4/0A",
		"\x1b\x1b[Bcode\x1b\n": "code",
	} {
		if got, err := readLine(strings.NewReader(typed), io.Discard); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", typed, got, err)
		}
	}
	for _, typed := range []string{"", "\x04code\n", "co"} {
		if got, err := readLine(strings.NewReader(typed), io.Discard); err == nil {
			t.Errorf("%q: %q", typed, got)
		}
	}
}

// A question can be answered by an interruption, which is a no.
func TestQuestionIsInterrupted(t *testing.T) {
	_, program := pseudoTerminal(t)
	o := newOffice(t)
	o.connect("acme")
	d := o.desk("")
	d.in = program
	ctx, interrupt := context.WithCancel(t.Context())
	asked, asks := io.Pipe()
	d.err = asks
	done := make(chan error, 1)
	go func() { done <- d.disconnect(ctx, "acme", false, true, time.Minute) }()
	question := make([]byte, 64)
	if n, err := asked.Read(question); err != nil || !strings.Contains(string(question[:n]), "Workers lose acme") {
		t.Fatalf("%q, %v", question[:n], err)
	}
	interrupt()
	o.wants(<-done, exitFailure, "nothing was changed")
	o.wants(o.desk("").showGrant(t.Context(), "acme", "", 0), 0, "healthy")
}

// An interrupted command leaves the terminal as it was.
func TestReadUnseenIsInterrupted(t *testing.T) {
	_, program := pseudoTerminal(t)
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := readUnseen(ctx, program)
		done <- err
	}()
	awaitEcho(t, program, false)
	interrupt()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if !echoes(t, program) {
		t.Error("the terminal is left without an echo")
	}
}

// Who is asked on a terminal and does not agree has changed nothing.
func TestDisconnectAsks(t *testing.T) {
	person, program := pseudoTerminal(t)
	o := newOffice(t)
	o.connect("bare")
	d := o.desk("")
	d.in = program
	if _, err := person.WriteString("no\n"); err != nil {
		t.Fatal(err)
	}
	o.wants(d.disconnect(t.Context(), "bare", false, true, 0), 1, "Disconnect it? [y/N]", "nothing was changed")
	if s := o.state("bare"); !strings.Contains(string(s), "healthy") {
		t.Error(s)
	}
	if _, err := person.WriteString("y\n"); err != nil {
		t.Fatal(err)
	}
	o.wants(d.disconnect(t.Context(), "bare", false, true, 0), 0, "bare is disconnected")
}
