package approval

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// every is how often a gate that holds something looks for decisions.
const every = time.Second

// Result is what came of a request that was to be held.
type Result struct {
	ID       string
	State    State // Allowed, Denied, TimedOut, Withdrawn, Stopped, or empty: it could not be held, or its decision not be read
	Decision Decision
	Err      error // why not; its words are for the worker
}

// Board is where one gate's requests wait. It is safe for concurrent use.
type Board struct {
	docs Documents
	o    Options
	wake chan struct{}
	asks sync.WaitGroup // for Options.Ask

	mu      sync.Mutex
	waiting map[string]*wait // guarded by mu; by id, until the document says what became of it
	closed  bool             // guarded by mu
	trouble error            // guarded by mu; why the document could not be read or written the last time
}

// Options are optional.
type Options struct {
	// Gate is the name of this gate, for operators.
	Gate string
	// Ask asks somebody about each request that begins to wait, beside the operators. It ends with ctx. No decision: nil.
	Ask func(ctx context.Context, a Approval) *Decision
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Log has who decided what. Nil: none.
	Log *slog.Logger
}

// wait is one request. State, Decision, Ended and written are guarded by the board's mu.
type wait struct {
	Approval
	written bool   // the document has it
	result  Result // set before done is closed
	done    chan struct{}
	ask     func()             // calls Options.Ask; nil: there is none
	cancel  context.CancelFunc // ends Options.Ask
}

// NewBoard returns a Board on which nothing waits. Nothing is held until Run runs.
func NewBoard(docs Documents, o Options) *Board {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Board{docs: docs, o: o, wake: make(chan struct{}, 1), waiting: map[string]*wait{}}
}

// Reasons of a Result without a State.
var (
	errFullHere = fmt.Errorf("%d requests wait for an operator already, which is the most", MaxWaiting)
	errFullOf   = fmt.Errorf("%d requests of this worker wait for an operator already, which is the most", MaxPerWorker)
	errStopping = errors.New("this gate is being stopped")
	errVault    = errors.New("the gate's vault fails")
	errTimedOut = errors.New("nobody has decided")
)

// Hold makes a request wait until somebody decides about it, its worker is gone (ctx), or for as long as patience.
func (b *Board) Hold(ctx context.Context, r Request, patience time.Duration) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errTimedOut)
	defer cancel()
	now := b.o.Now()
	w := &wait{done: make(chan struct{}), cancel: cancel}
	w.Approval = Approval{ID: strings.ToLower(rand.Text()[:10]), Request: r, Gate: b.o.Gate, Since: wall(now), Until: wall(now.Add(patience)), State: Waiting}
	w.Path = w.Path[:min(len(w.Path), maxPath)]
	a := w.Approval
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return Result{Err: errStopping}
	}
	if len(b.waiting) >= 2*MaxWaiting { // the document would be full, and cannot be read
		b.mu.Unlock()
		return Result{Err: errFullHere}
	}
	b.waiting[w.ID] = w
	if b.o.Ask != nil {
		w.ask = func() { b.ask(ctx, w, a) }
	}
	b.mu.Unlock()
	b.o.Log.LogAttrs(ctx, slog.LevelInfo, "request held", attributes(a)...)
	b.look()
	select {
	case <-w.done:
	case <-ctx.Done():
		b.giveUp(ctx, w)
		b.look()
	}
	attrs := append(attributes(a), slog.String("state", string(w.result.State)))
	if d := w.result.Decision; d.Verdict != "" {
		attrs = append(attrs, slog.String("by", d.By), slog.String("from", d.From))
	}
	if w.result.Err != nil {
		attrs = append(attrs, slog.Any("err", w.result.Err))
	}
	b.o.Log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "held request ended", attrs...)
	return w.result
}

// Waiting are the requests that wait at this gate, the oldest first.
func (b *Board) Waiting() []Approval {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Approval
	for _, w := range b.waiting {
		if w.State == Waiting && w.written {
			all = append(all, w.Approval)
		}
	}
	slices.SortFunc(all, func(x, y Approval) int { return cmp.Or(x.Since.Compare(y.Since), strings.Compare(x.ID, y.ID)) })
	return all
}

// attributes are what the log has of a held request.
func attributes(a Approval) []slog.Attr {
	return []slog.Attr{
		slog.String("approval", a.ID), slog.String("worker", a.Worker), slog.String("session", a.Session), slog.String("rule", a.Rule),
		slog.String("host", a.Host), slog.String("request_id", a.RequestID),
	}
}

// giveUp ends a request that nobody has decided about before ctx ended.
func (b *Board) giveUp(ctx context.Context, w *wait) {
	b.mu.Lock()
	defer b.mu.Unlock()
	res := Result{State: Withdrawn}
	if errors.Is(context.Cause(ctx), errTimedOut) {
		res.State = TimedOut
		if b.trouble != nil { // perhaps somebody has, and we do not know
			res = Result{Err: errVault}
		}
	}
	b.finish(w, res)
}

