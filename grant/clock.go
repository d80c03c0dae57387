package grant

import "time"

// moment is one instant by both clocks. Replicas and providers talk in the time of day, which somebody may set back or
// forward; how long something has taken is told by the running clock, which nobody sets and which stops while the machine
// is suspended. A token counts as expired when either says so, and nothing is waited for longer than the running clock says.
type moment struct {
	day time.Time     // without a monotonic reading
	run time.Duration // since some fixed point in the life of this process
}

// since is how long ago earlier was, by the clock that says more.
func (m moment) since(earlier moment) time.Duration {
	return max(m.run-earlier.run, m.day.Sub(earlier.day))
}

// local is what this replica has noted about a record by its running clock. The zero value is for those that only look at
// what is stored: then the time of day decides alone.
type local struct {
	noted  bool
	ends   time.Duration // when the access token expires, if it does
	dies   time.Duration // when the refresh token expires, if it does
	resume time.Duration // when NotBefore has passed
	leased time.Duration // when the present lease was first seen
}

// noted is r with what the running clock says about it, as far as r is another than prev, which was noted before.
func (r record) noted(prev record, now moment) record {
	r.local = prev.local
	fresh := !prev.local.noted
	if fresh || !r.Expires.Equal(prev.Expires) {
		r.local.ends = now.run + min(r.Expires.Sub(now.day), r.life()) // less than its life, even if its writer's clock is ahead
	}
	if fresh || !r.RefreshExpires.Equal(prev.RefreshExpires) {
		r.local.dies = now.run + min(r.RefreshExpires.Sub(now.day), r.RefreshExpires.Sub(r.Issued))
	}
	if fresh || !r.NotBefore.Equal(prev.NotBefore) {
		// Whoever wrote it meant a pause, which is right even if our clock is not theirs.
		pause := min(r.NotBefore.Sub(now.day), r.NotBefore.Sub(r.Updated))
		r.local.resume = now.run + max(pause, 0)
	}
	if fresh || leaseID(r) != leaseID(prev) || r.Lease != nil && !r.Lease.Deadline.Equal(prev.Lease.Deadline) { // taken, or renewed
		r.local.leased = now.run
	}
	r.local.noted = true
	return r
}

// left is how long the access token of r, which expires, still lives.
func (r record) left(now moment) time.Duration {
	left := r.Expires.Sub(now.day)
	if r.local.noted {
		left = min(left, r.local.ends-now.run)
	}
	return left
}

// refreshLeft is how long the refresh token of r, which expires, still lives.
func (r record) refreshLeft(now moment) time.Duration {
	left := r.RefreshExpires.Sub(now.day)
	if r.local.noted {
		left = min(left, r.local.dies-now.run)
	}
	return left
}

// paused is for how long r must not be refreshed, 0 or less when it may be.
func (r record) paused(now moment) time.Duration {
	if r.local.noted {
		return r.local.resume - now.run
	}
	return r.NotBefore.Sub(now.day)
}
