package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	maxSpans    = 8192             // that wait; with few attributes each, some megabytes
	batchSize   = 512              // sent at once
	gather      = time.Second      // how long the first of a batch waits for others
	sendTimeout = 10 * time.Second // of one try
	firstPause  = time.Second      // before the second try
	longest     = 30 * time.Second // and before any
	lastCall    = 3 * time.Second  // for what is left at the end
)

// queue holds what is to be sent, up to a limit; what comes when it is full is dropped. It never makes anybody wait.
type queue[T any] struct {
	limit  int
	outage *outage
	wake   chan struct{} // holds one: there is something

	mu      sync.Mutex
	waiting []T // guarded by mu
}

func newQueue[T any](limit int, o *outage) *queue[T] {
	return &queue[T]{limit: limit, outage: o, wake: make(chan struct{}, 1)}
}

func (q *queue[T]) add(items ...T) {
	q.mu.Lock()
	room := min(len(items), q.limit-len(q.waiting))
	q.waiting = append(q.waiting, items[:room]...)
	q.mu.Unlock()
	if lost := len(items) - room; lost > 0 {
		q.outage.lose(lost)
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns a batch; nil when nothing waits.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), batchSize)
	batch := q.waiting[:n:n]
	if q.waiting = q.waiting[n:]; len(q.waiting) == 0 {
		q.waiting = nil // so that what was sent is not kept
	}
	return batch
}

// run sends what is added, until ctx ends and once more after. What is worth another try is tried until there is no more time.
func (q *queue[T]) run(ctx context.Context, send func(context.Context, []T) error) {
	for ctx.Err() == nil {
		select {
		case <-q.wake:
		case <-ctx.Done():
		}
		pause(ctx, gather)
		for batch := q.take(); len(batch) > 0; batch = q.take() {
			q.deliver(ctx, batch, send)
			if ctx.Err() != nil {
				break
			}
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCall)
	defer cancel()
	for batch := q.take(); len(batch) > 0; batch = q.take() {
		q.once(last, batch, send)
	}
}

// deliver sends a batch, again and again if that is of use.
func (q *queue[T]) deliver(ctx context.Context, batch []T, send func(context.Context, []T) error) {
	for wait := firstPause; ; wait = min(2*wait, longest) {
		// What is under way when the gate is told to end may finish.
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
		stop := context.AfterFunc(ctx, func() { pause(try, lastCall); cancel() })
		err := send(try, batch)
		stop()
		cancel()
		again, ok := errors.AsType[*retry](err)
		if !ok {
			q.outage.ended(err, len(batch))
			return
		}
		q.outage.began(err)
		if pause(ctx, max(wait, again.after)); ctx.Err() != nil {
			q.back(batch)
			return
		}
	}
}

// back puts a batch first again, for the last call.
func (q *queue[T]) back(batch []T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(batch, q.waiting...)
}

func (q *queue[T]) once(ctx context.Context, batch []T, send func(context.Context, []T) error) {
	err := send(ctx, batch)
	if _, ok := errors.AsType[*retry](err); ok {
		q.outage.lose(len(batch))
		return
	}
	q.outage.ended(err, len(batch))
}

// pause ends after d, or with ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// outage says once when one signal ceases to reach the collector and once when it does again, and counts what is lost.
type outage struct {
	signal  string
	dropped func(signal string, n int)
	log     *slog.Logger

	mu   sync.Mutex
	down bool // guarded by mu, and so is lost
	lost int  // since the last line
}

// began notes that something was not sent, which may still be.
func (o *outage) began(err error) {
	o.mu.Lock()
	first := !o.down
	o.down = true
	o.mu.Unlock()
	if first {
		o.log.Warn("the OpenTelemetry collector is not reached; what finds no place until it is will be dropped and counted", "signal", o.signal, "err", err)
	}
}

// ended notes what became of n things that will not be tried again.
func (o *outage) ended(err error, n int) {
	if err == nil {
		o.mu.Lock()
		was, lost := o.down, o.lost
		o.down, o.lost = false, 0
		o.mu.Unlock()
		if was {
			o.log.Info("the OpenTelemetry collector is reached again", "signal", o.signal, "dropped", lost)
		}
		return
	}
	if r, ok := errors.AsType[*Rejected](err); ok {
		n = int(r.Count)
	}
	o.began(err)
	o.lose(n)
}

// lose counts what will never be sent.
func (o *outage) lose(n int) {
	o.mu.Lock()
	o.lost += n
	o.mu.Unlock()
	o.dropped(o.signal, n)
}
