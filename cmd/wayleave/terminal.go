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

// readUnseen reads a line that is not shown while it is typed. An end of ctx leaves the terminal as it was.
func readUnseen(ctx context.Context, tty *os.File) ([]byte, error) {
	fd := int(tty.Fd()) //nolint:gosec // a file descriptor is small
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type line struct {
		text []byte
		err  error
	}
	typed := make(chan line, 1)
	go func() { // reading a terminal cannot be interrupted: this ends with its line or with the process
		text, err := term.ReadPassword(fd)
		typed <- line{text, err}
	}()
	select {
	case l := <-typed:
		return l.text, l.err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return nil, fmt.Errorf("%w; nothing was changed", context.Cause(ctx))
	}
}
