package grant

import (
	"time"

	"wayleave/oauth"
)

const (
	maxPresented       = 2                // times a refresh token is presented when no answer comes
	clockSkew          = 5 * time.Second  // how far the clocks of two replicas may differ
	maxBackoff         = 2 * time.Minute  // between refreshes that fail
	minUnansweredPause = 10 * time.Second // before a refresh token is presented a second time
	shortestUse        = time.Second      // of a new token, however short its life
	maxMargin          = 5 * time.Second  // a token this close to expiry could expire on its way
)

// policy holds what the operator may choose about the decisions below. Jitter is a fraction in [0, 1), drawn once per
// token and replica: it keeps grants that were connected together, and replicas, from all refreshing at the same moment.
type policy struct {
	ahead time.Duration // refresh this long before expiry, or a fifth of the token's life if that is less
	call  time.Duration // a token-endpoint call ends within this
}

// lease is how long a lease lasts: long enough that its holder's call is over, by whatever clock, when it may be taken
// over (clockSkew later), and no longer, since workers wait for that when a holder dies with an expired token.
func (p policy) lease() time.Duration { return p.call * 4 / 3 }

// slack is how much of a lease may pass before the request is sent; see minder.lease.
func (p policy) slack() time.Duration { return p.call / 5 }

// usable reports whether r's access token may be sent now.
func usable(r record, now time.Time) bool {
	if r.Access.IsZero() {
		return false
	}
	if r.Expires.IsZero() {
		return true
	}
	margin := min(maxMargin, max(0, r.Expires.Sub(r.Issued)/20))
	return now.Before(r.Expires.Add(-margin))
}

// refreshAt is when r, which expires, should be refreshed.
func (p policy) refreshAt(r record, jitter float64) time.Time {
	ahead := min(p.ahead, r.Expires.Sub(r.Issued)/5)
	return r.Expires.Add(-ahead - time.Duration(jitter*float64(ahead)/2))
}

// move is what to do about a record next.
type move int

const (
	rest    move = iota // nothing, until an operator changes it
	refresh             // take the lease and refresh, from the time given
	await               // another replica has the lease, until the time given
	giveUp              // it may not be presented again: say so
)

// plan says what to do about r and from when on; mine is a lease of ours that was written but not used.
func (p policy) plan(r record, spec Spec, now time.Time, mine string, jitter float64) (move, time.Time) {
	if !r.connected() || r.Dead || r.foreign(spec) || r.Refresh.IsZero() || r.Expires.IsZero() {
		return rest, time.Time{}
	}
	at := p.refreshAt(r, jitter)
	if at.Before(r.NotBefore) {
		at = r.NotBefore
	}
	if now.Before(at) {
		return refresh, at
	}
	if l := r.Lease; l != nil && l.ID != mine {
		if free := l.Deadline.Add(clockSkew); now.Before(free) {
			return await, free
		}
		if l.Attempt >= maxPresented {
			return giveUp, now
		}
	}
	return refresh, at
}

// stateOf is the state of r. The most that an operator must act on comes first, then what they should know of.
func stateOf(r record, spec Spec, now time.Time) State {
	ok := usable(r, now)
	switch {
	case !r.connected():
		return NeverConnected
	case r.Dead, r.foreign(spec), !ok && r.Refresh.IsZero():
		return NeedsReconnect
	case r.Unanswered > 0, r.Lease != nil && now.After(r.Lease.Deadline.Add(clockSkew)):
		return Ambiguous
	case r.Failures > 0 && !ok:
		return RefreshUnavailable
	case len(oauth.MissingScopes(r.Granted, spec.Scopes)) > 0:
		return ScopeMissing
	case r.Failures > 0:
		return Degraded
	case r.Lease != nil:
		return Refreshing
	}
	return Healthy
}

// backoff is the pause after so many failures in a row: from one second, doubling, less up to half of it as jitter.
func backoff(failures int, jitter float64) time.Duration {
	d := min(time.Second<<min(max(failures, 1)-1, 10), maxBackoff)
	return d - time.Duration(jitter*float64(d)/2)
}

// superseded reports whether cur, just read, makes the outcome next of a refresh from base worthless: it was stored
// already, the operator has reconnected, or another replica got further. Otherwise next is to be written over cur.
//
// A rotation counts even when another replica has meanwhile taken the lease over: the refresh token that replica is
// presenting is spent, and next holds the only live one.
func superseded(cur, base, next record) bool {
	switch {
	case cur.Operation == next.Operation, cur.Epoch != base.Epoch, cur.Generation > base.Generation:
		return true
	case next.Generation > base.Generation:
		return false
	}
	return !cur.Refresh.Equal(base.Refresh) || leaseID(cur) != leaseID(base)
}

func leaseID(r record) string {
	if r.Lease == nil {
		return ""
	}
	return r.Lease.ID
}
