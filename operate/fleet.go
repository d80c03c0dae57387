package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/rollout"
)

// Fleet is all that is known of it.
func (d Desk) Fleet(ctx context.Context) (fleet.View, error) {
	return fleet.Read(ctx, d.Docs, d.Now())
}

// Rollouts is how far the rollout is, and which were before.
func (d Desk) Rollouts(ctx context.Context) (Rollouts, error) {
	v, err := d.Fleet(ctx)
	return RolloutsOf(v, d.Now()), err
}

// Revisions are the configurations that are kept, the latest first, without their texts.
func (d Desk) Revisions(ctx context.Context) ([]fleet.Revision, error) {
	all, err := fleet.Revisions(ctx, d.Docs)
	if all == nil {
		all = []fleet.Revision{}
	}
	return all, err
}

// Stable is the name of the revision that every Envoy has that nothing else is said of.
const Stable = "stable"

// Revision is one of them, by the first digits of its id, or Stable.
func (d Desk) Revision(ctx context.Context, id string) (fleet.Revision, error) {
	if id == Stable {
		s, _, err := fleet.ReadState(ctx, d.Docs)
		if err != nil {
			return fleet.Revision{}, err
		}
		if s.Stable == "" {
			return fleet.Revision{}, refuse(NoSuch, "no revision is stable yet: no gate has served one, and none was rolled out")
		}
		id = s.Stable
	}
	r, err := fleet.LoadRevision(ctx, d.Docs, id)
	if errors.Is(err, fleet.ErrNoRevision) {
		return r, refuse(NoSuch, "%v", err)
	}
	return r, err
}

// PauseRollout keeps the rollout at its step until somebody resumes it. It still goes back by itself.
func (d Desk) PauseRollout(ctx context.Context, by, note string) (rollout.State, error) {
	return d.change(ctx, note, func(s rollout.State, _ time.Time) (rollout.State, error) {
		if c := s.Current; c != nil && c.Phase == rollout.Paused {
			return s, refuse(NotNow, "the rollout %s is paused already, %s", c.ID, c.Reason)
		}
		return s.Pause(because(by, note))
	})
}

// ResumeRollout lets it go on.
func (d Desk) ResumeRollout(ctx context.Context, _, note string) (rollout.State, error) {
	return d.change(ctx, note, func(s rollout.State, now time.Time) (rollout.State, error) {
		if c := s.Current; c != nil && c.Phase != rollout.Paused {
			return s, refuse(NotNow, "the rollout %s is not paused", c.ID)
		}
		return s.Resume(now)
	})
}

// PromoteRollout ends it with every Envoy on the new revision, whatever is left of it.
func (d Desk) PromoteRollout(ctx context.Context, by, note string) (rollout.State, error) {
	return d.change(ctx, note, func(s rollout.State, now time.Time) (rollout.State, error) {
		return s.Promote(because(by, note), now)
	})
}

// AbortRollout ends it with every Envoy on the old revision.
func (d Desk) AbortRollout(ctx context.Context, by, note string) (rollout.State, error) {
	return d.change(ctx, note, func(s rollout.State, now time.Time) (rollout.State, error) {
		return s.Abort(because(by, note), now)
	})
}

// because is why a rollout is as it is, in words.
func because(by, note string) string {
	words := "by " + by
	if note != "" {
		words += ": " + note
	}
	return words
}

func (d Desk) change(ctx context.Context, note string, f func(rollout.State, time.Time) (rollout.State, error)) (rollout.State, error) {
	if err := CheckNote(note); err != nil {
		return rollout.State{}, err
	}
	s, err := fleet.Change(ctx, d.Docs, func(s rollout.State) (rollout.State, error) {
		if d.Rollout != "" && (s.Current == nil || s.Current.ID != d.Rollout) {
			return s, refuse(NotNow, "the rollout %s is over, and nothing was done; see what is under way now", d.Rollout)
		}
		return f(s, d.Now())
	})
	if errors.Is(err, rollout.ErrNone) {
		err = refuse(NotNow, "%v; `wayleave rollout history` shows those that were", err)
	}
	return s, err
}

