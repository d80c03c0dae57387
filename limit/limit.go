// Package limit counts what workers do against operators' limits: how many requests a minute, and how many at once. It
// counts for one gate and stores nothing: whoever starts again begins with everything allowed.
package limit

import (
	"context"
	"sync"
	"time"
)

// A Limit is what is allowed. The zero value limits nothing.
type Limit struct {
	// PerMinute is how many requests may come in a minute, in the long run. Zero: any number.
	PerMinute int
	// Burst is how many of those may come at one moment.
	Burst int
	// Concurrent is how many may be under way at once. Zero: any number.
	Concurrent int
	// Gates is among how many gates this is divided, each of which allows its part. Zero: one.
	Gates int
}

// per is how long it takes until one request more may come.
func (l Limit) per() time.Duration {
	return time.Minute * time.Duration(max(l.Gates, 1)) / time.Duration(l.PerMinute)
}

// part is a gate's of n, rounded up: a part of nothing would refuse everything.
func (l Limit) part(n int) int {
	gates := max(l.Gates, 1)
	return (n + gates - 1) / gates
}

// A Claim is what one request wants of one limit.
type Claim struct {
	// Key names whose limit it is; what has the same key is counted together.
	Key   string
	Limit Limit
	// Dry only says when the limit is reached: then the request is not counted, and goes on.
	Dry bool
}

// An Excess says which limit was reached.
type Excess struct {
	Claim Claim
	// Concurrent says that too many requests are under way, not that too many came.
	Concurrent bool
	// Wait is how long it takes until there is room, as far as that is known.
	Wait time.Duration
}

// patience is how long a request waits for one to end when too many are under way: a worker knows that its request has ended
// a moment before we do, and would be refused the next.
const patience = 500 * time.Millisecond

// Meters count. They are safe for concurrent use. The zero value is ready.
type Meters struct {
	mu sync.Mutex
	of map[string]*meter
}

// meter is one key's.
type meter struct {
	full     time.Time // when as many as Burst may come again; in the past: they may
	underWay int
	waiting  int
	ended    chan struct{} // closed when one ends; nil: nobody waits
}

// Take counts a request against all claims, or against none. The request is under way until release is called, which is nil
// when no claim limits that. over is the limit that refuses the request; dry is one that would, were it not dry.
func (m *Meters) Take(ctx context.Context, now func() time.Time, claims ...Claim) (release func(), over, dry *Excess) {
	var timer <-chan time.Time
	for {
		taken, over, dry, ended := m.take(now(), claims)
		if over == nil {
			return m.releaser(taken), nil, dry
		}
		if ended == nil {
			return nil, over, dry
		}
		if timer == nil {
			timer = time.After(patience)
		}
		select {
		case <-ended:
		case <-timer:
			m.leave(over.Claim.Key)
			return nil, over, dry
		case <-ctx.Done():
			m.leave(over.Claim.Key)
			return nil, over, dry
		}
		m.leave(over.Claim.Key)
	}
}

// take is one attempt. taken are the meters on which the request is now under way; ended is closed when it is worth another
// attempt, for which there is a place until leave; nil: it is not.
func (m *Meters) take(now time.Time, claims []Claim) (taken []*meter, over, dry *Excess, ended <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	counted := make([]Claim, 0, len(claims))
	for _, c := range claims {
		excess := m.meter(c.Key).excess(c, now)
		switch {
		case excess == nil:
			counted = append(counted, c)
		case c.Dry:
			dry = excess
		default:
			return nil, excess, dry, m.meter(c.Key).queue(excess)
		}
	}
	for _, c := range counted {
		own := m.meter(c.Key)
		if c.Limit.PerMinute > 0 {
			own.full = later(own.full, now).Add(c.Limit.per())
		}
		if c.Limit.Concurrent > 0 {
			own.underWay++
			taken = append(taken, own)
		}
	}
	return taken, nil, dry, nil
}

// excess says whether the claim is over its limit.
func (w *meter) excess(c Claim, now time.Time) *Excess {
	if l := c.Limit; l.PerMinute > 0 {
		if wait := later(w.full, now).Add(l.per()).Sub(now) - l.per()*time.Duration(max(l.part(l.Burst), 1)); wait > 0 {
			return &Excess{Claim: c, Wait: wait}
		}
	}
	if n := c.Limit.Concurrent; n > 0 && w.underWay >= c.Limit.part(n) {
		return &Excess{Claim: c, Concurrent: true, Wait: time.Second}
	}
	return nil
}

// queue gives a place to wait, of which there are as many as requests may be under way.
func (w *meter) queue(e *Excess) <-chan struct{} {
	if !e.Concurrent || w.waiting >= e.Claim.Limit.part(e.Claim.Limit.Concurrent) {
		return nil
	}
	w.waiting++
	if w.ended == nil {
		w.ended = make(chan struct{})
	}
	return w.ended
}

// leave gives a place to wait back.
func (m *Meters) leave(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of[key].waiting--
}

// releaser returns what ends a request on these meters, or nil when there are none.
func (m *Meters) releaser(taken []*meter) func() {
	if len(taken) == 0 {
		return nil
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, w := range taken {
			w.underWay--
			if w.ended != nil {
				close(w.ended)
				w.ended = nil
			}
		}
	})
}

func (m *Meters) meter(key string) *meter {
	if m.of == nil {
		m.of = map[string]*meter{}
	}
	if m.of[key] == nil {
		m.of[key] = &meter{}
	}
	return m.of[key]
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
