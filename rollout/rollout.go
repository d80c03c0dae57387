// Package rollout owns how a fleet of Envoys is led from one configuration to the next: which of them have which, what is looked at
// before more get the new one, and when all go back. It knows what they are told by name only: package fleet says
// what is in one.
//
//	watched file, operator ──▶ Start ─┐
//	                                  ▼
//	fleet, as all gates report ──▶ Advance ──▶ State, one document, written with check-and-set
//	                                             │
//	                          each gate: Revision(node) ──▶ what that Envoy is told
//
// Everything here is a pure function of the state, what is seen of the fleet, and the time. Any gate may carry out the next step,
// since only one can write it: there is no leader whose end could stop a rollout, or split it.
package rollout

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// State is the document that all gates share.
type State struct {
	// Stable is the revision that every Envoy has that nothing else is said of. Empty: there has been none.
	Stable string `json:"stable,omitempty"`
	// Current is under way, or waits; nil: nothing is.
	Current *Rollout `json:"current,omitempty"`
	// Drained are the ids of the Envoys that are told not to listen.
	Drained []string `json:"drained,omitempty"`
	// History is what ended, the latest first.
	History []Rollout `json:"history,omitempty"`
}

// Rollout is one way from a revision to another.
type Rollout struct {
	ID     string    `json:"id"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Plan   Plan      `json:"plan"`
	Began  time.Time `json:"began"`
	Author string    `json:"author,omitempty"`
	Note   string    `json:"note,omitempty"`

	Phase  Phase     `json:"phase"`
	Reason string    `json:"reason,omitempty"` // of the phase, in words
	Ended  time.Time `json:"ended,omitzero"`

	Step  int       `json:"step"`  // of Plan.Steps
	Since time.Time `json:"since"` // when the step's Envoys were chosen
	// Chosen are the ids of the Envoys that have To, sorted. In a step for all of them, every other has it too.
	Chosen []string `json:"chosen,omitempty"`
	// Away are those of them that are not there, that came when others had been chosen, or that take it again, and since when.
	Away map[string]time.Time `json:"away,omitempty"`
	// Settled is when all chosen ones had taken it; zero: not yet. The dwell begins then, and Envoys that come or are restarted
	// later do not make it begin anew: a large fleet is never without some.
	Settled time.Time `json:"settled,omitzero"`
	// Before is what the Envoys on From did during this rollout, when there were enough of them.
	Before Counts `json:"before"`
}

// Phase is how far a rollout is.
type Phase string

// Phases. The last three are ends.
const (
	Running    Phase = "running"
	Paused     Phase = "paused" // by an operator; it still goes back by itself
	Succeeded  Phase = "succeeded"
	RolledBack Phase = "rolled_back" // by itself
	Aborted    Phase = "aborted"     // by an operator
)

// Plan is in which steps, and what must hold.
type Plan struct {
	Steps []Step `json:"steps"`
	// MinRequests is how many requests the chosen Envoys must have had before their errors are compared. A step does not wait for them.
	MinRequests int `json:"min_requests"`
	// TakeTime is how long an Envoy may need to take a revision, and how long a chosen one may be away.
	TakeTime time.Duration `json:"take_time"`
}

// Step is a part of the fleet, and how long the revision is watched there.
type Step struct {
	Share int           `json:"share,omitempty"` // percent of the Envoys, from 1 to 100
	Group string        `json:"group,omitempty"` // or the Envoys of a group
	Dwell time.Duration `json:"dwell"`
}

// all reports whether the step is for every Envoy, also such that come later.
func (s Step) all() bool { return s.Share >= 100 }

// String is the step in words.
func (s Step) String() string {
	if s.Group != "" {
		return "group " + s.Group
	}
	return fmt.Sprintf("%d %%", s.Share)
}

// Short is a revision as people are shown it: the first digits of its hash, and of what it is told apart by beside that.
func Short(revision string) string {
	hash, more, two := strings.Cut(revision, "+")
	hash = hash[:min(len(hash), 12)]
	if two {
		hash += "+" + more[:min(len(more), 6)]
	}
	return hash
}

// Node is an Envoy, as some gate sees it. A drained one is like the others: it takes a revision, and has no requests.
type Node struct {
	ID    string
	Group string
	// Has is the revision that it has taken whole; empty: none.
	Has string
	// Refused is what it said when it refused a part of Revision; empty: it did not.
	Revision, Refused string
	// Counts are what it did under the revision it has, during this rollout; Past what it did under From in the minutes before.
	Counts, Past Counts
}

// Unable is a gate that cannot serve a revision, and why.
type Unable struct{ Gate, Revision, Why string }

// Counts are requests and what became of them.
type Counts struct {
	Requests int `json:"requests"`
	Errors   int `json:"errors"`   // answered with a status of 5xx, by the provider or on the way there
	Refusals int `json:"refusals"` // refused by the gate
}

// Plus is both together.
func (c Counts) Plus(o Counts) Counts {
	return Counts{c.Requests + o.Requests, c.Errors + o.Errors, c.Refusals + o.Refusals}
}

// Why something cannot be done.
var (
	ErrUnderWay = errors.New("another rollout is under way; wait for its end, or abort it: wayleave rollout abort")
	ErrNone     = errors.New("no rollout is under way")
	ErrSame     = errors.New("every Envoy has that revision already")
)

// Revision is what the Envoy with this id has to have.
func (s State) Revision(node string) string {
	if s.Current == nil || !s.Current.has(node) {
		return s.Stable
	}
	return s.Current.To
}

// Revisions are those that some Envoy may have to have.
func (s State) Revisions() []string {
	if s.Current == nil {
		return []string{s.Stable}
	}
	return []string{s.Stable, s.Current.To}
}

// Outcome is how it has ended and why, in words that follow "was"; before that, its phase.
func (r Rollout) Outcome() string {
	words := map[Phase]string{Succeeded: "completed", RolledBack: "rolled back", Aborted: "aborted"}[r.Phase]
	if words == "" {
		return string(r.Phase)
	}
	if r.Reason != "" {
		words += ": " + r.Reason
	}
	return words
}

func (r Rollout) step() Step { return r.Plan.Steps[r.Step] }

// The document stays small, whatever Envoy or an operator says.
const (
	historyLength = 50
	maxReason     = 1000
)

func (s State) clone() State {
	if s.Current != nil {
		c := *s.Current
		c.Chosen, c.Away = slices.Clone(c.Chosen), maps.Clone(c.Away)
		s.Current = &c
	}
	s.Drained, s.History = slices.Clone(s.Drained), slices.Clone(s.History)
	return s
}

// end ends the current rollout.
func (s State) end(phase Phase, reason string, now time.Time) State {
	s = s.clone()
	r := *s.Current
	r.Phase, r.Reason, r.Ended = phase, strings.ToValidUTF8(reason[:min(len(reason), maxReason)], ""), now
	r.Chosen, r.Away = nil, nil // they may be long
	if phase == Succeeded {
		s.Stable = r.To
	}
	s.Current = nil
	s.History = slices.Insert(s.History, 0, r)
	s.History = s.History[:min(len(s.History), historyLength)]
	return s
}

// Start begins a rollout of r.To, with its ID, Plan, Author and Note. The first revision there is has nothing to be led from: it
// is stable at once.
func (s State) Start(r Rollout, now time.Time) (State, error) {
	switch {
	case s.Current != nil:
		return s, fmt.Errorf("%w (%s)", ErrUnderWay, s.Current.ID)
	case r.To == s.Stable:
		return s, ErrSame
	case len(r.Plan.Steps) == 0 || !r.Plan.Steps[len(r.Plan.Steps)-1].all():
		return s, errors.New("the last step is not for every Envoy; write share: 100")
	}
	s = s.clone()
	r.From, r.Began, r.Since, r.Step, r.Phase = s.Stable, now, now, 0, Running
	r.Chosen, r.Away, r.Settled, r.Ended, r.Reason, r.Before = nil, nil, time.Time{}, time.Time{}, "", Counts{}
	s.Current = &r
	if s.Stable == "" {
		return s.end(Succeeded, "it is the first", now), nil
	}
	return s, nil
}

// Pause keeps the rollout at its step.
func (s State) Pause(reason string) (State, error) {
	return s.change(func(r *Rollout) { r.Phase, r.Reason = Paused, reason })
}

// Resume lets it go on. The step begins anew.
func (s State) Resume(now time.Time) (State, error) {
	return s.change(func(r *Rollout) {
		if r.Phase == Paused {
			r.Phase, r.Reason, r.Since, r.Settled = Running, "", now, time.Time{}
		}
	})
}

// Promote ends it with every Envoy on the new revision, whatever is left of it.
func (s State) Promote(reason string, now time.Time) (State, error) {
	if s.Current == nil {
		return s, ErrNone
	}
	return s.end(Succeeded, reason, now), nil
}

// Abort ends it with every Envoy on the old one.
func (s State) Abort(reason string, now time.Time) (State, error) {
	if s.Current == nil {
		return s, ErrNone
	}
	return s.end(Aborted, reason, now), nil
}

func (s State) change(f func(*Rollout)) (State, error) {
	if s.Current == nil {
		return s, ErrNone
	}
	s = s.clone()
	f(s.Current)
	return s, nil
}

// Times returns the latest of the times by which the next step is judged; zero: nothing is under way.
func (s State) Times() (latest time.Time) {
	if s.Current == nil {
		return latest
	}
	latest = s.Current.Since
	for _, t := range append(slices.Collect(maps.Values(s.Current.Away)), s.Current.Settled) {
		if t.After(latest) {
			latest = t
		}
	}
	return latest
}

// Moved is the state with those times moved by d: they may be of another machine's clock, or of before an outage.
func (s State) Moved(d time.Duration) State {
	if s.Current == nil {
		return s
	}
	s = s.clone()
	s.Current.Since = s.Current.Since.Add(d)
	if !s.Current.Settled.IsZero() {
		s.Current.Settled = s.Current.Settled.Add(d)
	}
	for id, t := range s.Current.Away {
		s.Current.Away[id] = t.Add(d)
	}
	return s
}

// has reports whether the node has to have To.
func (r *Rollout) has(id string) bool { return r.step().all() || r.chose(id) }
