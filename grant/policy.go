package grant

import (
	"math"
	"time"
)

const (
	maxPresented       = 2                // times a refresh token is presented when no answer comes
	clockSkew          = 5 * time.Second  // how far the clocks of two machines usually differ
	maxClockError      = 15 * time.Minute // and how far at most
	leaseSlack         = time.Second      // between the end of a lease and its takeover
	machineLease       = 5 * time.Second  // which only saves calls: nothing is spent
	patience           = 10 * time.Minute // with a lease that was left behind, while no worker suffers
	maxBackoff         = 2 * time.Minute  // between refreshes that fail, and for which a provider that is down is left alone
	minUnansweredPause = 10 * time.Second // before a refresh token is presented a second time
	shortestUse        = time.Second      // of a new token, however short its life
	firstCooldown      = time.Minute      // between two refreshes because of rejected tokens: if the second is rejected too, a refresh is no cure
	maxCooldown        = time.Hour        // and when that goes on
	maxMargin          = 5 * time.Second  // a token this close to expiry could expire on its way
)

// policy holds what the operator may choose about the decisions below. Jitter is a fraction in [0, 1), drawn once per
// token and replica: it keeps grants that were connected together, and replicas, from all refreshing at the same moment.
type policy struct {
	ahead time.Duration // refresh this long before expiry, or a fifth of the token's life if that is less
	call  time.Duration // a token-endpoint call ends within this
	lease time.Duration // how long a lease lasts that is not renewed: workers wait for that when a holder dies with an expired token
}

// slack is how much of a lease may pass before the request is sent; see minder.call.
func (p policy) slack() time.Duration { return p.lease / 5 }

// renewal is how often a lease is renewed while the call lasts.
func (p policy) renewal() time.Duration { return p.lease / 4 }

// life is how long r's access token lives altogether.
func (r record) life() time.Duration { return r.Expires.Sub(r.Issued) }

// usable reports whether r's access token may be sent now.
func usable(r record, now moment) bool {
	if r.Access.IsZero() {
		return false
	}
	return r.Expires.IsZero() || r.left(now) > min(maxMargin, max(0, r.life()/20))
}

// aheadOf is how long before the expiry of its token r should be refreshed.
func (p policy) aheadOf(r record, jitter float64) time.Duration {
	ahead := min(p.ahead, r.life()/5)
	return ahead + time.Duration(jitter*float64(ahead)/2)
}

// due is how long r may be left as it is: until its access token is about to expire, or its refresh token, if that is kept
// alive by being used. Some providers give one of half an hour beside an access token of an hour.
func (p policy) due(r record, now moment, jitter float64) time.Duration {
	wait := time.Duration(math.MaxInt64)
	if !r.Expires.IsZero() {
		wait = r.left(now) - p.aheadOf(r, jitter)
	}
	if r.slides() {
		life := r.RefreshExpires.Sub(r.Issued)
		wait = min(wait, r.refreshLeft(now)-life/5-time.Duration(jitter*float64(life)/10))
	}
	return wait
}

// slides reports whether the refresh token of r expires unless it is used. A life of seconds is no life to keep up with.
func (r record) slides() bool {
	return !r.RefreshFixed && r.RefreshExpires.Sub(r.Issued) >= time.Minute
}

// cooldown is how long after the nth token in a row that was replaced because the provider rejected it the next one is not.
// A provider that rejects whatever it gives out, or one request whatever its token, must not have a grant refreshed for ever.
func cooldown(n int) time.Duration {
	if n == 0 {
		return 0
	}
	return min(firstCooldown<<min(n-1, 10), maxCooldown)
}

// cooling is for how long a token of r that the provider rejects is not replaced, 0 or less when it may be. It goes by the
// time of day, which replicas share; one that was set back does not prolong it.
func (r record) cooling(now moment) time.Duration {
	pause := cooldown(r.Rejected)
	if left := pause - now.day.Sub(r.RejectedAt); left <= pause {
		return left
	}
	return 0
}

// move is what to do about a record next.
type move int

const (
	rest    move = iota // nothing, until an operator changes it
	refresh             // take the lease and refresh
	await               // another replica has the lease
	giveUp              // it may not be presented again: say so
	revoke              // take the lease and revoke
	decline             // say that a refresh which was asked for cannot be
)

