package rollout

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// What the next step is, by what is seen of the fleet.

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
