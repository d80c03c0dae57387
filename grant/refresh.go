package grant

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"

	"wayleave/oauth"
	"wayleave/vault"
)

// outcome is what a call came to, while it is not stored.
type outcome struct {
	base, next record
	ver        int // of base in the store
	// doubtful: next is only true if a fresh read still shows what base says, as for a refresh token that is said to be dead.
	doubtful bool
	spooled  bool // it would survive a crash

	trace trace.SpanContext // of the call
}

// rotated reports whether next holds tokens that are nowhere else.
func (o *outcome) rotated() bool { return o.next.Generation > o.base.Generation }

// spends reports whether cur is another consent's by its name only: its refresh token is one in the place of which next has another.
func (o *outcome) spends(cur record, ver int) bool {
	return cur.standing(ver, o.next, o.ver) == spentAgain ||
		o.rotated() && cur.Epoch != o.base.Epoch && ver > o.ver && cur.Refresh.Equal(o.base.Refresh) && !o.next.Refresh.Equal(o.base.Refresh)
}

// lost is the error of a gateway that had to end before the store took the outcome.
func (o *outcome) lost(name string, why error) error {
	if o.spooled {
		return fmt.Errorf("grant %q was refreshed but its new token could not be stored (%w); it is spooled on this machine: start the gateway here again", name, why)
	}
	return fmt.Errorf("grant %q was refreshed but its new token could not be stored (%w), so it is lost; run `wayleave grant connect %s`", name, why, name)
}

// call is what a move does at the provider, once that has a call free for it.
func (m *minder) call(do move) func(context.Context) {
	return func(ctx context.Context) {
		now := m.now()
		ok, wait := m.endpoint.enter(now.run, !usable(m.rec, now), m.jitter)
		if !ok {
			m.held = now.run + wait
			return
		}
		err := errUnused
		ctx, span := m.span(ctx, do.name())
		defer func() {
			m.endpoint.leave(m.now().run, err, m.jitter)
			called(span, err)
		}()
		m.present <- struct{}{} // from here on a stop waits
		defer func() { <-m.present }()
		if m.ending.Err() != nil {
			return
		}
		before := m.now()
		if !m.lease(ctx, do) || !m.mark() {
			return
		}
		// Fencing, by our own clocks: after a pause as long as this (a stalled disk, a stopped process, a suspended machine) the
		// lease may have been taken over. If not, it is still ours and unused; the next turn renews it.
		began := m.now()
		if began.since(before) > m.policy.slack() {
			return
		}
		m.mine, m.calling = "", true
		defer func() { m.calling = false }()
		m.publish()
		if do == revoke {
			err = m.revoke(ctx, began)
		} else {
			err = m.refresh(ctx, began)
		}
	}
}

// refresh presents the refresh token, and leaves the outcome to be saved. It is bound to no request: a client that hangs up
// must not cost a refresh token.
func (m *minder) refresh(ctx context.Context, began moment) error {
	var (
		r        = m.rec
		rejected = r.version() != "" && r.version() == m.wish().rejected
		t        oauth.Token
		err      error
	)
	m.whileLeased(ctx, func(ctx context.Context) {
		ctx, span := m.span(ctx, "token endpoint", trace.WithSpanKind(trace.SpanKindClient))
		defer func() { called(span, err) }()
		t, err = m.spec.OAuth.Refresh(ctx, r.Refresh, r.Granted, m.spec.Scopes)
	})
	took := m.now().since(began)
	if err == nil && t.Access.IsZero() {
		err = &oauth.Error{Outcome: oauth.Unknown, Rotated: t.Refresh, Err: errors.New("the answer held no access token")}
	}
	o := &outcome{base: m.rec, ver: m.ver}
	e := Event{At: began.day, By: m.holder, Took: took}
	if err != nil {
		o.next = m.rec.failed(err, rand.Text(), began.day.Add(took), m.jitter)
		o.doubtful = o.next.Dead
		e.What, e.ErrorKind, e.Error = Failed, o.next.ErrorKind, o.next.LastError
		if o.next.Dead {
			e.What = Ended
		}
		m.log.Warn("grant not refreshed", "generation", m.rec.Generation, "took", took, "outcome", outcomeOf(err), "kind", e.ErrorKind,
			"attempt", m.rec.Lease.Attempt, "not_before", o.next.NotBefore, "err", o.next.LastError)
	} else {
		if m.rec.Kind == Machine {
			o.next = m.rec.minted(m.spec, t, rand.Text(), began.day, began.day.Add(took))
		} else {
			o.next = m.rec.answered(t, rand.Text(), began.day, began.day.Add(took))
		}
		if rejected {
			o.next = o.next.replaced(began.day.Add(took))
		}
		e.What, e.Lost, e.Rejected = Refreshed, oauth.MissingScopes(m.spec.granted(o.next.Granted), m.spec.granted(o.base.Granted)), rejected
		attrs := []any{"generation", o.next.Generation, "took", took, "outcome", "refreshed", "expires", o.next.Expires}
		if rejected {
			attrs = append(attrs, "because", "the provider rejected the token before")
		}
		if len(e.Lost) > 0 {
			attrs = append(attrs, "scopes_lost", e.Lost)
		}
		if len(t.Notes) > 0 {
			attrs = append(attrs, "notes", t.Notes)
		}
		m.log.Info("grant refreshed", attrs...)
	}
	o.trace = trace.SpanContextFromContext(ctx)
	m.leave(o, e, AskRefresh)
	return err
}