// wish is what else decides about the next move.
type wish struct {
	mine      string   // id of a lease of ours that was written but not used
	inherited string   // id of a lease of the process that this one has replaced: nobody is at the token endpoint any more
	asked     *request // by an operator; nil: nothing
	jitter    float64

	rejected string // version of a token that the provider rejected; empty: none

	rescope bool // a Machine grant's token was fetched for other scopes, before this process began
}

// plan says what to do about r, and how long to wait before.
func (p policy) plan(r record, spec Spec, now moment, w wish) (do move, wait time.Duration) {
	open := w.asked.open(r, now)
	switch {
	case r.Revoked, r.foreign(spec):
		return rest, 0
	case open && w.asked.Do == AskRevoke && r.Kind != Machine:
		do = revoke
	case r.Epoch == "" && spec.Kind == Machine:
		do = refresh
	case open && w.asked.Do == AskRefresh && !r.askable():
		return decline, 0
	case open && w.asked.Do == AskRefresh:
		do = refresh
		if r.Failures == 0 { // else whatever failed before is no reason to wait
			wait = r.paused(now)
		}
	case !r.connected(), !r.refreshable():
		return rest, 0
	case w.rejected != "" && w.rejected == r.version() && r.cooling(now) <= 0:
		do, wait = refresh, r.paused(now)
	case r.Access.IsZero(), r.Kind == Machine && w.rescope:
		do, wait = refresh, r.paused(now)
	case r.Expires.IsZero() && !r.slides():
		return rest, 0
	default:
		do, wait = refresh, max(p.due(r, now, w.jitter), r.paused(now))
	}
	if wait > 0 {
		return do, wait
	}
	if l := r.Lease; l != nil && l.ID != w.mine {
		if held := p.leftBehind(r, now, w.inherited); held > 0 {
			return await, held
		}
		if do == refresh && l.Attempt >= maxPresented && r.Kind == Consent {
			return giveUp, 0
		}
	}
	return do, 0
}

// leftBehind is for how long the lease of r is to be left to its holder, who renews it as long as it lives. Only time we have seen pass counts: two replicas
// need not agree on the time of day, except that an error of theirs has limits.
//
// While the present token serves, there is more patience: the holder may be stopped, or crashed and soon back with the answer
// in its spool, and to present the refresh token a second time is the greater risk.
func (p policy) leftBehind(r record, now moment, inherited string) time.Duration {
	switch l := r.Lease; {
	case l.ID == inherited, now.day.After(l.Deadline.Add(maxClockError)):
		return 0
	case r.Kind == Machine:
		return p.held(r, machineLease, now)
	case usable(r, now) && !r.Expires.IsZero():
		return max(p.held(r, p.lease+leaseSlack, now), min(p.held(r, patience, now), r.left(now)-p.aheadOf(r, 0)/3))
	}
	return p.held(r, p.lease+leaseSlack, now)
}

// held is how much of life is left since the lease of r was first seen, or was written, if r was not seen before.
func (p policy) held(r record, life time.Duration, now moment) time.Duration {
	if r.local.noted {
		return r.local.leased + life - now.run
	}
	return r.Lease.Deadline.Sub(now.day) + life - p.lease
}

// stateOf is the state of r. The most that an operator must act on comes first, then what they should know of.
func stateOf(r record, spec Spec, now moment) State {
	ok := usable(r, now)
	switch {
	case r.foreign(spec) && !r.Revoked, r.Dead:
		return NeedsReconnect
	case r.Epoch == "" && spec.Kind == Machine:
		return Refreshing
	case !r.connected():
		return NeverConnected
	case !ok && !r.refreshable():
		return NeedsReconnect
	case r.Kind == Consent && (r.Unanswered > 0 || r.Lease != nil && now.day.After(r.Lease.Deadline.Add(clockSkew))):
		return Ambiguous
	case r.Failures > 0 && !ok:
		return RefreshUnavailable
	case len(missing(spec.granted(r.Granted), spec.Scopes)) > 0:
		return ScopeMissing
	case r.Failures > 0:
		return Degraded
	case r.Lease != nil, r.Access.IsZero():
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
