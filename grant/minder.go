package grant

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"wayleave/vault"
)

// conflictPause follows a write that somebody else got ahead of.
const conflictPause = 50 * time.Millisecond

// minder keeps one grant. Everything below owned belongs to the goroutine in run and needs no lock; others see views,
// and may ask.
type minder struct {
	spec   Spec
	docs   Documents
	policy policy
	holder string
	reread time.Duration
	now    func() time.Time
	log    *slog.Logger

	asked chan struct{} // holds one: somebody wants a fresh look
	view  atomic.Pointer[view]

	owned
}

type owned struct {
	rec    record // as stored, as far as we know
	ver    int    // its version
	loaded bool
	readAt time.Time // when the last attempt began
	wanted bool      // somebody asked since
	mine   string    // id of a lease we wrote, or may have, and did not use

	unsaved *outcome // of our refresh, to be stored before anything else

	readErr, writeErr error // nil once the next read, or write, works
	storeFails        int   // in a row
	storeRetry        time.Time

	jitter      float64 // see policy; new with each token
	reported    []byte  // the summary that status/<name> holds, as far as we know
	reportErr   error   // of the last attempt
	reportRetry time.Time
	logged      State
	draining    bool // it is logged that the end waits for the store
}

func newMinder(m *minder) *minder {
	m.asked = make(chan struct{}, 1)
	m.jitter = rand.Float64()
	m.view.Store(&view{superseded: make(chan struct{})})
	return m
}

// ask makes the minder read the grant at once, or as soon as the last read is recheck ago: an operator may have connected
// it, or another replica refreshed it.
func (m *minder) ask() {
	select {
	case m.asked <- struct{}{}:
	default:
	}
}

// run minds the grant until ctx ends and nothing is unsaved, or until work ends, which is the context of everything it
// does. The error says that a token was lost.
func (m *minder) run(ctx, work context.Context) error {
	for work.Err() == nil && (ctx.Err() == nil || m.holding()) {
		if err := m.storeErr(); err != nil && ctx.Err() != nil && !m.draining {
			m.draining = true
			m.log.Warn("stopping waits until the new token is stored", "err", err)
		}
		task, at := m.next(m.now())
		if pause := at.Sub(m.now()); pause > 0 {
			m.sleep(ctx, work, pause)
			continue
		}
		task(work)
		m.publish() // not after a mere sleep: whoever asked and still waits would ask again at once
	}
	if m.unsaved != nil && m.unsaved.rotated() {
		return fmt.Errorf("grant %q was refreshed but its new token could not be stored (%w), so it is lost; run `wayleave grant connect %s`",
			m.spec.Name, cmp.Or(m.storeErr(), errors.New("no time left")), m.spec.Name)
	}
	if m.reportDue() {
		m.report(work)
	}
	return nil
}

// holding reports whether an outcome must be stored before the minder may end. Tokens are kept as long as possible; for
// the rest, which other replicas would find out for themselves, one try will do.
func (m *minder) holding() bool {
	return m.unsaved != nil && (m.unsaved.rotated() || m.storeErr() == nil)
}

// next says what to do next, and when.
func (m *minder) next(now time.Time) (task func(context.Context), at time.Time) {
	if m.unsaved != nil {
		return m.save, m.storeRetry
	}
	if !m.loaded || m.readErr != nil || now.Before(m.storeRetry) {
		return m.read, m.storeRetry
	}
	move, at := m.policy.plan(m.rec, m.spec, now, m.mine, m.jitter)
	switch {
	case move == refresh && !at.After(now):
		return m.refresh, at
	case move == giveUp:
		return m.giveUp, at
	case m.reportDue() && !m.reportRetry.After(now):
		return m.report, now
	}

	// A period of its own for each token and replica, so that reads spread out.
	every := m.reread - time.Duration(m.jitter*float64(m.reread)/5)
	if m.wanted {
		every = min(every, recheck)
	}
	read := m.readAt.Add(every)
	if move == refresh && at.Before(read) {
		return m.refresh, at
	}
	return m.read, read
}

// sleep ends after d, when somebody asks, or when the minder should stop.
func (m *minder) sleep(ctx, work context.Context, d time.Duration) {
	stop := ctx.Done()
	if m.holding() {
		stop = work.Done()
	}
	// Timers stop while a machine is suspended; expiry does not.
	t := time.NewTimer(min(d, m.reread))
	defer t.Stop()
	select {
	case <-t.C:
	case <-m.asked:
		m.wanted = true
	case <-stop:
	}
}