// DrainRequest says which Envoy is to stop listening, or to listen again.
type DrainRequest struct {
	Envoy   string
	Drained bool
	Force   bool // also the last one that workers can come to
}

// Drain has an Envoy close its listeners, so that workers go elsewhere while what is under way ends, or open them again. It lasts until
// it is taken back, also when the Envoy restarts.
func (d Desk) Drain(ctx context.Context, q DrainRequest) (rollout.State, error) {
	v, err := d.Fleet(ctx)
	if err != nil {
		return v.State, err
	}
	all := v.Envoys()
	return fleet.Change(ctx, d.Docs, func(s rollout.State) (rollout.State, error) {
		is := slices.Contains(s.Drained, q.Envoy)
		switch {
		case q.Drained == is && is:
			return s, refuse(NotNow, "the Envoy %s is drained already", q.Envoy)
		case q.Drained == is && !known(all, q.Envoy):
			return s, noSuchEnvoy(q.Envoy, all)
		case q.Drained == is:
			return s, refuse(NotNow, "the Envoy %s is not drained", q.Envoy)
		case !q.Drained:
			s.Drained = slices.DeleteFunc(slices.Clone(s.Drained), func(id string) bool { return id == q.Envoy })
			return s, nil
		case !known(all, q.Envoy):
			return s, noSuchEnvoy(q.Envoy, all)
		}
		others := slices.ContainsFunc(all, func(e fleet.Envoy) bool { return e.ID != q.Envoy && !slices.Contains(s.Drained, e.ID) })
		if !others && !q.Force {
			return s, refuse(NotNow, "the Envoy %s is the last one that is not drained, and no worker could connect; start another first, or say that it is meant with --force", q.Envoy)
		}
		s.Drained = append(slices.Clone(s.Drained), q.Envoy)
		slices.Sort(s.Drained)
		return s, nil
	})
}

func known(all []fleet.Envoy, id string) bool {
	return slices.ContainsFunc(all, func(e fleet.Envoy) bool { return e.ID == id })
}

func noSuchEnvoy(id string, all []fleet.Envoy) error {
	if len(all) == 0 {
		return refuse(NoSuch, "no Envoy %q: no gate reports any", id)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.ID)
	}
	if len(names) > 10 {
		names = append(names[:10], fmt.Sprintf("and %d more", len(all)-10))
	}
	return refuse(NoSuch, "no Envoy %q is connected to a gate; there are: %s", id, strings.Join(names, ", "))
}

// EnvoyState is how an Envoy is.
type EnvoyState string

// States of an Envoy, the worst first.
const (
	EnvoyRefusing   EnvoyState = "refuses"     // a part of what it is told; it goes on with what it took before
	EnvoyTaking     EnvoyState = "taking"      // it has not taken all of it yet
	EnvoyNotListens EnvoyState = "not_listens" // it has no listeners, and is not drained
	EnvoyDraining   EnvoyState = "draining"    // it still has listeners, and is to have none
	EnvoyDrained    EnvoyState = "drained"
	EnvoyCurrent    EnvoyState = "current" // it has all that it is to have
)

// EnvoyStatus is an Envoy and what is to be said of it.
type EnvoyStatus struct {
	fleet.Envoy
	State EnvoyState `json:"state"`
	// Seen is when its gate last said that it is connected.
	Seen time.Time `json:"seen"`
	// Traffic is what it did since the last rollout began, under all revisions.
	Traffic rollout.Counts `json:"traffic"`
}

// Gate is one that runs.
type Gate struct {
	Name   string    `json:"name"`
	Envoys int       `json:"envoys"` // connected to it
	Seen   time.Time `json:"seen"`
	// Unable are the revisions that it cannot serve, and why.
	Unable map[string]string `json:"unable,omitempty"`
}

// Fleet is the gates and Envoys there are.
type Fleet struct {
	Gates  []Gate        `json:"gates"`
	Envoys []EnvoyStatus `json:"envoys"`
	// Drained are the ids of those that are told not to listen, whether they are there or not.
	Drained []string `json:"drained"`
}

