package grant

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"wayleave/secret"
	"wayleave/vault"
)

// idleReads is how many times less often a grant is read that is well and that nobody asks for. Whoever does then waits for a look at
// the store, so that no token is handed out that others have long taken away.
const idleReads = 12

// A write that somebody else got ahead of is followed by a pause, from the first to the second of these: a standby may answer
// reads with what is no longer true.
const conflictPause, longestConflict = 50 * time.Millisecond, 2 * time.Second

// minder keeps one grant. Everything below owned belongs to the goroutine in run and needs no lock; others see views,
// and may ask.
type minder struct {
	spec     Spec
	docs     Documents
	spool    Spool     // may be nil
	endpoint *endpoint // shared with other grants of the provider
	policy   policy
	holder   string
	reread   time.Duration
	changed  *atomic.Int64 // see Keeper
	drain    time.Duration
	ending   context.Context //nolint:containedctx // when it ends nobody is to mind the grant any more: the process ends
	now      func() moment
	watch    Watch
	log      *slog.Logger

	fingerprint func(secret.Text) string // of a token; never nil

	tracer trace.Tracer
	waiter atomic.Pointer[trace.SpanContext] // of the first request that is traced and waits; nil: there is none

	asked   chan struct{} // holds one: somebody wants a fresh look
	present chan struct{} // holds one while a call is under way
	view    atomic.Pointer[view]
	request atomic.Pointer[request] // the last one by an operator, to be judged against what is stored

	rejected atomic.Pointer[string] // the version of the token that the provider rejected last, to be judged likewise

	used atomic.Int64 // when a token was asked for last, by the running clock, to a second

	owned
}

// owned times are by the running clock.
type owned struct {
	rec       record // as stored, as far as we know
	ver       int    // its version
	loaded    bool
	readAt    time.Duration // when the last attempt began, or a write that found nothing else there
	wanted    bool          // somebody asked since
	mine      string        // id of a lease we wrote, or may have, and did not use
	marked    string        // id of the lease under which the process before this one presented the token
	blind     bool          // there is no such knowledge: the spool fails
	inherited string        // id of the lease that the process before this one left; one of our name that comes later is a twin's
	awaits    bool          // another replica's lease is waited for,
	since     time.Duration // from then on
	held      time.Duration // the token endpoint is not called before: it is busy, or down, or another gate is there

	calling bool // the provider, under our lease

	rescope bool // see wish. Only then: gateways of an old and a new configuration must not undo each other's work

	unsaved *outcome // of our refresh, to be stored before anything else

	behind bool // the store showed tokens before those that we know

	readErr, writeErr error // nil once the next read, or write, works
	storeFails        int   // in a row
	conflicts         int   // in a row
	storeRetry        time.Duration

	jitter      float64 // see policy; new with each token
	reported    []byte  // the summary that status/<name> holds, as far as we know
	reportErr   error   // of the last attempt
	reportRetry time.Duration
	logged      State
	draining    bool // it is logged that the end waits for the store
}

func newMinder(m *minder) *minder {
	m.asked, m.present = make(chan struct{}, 1), make(chan struct{}, 1)
	m.jitter = rand.Float64()
	m.view.Store(&view{superseded: make(chan struct{})})
	return m
}

// succeed makes m go on where before has ended, which minded the same grant for another Spec.
func (m *minder) succeed(before *minder) {
	m.owned = before.owned
	m.reported, m.draining = nil, false
	m.rescope = m.rec.connected() && !m.askedForAll()
	before.publish() // whoever waits for it asks m from now on
	m.publish()
}

// ask makes the minder read the grant at once, or as soon as the last read is recheck ago: an operator may have connected
// it, or another replica refreshed it.
func (m *minder) ask() {
	select {
	case m.asked <- struct{}{}:
	default:
	}
}

// carryOut makes the minder do what an operator asked for, unless it is done.
func (m *minder) carryOut(r request) {
	if old := m.request.Swap(&r); old == nil || old.ID != r.ID {
		m.ask()
	}
}

// use notes that a token is asked for.
func (m *minder) use(now time.Duration) {
	if now-time.Duration(m.used.Load()) >= time.Second { // not for each request: all processors would write to one place
		m.used.Store(int64(now))
	}
}

// idle reports whether the grant is well, nobody has asked for it in a while, and no operator is known to have changed it.
func (m *minder) idle(now moment) bool {
	return now.run-time.Duration(m.used.Load()) >= idleReads*m.reread && m.readAt > time.Duration(m.changed.Load()) && stateOf(m.rec, m.spec, now) == Healthy
}

// reject makes the minder replace the token of this version, if it is the present one and may be replaced.
func (m *minder) reject(version string) {
	m.rejected.Store(&version)
	m.ask()
}