// publish shows the present state to requests, and logs it if it is another than before.
func (m *minder) publish() {
	v := &view{
		rec: m.rec, loaded: m.loaded, readAt: m.readAt,
		storeErr: m.storeErr(), storeRetry: m.storeRetry, jitter: m.jitter,
		superseded: make(chan struct{}),
	}
	if m.unsaved != nil && !m.unsaved.doubtful {
		v.rec, v.unsaved = m.unsaved.next, m.unsaved.rotated()
	}
	close(m.view.Swap(v).superseded)

	if !m.loaded && v.storeErr == nil {
		return
	}
	s := v.summary(m.spec, m.now())
	if s.State == m.logged || s.State == Refreshing || v.unsaved && v.storeErr == nil {
		return // the last: about to be stored
	}
	level := slog.LevelWarn
	if s.State == Healthy {
		level = slog.LevelInfo
	}
	attrs := []any{"state", s.State, "was", m.logged}
	if s.LastError != "" {
		attrs = append(attrs, "err", s.LastError)
	}
	if len(s.Missing) > 0 {
		attrs = append(attrs, "missing", s.Missing)
	}
	if s.Next != "" {
		attrs = append(attrs, "next", s.Next)
	}
	m.log.Log(context.Background(), level, "grant state", attrs...)
	m.logged = s.State
}

// read looks what is stored.
func (m *minder) read(ctx context.Context) {
	m.readAt, m.wanted = m.now(), false // before it: requests that come meanwhile cannot rely on what this finds
	r, ver, err := getRecord(ctx, m.docs, m.spec.Name)
	if err != nil && !errors.Is(err, vault.ErrNotFound) {
		m.readErr = err
		m.storeFailed()
		return
	}
	m.readErr = nil
	if m.writeErr == nil {
		m.storeFails = 0
	}
	m.loaded = true
	m.adopt(r, ver)
}

// adopt takes over what is stored. What is older than what we know comes from a standby that lags, or from a store that
// was set back to a backup: then only its version is taken over, and check-and-set will tell at the next write.
func (m *minder) adopt(r record, ver int) {
	if r.connected() && r.Epoch == m.rec.Epoch &&
		(r.Generation < m.rec.Generation || r.Generation == m.rec.Generation && ver < m.ver) {
		m.ver = ver
		return
	}
	if r.Epoch != m.rec.Epoch || r.Generation != m.rec.Generation {
		m.jitter = rand.Float64()
		m.writeErr = nil // what failed to be written is of no more interest
	}
	m.rec, m.ver = r, ver
}

// put writes r over the version we know.
func (m *minder) put(ctx context.Context, r record, cas int) error {
	ver, err := putRecord(ctx, m.docs, m.spec.Name, r, cas)
	if err == nil {
		m.readErr, m.writeErr, m.storeFails, m.storeRetry = nil, nil, 0, time.Time{}
		m.adopt(r, ver)
	}
	return err
}

// storeFailed makes the minder leave the store alone for a while, longer each time, but never long.
func (m *minder) storeFailed() {
	m.storeFails++
	m.storeRetry = m.now().Add(min(backoff(m.storeFails, m.jitter), m.reread))
}

func (m *minder) storeErr() error { return cmp.Or(m.writeErr, m.readErr) }

// reportDue reports whether status/<name> should be written: the summary of what is stored has changed and will last.
func (m *minder) reportDue() bool {
	s, ok := m.lasting()
	return ok && !bytes.Equal(s, m.reported)
}

func (m *minder) lasting() (encoded []byte, ok bool) {
	s := summarize(m.rec, m.spec, m.now())
	if s.State == Refreshing || !m.loaded || m.unsaved != nil || m.storeErr() != nil {
		return nil, false
	}
	b, err := json.Marshal(s)
	return b, err == nil
}

// report writes status/<name>. It is for people to read: a failure is retried, and holds up nothing.
func (m *minder) report(ctx context.Context) {
	s := summarize(m.rec, m.spec, m.now())
	err := putStatus(ctx, m.docs, s)
	if err == nil {
		m.reported, _ = json.Marshal(s)
	} else {
		m.reportRetry = m.now().Add(m.reread)
		if m.reportErr == nil {
			m.log.Warn("grant status not written: lists show an older one until it is", "err", err)
		}
	}
	m.reportErr = err
}