// FleetOf is what is to be said of the fleet. What each Envoy has of each kind is left to EnvoyOf.
func FleetOf(v fleet.View) Fleet {
	f := Fleet{Gates: []Gate{}, Envoys: envoysOf(v), Drained: append([]string{}, v.State.Drained...)}
	for _, r := range v.Reports {
		f.Gates = append(f.Gates, Gate{r.Gate, len(r.Envoys), r.At, r.Unable})
	}
	for i := range f.Envoys {
		f.Envoys[i].Parts = nil
	}
	return f
}

// Envoys are those of the fleet, and its gates.
func (d Desk) Envoys(ctx context.Context) (Fleet, error) {
	v, err := d.Fleet(ctx)
	return FleetOf(v), err
}

// Envoy is one of them.
func (d Desk) Envoy(ctx context.Context, id string) (EnvoyStatus, error) {
	v, err := d.Fleet(ctx)
	if err != nil {
		return EnvoyStatus{}, err
	}
	return EnvoyOf(v, id)
}

func envoysOf(v fleet.View) []EnvoyStatus {
	seen := map[string]time.Time{}
	traffic := map[string]rollout.Counts{}
	for _, r := range v.Reports {
		seen[r.Gate] = r.At
		for _, t := range r.Traffic {
			traffic[t.Envoy] = traffic[t.Envoy].Plus(t.Counts)
		}
	}
	all := []EnvoyStatus{}
	for _, e := range v.Envoys() {
		all = append(all, EnvoyStatus{Envoy: e, State: stateOf(e, v.State), Seen: seen[e.Gate], Traffic: traffic[e.ID]})
	}
	return all
}

// EnvoyOf is one of them.
func EnvoyOf(v fleet.View, id string) (EnvoyStatus, error) {
	for _, e := range envoysOf(v) {
		if e.ID == id {
			return e, nil
		}
	}
	return EnvoyStatus{}, noSuchEnvoy(id, v.Envoys())
}

func stateOf(e fleet.Envoy, s rollout.State) EnvoyState {
	drained := slices.Contains(s.Drained, e.ID)
	switch {
	case e.Refused != "":
		return EnvoyRefusing
	case e.Has == "" || e.Has != s.Revision(e.ID):
		return EnvoyTaking
	case drained && (e.Listening || !e.Drained):
		return EnvoyDraining
	case drained:
		return EnvoyDrained
	case !e.Listening:
		return EnvoyNotListens
	}
	return EnvoyCurrent
}

// Words are the state in words.
func (s EnvoyState) Words() string {
	return map[EnvoyState]string{
		EnvoyRefusing: "refuses what it is told", EnvoyTaking: "has not taken it all yet", EnvoyNotListens: "does not listen",
		EnvoyDraining: "is being drained", EnvoyDrained: "drained", EnvoyCurrent: "up to date",
	}[s]
}

// Rollouts is how far the rollout is, and which were before.
type Rollouts struct {
	// Stable is the revision that every Envoy has that nothing else is said of; empty: there has been none.
	Stable string `json:"stable"`
	// Current is under way; none: nothing is.
	Current  *rollout.Rollout `json:"current,omitempty"`
	Progress *Progress        `json:"progress,omitempty"` // of the current one
	// History is what ended, the latest first.
	History []rollout.Rollout `json:"history"`
}

// Progress is how far a rollout is in its step.
type Progress struct {
	Step  int    `json:"step"` // from 1
	Steps int    `json:"steps"`
	Where string `json:"where"` // the step in words
	// Wanted are the Envoys that have to have the new revision, Taken those of them that have it, and Envoys how many there are.
	Wanted int `json:"wanted"`
	Taken  int `json:"taken"`
	Envoys int `json:"envoys"`
	// Away are ids of those that had it and are not there, or that take it again.
	Away []string `json:"away,omitempty"`
	// Watching says that all have it, and are watched for so many seconds more.
	Watching    bool `json:"watching"`
	LeftSeconds int  `json:"left_seconds"`
	// With and Without are what Envoys did with the new revision and with the old one, since the rollout began. They are compared when
	// both had MinRequests.
	With        rollout.Counts `json:"with"`
	Without     rollout.Counts `json:"without"`
	MinRequests int            `json:"min_requests"`
}

