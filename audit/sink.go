package audit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Sink is another place that gets every record, beside the file.
type Sink interface {
	// Write takes records, and the same as lines without their breaks. It is called again with the same ones when it fails, unless with
	// an *Unwanted.
	Write(ctx context.Context, lines [][]byte, records []Record) error
	Close() error
}

// Unwanted is the error of a sink that took all but some of the records, and would not take those later either.
type Unwanted struct {
	Count int // of them
	Err   error
}

func (u *Unwanted) Error() string { return u.Err.Error() }
func (u *Unwanted) Unwrap() error { return u.Err }

// Target is a sink by its name.
type Target struct {
	Name string
	Sink Sink
	// Line is how it wants a record; nil: as the file has it.
	Line func(Record) []byte
}

const (
	maxBehind = 16384 // records that a sink may be behind
	maxSend   = 500   // that it is sent at once
	lastTime  = 3 * time.Second

	firstPause, longestPause = time.Second, time.Minute
)

// queue is what waits for a sink.
type queue struct {
	Target
	log *slog.Logger

	mu      sync.Mutex
	lines   [][]byte // guarded by mu, as is all below
	records []Record
	missing uint64
	ended   bool
	wake    chan struct{} // holds one
}

func newQueue(t Target, o LogOptions) *queue {
	return &queue{Target: t, log: o.Log, wake: make(chan struct{}, 1)}
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// offer takes what there is place for.
func (q *queue) offer(out lines) {
	raw := out.raw
	if q.Line != nil {
		raw = make([][]byte, len(out.records))
		for i, r := range out.records {
			raw[i] = q.Line(r)
		}
	}
	q.mu.Lock()
	n := min(len(raw), maxBehind-len(q.lines))
	q.lines, q.records = append(q.lines, raw[:n]...), append(q.records, out.records[:n]...)
	q.missing += q.count(out.records[n:])
	q.mu.Unlock()
	q.poke()
}

// count is how many of the records the sink misses. What tells it that it missed others is none: else it would be told of that for ever.
func (q *queue) count(all []Record) (n uint64) {
	for _, r := range all {
		if r.Sink != q.Name {
			n++
		}
	}
	return n
}

// end says that nothing more comes.
func (q *queue) end() {
	q.mu.Lock()
	q.ended = true
	q.mu.Unlock()
	q.poke()
}

// undelivered is how many were not delivered since it was last asked.
func (q *queue) undelivered() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.missing
	q.missing = 0
	return n
}

// next are those to be sent next.
func (q *queue) next() (lines [][]byte, records []Record, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.lines), maxSend)
	lines, records = q.lines[:n:n], q.records[:n:n]
	return lines, records, q.ended
}

// sent takes away the first n, of which so many were not.
func (q *queue) sent(n, missing int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.missing += min(uint64(missing), q.count(q.records[:n]))
	q.lines, q.records = q.lines[n:], q.records[n:]
}

// run sends until all is sent after the end, or ctx ends.
func (q *queue) run(ctx context.Context) {
	defer func() {
		if err := q.Sink.Close(); err != nil {
			q.log.Warn("closing a sink of the audit", "sink", q.Name, "err", err)
		}
	}()
	pause := time.Duration(0)
	for {
		lines, records, ended := q.next()
		if len(lines) == 0 {
			if ended {
				return
			}
			select {
			case <-q.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		err := q.Sink.Write(ctx, lines, records)
		if u, some := errors.AsType[*Unwanted](err); some {
			q.sent(len(lines), u.Count)
			q.log.Error("a sink of the audit does not take records", "sink", q.Name, "err", err, "count", u.Count)
			pause = 0
			continue
		}
		if err == nil {
			q.sent(len(lines), 0)
			if pause > 0 {
				q.log.Info("a sink of the audit takes records again", "sink", q.Name)
			}
			pause = 0
			continue
		}
		if pause == 0 {
			q.log.Warn("a sink of the audit fails; it is tried again, and what it misses is counted", "sink", q.Name, "err", err)
		}
		pause = min(max(2*pause, firstPause), longestPause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			n := q.waiting()
			q.sent(n, n)
			return
		}
	}
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.lines)
}

// To returns a sink that writes lines to w.
func To(w io.Writer) Sink { return writer{w} }

type writer struct{ io.Writer }

func (w writer) Write(_ context.Context, lines [][]byte, _ []Record) error {
	var all []byte
	for _, l := range lines {
		all = append(append(all, l...), '\n')
	}
	_, err := w.Writer.Write(all)
	return err
}

func (writer) Close() error { return nil }
