package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
)

// screen is a program at a terminal, and what a person sees there.
type screen struct {
	cmd   *command
	pty   *os.File
	term  *vt.SafeEmulator
	ended chan struct{}

	mu      sync.Mutex
	changed chan struct{}
}

// onScreen starts a program at a terminal of its own. It ends with the test.
func onScreen(t *testing.T, c *command) *screen {
	t.Helper()
	const rows, columns = 50, 160
	c.Env = append(c.Env, "TERM=xterm-256color")
	f, err := pty.StartWithSize(c.Cmd, &pty.Winsize{Rows: rows, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{cmd: c, pty: f, term: vt.NewSafeEmulator(columns, rows), ended: make(chan struct{}), changed: make(chan struct{})}
	go func() { _, _ = io.Copy(f, s.term) }() // what a terminal says of itself when it is asked
	go func() {
		defer close(s.ended)
		buf := make([]byte, 32<<10)
		for {
			n, err := f.Read(buf)
			if err != nil { // EIO: nobody has the terminal open any more
				_ = c.Wait()
				return
			}
			s.mu.Lock() // the emulator's own lock does not cover all that it changes
			_, _ = s.term.Write(buf[:n])
			c.keep(buf[:n])
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
		}
	}()
	t.Cleanup(s.end)
	return s
}

// end ends the program.
func (s *screen) end() {
	_ = s.cmd.Process.Kill()
	_ = s.pty.Close()
	_ = s.term.InputPipe().(io.Closer).Close() // term.Close would write what others read
	<-s.ended
}

// text is what the screen shows, with words and lines one space apart: where lines break is the program's affair.
func (s *screen) text() string { return strings.Join(strings.Fields(s.shown()), " ") }

func (s *screen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term.String()
}

// waitFor waits until the screen shows text.
func (s *screen) waitFor(text string) error {
	if err := s.wait(func(shown string) bool { return strings.Contains(shown, text) }); err != nil {
		return fmt.Errorf("waiting for %q: %w", text, err)
	}
	return nil
}

// wait waits until what the screen shows is enough.
func (s *screen) wait(enough func(shown string) bool) error {
	for deadline := time.After(patience); ; {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if enough(s.text()) {
			return nil
		}
		select {
		case <-changed:
		case <-s.ended:
			if !enough(s.text()) {
				return fmt.Errorf("it ended, showing\n%s", s)
			}
		case <-deadline:
			return fmt.Errorf("it only shows\n%s", s)
		}
	}
}

// contains reports what is missing when the screen does not show text now.
func (s *screen) contains(text string) error {
	if !strings.Contains(s.text(), text) {
		return fmt.Errorf("%q is not among\n%s", text, s)
	}
	return nil
}

// String is the screen line by line, without what is empty.
func (s *screen) String() string {
	var lines []string
	for line := range strings.Lines(s.shown()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func (s *screen) typed(keys string) error {
	_, err := s.pty.WriteString(keys)
	return err
}