// run minds the grant until ctx ends and nothing is unsaved, or until work ends, which is the context of everything it
// does. The error says that a token was lost.
func (m *minder) run(ctx, work context.Context) error {
	work, end := context.WithCancel(work)
	defer end()
	defer context.AfterFunc(m.ending, func() {
		select {
		case m.present <- struct{}{}: // the call that was under way has ended
			<-m.present
		case <-work.Done():
		}
		select {
		case <-time.After(m.drain):
			end()
		case <-work.Done():
		}
	})()
	for work.Err() == nil && (ctx.Err() == nil || m.holding()) {
		if err := m.storeErr(); err != nil && ctx.Err() != nil && !m.draining {
			m.draining = true
			m.log.Warn("stopping waits until the new token is stored", "err", err)
		}
		task, pause := m.next(m.now())
		if pause > 0 {
			m.sleep(ctx, work, pause)
			continue
		}
		task(m.shown(work))
		m.publish() // not after a mere sleep: whoever asked and still waits would ask again at once
	}
	if m.unsaved != nil && m.unsaved.rotated() {
		return m.unsaved.lost(m.spec.Name, cmp.Or(m.storeErr(), errors.New("no time left")))
	}
	if m.reportDue(m.now()) {
		m.report(work)
	}
	return nil
}

// holding reports whether an outcome must be stored before the minder may end. Tokens are kept as long as possible; for
// the rest, which other replicas would find out for themselves, one try will do.
func (m *minder) holding() bool {
	return m.unsaved != nil && (m.unsaved.rotated() || m.storeErr() == nil)
}

func (m *minder) wish() wish {
	w := wish{mine: m.mine, inherited: m.inherited, asked: m.request.Load(), jitter: m.jitter, rescope: m.rescope}
	if v := m.rejected.Load(); v != nil {
		w.rejected = *v
	}
	return w
}

// next says what to do next, and how long to wait before.
func (m *minder) next(now moment) (task func(context.Context), pause time.Duration) {
	storeWait := m.storeRetry - now.run
	if m.unsaved != nil {
		return m.save, storeWait
	}
	if !m.loaded || m.readErr != nil || storeWait > 0 {
		return m.read, storeWait
	}
	if m.behind {
		return m.putBack, 0
	}
	move, wait := m.policy.plan(m.rec, m.spec, now, m.wish())
	m.awaiting(move == await, now.run)
	if move == refresh || move == revoke {
		wait = max(wait, m.held-now.run)
	}
	switch {
	case (move == refresh || move == revoke) && wait <= 0 && now.run-m.readAt > m.reread:
		return m.read, 0 // another replica may have done it
	case (move == refresh || move == revoke) && wait <= 0:
		return m.call(move), 0
	case move == giveUp:
		return m.giveUp, 0
	case move == decline:
		return m.decline, 0
	case m.reportDue(now) && m.reportRetry <= now.run:
		return m.report, 0
	}

	// A period of its own for each token and replica, so that reads spread out.
	every := m.reread
	if m.idle(now) {
		every *= idleReads
	}
	every -= time.Duration(m.jitter * float64(every) / 5)
	if m.wanted {
		every = min(every, recheck)
	}
	read := m.readAt + every - now.run
	if (move == refresh || move == revoke) && wait < read {
		return m.call(move), wait
	}
	return m.read, read
}

// awaiting notes whether another replica's lease is waited for, and tells how long it was when that is over.
func (m *minder) awaiting(it bool, now time.Duration) {
	switch {
	case it && !m.awaits:
		m.since = now
	case !it && m.awaits:
		m.leaseAwaited(now - m.since)
	}
	m.awaits = it
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
		storeErr: m.storeErr(), storeRetry: m.storeRetry, held: m.held, calling: m.calling, wish: m.wish(),
		superseded: make(chan struct{}),
	}
	if m.unsaved != nil && !m.unsaved.doubtful {
		v.rec, v.unsaved = m.unsaved.next, m.unsaved.rotated()
	}
	v.granted = m.spec.granted(v.rec.Granted)
	if before := m.view.Load(); v.rec.Access.Equal(before.rec.Access) {
		v.fingerprint = before.fingerprint
	} else {
		v.fingerprint = m.fingerprint(v.rec.Access)
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
	m.readAt, m.wanted = m.now().run, false // before it: requests that come meanwhile cannot rely on what this finds
	r, ver, err := getRecord(ctx, m.docs, m.spec.Name)
	if err != nil && !errors.Is(err, vault.ErrNotFound) {
		m.readErr = err
		m.storeFailed()
		return
	}
	if m.readErr != nil {
		// While we could not see what the holder of a lease does, it could not store what it did either.
		m.rec.local.leased = m.now().run
	}
	m.readErr = nil
	if m.writeErr == nil {
		m.storeFails = 0
	}
	first := !m.loaded
	m.adopt(r, ver)
	if l := m.rec.Lease; first && l != nil && l.Holder == m.holder {
		m.inherited = l.ID
		if l.Marked && l.ID != m.marked && !m.blind {
			m.mine = l.ID // that process ended before it presented the token
		}
	}
	m.rescope = (m.rescope || first && m.rec.connected()) && !m.askedForAll()
}