// RolloutsOf says how far the rollout is.
func RolloutsOf(v fleet.View, now time.Time) Rollouts {
	r := Rollouts{Stable: v.State.Stable, Current: v.State.Current, History: append([]rollout.Rollout{}, v.State.History...)}
	if c := v.State.Current; c != nil {
		p := progress(*c, v, now)
		r.Progress = &p
	}
	return r
}

func progress(c rollout.Rollout, v fleet.View, now time.Time) Progress {
	step := c.Plan.Steps[c.Step]
	p := Progress{Step: c.Step + 1, Steps: len(c.Plan.Steps), Where: step.String(), MinRequests: c.Plan.MinRequests}
	p.With, p.Without = v.Compared()
	for _, e := range v.Envoys() {
		p.Envoys++
		wanted := v.State.Revision(e.ID) == c.To
		switch {
		case wanted && e.Has == c.To:
			p.Taken++
			p.Wanted++
		case wanted:
			p.Wanted++
		}
	}
	for id := range c.Away {
		p.Away = append(p.Away, id)
	}
	slices.Sort(p.Away)
	if !c.Settled.IsZero() {
		left := c.Settled.Add(step.Dwell).Sub(now)
		p.Watching, p.LeftSeconds = true, int(min(max(left, 0), step.Dwell).Round(time.Second).Seconds())
	}
	return p
}

// Sentence is how far it is, in one line.
func (p Progress) Sentence(phase rollout.Phase) string {
	words := fmt.Sprintf("step %d of %d (%s): %d of %s", p.Step, p.Steps, p.Where, p.Taken, count(p.Wanted, "Envoy"))
	switch {
	case phase == rollout.Paused:
		words += ", paused"
	case len(p.Away) > 0:
		words += fmt.Sprintf(", waits for %s", some(p.Away))
	case p.Watching && p.LeftSeconds > 0:
		words += fmt.Sprintf(", watched %v more", time.Duration(p.LeftSeconds)*time.Second)
	case p.Watching:
		words += ", watched long enough"
	}
	return words
}

// Figures are what went wrong with the new revision and without it, each in a line.
func (p Progress) Figures() []string {
	if p.With.Requests == 0 && p.Without.Requests == 0 {
		return []string{"no requests yet"}
	}
	line := func(what string, with, without int) string {
		return fmt.Sprintf("%s %s against %s without", what, Share(with, p.With.Requests), Share(without, p.Without.Requests))
	}
	out := []string{line("errors", p.With.Errors, p.Without.Errors), line("refusals", p.With.Refusals, p.Without.Refusals)}
	if p.With.Requests < p.MinRequests || p.Without.Requests < p.MinRequests {
		out = append(out, fmt.Sprintf("too few to compare: both need %s", number(p.MinRequests)))
	}
	return out
}

// Share is how many of some, in words.
func Share(k, n int) string {
	if n == 0 {
		return "- (no requests)"
	}
	percent := 100 * float64(k) / float64(n)
	text := fmt.Sprintf("%.1f", percent)
	if k > 0 && percent < 0.1 {
		text = fmt.Sprintf("%.2g", percent)
	}
	return fmt.Sprintf("%s %% (%s of %s)", text, number(k), number(n))
}

// number is one with its thousands apart.
func number(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Compare is what is different in another revision, in an operator's terms.
func Compare(from, to fleet.Revision) ([]config.Change, error) {
	var both [2]*config.Config
	for i, r := range []fleet.Revision{from, to} {
		var err error
		if both[i], err = Parsed(&config.Config{}, r); err != nil {
			return nil, err
		}
	}
	return config.Compare(both[0], both[1]), nil
}

// Parsed is the configuration of a revision on the machine that a configuration is of; an empty one is of none, and has no part of
// its own.
func Parsed(machine *config.Config, r fleet.Revision) (*config.Config, error) {
	return machine.With("revision "+rollout.Short(r.ID), []byte(r.Text), r.Files)
}
