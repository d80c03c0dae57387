package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/rollout"
)

const watchEvery = 250 * time.Millisecond

// watchConfig looks at the file of cfg, and at the public files that it names, until ctx ends. It calls changed with the text of the
// file when something in them is not what cfg was made of, or what it was when changed was called last. They are read, since renamed
// files and the links that Kubernetes swaps tell nothing by their times, and one that is being written is left until it stays as it is.
func watchConfig(ctx context.Context, path string, cfg *config.Config, log *slog.Logger, changed func(text []byte)) {
	w := newFileWatch(path, cfg)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	away := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text, err := os.ReadFile(path)
		switch {
		case err == nil:
			away = false
		case !away:
			log.Warn("the configuration cannot be read; the gate goes on with what it has", "err", err)
			away = true
			continue
		default:
			continue
		}
		if w.look(text) {
			changed(text)
		}
	}
}

// fileWatch knows what was seen of a file.
type fileWatch struct {
	path  string
	told  [sha256.Size]byte // of what is known to whoever watches
	seen  [sha256.Size]byte // at the last look
	text  []byte            // that also is of
	also  []string          // names of the files that are read with it
	whole *config.Config    // that resolves them
}

func newFileWatch(path string, cfg *config.Config) *fileWatch {
	w := &fileWatch{path: path}
	w.name(cfg.Text(), cfg)
	files, _ := cfg.Files() // one that could not be read is news when it can
	w.told = sum(w.text, w.also, func(name string) []byte { return files[name] })
	w.seen = w.told
	return w
}

// name notes which files belong to the text.
func (w *fileWatch) name(text []byte, cfg *config.Config) {
	w.text, w.whole, w.also = text, cfg, nil
	if cfg != nil {
		w.also = cfg.FileNames()
	}
}

// look reports whether something has changed, and is the same as at the look before.
func (w *fileWatch) look(text []byte) bool {
	if !slices.Equal(text, w.text) {
		cfg, _ := config.Parse(w.path, text) // of one with faults only the text counts
		w.name(text, cfg)
	}
	now := sum(text, w.also, func(name string) []byte {
		content, _ := os.ReadFile(w.whole.Path(name))
		return content
	})
	settled := now == w.seen && len(text) > 0 // an empty one is about to be written
	w.seen = now
	if !settled || now == w.told {
		return false
	}
	w.told = now
	return true
}

func sum(text []byte, names []string, read func(name string) []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%x\n", sha256.Sum256(text))
	for _, name := range names {
		fmt.Fprintf(h, "%q %x\n", name, sha256.Sum256(read(name)))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// ownFile is what a gate knows of its configuration file.
type ownFile struct {
	path      string
	revision  string
	changed   bool // while the gate ran, and no rollout has begun for it since; not: it is as at the start
	automatic bool
}

// fileMove is what a gate does about its file.
type fileMove int

const (
	leave fileMove = iota // nothing: somebody has to do something, or there is nothing to be done
	await                 // look again when the rollout that is under way has ended
	begin                 // roll it out
)

// mentions reports whether a state knows of a rollout.
func mentions(s rollout.State, id string) bool {
	return s.Current != nil && s.Current.ID == id || slices.ContainsFunc(s.History, func(r rollout.Rollout) bool { return r.ID == id })
}

// isRolledOut reports whether the fleet has a revision, or is on the way to it, whoever began that. What becomes of it then is no more
// for a file to say that has not changed since.
func isRolledOut(s rollout.State, revision string) bool {
	if s.Current != nil {
		return fleet.Configuration(s.Current.To) == revision
	}
	return fleet.Configuration(s.Stable) == revision
}

// automatic decides what a gate does about its file, and says it in words for the log; none when there is nothing to say.
func automatic(s rollout.State, f ownFile) (do fileMove, words string) {
	byHand := "wayleave rollout start -c " + f.path
	mine := func(name string) bool { return fleet.Configuration(name) == f.revision } // whatever root CA goes with it
	known := slices.ContainsFunc(s.History, func(r rollout.Rollout) bool { return mine(r.To) || mine(r.From) })
	var last rollout.Rollout
	if len(s.History) > 0 {
		last = s.History[0]
	}
	switch c := s.Current; {
	case s.Stable == "" && c == nil:
		return begin, "it is the first revision of this fleet"
	case c != nil && mine(c.To):
		return leave, ""
	case mine(s.Stable) && c != nil && f.changed:
		return leave, fmt.Sprintf("the file is again what the rollout %s leads away from; to go back: wayleave rollout abort", c.ID)
	case mine(s.Stable):
		return leave, ""
	case mine(last.To) && last.Phase != rollout.Succeeded:
		return leave, fmt.Sprintf("the revision of this file was %s; mend the file, or start it again: %s", last.Outcome(), byHand)
	case known && !f.changed:
		return leave, "this gate's file is of an older revision than the Envoys have; bring it up to date, or roll it out: " + byHand
	case !f.automatic:
		return leave, "the Envoys have another revision than this gate's file, and rollout.automatic is false; to roll it out: " + byHand
	case c != nil:
		return await, fmt.Sprintf("the rollout %s is under way; that of this file begins after it", c.ID)
	}
	return begin, ""
}