// askedForAll reports whether the last connect, or for a machine's grant the last call, asked for the scopes of the
// configuration.
func (m *minder) askedForAll() bool { return slices.Equal(m.rec.Requested, sorted(m.spec.Scopes)) }

// adopt takes over what is stored, if it holds. Of what is older only the version is taken over: check-and-set tells whether a standby lags or
// the store was set back.
func (m *minder) adopt(r record, ver int) {
	m.loaded = true
	now := m.now()
	switch r.standing(ver, m.rec, m.ver) {
	case older:
		m.ver, m.behind = ver, r.Generation < m.rec.Generation
		return
	case spentAgain:
		kept := r.keeping(m.rec)
		kept.Last = r.Last
		if kept.Lease == nil { // one that we have not seen may have been in what was written over
			kept.NotBefore = wall(now.day.Add(m.policy.lease + leaseSlack))
		}
		m.rec, m.ver, m.behind = kept.noted(m.rec, now), ver, true
		m.log.Warn("the tokens that were imported are those that this grant began with; those that the provider gave for them since are kept",
			"next", "if the older ones are meant, disconnect the grant without revoking, and import them again")
		return
	case sameAgain: // whoever presents them takes the lease up again
		m.held = max(m.held, now.run+m.policy.lease+leaseSlack)
	case newer:
	}
	m.behind = false
	if r.Epoch != m.rec.Epoch || r.Generation != m.rec.Generation {
		m.jitter = rand.Float64()
		m.writeErr = nil // what failed to be written is of no more interest
	}
	m.rec, m.ver = r.noted(m.rec, now), ver
	m.rescope = m.rescope && !m.askedForAll()
}

// putBack writes what we know over the older tokens of a store that was set back to a backup: a gate that starts would present
// their refresh token, which is spent, and cost the consent. Where a standby lags it is a conflict, and nothing is written.
func (m *minder) putBack(ctx context.Context) {
	m.behind = false // until the next look
	next := m.rec
	next.Operation = crand.Text()
	err := m.put(ctx, next, m.ver)
	switch {
	case err == nil:
		m.reported = nil // the status is as old
		m.log.Warn("the store held older tokens of this grant, as after a restore from a backup; the present ones are stored again", "generation", next.Generation)
	case errors.Is(err, vault.ErrConflict):
		m.conflict()
	default:
		m.writeErr = err
		m.storeFailed()
	}
}

// put writes r over the version we know.
func (m *minder) put(ctx context.Context, r record, cas int) error {
	began := m.now().run
	ver, err := putRecord(ctx, m.docs, m.spec.Name, r, cas)
	if err == nil {
		m.readAt = began
		m.readErr, m.writeErr, m.storeFails, m.conflicts, m.storeRetry = nil, nil, 0, 0, 0
		m.adopt(r, ver)
	}
	return err
}

// storeFailed makes the minder leave the store alone for a while, longer each time, but never long.
func (m *minder) storeFailed() {
	m.storeFails++
	m.storeRetry = m.now().run + min(backoff(m.storeFails, m.jitter), m.reread)
}

// conflict makes it wait a little for what others wrote.
func (m *minder) conflict() {
	pause := min(conflictPause<<min(m.conflicts, 10), longestConflict)
	m.conflicts++
	m.storeRetry = m.now().run + pause/2 + time.Duration(m.jitter*float64(pause)/2)
}

func (m *minder) storeErr() error { return cmp.Or(m.writeErr, m.readErr) }

// reportDue reports whether status/<name> should be written: the summary of what is stored has changed and will last.
func (m *minder) reportDue(now moment) bool {
	s, ok := m.lasting(now)
	return ok && !bytes.Equal(s, m.reported)
}

func (m *minder) lasting(now moment) (encoded []byte, ok bool) {
	s := summarize(m.rec, m.spec, now)
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
		m.reportRetry = m.now().run + m.reread
		if m.reportErr == nil {
			m.log.Warn("grant status not written: lists show an older one until it is", "err", err)
		}
	}
	m.reportErr = err
}