// revoke ends the tokens at the provider and forgets them, because an operator asked for it: also when the provider does
// not take the revocation, which the summary then says.
func (m *minder) revoke(ctx context.Context, began moment) error {
	var (
		r   = m.rec
		err error
	)
	if m.spec.OAuth != nil { // otherwise it is a static grant's, which only its issuer can end
		m.whileLeased(ctx, func(ctx context.Context) {
			ctx, span := m.span(ctx, "revocation endpoint", trace.WithSpanKind(trace.SpanKindClient))
			defer func() { called(span, err) }()
			// The refresh token first: with many providers it takes its access tokens along.
			err = m.spec.OAuth.Revoke(ctx, r.Refresh)
			if failed := m.spec.OAuth.Revoke(ctx, r.Access); err == nil {
				err = failed
			}
		})
	}
	took := m.now().since(began)
	o := &outcome{base: m.rec, ver: m.ver, next: m.rec.revoked(err, rand.Text(), began.day.Add(took))}
	e := Event{At: began.day, By: m.holder, Took: took, What: Revoked}
	if err != nil {
		e.What, e.ErrorKind, e.Error = RevokeFails, o.next.ErrorKind, o.next.LastError
		e.Cause = r.scrub(err.Error())
		m.log.Warn("grant not revoked at the provider; its tokens are forgotten", "took", took, "err", o.next.LastError)
	} else {
		m.log.Info("grant revoked", "took", took)
	}
	m.leave(o, e, AskRevoke)
	return err
}

// whileLeased runs f, which must obey its context, and renews our lease until it ends: as long as we live, nobody else
// presents the refresh token, however slow the provider is. A stop of the gateway does not cut it off.
func (m *minder) whileLeased(ctx context.Context, f func(context.Context)) {
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(call)
	}()
	tick := time.NewTicker(m.policy.renewal())
	defer tick.Stop()
	// Time is counted in ticks: while the process is stopped there is one at most, so that an answer which came meanwhile is read.
	left := m.policy.call
	for ours := true; ; {
		select {
		case <-done:
			return
		case <-tick.C:
			if left -= m.policy.renewal(); left <= 0 {
				cancel()
				<-done
				return
			}
			ours = ours && m.renew(ctx)
		}
	}
}

// renew moves the deadline of our lease, and reports whether it is still ours. A store that fails may have it on record.
func (m *minder) renew(ctx context.Context) bool {
	next := m.rec
	l := *next.Lease
	l.Deadline = wall(m.now().day.Add(m.policy.lease))
	next.Lease = &l
	err := m.put(ctx, next, m.ver)
	if !errors.Is(err, vault.ErrConflict) {
		return true
	}
	cur, ver, err := getRecord(ctx, m.docs, m.spec.Name)
	if err != nil {
		return true
	}
	if leaseID(cur) == l.ID { // an earlier renewal whose answer got lost
		m.adopt(cur, ver)
		return true
	}
	switch cur.standing(ver, next, m.ver) {
	case spentAgain:
		next = cur.keeping(next)
	case sameAgain:
		next = cur
		next.Lease = &l
	case newer, older:
		return false
	}
	_ = m.put(ctx, next, ver) // if somebody was faster, it is seen at the next renewal
	return true
}

