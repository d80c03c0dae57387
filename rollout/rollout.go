// Package rollout owns how a fleet of Envoys is led from one configuration to the next: which of them have which, what is looked at
// before more get the new one, and when all go back. It knows configurations by the hash of what they mean only.
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
	Since time.Time `json:"since"` // when the step began
	// Chosen are the ids of the Envoys that have To. In a step for all of them, every other has it too.
	Chosen []string `json:"chosen,omitempty"`
	// Away are those of them that are not there, and since when.
	Away map[string]time.Time `json:"away,omitempty"`
	// Settled is when all chosen ones had taken it; zero: not yet.
	Settled time.Time `json:"settled,omitzero"`
	// Before is what the Envoys on From did during this rollout, as long as there were any.
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

// Node is an Envoy, as some gate sees it.
type Node struct {
	ID    string
	Group string
	// Has is the revision that it has taken whole; empty: none.
	Has string
	// Refused is what it said when it refused a part of Revision; empty: it did not.
	Revision, Refused string
	// Counts are what it did under the revision it has, during this rollout.
	Counts Counts
}

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
	c := s.Current
	if c == nil || !slices.Contains(c.Chosen, node) && !c.step().all() {
		return s.Stable
	}
	return c.To
}

// Revisions are those that some Envoy may have to have.
func (s State) Revisions() []string {
	if s.Current == nil {
		return []string{s.Stable}
	}
	return []string{s.Stable, s.Current.To}
}

func (r Rollout) step() Step { return r.Plan.Steps[r.Step] }

const historyLength = 50

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
	r.Phase, r.Reason, r.Ended = phase, reason, now
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

// Advance is the state as it is to be, by what is seen of the fleet. It is the same for all who see the same, and the same as s when
// nothing is to be done.
func (s State) Advance(fleet []Node, now time.Time) State {
	if s.Current == nil {
		return s
	}
	next := s.clone()
	n := next.Current
	n.Away = n.away(fleet, now)
	if why := n.fault(fleet, now); why != "" {
		return s.end(RolledBack, why, now)
	}
	if !maps.Equal(n.Away, s.Current.Away) {
		return next
	}
	r := s.Current
	if more := r.choose(fleet); len(more) > 0 {
		n.Chosen = append(n.Chosen, more...)
		slices.Sort(n.Chosen)
		n.Since, n.Settled = now, time.Time{} // those have their time too
		return next
	}
	settled := r.settled(fleet)
	switch {
	case settled && r.Settled.IsZero():
		n.Settled = now
		return next
	case !settled && !r.Settled.IsZero(): // one has come back, and takes it again
		n.Since, n.Settled = now, time.Time{}
		return next
	case !settled || len(r.Away) > 0 || r.Phase == Paused || now.Sub(r.Settled) < r.step().Dwell:
		return s
	case r.Step == len(r.Plan.Steps)-1:
		return s.end(Succeeded, "", now)
	}
	if old := r.counted(fleet, false); old.Requests > 0 {
		n.Before = old
	}
	n.Step, n.Since, n.Settled = r.Step+1, now, time.Time{}
	return next
}

// has reports whether the rollout is for the node.
func (r Rollout) has(n Node) bool { return r.step().all() || slices.Contains(r.Chosen, n.ID) }

// settled reports whether all that are there and chosen have taken it.
func (r Rollout) settled(fleet []Node) bool {
	return !slices.ContainsFunc(fleet, func(n Node) bool { return r.has(n) && n.Has != r.To })
}

// counted is what those did that have the new revision, or those that have the old one.
func (r Rollout) counted(fleet []Node, fresh bool) (sum Counts) {
	want := r.From
	if fresh {
		want = r.To
	}
	for _, n := range fleet {
		if n.Has == want && r.has(n) == fresh {
			sum = sum.Plus(n.Counts)
		}
	}
	return sum
}

// away are the chosen nodes that are not there, with when that was noticed.
func (r Rollout) away(fleet []Node, now time.Time) map[string]time.Time {
	there := map[string]bool{}
	for _, n := range fleet {
		there[n.ID] = true
	}
	away := map[string]time.Time{}
	for _, id := range r.Chosen {
		since, known := r.Away[id]
		switch {
		case there[id]:
		case known:
			away[id] = since
		default:
			away[id] = now
		}
	}
	return away
}

// choose returns the nodes that are to be chosen beside those that are.
func (r Rollout) choose(fleet []Node) []string {
	step := r.step()
	var there, more []string
	chosen := 0
	for _, n := range fleet {
		if slices.Contains(there, n.ID) {
			continue // two streams of one
		}
		there = append(there, n.ID)
		switch {
		case slices.Contains(r.Chosen, n.ID):
			chosen++
		case step.Group == "" || n.Group == step.Group:
			more = append(more, n.ID)
		}
	}
	if step.Group != "" {
		return more
	}
	byHash(more)
	want := (len(there)*min(step.Share, 100) + 99) / 100 // at least one
	return more[:max(0, min(want-chosen, len(more)))]
}

// fault is why all go back; empty: they do not.
func (r Rollout) fault(fleet []Node, now time.Time) string {
	late := now.Sub(r.Since) >= r.Plan.TakeTime
	var waiting []string
	for _, n := range fleet {
		switch {
		case !r.has(n):
		case n.Refused != "" && n.Revision == r.To:
			return fmt.Sprintf("the Envoy %s refuses it: %s", n.ID, n.Refused)
		case n.Has != r.To:
			waiting = append(waiting, n.ID)
		}
	}
	if len(waiting) > 0 && late {
		return fmt.Sprintf("%s did not take it within %v", several("the Envoy", waiting), r.Plan.TakeTime)
	}
	var missing []string
	for id, since := range r.Away {
		if now.Sub(since) >= r.Plan.TakeTime {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("%s went away and did not come back within %v", several("the Envoy", missing), r.Plan.TakeTime)
	}
	fresh, old := r.counted(fleet, true), r.counted(fleet, false)
	if old.Requests < r.Before.Requests {
		old = r.Before
	}
	if fresh.Requests < r.Plan.MinRequests || old.Requests < r.Plan.MinRequests {
		return ""
	}
	for _, c := range []struct {
		what       string
		fresh, old int
	}{{"failed", fresh.Errors, old.Errors}, {"were refused", fresh.Refusals, old.Refusals}} {
		if worse(c.fresh, fresh.Requests, c.old, old.Requests) {
			return fmt.Sprintf("%d of %d requests %s with it, and %d of %d without", c.fresh, fresh.Requests, c.what, c.old, old.Requests)
		}
	}
	return ""
}

func several(what string, ids []string) string {
	slices.Sort(ids)
	switch n := len(ids); {
	case n == 1:
		return what + " " + ids[0]
	case n > 3:
		return fmt.Sprintf("%ss %s and %d more", what, strings.Join(ids[:3], ", "), n-3)
	}
	return what + "s " + strings.Join(ids, ", ")
}
