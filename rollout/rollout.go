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
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
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

// Advance is the state as it is to be, by what is seen of the fleet, each node once, and what gates say they cannot do. It is the
// same for all who see the same, and the same as s when nothing is to be done.
//
// Where no Envoy is connected, there is none to take it: the step goes on after its dwell. A step for a group that none of the
// connected Envoys is of goes back, as a canary that nobody is would be none.
func (s State) Advance(fleet []Node, unable []Unable, now time.Time) State {
	if s.Current == nil {
		return s
	}
	next := s.clone()
	n := next.Current
	n.choose(fleet, now)
	n.Away = n.away(fleet, now)
	if why := cmp.Or(n.incapable(unable), n.fault(fleet, now)); why != "" {
		return s.end(RolledBack, why, now)
	}
	if n.Settled.IsZero() && n.settled(fleet) {
		n.Settled = now
	}
	if n.Phase == Running && !n.Settled.IsZero() && len(n.Away) == 0 && n.settled(fleet) && now.Sub(n.Settled) >= n.step().Dwell {
		if n.Step == len(n.Plan.Steps)-1 {
			return s.end(Succeeded, "", now)
		}
		if old := n.counted(fleet, false); old.Requests > n.Before.Requests {
			n.Before = old
		}
		n.Step, n.Since, n.Settled = n.Step+1, now, time.Time{}
		n.add(n.wanted(fleet))
	}
	if reflect.DeepEqual(*n, *s.Current) {
		return s
	}
	return next
}

// chose reports whether the node is among the chosen.
func (r *Rollout) chose(id string) bool {
	_, is := slices.BinarySearch(r.Chosen, id)
	return is
}

// has reports whether the node has to have To.
func (r *Rollout) has(id string) bool { return r.step().all() || r.chose(id) }

// settled reports whether all that are there and chosen have taken it, and there are some where there should be.
func (r *Rollout) settled(fleet []Node) bool {
	return !r.missesGroup(fleet) && !slices.ContainsFunc(fleet, func(n Node) bool { return r.has(n.ID) && n.Has != r.To })
}

// missesGroup reports whether the step is for a group of which nobody is.
func (r *Rollout) missesGroup(fleet []Node) bool {
	group := r.step().Group
	return group != "" && len(fleet) > 0 && !slices.ContainsFunc(fleet, func(n Node) bool { return n.Group == group || r.chose(n.ID) })
}

// counted is what those did that have the new revision, or those that have the old one.
func (r *Rollout) counted(fleet []Node, fresh bool) (sum Counts) {
	want := r.From
	if fresh {
		want = r.To
	}
	for _, n := range fleet {
		if n.Has == want && r.has(n.ID) == fresh {
			sum = sum.Plus(n.Counts)
		}
	}
	return sum
}

// Compared is what Envoys did with the new revision, and what it is compared with: what others do with the old one now; where too
// few do, what they did in an earlier step; and where there was none, what all did in the minutes before.
func (r *Rollout) Compared(fleet []Node) (fresh, old Counts) {
	fresh, old = r.counted(fleet, true), r.counted(fleet, false)
	if old.Requests < r.Plan.MinRequests {
		old = r.Before
	}
	if old.Requests < r.Plan.MinRequests {
		old = Counts{}
		for _, n := range fleet {
			old = old.Plus(n.Past)
		}
	}
	return fresh, old
}

// choose adds those to the chosen that are to be. The first of the first step are chosen here, those of other steps as the step
// begins; who comes after them has a time of its own to take it.
func (r *Rollout) choose(fleet []Node, now time.Time) {
	if r.Phase == Paused && !r.step().all() {
		return
	}
	more := r.wanted(fleet)
	switch {
	case len(more) == 0:
		return
	case len(r.Chosen) == 0 && r.Settled.IsZero():
		r.Since = now
	default:
		if r.Away == nil {
			r.Away = map[string]time.Time{}
		}
		for _, id := range more {
			r.Away[id] = now
		}
	}
	r.add(more)
}

func (r *Rollout) add(ids []string) {
	r.Chosen = append(r.Chosen, ids...)
	slices.Sort(r.Chosen)
}

// wanted are the nodes that the step is for, beside the chosen. One that is away keeps its place: it comes back, or all go back.
func (r *Rollout) wanted(fleet []Node) (more []string) {
	step, all := r.step(), len(r.Chosen)
	for _, n := range fleet {
		if r.chose(n.ID) {
			continue
		}
		all++
		if step.Group == "" || n.Group == step.Group {
			more = append(more, n.ID)
		}
	}
	if step.Group != "" {
		return more
	}
	byHash(more)
	want := (all*min(step.Share, 100) + 99) / 100 // at least one
	return more[:max(0, min(want-len(r.Chosen), len(more)))]
}

// away are the chosen nodes that owe something, with when that was noticed. Those that were chosen as the step began and have not
// taken it yet are judged by Since.
func (r *Rollout) away(fleet []Node, now time.Time) map[string]time.Time {
	has := make(map[string]string, len(fleet))
	for _, n := range fleet {
		has[n.ID] = n.Has
	}
	var away map[string]time.Time
	for _, id := range r.Chosen {
		revision, there := has[id]
		since, known := r.Away[id]
		if there && (revision == r.To || !known && r.Settled.IsZero()) {
			continue
		}
		if !known {
			since = now
		}
		if away == nil {
			away = map[string]time.Time{}
		}
		away[id] = since
	}
	return away
}

// incapable is which gate makes all go back; empty: none.
func (r *Rollout) incapable(unable []Unable) string {
	for _, u := range unable {
		if u.Revision == r.To {
			return fmt.Sprintf("the gate %s cannot serve it: %s", u.Gate, u.Why)
		}
	}
	return ""
}

// fault is why all go back; empty: they do not.
func (r *Rollout) fault(fleet []Node, now time.Time) string {
	var slow, missing []string
	there := make(map[string]bool, len(fleet))
	for _, n := range fleet {
		there[n.ID] = true
		if r.has(n.ID) && n.Refused != "" && n.Revision == r.To {
			return fmt.Sprintf("the Envoy %s refuses it: %s", n.ID, n.Refused)
		}
		since, apart := r.Away[n.ID]
		if !apart {
			since = r.Since
		}
		if r.chose(n.ID) && n.Has != r.To && now.Sub(since) >= r.Plan.TakeTime {
			slow = append(slow, n.ID)
		}
	}
	if len(slow) > 0 {
		return fmt.Sprintf("%s did not take it within %v", several("the Envoy", slow), r.Plan.TakeTime)
	}
	for id, since := range r.Away {
		if !there[id] && now.Sub(since) >= r.Plan.TakeTime {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("%s went away and did not come back within %v", several("the Envoy", missing), r.Plan.TakeTime)
	}
	if r.Phase != Paused && r.missesGroup(fleet) && now.Sub(r.Since) >= r.Plan.TakeTime {
		return fmt.Sprintf("no Envoy is of the group %s, which a step is for", r.step().Group)
	}
	fresh, old := r.Compared(fleet)
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