// leave leaves an outcome to be saved: first on this machine, then in the store. If did is what an operator asks for, that is
// carried out with it.
func (m *minder) leave(o *outcome, e Event, did Request) {
	if q := m.request.Load(); q.open(o.base, m.now()) && q.Do == did {
		o.next = o.next.handled(q.ID)
	}
	o.next = o.next.happened(e).noted(o.base, m.now())
	if m.watch.Happened != nil {
		m.watch.Happened(m.spec.Name, e)
	}
	m.keep(o)
	m.unsaved = o
}

// outcomeOf is for the log line.
func outcomeOf(err error) string {
	if e, ok := errors.AsType[*oauth.Error](err); ok {
		return e.Outcome.String()
	}
	return oauth.Unknown.String()
}

// lease writes our lease over what we last read, and reports whether it stands.
func (m *minder) lease(ctx context.Context, do move) bool {
	id := rand.Text()
	l := lease{ID: id, Holder: m.holder, Deadline: wall(m.now().day.Add(m.policy.lease))}
	l.Marked = m.spool != nil && !m.blind && do == refresh && m.spec.Kind == Consent
	cur := m.rec
	if cur.Epoch == "" { // the first token of a machine's grant
		cur = begun(m.spec, id)
	}
	if do == refresh {
		cur.Dead = false // an operator has it tried again: the provider's last word counts
	}
	next := cur.leased(l, m.mine)
	m.mine = id
	if err := m.put(ctx, next, m.ver); err != nil {
		// Somebody was faster, or the answer to our write got lost: the store knows whose lease it is.
		m.read(ctx)
		switch {
		case m.readErr != nil:
			return false
		case leaseID(m.rec) == id:
		case errors.Is(err, vault.ErrConflict):
			m.conflict()
			return false
		default:
			m.writeErr = err
			m.storeFailed()
			return false
		}
	}
	return true
}

// giveUp stores that the refresh token must not be presented again.
func (m *minder) giveUp(context.Context) {
	now := m.now()
	o := &outcome{base: m.rec, next: m.rec.abandoned(rand.Text(), now.day), ver: m.ver, doubtful: true}
	m.leave(o, Event{At: now.day, By: m.holder, What: GivenUp, ErrorKind: o.next.ErrorKind, Error: o.next.LastError}, AskRefresh)
}

// decline stores that what an operator asks for cannot be done.
func (m *minder) decline(context.Context) {
	now := m.now()
	o := &outcome{base: m.rec, next: m.rec, ver: m.ver}
	o.next.Operation = rand.Text()
	why := "there is no refresh token that could be presented"
	if !m.rec.Refresh.IsZero() {
		why = cmp.Or(m.rec.LastError, why)
	}
	m.leave(o, Event{At: now.day, By: m.holder, What: Declined, Error: why}, AskRefresh)
}

// save stores the outcome of a call. It is called until it has, or until the store holds something newer.
func (m *minder) save(ctx context.Context) {
	o := m.unsaved
	if o.trace.IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, o.trace)
	}
	var putErr error
	if !o.doubtful {
		if putErr = m.put(ctx, o.next, o.ver); putErr == nil {
			m.saved()
			return
		}
	}
	// Doubtful, or changed by somebody else, or the answer to our write got lost.
	m.readAt = m.now().run
	cur, ver, err := getRecord(ctx, m.docs, m.spec.Name)
	switch {
	case err != nil && !errors.Is(err, vault.ErrNotFound):
		m.writeErr = cmp.Or(putErr, err)
		m.storeFailed()
	case o.spends(cur, ver): // imported meanwhile
		o.base, o.next, o.ver, o.doubtful = cur, cur.keeping(o.next), ver, false
		m.conflict()
	case superseded(cur, o.base, o.next): // also by nothing at all: disconnected
		m.saved()
		m.rec.Lease = nil // nobody presents what was imported anew meanwhile
		m.adopt(cur, ver)
	default:
		o.ver, o.doubtful = ver, false
		o.next.Reused = o.rotated() && (cur.Dead || leaseID(cur) != leaseID(o.base) || cur.Unanswered > o.base.Unanswered)
		if errors.Is(putErr, vault.ErrConflict) {
			m.conflict()
		} else if putErr != nil {
			m.writeErr = putErr
			m.storeFailed()
		}
	}
}

// saved forgets the outcome, which is in the store or worth nothing any more.
func (m *minder) saved() {
	m.unsaved, m.writeErr = nil, nil
	m.dropSpooled()
}
