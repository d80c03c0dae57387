package main

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// screen is as much of a terminal as programs need that print lines: colours, wrapping, scrolling, and a line that is
// taken back. Rows are counted from the first that ever was.
type screen struct {
	cols, rows int
	lines      [][]cell
	row, col   int
	top        int // the first row in sight
	style      style
	changed    map[int]bool // rows, since this was last cleared
}

type cell struct {
	r     rune
	style style
}

type style struct {
	bold, dim bool
	colour    int // 1 to 7 as in ECMA-48; 0: none
}

func newScreen(cols, rows int) *screen {
	return &screen{cols: cols, rows: rows, changed: map[int]bool{}}
}

// show prints text.
func (s *screen) show(text string) error {
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			if end < 0 {
				return fmt.Errorf("a control sequence is cut off: %q", text)
			}
			if err := s.control(rest[:end], rest[end]); err != nil {
				return err
			}
			text = rest[end+1:]
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == '\n':
			s.row++
		case r == '\r':
			s.col = 0
		case r == '\t':
			for s.put(' '); s.col%8 != 0; {
				s.put(' ')
			}
		case r < ' ', r == 0x7f, r == utf8.RuneError:
			return fmt.Errorf("%q is not known to this terminal", text[:n])
		default:
			s.put(r)
		}
		s.top = max(s.top, s.row-s.rows+1)
		text = text[n:]
	}
	return nil
}

func (s *screen) put(r rune) {
	if s.col == s.cols {
		s.row, s.col = s.row+1, 0
	}
	line := s.line()
	for len(*line) <= s.col {
		*line = append(*line, cell{r: ' '})
	}
	(*line)[s.col] = cell{r, s.style}
	s.col++
}

// line is the row of the cursor, which is about to change.
func (s *screen) line() *[]cell {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	s.changed[s.row] = true
	return &s.lines[s.row]
}

func (s *screen) control(arguments string, final byte) error {
	switch {
	case final == 'K' && arguments == "": // erase to the end of the line
		if line := s.line(); s.col < len(*line) {
			*line = slices.Clip((*line)[:s.col])
		}
		return nil
	case final == 'A' && arguments == "": // up
		s.row = max(s.row-1, s.top)
		return nil
	case final == 'm':
		for a := range strings.SplitSeq(arguments, ";") {
			switch {
			case a == "" || a == "0":
				s.style = style{}
			case a == "1":
				s.style.bold = true
			case a == "2":
				s.style.dim = true
			case len(a) == 2 && a[0] == '3' && a[1] >= '1' && a[1] <= '7':
				s.style.colour = int(a[1] - '0')
			case a == "39":
				s.style.colour = 0
			default:
				return fmt.Errorf("the style %q is not known to this terminal", a)
			}
		}
		return nil
	}
	return fmt.Errorf("the control sequence %q is not known to this terminal", "ESC["+arguments+string(final))
}
