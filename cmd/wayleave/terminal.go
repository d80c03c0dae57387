package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"golang.org/x/sys/unix"
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
	undo, err := keyByKey(tty)
	if err != nil {
		return nil, err
	}
	defer undo()
	return until(ctx, func() ([]byte, error) { return readLine(tty, io.Discard) })
}

// keyByKey has a terminal show nothing and hand over each key, until undo. By lines it takes 4,095 bytes and loses what is beyond, and on macOS
// 1,023, of which there is then no end: what consent pages answer is longer at some providers, and so are some keys.
func keyByKey(tty *os.File) (undo func(), err error) {
	fd := int(tty.Fd()) //nolint:gosec // a file descriptor is small
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	now := *before
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	now.Cc[unix.VQUIT], now.Cc[unix.VSUSP] = noKey, noKey // which would leave the terminal so
	return func() { _ = unix.IoctlSetTermios(fd, setTermios, before) }, unix.IoctlSetTermios(fd, setTermios, &now)
}

// readLine reads a line from a terminal that hands over each key, and shows it.
func readLine(keys io.Reader, show io.Writer) ([]byte, error) {
	const end, backspace, clear, escape, rubout = 0x04, '\b', 0x15, 0x1b, 0x7f // Ctrl-D, Ctrl-U
	var line []byte
	var sequence byte // in what an arrow, or another key without a character, sends: ESC, or [ or O after it (ECMA-48 section 5.4)
	for key := make([]byte, 1); ; {
		if _, err := io.ReadFull(keys, key); err != nil {
			return nil, err
		}
		k, within := key[0], sequence
		sequence = 0
		switch {
		case k == '\n' || k == '\r':
			_, _ = io.WriteString(show, "\n")
			return line, nil
		case within == escape && (k == '[' || k == 'O'):
			sequence = k
		case within == '[' && k >= ' ' && k < '@': // a parameter
			sequence = within
		case (within == '[' || within == 'O') && k >= '@' && k <= '~': // its end
		case k == end && len(line) == 0:
			return nil, io.EOF
		case k == escape:
			sequence = escape
		case k == backspace || k == rubout || k == clear:
			for more := true; more && len(line) > 0; more = k == clear {
				_, size := utf8.DecodeLastRune(line)
				line = line[:len(line)-size]
				_, _ = io.WriteString(show, "\b \b")
			}
		case k >= ' ':
			line = append(line, k)
			_, _ = show.Write(key)
		}
	}
}
