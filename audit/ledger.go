package audit

import (
	"container/list"
	"context"
	"sync"
	"time"
)

const (
	// Hold is how long a decision waits for its end before a line says that it is open.
	Hold = 10 * time.Second
	// maxPending is how many decisions whose end is not known are remembered. Of others the end is written as Envoy tells it.
	maxPending = 100_000
	// maxRecent is of how many requests that have ended a second end is known as one.
	maxRecent = 1 << 16
	tickEvery = 250 * time.Millisecond
)

// Ledger joins decisions with their ends: one record for each request, or two for one that takes long. It is safe for concurrent use.
//
//	Decided ──▶ held ── Ended ──▶ one record
//	              └─ after Hold ──▶ an open record ── Ended ──▶ the final one
type Ledger struct {
	now func() time.Time
	out *Log
	// refuse is the reason with which is refused what cannot be written first; empty: it is served.
	refuse string

	mu      sync.Mutex
	pending map[key]*list.Element // guarded by mu, as is all below
	held    list.List             // of *decision, the oldest first
	open    list.List             // of *decision, of which an open record is written
	recent  recent
	killed  map[key]claim    // decisions of killed runs that are nowhere yet
	counted map[key]struct{} // those that were counted as missing
}

// decision is one whose end is not known.
type decision struct {
	key   key
	rec   Record
	at    time.Time
	claim claim
	open  bool
}

// NewLedger returns a Ledger that writes to out. With a reason to refuse, a decision to let a request out must be written before it is.
func NewLedger(out *Log, refuse string, now func() time.Time) *Ledger {
	return &Ledger{now: now, out: out, refuse: refuse, pending: map[key]*list.Element{}, killed: map[key]claim{}, counted: map[key]struct{}{}}
}

// Decided takes what was decided of a request. With an error it must be refused: it cannot be written.
func (l *Ledger) Decided(r Record) error {
	if r.Request == "" { // nothing else is told of it
		l.out.Add(r)
		return nil
	}
	wait := l.refuse != "" && r.Outcome != Refused
	k, written := keyOf(r.Request), make(chan error, 1)
	l.mu.Lock()
	d := l.take(k)
	if d == nil {
		d = &decision{key: k, at: l.now(), claim: l.out.claim(k)}
	}
	l.recent.forget(k)
	d.rec = r
	l.keep(d)
	if wait && !d.open {
		l.writeOpen(d, func(err error) { written <- err })
	} else {
		wait = false
	}
	l.mu.Unlock()
	if !wait {
		return nil
	}
	err := await(written, writeTime)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.take(k); d != nil {
		d.rec.Outcome, d.rec.Reason, d.rec.Token, d.rec.Fingerprint = Refused, l.refuse, "", ""
		d.open, d.claim = false, l.out.claim(k)
		l.keep(d)
	}
	return err
}

// keep remembers a decision, and forgets the oldest of too many.
func (l *Ledger) keep(d *decision) {
	in := &l.held
	if d.open {
		in = &l.open
	}
	l.pending[d.key] = in.PushBack(d)
	if len(l.pending) <= maxPending {
		return
	}
	if e := l.open.Front(); e != nil {
		l.remove(e)
		return
	}
	oldest := l.held.Front().Value.(*decision)
	l.remove(l.held.Front())
	l.emitOpen(oldest, nil)
}

func (l *Ledger) remove(e *list.Element) *decision {
	d := e.Value.(*decision)
	delete(l.pending, d.key)
	if d.open {
		l.open.Remove(e)
	} else {
		l.held.Remove(e)
	}
	return d
}

// take takes a decision out; nil: there is none.
func (l *Ledger) take(k key) *decision {
	if e := l.pending[k]; e != nil {
		return l.remove(e)
	}
	return nil
}

// writeOpen writes that it is open, and goes on to remember it.
func (l *Ledger) writeOpen(d *decision, done func(error)) {
	l.take(d.key)
	l.emitOpen(d, done)
	d.open, d.claim = true, claim{}
	l.keep(d)
}

func (l *Ledger) emitOpen(d *decision, done func(error)) {
	r := d.rec
	r.Open = true
	l.out.add(item{rec: r, claim: d.claim, done: done})
}

// Ended takes how a request ended. What the gate decided itself is taken from the decision, and only of one that it does not know
// from what Envoy knows of it.
func (l *Ledger) Ended(end Record) {
	k := keyOf(end.Request)
	l.mu.Lock()
	defer l.mu.Unlock()
	if end.Request != "" && !l.recent.add(k) {
		return
	}
	if d := l.take(k); d != nil {
		r := joined(d.rec, end)
		r.AfterOpen = d.open
		l.out.add(item{rec: r, claim: d.claim})
		return
	}
	end.Open, end.AfterOpen = false, true
	c := l.killed[k] // else a line says that it is open
	delete(l.killed, k)
	if _, end.Late = l.counted[k]; end.Late {
		delete(l.counted, k)
	}
	l.out.add(item{rec: end, claim: c})
}

// joined is a decision with its end. A later attempt may have got another token, or been refused.
func joined(r, end Record) Record {
	if r.Reason == "" && end.Reason != "" {
		r.Outcome, r.Reason = end.Outcome, end.Reason
	}
	if end.Token != "" && end.Token != r.Token {
		r.Token, r.Fingerprint = end.Token, end.Fingerprint
	}
	if r.Trace == "" {
		r.Trace = end.Trace
	}
	r.Open = false
	r.Status, r.Received, r.Sent, r.DurationMS, r.Attempts = end.Status, end.Received, end.Sent, end.DurationMS, end.Attempts
	r.Upstream, r.Protocol, r.Flags, r.Details = end.Upstream, end.Protocol, end.Flags, end.Details
	return r
}

// Run writes what is open for long, until ctx ends, and then all that is.
func (l *Ledger) Run(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.look(l.now().Add(-Hold))
		case <-ctx.Done():
			l.look(l.now().Add(time.Hour))
			return
		}
	}
}

// look writes what was decided by then and has not ended.
func (l *Ledger) look(by time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.held.Front(); e != nil; e = l.held.Front() {
		d := e.Value.(*decision)
		if d.at.After(by) {
			return
		}
		l.writeOpen(d, nil)
	}
}

// learn takes the decisions that a killed run left, whose ends may still be told.
func (l *Ledger) learn(all map[key]claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, c := range all {
		if _, told := l.recent.has[k]; told { // by an end that was faster
			c.settle()
			continue
		}
		l.killed[k] = c
	}
}

// remember takes requests of which the end is written, the oldest first.
func (l *Ledger) remember(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.recent.add(keyOf(id))
	}
}

// giveUp takes back some of those of a run of which nothing was told.
func (l *Ledger) giveUp(r *Run, most int) map[key]claim {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := map[key]claim{}
	for k, c := range l.killed {
		if c.run == r && len(lost) < most {
			lost[k] = c
			delete(l.killed, k)
			if len(l.counted) < places {
				l.counted[k] = struct{}{}
			}
		}
	}
	return lost
}

// recent are the requests that have ended last. The zero value has none.
type recent struct {
	has  map[key]struct{}
	ring []key
	at   int
}

// add reports whether it is new.
func (r *recent) add(k key) bool {
	if _, there := r.has[k]; there {
		return false
	}
	if r.has == nil {
		r.has, r.ring = make(map[key]struct{}), make([]key, maxRecent)
	}
	delete(r.has, r.ring[r.at])
	r.has[k], r.ring[r.at] = struct{}{}, k
	r.at = (r.at + 1) % maxRecent
	return true
}

func (r *recent) forget(k key) { delete(r.has, k) }
