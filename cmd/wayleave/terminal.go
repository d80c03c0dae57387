package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// terminalOf is in as the terminal that it is, or nil when it is none.
func terminalOf(in io.Reader) *os.File {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) { //nolint:gosec // a file descriptor is small
		return f
	}
	return nil
}

// until is what read gives, unless ctx ends before: reading a terminal or a pipe cannot be interrupted, and then ends with what it reads or
// with the process.
func until(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type all struct {
		text []byte
		err  error
	}
	done := make(chan all, 1)
	go func() {
		text, err := read()
		done <- all{text, err}
	}()
	select {
	case a := <-done:
		return a.text, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w; nothing was changed", context.Cause(ctx))
	}
}

// readAll is io.ReadAll until ctx ends.
func readAll(ctx context.Context, in io.Reader) ([]byte, error) {
	return until(ctx, func() ([]byte, error) { return io.ReadAll(in) })
}

// readUnseen reads a line that is not shown while it is typed. An end of ctx leaves the terminal as it was.
func readUnseen(ctx context.Context, tty *os.File) ([]byte, error) {
	fd := int(tty.Fd()) //nolint:gosec // a file descriptor is small
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	text, err := until(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		_ = term.Restore(fd, before)
	}
	return text, err
}
