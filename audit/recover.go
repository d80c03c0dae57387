package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	recoverEvery = 2 * time.Second
	// recoverBack is how far back the lines of a killed run are looked for: those of its last batch.
	recoverBack = 32 << 20
	// recentBack is how far back are looked for requests of which Envoys may tell the end once more.
	recentBack = 8 << 20
	// maxNamed is of how many requests that are missing a line has the ids.
	maxNamed = 5000
)

// Recovery finds what gates that were killed had in memory alone. Their Envoys may still tell how it ended, which makes records; what
// they have not told after a grace is counted in the file, so that each decision is in it or is counted.
type Recovery struct {
	path   string
	files  []string // the newest first
	grace  time.Duration
	ledger *Ledger
	out    *Log
	now    func() time.Time
	log    *slog.Logger

	begun bool // Look was called

	mu   sync.Mutex
	runs map[*Run]*killedRun // guarded by mu
}

// killedRun is one of which something may be missing.
type killedRun struct {
	until time.Time // when it is given up
	last  uint64    // number of its last line
	asked bool      // what is missing is being written
}

// NewRecovery returns the Recovery of the account in the file of that path, which has files, the newest one first.
func NewRecovery(path string, files []string, grace time.Duration, ledger *Ledger, out *Log, now func() time.Time, log *slog.Logger) *Recovery {
	return &Recovery{path: path, files: files, grace: grace, ledger: ledger, out: out, now: now, log: log, runs: map[*Run]*killedRun{}}
}

// Run looks for killed gates until ctx ends.
func (r *Recovery) Run(ctx context.Context) {
	tick := time.NewTicker(recoverEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.Look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// Close leaves to the next gate what is not done. The Log must have ended.
func (r *Recovery) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for run := range r.runs {
		run.close()
		delete(r.runs, run)
	}
}

// Look does what is due.
func (r *Recovery) Look(ctx context.Context) {
	found, err := killedRuns(r.path)
	if err != nil {
		r.log.Warn("looking for what killed gates left of the audit", "err", err)
	}
	if !r.begun || len(found) > 0 {
		r.begun = true
		if err := r.remember(ctx); err != nil {
			r.log.Warn("what was written last cannot be read", "err", err)
		}
	}
	for _, run := range found {
		k, err := r.meet(ctx, run)
		if err != nil {
			r.log.Warn("what a killed gate left of the audit cannot be read; it is tried again", "run", run.ID, "err", err)
			run.close()
			continue
		}
		r.mu.Lock()
		r.runs[run] = k
		r.mu.Unlock()
	}
	r.mu.Lock()
	due := map[*Run]uint64{}
	for run, k := range r.runs {
		missing := run.missing().Load()
		switch {
		case k.asked:
		case missing == 0 && len(run.claims()) == 0:
			r.finish(run)
		case !r.now().Before(k.until):
			k.asked = true
			due[run] = k.last
		}
	}
	r.mu.Unlock()
	for run, last := range due {
		r.giveUp(run, last)
	}
}

// remember has the ledger know the requests that have ended last, by whatever gate: an Envoy whose gate was killed tells the next one
// again what it is not sure that the first has heard.
func (r *Recovery) remember(ctx context.Context) error {
	var ids []string
	err := eachBack(ctx, r.files, recentBack, func(rec Record) bool {
		if rec.Request != "" && !rec.Open {
			ids = append(ids, rec.Request)
		}
		return len(ids) < maxRecent/2
	})
	slices.Reverse(ids)
	r.ledger.remember(ids)
	return err
}

// finish ends a run that nothing is missing of. Its caller has the lock.
func (r *Recovery) finish(run *Run) {
	delete(r.runs, run)
	if err := run.finish(); err != nil {
		r.log.Warn("the file of a run of the audit is left behind", "err", err)
	}
}

// meet learns what a killed run had in memory alone.
func (r *Recovery) meet(ctx context.Context, run *Run) (*killedRun, error) {
	sure := run.seq().Load()
	k := &killedRun{until: r.now().Add(r.grace), last: sure}
	claims := run.claims()
	err := eachBack(ctx, r.files, recoverBack, func(rec Record) (more bool) {
		if rec.Run != run.ID {
			return true
		}
		if rec.Seq <= sure {
			return false
		}
		k.last = max(k.last, rec.Seq)
		settle(rec, claims, run)
		return true
	})
	if err != nil {
		return nil, err
	}
	r.ledger.learn(claims)
	return k, nil
}

// settle takes out of claims what a line in the file tells of.
func settle(rec Record, claims map[key]claim, run *Run) {
	take := func(id string) {
		if c, ok := claims[keyOf(id)]; ok {
			c.settle()
			delete(claims, keyOf(id))
		}
	}
	unnamed := uint64(1)
	switch {
	case rec.Kind == Gap && rec.Dropped > 0:
		for _, id := range rec.Requests {
			take(id)
		}
		unnamed = rec.Dropped - min(rec.Dropped, uint64(len(rec.Requests)))
		if rec.Cause == "" { // the run's own
			run.missing().Add(-min(unnamed, run.missing().Load()))
			return
		}
	case rec.Request != "":
		take(rec.Request)
		return
	}
	for k, c := range claims {
		if unnamed > 0 && k.anonymous() {
			c.settle()
			delete(claims, k)
			unnamed--
		}
	}
	run.missing().Add(-min(unnamed, run.missing().Load()))
}

// giveUp counts what nobody told of.
func (r *Recovery) giveUp(run *Run, last uint64) {
	lost := r.ledger.giveUp(run, maxNamed)
	missing := run.missing().Load()
	n := uint64(len(lost)) + missing
	again := func(in time.Duration, counted uint64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if k := r.runs[run]; k != nil {
			k.asked, k.until = false, r.now().Add(in)
			k.last = max(k.last, counted)
		}
	}
	if n == 0 { // records are on their way to the file
		again(0, 0)
		return
	}
	gap := Record{Time: r.now().UTC(), Kind: Gap, Dropped: n, Cause: Killed, Run: run.ID, Seq: last + n}
	for k := range lost {
		if id := k.id(); id != "" {
			gap.Requests = append(gap.Requests, id)
		}
	}
	r.out.add(item{rec: gap, done: func(err error) {
		if err != nil {
			r.ledger.learn(lost)
			again(r.grace, 0)
			return
		}
		for _, c := range lost {
			c.settle()
		}
		run.missing().Add(-missing)
		r.out.o.Watch.Lost(Killed, n)
		r.log.Warn("records are missing in the audit: a gate was killed that had them in memory, and no Envoy told how they ended; the file has their ids", "count", n, "run", run.ID)
		again(0, gap.Seq)
	}})
}

// eachBack calls each for the records of files, the newest first, until it returns false, or so many bytes were read.
func eachBack(ctx context.Context, files []string, most int64, each func(Record) bool) error {
	for _, name := range files {
		more, err := func() (bool, error) {
			f, err := os.Open(name)
			if err != nil {
				return errors.Is(err, fs.ErrNotExist), err
			}
			defer f.Close()
			lines, err := backward(f)
			if err != nil {
				return false, err
			}
			for ctx.Err() == nil && most > 0 {
				line, err := lines()
				if err != nil {
					return errors.Is(err, io.EOF), err
				}
				most -= int64(len(line)) + 1
				if r, ok := parseLine(bytes.TrimSpace(line)); ok && !each(r) {
					return false, nil
				}
			}
			return false, ctx.Err()
		}()
		if more {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the audit: %w", err)
		}
		return nil
	}
	return nil
}
