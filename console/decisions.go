package console

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Outcomes of a Decision.
const (
	Swapped = "swapped" // a placeholder was replaced by a credential
	Passed  = "passed"  // let through as it was
	Refused = "refused"
)

// Decision is what became of one request, or of one connection that was refused. It has nothing of what the request carried.
type Decision struct {
	At      time.Time `json:"at"`
	Outcome string    `json:"outcome"`
	Reason  string    `json:"reason,omitempty"` // of a refusal
	Worker  string    `json:"worker,omitempty"`
	Session string    `json:"session,omitempty"`
	Host    string    `json:"host"`
	Method  string    `json:"method,omitempty"`
	Route   string    `json:"route,omitempty"`
	Grant   string    `json:"grant,omitempty"`
	Request string    `json:"request,omitempty"` // id of the request, which its answer carries too

	number uint64 // of those that were remembered
}

// Number tells it from the others.
func (d Decision) Number() uint64 { return d.number }

// Decisions keeps the latest decisions of this gate, and counts all of them by the minute. It is safe for concurrent use.
type Decisions struct {
	mu      sync.Mutex
	ring    []Decision // guarded by mu
	next    int        // guarded by mu; where the next one goes
	total   uint64     // guarded by mu
	minutes [countedMinutes]minute
}

const countedMinutes = 60

// minute is what happened in one minute.
type minute struct {
	at                       int64 // unix minutes
	swapped, passed, refused int
}

// NewDecisions keeps so many.
func NewDecisions(size int) *Decisions { return &Decisions{ring: make([]Decision, 0, size)} }

// size is how many are kept at most.
func (d *Decisions) size() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cap(d.ring)
}

// Add remembers a decision. It costs a request next to nothing.
func (d *Decisions) Add(x Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	x.number = d.total
	if len(d.ring) < cap(d.ring) {
		d.ring = append(d.ring, x)
	} else {
		d.ring[d.next] = x
		d.next = (d.next + 1) % len(d.ring)
	}
	at := x.At.Unix() / 60
	m := &d.minutes[at%countedMinutes]
	if m.at != at {
		*m = minute{at: at}
	}
	switch x.Outcome {
	case Swapped:
		m.swapped++
	case Passed:
		m.passed++
	default:
		m.refused++
	}
}

// count changes with every decision.
func (d *Decisions) count() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// perMinute are the last n minutes, the oldest first.
func (d *Decisions) perMinute(now time.Time, n int) []minute {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]minute, n)
	for i := range out {
		at := now.Unix()/60 - int64(n-1-i)
		out[i] = minute{at: at}
		if m := d.minutes[at%countedMinutes]; m.at == at {
			out[i] = m
		}
	}
	return out
}

// Filter chooses decisions; an empty field chooses all.
type Filter struct{ Worker, Grant, Host, Reason, Outcome string }

func (f Filter) fits(x Decision) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(f.Worker, x.Worker) && is(f.Grant, x.Grant) && is(f.Reason, x.Reason) && is(f.Outcome, x.Outcome) &&
		(f.Host == "" || strings.Contains(x.Host, strings.ToLower(f.Host)))
}

// Last are the latest decisions that f chooses, the newest first, at most limit.
func (d *Decisions) Last(f Filter, limit int) []Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []Decision{}
	for i := range d.ring {
		x := d.ring[(d.next-1-i+2*len(d.ring))%len(d.ring)]
		if len(out) == limit {
			break
		}
		if f.fits(x) {
			out = append(out, x)
		}
	}
	return out
}

// Refusals are the refusals of one reason.
type Refusals struct {
	Reason string   `json:"reason"`
	Count  int      `json:"count"`
	Last   Decision `json:"last"`
}

// refusals are the kept refusals since a time, by reason, the most frequent first.
func (d *Decisions) refusals(since time.Time) []Refusals {
	byReason := map[string]*Refusals{}
	for _, x := range d.Last(Filter{Outcome: Refused}, 1<<30) {
		if x.At.Before(since) {
			break
		}
		r, ok := byReason[x.Reason]
		if !ok {
			r = &Refusals{Reason: x.Reason, Last: x}
			byReason[x.Reason] = r
		}
		r.Count++
	}
	out := []Refusals{}
	for _, r := range byReason {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Refusals) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Reason, b.Reason))
	})
	return out
}