// ask takes a decision from elsewhere than the document.
func (b *Board) ask(ctx context.Context, w *wait, a Approval) {
	d := b.o.Ask(ctx, a)
	if d == nil || ctx.Err() != nil {
		return
	}
	d.At = wall(b.o.Now())
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.State == Waiting {
		w.Decision = d
		b.finish(w, Result{State: d.Verdict.state(), Decision: *d})
		b.look()
	}
}

// finish says what became of a request, once; mu is held.
func (b *Board) finish(w *wait, res Result) {
	if w.State != Waiting {
		return
	}
	res.ID, w.State, w.Ended = w.ID, res.State, wall(b.o.Now())
	if w.State == "" {
		w.State = Withdrawn
	}
	w.result = res
	w.cancel()
	close(w.done)
}

func (v Verdict) state() State {
	if v == Allow {
		return Allowed
	}
	return Denied // whatever else was written
}

// look makes Run look at the document.
func (b *Board) look() {
	select {
	case b.wake <- struct{}{}:
	default: // it will
	}
}

// Run keeps the document and what waits here in step until ctx ends. Then it refuses what still waits.
func (b *Board) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-b.wake:
			b.meet(ctx)
		case <-tick.C:
			b.meet(ctx)
		}
	}
	b.mu.Lock()
	b.closed = true
	for _, w := range b.waiting {
		b.finish(w, Result{State: Stopped, Err: errStopping})
	}
	b.mu.Unlock()
	b.asks.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	b.meet(last)
}

// meet takes what others decided from the document, and writes what is new here.
func (b *Board) meet(ctx context.Context) {
	b.mu.Lock()
	idle := len(b.waiting) == 0
	b.mu.Unlock()
	if idle {
		return
	}
	var seen map[*wait]State
	err := update(ctx, b.docs, b.o.Now, func(d *document) (changed bool, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		seen, changed = b.merge(d)
		return changed, nil
	})
	if ctx.Err() != nil {
		return
	}
	switch before := b.settle(seen, err); {
	case err != nil && before == nil:
		b.o.Log.LogAttrs(ctx, slog.LevelWarn, "held requests cannot be shown to operators; new ones are refused", slog.Any("err", err))
	case err == nil && before != nil:
		b.o.Log.LogAttrs(ctx, slog.LevelInfo, "held requests are shown to operators again")
	}
}

// settle takes note of what the document has now, or of why that is not known. It returns the trouble there was before.
func (b *Board) settle(seen map[*wait]State, err error) (before error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, b.trouble = b.trouble, err
	if err == nil {
		for w, state := range seen {
			if state == Waiting && !w.written && w.ask != nil { // operators see it; so may others
				b.asks.Go(w.ask)
			}
			if w.written = true; state != Waiting {
				delete(b.waiting, w.ID)
			}
		}
		return before
	}
	now := b.o.Now()
	for id, w := range b.waiting {
		if !w.written {
			b.finish(w, Result{Err: errVault})
		}
		if now.Sub(w.Until) > skew && w.State != Waiting { // everybody else takes it for lost
			delete(b.waiting, id)
		}
	}
	return before
}

// merge makes d what it is with our requests, and ends those that are decided; mu is held. It returns the states that d has
// now, and whether d changed.
func (b *Board) merge(d *document) (seen map[*wait]State, changed bool) {
	seen = map[*wait]State{}
	all, of := 0, map[string]int{}
	now := b.o.Now()
	for _, a := range d.Approvals {
		if a.state(now) == Waiting {
			all++
			of[a.Worker]++
		}
	}
	for id, w := range b.waiting {
		was, there := d.Approvals[id]
		if !there && w.State == Waiting {
			kept, ok := d.Kept[keptKey(w.Session, w.Rule)]
			switch {
			case ok && w.Session != "" && now.Before(kept.Until):
				b.finish(w, Result{State: kept.Verdict.state(), Decision: kept.Decision})
			case all >= MaxWaiting:
				b.finish(w, Result{Err: errFullHere})
			case of[w.Worker] >= MaxPerWorker:
				b.finish(w, Result{Err: errFullOf})
			default:
				all++
				of[w.Worker]++
			}
		}
		if !there && !w.written && w.State != Waiting && w.Decision == nil {
			seen[w] = w.State // came and went, unseen
			continue
		}
		if there && was.Decision != nil && w.State == Waiting {
			w.Decision = was.Decision
			b.finish(w, Result{State: was.Decision.Verdict.state(), Decision: *was.Decision})
		}
		if there && was.Decision != nil { // and came too late
			w.Decision = was.Decision
		}
		if !there || was.State != w.State {
			d.Approvals[id] = w.Approval
			changed = true
		}
		seen[w] = w.State
	}
	return seen, changed
}

// wall is a moment as it is written down.
func wall(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
