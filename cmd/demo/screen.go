package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// width is how wide the tour's own words are; what commands print is left as it is.
const width = 96

// screen shows the tour. It remembers all that it showed, to be searched for secrets.
type screen struct {
	keys    *keyboard // nil: nobody is waited for
	colours bool

	mu    sync.Mutex
	out   io.Writer
	shown strings.Builder
	last  kind // of what was shown last
}

// kind of what is shown; between two kinds is an empty line.
type kind int

const (
	nothing kind = iota
	guide
	dialogue // commands and what they print
)

func newScreen(out *os.File, keys *keyboard) *screen {
	return &screen{out: out, keys: keys, colours: isTerminal(out) && os.Getenv("NO_COLOR") == ""}
}

// Styles, by their number in ECMA-48.
const (
	bold   = "1"
	dim    = "2"
	yellow = "33"
	cyan   = "36"
)

func (s *screen) print(style, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown.WriteString(text)
	if !s.colours || style == "" {
		fmt.Fprint(s.out, text)
		return
	}
	for line := range strings.Lines(text) {
		text, end, _ := strings.Cut(line, "\n")
		if strings.HasSuffix(line, "\n") {
			end = "\n"
		}
		fmt.Fprintf(s.out, "\x1b[%sm%s\x1b[0m%s", style, text, end)
	}
}

func (s *screen) transcript() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

func (s *screen) title(n, of int, title string) {
	head := fmt.Sprintf("── %d of %d · %s ", n, of, title)
	s.paragraph(guide)
	s.print(cyan, head+strings.Repeat("─", max(0, width-len([]rune(head))))+"\n")
}

// text is what the guide says.
func (s *screen) text(text string) {
	s.paragraph(guide)
	s.print("", fill(text, "")+"\n")
}

// look says what to look at in what was just shown.
func (s *screen) look(text string) {
	s.paragraph(guide)
	s.print(yellow, fill(text, "▸ ")+"\n")
}

// typed is what somebody types, and printed what came of it.
func (s *screen) typed(who, command string) {
	if s.last != dialogue {
		s.paragraph(dialogue)
	}
	s.print(bold, who+"$ "+command+"\n")
}

func (s *screen) printed(text string) {
	if text != "" {
		s.print("", strings.TrimRight(text, "\n")+"\n")
	}
}

func (s *screen) paragraph(k kind) {
	if s.last != nothing {
		s.print("", "\n")
	}
	s.last = k
}

// next waits for a key, or for other. It returns the key, 0 for other or when nobody is waited for.
func (s *screen) next(ctx context.Context, prompt string, other <-chan struct{}) (byte, error) {
	if s.keys == nil {
		return 0, ctx.Err()
	}
	s.print(dim, "\n"+prompt+" ")
	key, err := s.keys.press(ctx, other)
	fmt.Fprint(s.out, "\r\x1b[K\x1b[A") // the prompt has done its work, and its empty line
	return key, err
}

// fill breaks text into lines, the first of which begins with mark and the others below it.
func fill(text, mark string) string {
	var b strings.Builder
	b.WriteString(mark)
	indent := len([]rune(mark))
	column := indent
	for i, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case i == 0:
		case column+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteString(" ")
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}

// keyboard gives single keys of a terminal.
type keyboard struct {
	tty     *os.File
	pressed chan byte
}

// newKeyboard returns nil unless a person sits at both.
func newKeyboard(in, out *os.File) *keyboard {
	if !isTerminal(in) || !isTerminal(out) {
		return nil
	}
	k := &keyboard{in, make(chan byte)}
	go func() { // reading a terminal cannot be interrupted: this ends with the process
		for b := make([]byte, 1); ; {
			if n, err := k.tty.Read(b); err != nil || n == 0 {
				close(k.pressed) // the terminal is gone, or Ctrl-D was pressed while nobody waited
				return
			}
			select {
			case k.pressed <- b[0]:
			default: // pressed while nobody waits
			}
		}
	}()
	return k
}

// Keys that end the tour. Ctrl-C is no signal while a key is waited for, and Ctrl-D is read as 0 when it was pressed before.
const ctrlC, ctrlD = 3, 4

func (k *keyboard) press(ctx context.Context, other <-chan struct{}) (byte, error) {
	fd := int(k.tty.Fd()) //nolint:gosec // a file descriptor is small
	before, err := term.MakeRaw(fd)
	if err != nil {
		return 0, err
	}
	defer func() { _ = term.Restore(fd, before) }()
	select {
	case key, open := <-k.pressed:
		if !open || key == 'q' || key == ctrlC || key == ctrlD || key == 0 {
			return key, errEnough
		}
		return key, nil
	case <-other:
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor is small
}
