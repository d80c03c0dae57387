package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	for echoes(t, program) {
		if t.Context().Err() != nil {
			t.Fatal("the echo is not turned off")
		}
	}
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
