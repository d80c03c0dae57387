package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"wayleave/rollout"
	"wayleave/vault"
)

// How often a gate looks at what others wrote, and writes.
const (
	idleEvery   = 2 * time.Second        // at the state, when no rollout is under way
	stepEvery   = time.Second            // at everything during one; a report is written no more often either
	othersEvery = 5 * time.Second        // at the other gates' reports, when no rollout is under way
	othersSoon  = stepEvery / 2          // and during one, however often Envoys wake us
	wakeGap     = 100 * time.Millisecond // between two looks, whatever wakes us
	pastEvery   = 5 * time.Minute        // what an Envoy did in so long, or twice that, is what it did before a rollout
	retryEvery  = 5 * time.Second        // to serve what could not be served
)

const (
	silent     = 3 * ReportEvery  // a gate whose report has not changed for so long is not there
	swept      = 10 * time.Minute // and so is its report then
	lapse      = 5 * time.Second  // what counts at most between two looks: nothing is held against anybody while Vault is away
	slack      = 2 * time.Second  // that a time in the state may differ from ours without being moved
	believed   = 10 * time.Second // for which an older version of the state must be shown before it is believed
	leaveTime  = 2 * time.Second
	freshTime  = time.Hour // a revision younger than this may be one that is about to be rolled out
	kept       = 20        // rollouts whose revisions are kept
	reasonSize = 500
)

// Options are a gate's part in its fleet; Ended, Log, Now and Running may be nil.
type Options struct {
	Docs Documents
	// Gate is a name that no other gate has, one element of a path.
	Gate string
	Log  *slog.Logger
	Now  func() time.Time
	// Running is how long the machine has been running. How long something lasts is judged by it.
	Running func() time.Duration
	// Look returns the Envoys that are connected to this gate.
	Look func() []Envoy
	// Counted returns what was counted since the last call.
	Counted func() []Traffic
	// Apply makes Envoys be told what the state says; it returns the revisions that cannot be served. It is called by Run, first of
	// all, whenever the state has changed, and again while something cannot be served.
	Apply func(ctx context.Context, s rollout.State) (unable map[string]error)
	// Ended is told of each rollout that has ended since Open, once.
	Ended func(rollout.Rollout)
}

// Member is a running gate's part in its fleet: it tells its Envoys what the shared state says, reports what it sees of them, and
// takes the next step of a rollout when it is the first to see that it is due. While Vault is away, what was last known stands, and
// nobody takes a step.
type Member struct {
	o    Options
	wake chan struct{}
	view atomic.Pointer[View]

	// What follows is of Open, and then of Run.

	state   rollout.State
	version int           // of the document; -1: not read yet
	older   time.Duration // since when, by clock, an older one has been shown; -1: it is not
	again   bool          // somebody wrote before us; look again

	unable map[string]error
	tried  time.Duration // when

	// clock is how long this gate has been looking, without outages, last when it looked last by Running. With them a step is judged:
	// clocks of machines differ, and what nobody could know of nobody is late with.
	clock, last time.Duration
	times       time.Time     // State.Times when it changed last
	timesAt     time.Duration // by clock

	rollout string // the last one known
	ended   map[string]bool
	traffic map[traffic]rollout.Counts    // since the rollout began
	recent  [2]map[traffic]rollout.Counts // of these and of the last pastEvery
	turned  time.Duration                 // by clock, when the later of them began
	past    []Traffic
	envoys  []Envoy

	others   map[string]*other
	othersAt time.Duration // by Running

	reported    []byte // what the last report said
	reportedAt  time.Duration
	reportOf    int // version of its document; -1: not known
	reportIsDue bool
	outage      bool
}

