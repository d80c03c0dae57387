package supervise

import (
	"bytes"
	"io"
	"sync"
)

// What an event carries of the output: enough for the reason, short enough for one log line each.
const (
	tailLines = 20
	tailWidth = 500 // bytes of one line
	lineLimit = 64 << 10
)

// lines passes output on in whole lines and remembers the last ones.
type lines struct {
	to io.Writer

	mu      sync.Mutex
	partial []byte   // guarded by mu: the line not ended yet
	recent  []string // guarded by mu
}

// Write never fails: a log that cannot be written must not stop the process whose log it is.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	l.partial = append(l.partial, b...)
	var whole []byte
	if end := bytes.LastIndexByte(l.partial, '\n'); end >= 0 {
		whole, l.partial = l.partial[:end+1:end+1], bytes.Clone(l.partial[end+1:])
	} else if len(l.partial) > lineLimit {
		whole, l.partial = append(l.partial, '\n'), nil
	}
	for line := range bytes.Lines(whole) {
		l.remember(line)
	}
	l.mu.Unlock()
	if len(whole) > 0 {
		_, _ = l.to.Write(whole)
	}
	return len(b), nil
}

func (l *lines) remember(line []byte) {
	line = bytes.TrimRight(line, "\r\n")
	l.recent = append(l.recent, string(line[:min(len(line), tailWidth)]))
	if len(l.recent) > tailLines {
		l.recent = l.recent[len(l.recent)-tailLines:]
	}
}

// tail returns the last lines, one that was not ended included. The process must have ended.
func (l *lines) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.partial) > 0 {
		l.remember(l.partial)
		l.partial = nil
	}
	return l.recent
}
