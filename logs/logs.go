// Package logs owns how much each part of a gate logs, which changes while it runs: by its file, and for a while by an operator.
//
// The part of a line is the package that wrote it. So whoever logs need not say which part it is, and each line shows it as part=….
package logs

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Gate is the part that ties the others together.
const Gate = "gate"

// Parts are those that can have a level of their own.
var Parts = []string{"approval", "audit", "ca", "console", "extproc", "fleet", Gate, "grant", "identity", "journal", "notify", "telemetry", "vault", "worker", "xds"}

// names of levels, from most to least.
var names = []string{"debug", "info", "warn", "error"}

// Names are those of all levels.
func Names() []string { return slices.Clone(names) }

// Parse reads the name of a level.
func Parse(name string) (slog.Level, error) {
	switch name {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not one of %s", name, strings.Join(names, ", "))
}

// Name is the name of a level.
func Name(l slog.Level) string { return strings.ToLower(l.String()) }

// Check refuses parts that there are not.
func Check(part string) error {
	if !slices.Contains(Parts, part) {
		return fmt.Errorf("%q is not a part of a gate that logs; know: %s", part, strings.Join(Parts, ", "))
	}
	return nil
}

// Levels are how much each part logs. They are safe for concurrent use.
type Levels struct {
	now   func() time.Time
	state atomic.Pointer[state] // never changed, only replaced
}

// state has levels by part; those of "" are of all that have none.
type state struct {
	file  map[string]slog.Level
	asked map[string]asked
	least slog.Level // of all of these: what is below is never logged
}

// asked is a level for a while.
type asked struct {
	level slog.Level
	ends  time.Time
}

// New returns Levels at which every part logs what is at level and above.
func New(level slog.Level, now func() time.Time) *Levels {
	l := &Levels{now: now}
	l.state.Store(state{file: map[string]slog.Level{"": level}}.whole())
	return l
}

// whole is a state that knows its least level.
func (s state) whole() *state {
	s.least = slices.Min(slices.Collect(maps.Values(s.file)))
	for _, a := range s.asked {
		s.least = min(s.least, a.level)
	}
	return &s
}

// change replaces the state, whoever else does at the same time.
func (l *Levels) change(f func(state) state) {
	for {
		was := l.state.Load()
		if l.state.CompareAndSwap(was, f(*was).whole()) {
			return
		}
	}
}

// Configure sets the levels of the file: that of every part, and those of some.
func (l *Levels) Configure(level slog.Level, parts map[string]slog.Level) {
	file := maps.Clone(parts)
	if file == nil {
		file = map[string]slog.Level{}
	}
	file[""] = level
	l.change(func(s state) state { s.file = file; return s })
}

// Ask sets a part's level, or with "" every part's, for a while, whatever the file says.
func (l *Levels) Ask(part string, level slog.Level, lasts time.Duration) {
	now := l.now()
	l.change(func(s state) state {
		next := map[string]asked{part: {level, now.Add(lasts)}}
		for p, a := range s.asked {
			if part != "" && p != part && now.Before(a.ends) {
				next[p] = a
			}
		}
		s.asked = next
		return s
	})
}

// Forget makes every part log what the file says.
func (l *Levels) Forget() { l.change(func(s state) state { s.asked = nil; return s }) }

// Of is the level of a part now, and until when that has been asked for; zero: the file says it.
func (l *Levels) Of(part string) (slog.Level, time.Time) {
	s := l.state.Load()
	if len(s.asked) > 0 {
		now := l.now()
		for _, p := range []string{part, ""} {
			if a, ok := s.asked[p]; ok && now.Before(a.ends) {
				return a.level, a.ends
			}
		}
	}
	if level, ok := s.file[part]; ok {
		return level, time.Time{}
	}
	return s.file[""], time.Time{}
}

// Handler passes on what the levels let through, with the part that it is of.
func (l *Levels) Handler(to slog.Handler) slog.Handler { return handler{to, l} }

type handler struct {
	slog.Handler
	levels *Levels
}

// Enabled does not know yet which part logs.
func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.levels.state.Load().least && h.Handler.Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	part := partOf(r.PC)
	if level, _ := h.levels.Of(part); r.Level < level {
		return nil
	}
	r = r.Clone()
	r.AddAttrs(slog.String("part", part))
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.levels}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.levels}
}

// partOf is the part that a program counter is in. What is not in a package of ours, such as an HTTP server's complaint, is the gate's.
func partOf(pc uintptr) string {
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	return partNamed(frame.Function)
}

// partNamed is the part of a function such as wayleave/vault/embedded.(*Server).event.
func partNamed(function string) string {
	path, ours := strings.CutPrefix(function, "wayleave/")
	part := path[:max(strings.IndexAny(path, "./"), 0)]
	if !ours || part == "cmd" {
		return Gate
	}
	return part
}