// Join returns a gate's part in the fleet. Nothing is read or written before Open, and Run.
func Join(o Options) *Member {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Running == nil {
		began := time.Now()
		o.Running = func() time.Duration { return time.Since(began) }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Member{
		o: o, wake: make(chan struct{}, 1), version: -1, older: -1, reportOf: -1, last: o.Running(), othersAt: o.Running() - othersEvery,
		ended: map[string]bool{}, traffic: map[traffic]rollout.Counts{}, recent: [2]map[traffic]rollout.Counts{{}, {}}, others: map[string]*other{},
	}
	m.view.Store(&View{})
	return m
}

// Open reads the state.
func (m *Member) Open(ctx context.Context) (rollout.State, error) {
	s, version, err := ReadState(ctx, m.o.Docs)
	if err != nil {
		return s, err
	}
	m.know(s, version)
	m.rollout = lastRollout(s)
	for _, r := range s.History {
		m.ended[r.ID] = true
	}
	m.view.Store(&View{State: s})
	return s, nil
}

// View is what was last known. The caller changes nothing of it.
func (m *Member) View() View { return *m.view.Load() }

// Wake has Run look now: an Envoy has come, gone, or said something.
func (m *Member) Wake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run takes part until ctx ends, and then takes back what this gate reports.
func (m *Member) Run(ctx context.Context) {
	if m.version >= 0 {
		m.apply(ctx)
	}
	for wait(ctx, wakeGap, nil) {
		err := m.look(ctx)
		m.publish()
		m.say(ctx, err)
		if !m.again && !wait(ctx, m.interval()-wakeGap, m.wake) {
			break
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err := m.o.Docs.Delete(last, gatesDir+"/"+m.o.Gate); err != nil {
		m.o.Log.Info("this gate's report stays until others see that it is gone", "err", err)
	}
}

// wait returns whether ctx goes on, after d or when woken.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
	return ctx.Err() == nil
}

func (m *Member) interval() time.Duration {
	if m.state.Current != nil || m.reportIsDue || len(m.unable) > 0 {
		return stepEvery
	}
	return idleEvery
}

// say logs when Vault begins to fail, and when it works again.
func (m *Member) say(ctx context.Context, err error) {
	if ctx.Err() != nil || m.outage == (err != nil) {
		return
	}
	m.outage = err != nil
	if err != nil {
		m.o.Log.Warn("what gates share of the fleet cannot be read or written; Envoys keep what they are told, and no rollout goes on here", "err", err)
		return
	}
	m.o.Log.Info("what gates share of the fleet is read and written again")
}

var errLost = errors.New("the document fleet/state is gone; what it said last stands until a rollout is started")

// look does all that is due.
func (m *Member) look(ctx context.Context) error {
	m.again = false
	m.envoys = m.o.Look()
	m.count()
	s, version, err := ReadState(ctx, m.o.Docs)
	if err != nil {
		return err
	}
	now := m.o.Running()
	m.clock, m.last = m.clock+min(now-m.last, lapse), now
	switch {
	case s.Stable == "" && m.state.Stable != "":
		m.version = version // one that is written anew counts from there
		return errLost
	case version >= m.version || m.older >= 0 && m.clock-m.older >= believed: // which is of a backup that was restored
		m.older = -1
		m.learn(ctx, s, version)
	default: // of a standby that lags
		if m.older < 0 {
			m.older = m.clock
		}
		return nil
	}
	if len(m.unable) > 0 && now-m.tried >= retryEvery {
		m.apply(ctx)
	}
	err = m.readOthers(ctx, now)
	if err == nil {
		err = m.step(ctx)
	}
	return errors.Join(err, m.report(ctx)) // others go on by what we say, when we cannot
}

// know takes over a state without doing anything about it.
func (m *Member) know(s rollout.State, version int) {
	m.state, m.version = s, version
	if t := s.Times(); !t.Equal(m.times) {
		m.times, m.timesAt = t, m.clock
	}
}

// learn takes over a state, and does what follows from it.
func (m *Member) learn(ctx context.Context, s rollout.State, version int) {
	if version == m.version {
		return
	}
	m.know(s, version)
	m.apply(ctx)
	if last := lastRollout(s); last != m.rollout {
		m.rollout = last
		m.count() // this far it was of before
		clear(m.traffic)
		m.past = m.before(s.Current)
	}
	over := false
	for _, r := range slices.Backward(s.History) {
		if m.ended[r.ID] {
			continue
		}
		m.ended[r.ID], over = true, true
		m.o.Log.Info("rollout ended", "rollout", r.ID, "revision", rollout.Short(r.To), "phase", string(r.Phase), "reason", r.Reason)
		if m.o.Ended != nil {
			m.o.Ended(r)
		}
	}
	if over {
		if err := Forget(ctx, m.o.Docs, s, m.o.Now()); err != nil {
			m.o.Log.Info("old revisions are kept until the next rollout", "err", err)
		}
	}
}

func (m *Member) apply(ctx context.Context) {
	m.tried = m.o.Running()
	was := m.unable
	m.unable = m.o.Apply(ctx, m.state)
	for revision, err := range m.unable {
		if was[revision] == nil {
			m.o.Log.Warn("a revision cannot be served", "revision", rollout.Short(revision), "err", err)
		}
	}
}

// publish makes what is known the View.
func (m *Member) publish() { v := m.known(); m.view.Store(&v) }

func (m *Member) known() View {
	v := View{State: m.state, Reports: []Report{m.own()}}
	now := m.o.Now()
	for _, name := range slices.Sorted(maps.Keys(m.others)) {
		if o := m.others[name]; o.there(m.clock, now) {
			v.Reports = append(v.Reports, o.Report)
		}
	}
	return v
}

// step takes the next step of the rollout, if it is due.
func (m *Member) step(ctx context.Context) error {
	v := m.known()
	if v.State.Current == nil {
		there := map[string]bool{}
		for _, e := range v.Envoys() {
			there[e.ID] = true
		}
		maps.DeleteFunc(m.traffic, func(k traffic, _ rollout.Counts) bool { return !there[k.envoy] })
		return nil
	}
	now := wall(m.o.Now())
	s := v.State
	if d := now.Sub(m.times) - (m.clock - m.timesAt); d.Abs() > slack {
		s = s.Moved(d)
	}
	nodes, unable := v.fleet()
	next := s.Advance(nodes, unable, now)
	if reflect.DeepEqual(next, s) {
		return nil
	}
	version, err := m.o.Docs.Put(ctx, statePath, vault.Packed{Value: next}, m.version)
	if errors.Is(err, vault.ErrConflict) {
		m.again = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing how far the rollout is: %w", err)
	}
	if next.Current != nil && next.Current.Step != s.Current.Step {
		m.o.Log.Info("rollout goes on", "rollout", next.Current.ID, "revision", rollout.Short(next.Current.To), "step", next.Current.Step+1, "of", len(next.Current.Plan.Steps))
	}
	m.learn(ctx, next, version)
	m.timesAt = m.clock - max(0, now.Sub(m.times)) // we know when it was, not only when we saw it
	return nil
}

func lastRollout(s rollout.State) string {
	switch {
	case s.Current != nil:
		return s.Current.ID
	case len(s.History) > 0:
		return s.History[0].ID
	}
	return ""
}

// wall is a time as it is after it was written down.
func wall(t time.Time) time.Time { return t.UTC().Round(0) }
