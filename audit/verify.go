package audit

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Checked is what a look at all lines of an account has found.
type Checked struct {
	Lines   int       `json:"lines"`
	Chained int       `json:"chained"` // of them
	Runs    []RunSeen `json:"runs"`    // as they begin
	// Before is how many lines have no number, as gates wrote them before lines had.
	Before int `json:"before,omitempty"`
	// Unreadable is how many lines are no records: a part of one is left where a gate was killed.
	Unreadable int    `json:"unreadable,omitempty"`
	Head       string `json:"head,omitempty"` // hash of the last line
	// Broken is the first line that does not fit to those before; nil: all do.
	Broken *Break `json:"broken,omitempty"`
}

// RunSeen is a run of a gate, from its start to its end.
type RunSeen struct {
	Run         string `json:"run"`
	Lines       int    `json:"lines"`
	From        uint64 `json:"from"` // number of its first line; those before are in a file that is there no more
	Last        uint64 `json:"last"`
	Missing     uint64 `json:"missing,omitempty"`     // that the run's own lines count
	Undelivered uint64 `json:"undelivered,omitempty"` // to its sinks
}

// Break is where an account was changed.
type Break struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Why  string `json:"why"`
}

// Verify looks whether lines are missing, or were changed, in an account's files, the newest first. With a head, which is the hash of a line that was
// noted elsewhere, that line must be there. What was before the oldest file is taken as it is.
func Verify(ctx context.Context, files []string, head string) (Checked, error) {
	v := verifier{runs: map[string]int{}, head: strings.ToLower(head)}
	for _, name := range slices.Backward(files) {
		if err := v.file(ctx, name); err != nil {
			return v.Checked, fmt.Errorf("reading the audit: %w", err)
		}
	}
	if head != "" && !v.found && v.Broken == nil {
		v.Broken = &Break{files[0], 0, "no line has the hash " + head + ": lines were taken away at the end, or changed"}
	}
	return v.Checked, nil
}

type verifier struct {
	Checked
	runs  map[string]int // place in Runs
	head  string
	found bool
	last  string // hash of the line before
	whole bool   // the first line there is is a run's first, so that nothing was before
}

func (v *verifier) file(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, block)
	for n := 1; ctx.Err() == nil; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // a part of a line that is being written
			return nil
		}
		if err != nil {
			return err
		}
		if why := v.line(line[:len(line)-1]); why != "" && v.Broken == nil {
			v.Broken = &Break{name, n, why}
		}
	}
	return ctx.Err()
}

// line returns why a line does not fit to those before.
func (v *verifier) line(line []byte) (why string) {
	first := v.Lines == 0
	v.Lines++
	last, hash := v.last, hashOf(line)
	v.last, v.Head = hash, hash
	v.found = v.found || hash == v.head
	r, ok := parseLine(line)
	if !ok {
		v.Unreadable++
		return ""
	}
	if r.Hash != "" {
		v.Chained++
		switch {
		case r.Hash != hash:
			why = "it was changed: its hash is another"
		case !first && r.Prev != last:
			why = "it does not follow the line before: that one was changed, or lines were taken away or added between them"
		}
	}
	return cmp.Or(why, v.numbered(r, first))
}

// numbered returns why a line's number does not fit.
func (v *verifier) numbered(r Record, first bool) (why string) {
	if r.Run == "" || r.Seq == 0 {
		v.Before++
		return ""
	}
	before := max(1, r.Dropped) // how many numbers it stands for
	at, known := v.runs[r.Run]
	if !known {
		v.runs[r.Run] = len(v.Runs)
		begins := r.Seq == before
		if first {
			v.whole = begins
		}
		v.Runs = append(v.Runs, RunSeen{Run: r.Run, Lines: 1, From: r.Seq, Last: r.Seq, Missing: r.Dropped, Undelivered: r.Undelivered})
		if v.whole && !begins {
			return fmt.Sprintf("the run %s begins with its line %d: those before were taken away", r.Run, r.Seq)
		}
		return ""
	}
	s := &v.Runs[at]
	next := s.Last + before
	s.Lines++
	s.Missing += r.Dropped
	s.Undelivered += r.Undelivered
	s.Last = r.Seq
	if r.Seq != next {
		return fmt.Sprintf("it is number %d of the run %s, and number %d should be here: lines were taken away, or added", r.Seq, r.Run, next)
	}
	return ""
}
