package grant

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"

	"wayleave/oauth"
	"wayleave/vault"
)

// outcome is what a refresh came to, while it is not stored.
type outcome struct {
	base, next record
	ver        int // of base in the store
	// doubtful: next says that the refresh token is dead, which is only true if a fresh read still shows that token.
	doubtful bool
}

// rotated reports whether next holds tokens that are nowhere else.
func (o *outcome) rotated() bool { return o.next.Generation > o.base.Generation }

// refresh takes the lease, presents the refresh token, and leaves the outcome to be saved. It is bound to no request:
// a client that hangs up must not cost a refresh token.
func (m *minder) refresh(ctx context.Context) {
	if !m.lease(ctx) {
		return
	}
	m.mine = ""
	m.publish()

	call, cancel := context.WithTimeout(ctx, m.policy.call)
	defer cancel()
	sent := m.now()
	t, err := m.spec.OAuth.Refresh(call, m.rec.Refresh, m.rec.Granted, m.spec.Scopes)
	took := m.now().Sub(sent)
	if err == nil && t.Access.IsZero() {
		err = &oauth.Error{Outcome: oauth.Unknown, Rotated: t.Refresh, Err: errors.New("the answer held no access token")}
	}
	o := &outcome{base: m.rec, ver: m.ver}
	if err != nil {
		o.next = m.rec.failed(err, rand.Text(), m.now(), m.jitter)
		o.doubtful = o.next.Dead
		m.log.Warn("grant not refreshed", "generation", m.rec.Generation, "took", took,
			"outcome", outcomeOf(err), "attempt", m.rec.Lease.Attempt, "not_before", o.next.NotBefore, "err", o.next.LastError)
	} else {
		o.next = m.rec.answered(t, rand.Text(), sent, sent.Add(took))
		attrs := []any{"generation", o.next.Generation, "took", took, "outcome", "refreshed", "expires", o.next.Expires}
		if lost := oauth.MissingScopes(o.next.Granted, o.base.Granted); len(lost) > 0 {
			attrs = append(attrs, "scopes_lost", lost)
		}
		if len(t.Notes) > 0 {
			attrs = append(attrs, "notes", t.Notes)
		}
		m.log.Info("grant refreshed", attrs...)
	}
	m.unsaved = o
}

// outcomeOf is for the log line.
func outcomeOf(err error) string {
	if e, ok := errors.AsType[*oauth.Error](err); ok {
		return e.Outcome.String()
	}
	return oauth.Unknown.String()
}

// lease writes our lease over what we last read, and reports whether the refresh token may be presented now.
func (m *minder) lease(ctx context.Context) bool {
	id, before := rand.Text(), m.now()
	l := lease{ID: id, Holder: m.holder, Deadline: wall(before.Add(m.policy.lease()))}
	next := m.rec.leased(l, m.mine)
	m.mine = id
	if err := m.put(ctx, next, m.ver); err != nil {
		// Somebody was faster, or the answer to our write got lost: the store knows whose lease it is.
		m.read(ctx)
		switch {
		case m.readErr != nil:
			return false
		case leaseID(m.rec) == id:
		case errors.Is(err, vault.ErrConflict):
			m.storeRetry = m.now().Add(conflictPause)
			return false
		default:
			m.writeErr = err
			m.storeFailed()
			return false
		}
	}
	// Fencing, by our own clocks, running and wall: after a pause as long as this (a stalled disk, a suspended machine)
	// the call might outlast the lease. The lease is still ours and unused; the next turn renews it.
	after := m.now()
	elapsed := max(after.Sub(before), after.Round(0).Sub(before.Round(0)))
	return elapsed <= m.policy.slack()
}

// giveUp stores that the refresh token must not be presented again.
func (m *minder) giveUp(context.Context) {
	m.unsaved = &outcome{base: m.rec, next: m.rec.abandoned(rand.Text(), m.now()), ver: m.ver, doubtful: true}
}

// save stores the outcome of a refresh. It is called until it has, or until the store holds something newer.
func (m *minder) save(ctx context.Context) {
	o := m.unsaved
	var putErr error
	if !o.doubtful {
		if putErr = m.put(ctx, o.next, o.ver); putErr == nil {
			m.unsaved = nil
			return
		}
	}
	// Doubtful, or changed by somebody else, or the answer to our write got lost.
	m.readAt = m.now()
	cur, ver, err := getRecord(ctx, m.docs, m.spec.Name)
	switch {
	case errors.Is(err, vault.ErrNotFound): // disconnected
		m.unsaved, m.writeErr = nil, nil
		m.adopt(record{}, ver)
	case err != nil:
		m.writeErr = cmp.Or(putErr, err)
		m.storeFailed()
	case superseded(cur, o.base, o.next):
		m.unsaved, m.writeErr = nil, nil
		m.adopt(cur, ver)
	default:
		o.ver, o.doubtful = ver, false
		if errors.Is(putErr, vault.ErrConflict) {
			m.storeRetry = m.now().Add(conflictPause)
		} else if putErr != nil {
			m.writeErr = putErr
			m.storeFailed()
		}
	}
}
