package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
)

type options struct {
	cols, rows  int
	press, last string
}

// How time passes in a recording, in seconds.
const (
	longest             = 1.2 // between two events, whatever it took
	perLine             = 0.3 // to read a line, before a key is pressed
	leastRead, mostRead = 2, 9
)

// quiet is how long a program has to print nothing before it is taken to wait.
const quiet = 150 * time.Millisecond

// record runs a program in a terminal until it ends or says the last words.
func record(command []string, o options) (*cast, error) {
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // it is ended by a key
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LANG=C.UTF-8", "NO_COLOR=")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: uint16(o.cols), Rows: uint16(o.rows)}) //nolint:gosec // sizes of a terminal
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	chunks := make(chan string)
	go func() { // ends with the program, whose terminal it reads
		defer close(chunks)
		for b := make([]byte, 64<<10); ; {
			n, err := tty.Read(b)
			if n > 0 {
				chunks <- string(b[:n])
			}
			if err != nil {
				return
			}
		}
	}()

	c := &cast{cols: o.cols, rows: o.rows}
	t := &timing{before: time.Now()}
	var pending string // printed, not yet in an event
	var lines int      // since the last key
	flush := func(whole bool) {
		text := pending
		if !whole { // up to the end of a line, so that no text is in two events
			text = pending[:strings.LastIndexByte(pending, '\n')+1]
		}
		if text != "" && utf8.ValidString(text) {
			c.events = append(c.events, event{t.pass(time.Now()), text})
			lines += strings.Count(text, "\n")
			pending = pending[len(text):]
		}
	}
	interrupted := false
	for {
		select {
		case chunk, open := <-chunks:
			switch {
			case !open:
				flush(true)
				if err := cmd.Wait(); err != nil && !interrupted {
					return nil, fmt.Errorf("%s: %w; its last words:\n%s", strings.Join(command, " "), err, tail(c))
				}
				return c, nil
			case !interrupted:
				pending += chunk
				flush(false)
			}
		case <-time.After(quiet):
			if interrupted {
				continue
			}
			waits := o.press != "" && strings.Contains(pending, o.press)
			flush(true)
			switch {
			case waits:
				t.at += min(max(perLine*float64(lines), leastRead), mostRead)
				lines = 0
				if _, err := tty.WriteString(" "); err != nil {
					return nil, err
				}
			case o.last != "" && strings.Contains(tail(c), o.last):
				interrupted = true
				if _, err := tty.WriteString("\x03"); err != nil {
					return nil, err
				}
			}
		}
	}
}

// tail is what was shown last.
func tail(c *cast) string {
	var b strings.Builder
	for _, ev := range c.events[max(0, len(c.events)-10):] {
		b.WriteString(ev.text)
	}
	return b.String()
}

// timing makes the time of a recording from that of a clock.
type timing struct {
	at     float64
	before time.Time
}

func (t *timing) pass(now time.Time) float64 {
	t.at += min(now.Sub(t.before).Seconds(), longest)
	t.before = now
	return t.at
}
