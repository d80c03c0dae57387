package grant

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// every yields all records there are, as far as decisions can tell them apart, at one moment: an hour after t0.
func every(yield func(name string, spec Spec, r record)) {
	now := t0.Add(time.Hour)
	flags := func(n int, f func(bits []bool)) {
		for i := range 1 << n {
			bits := make([]bool, n)
			for b := range bits {
				bits[b] = i&(1<<b) != 0
			}
			f(bits)
		}
	}
	leases := map[string]*lease{
		"none":         nil,
		"held":         {ID: "l", Holder: "b", Deadline: now.Add(10 * time.Second), Attempt: 1},
		"left":         {ID: "l", Holder: "b", Deadline: now.Add(-time.Minute), Attempt: 1},
		"left again":   {ID: "l", Holder: "b", Deadline: now.Add(-time.Minute), Attempt: 2},
		"left by us":   {ID: "old", Holder: "us", Deadline: now.Add(10 * time.Second), Attempt: 1},
		"ours, unused": {ID: "mine", Holder: "us", Deadline: now.Add(10 * time.Second), Attempt: 1},
	}
	expiries := map[string]time.Time{"never": {}, "over": now.Add(-time.Second), "near": now.Add(time.Minute), "far": now.Add(50 * time.Minute)}
	for _, kind := range []Kind{Consent, Machine, Static} {
		spec := Spec{Name: "g", Provider: "p", Kind: kind, Scopes: []string{"a", "b"}}
		yield(fmt.Sprintf("%q, nothing stored", kind), spec, record{})
		for lease, l := range leases {
			for expiry, at := range expiries {
				flags(9, func(is []bool) {
					if kind != Consent && (is[2] || is[4]) {
						return // nothing is spent, so nothing dies
					}
					r := begun(spec, "e")
					r.Issued, r.Expires, r.Lease = t0, at, l
					name := fmt.Sprintf("%q, lease %s, expires %s", kind, lease, expiry)
					for i, set := range []func() string{
						func() string { r.Access = secret.New("at"); return "access token" },
						func() string { r.Refresh = secret.New("rt"); return "refresh token" },
						func() string { r.Dead = true; return "dead" },
						func() string { r = r.revoked(nil, "o", now); return "revoked" },
						func() string { r.Unanswered = 1; return "unanswered" },
						func() string { r.Failures, r.LastError = 1, "it failed"; return "failed" },
						func() string { r.NotBefore, r.Updated = now.Add(30*time.Second), now; return "backing off" },
						func() string { r.Granted = []string{"a"}; return "narrow" },
						func() string { r.Provider = "q"; return "foreign" },
					} {
						if is[i] {
							name += ", " + set()
						}
					}
					yield(name, spec, r)
				})
			}
		}
	}
}

// For every record there is one state, and what is done, served, refused and said agrees with it.
func TestEveryState(t *testing.T) {
	now := on(t0.Add(time.Hour))
	seen := map[State]int{}
	n := 0
	every(func(name string, spec Spec, r record) {
		n++
		wrong := func(format string, args ...any) {
			t.Helper()
			t.Errorf("%s: %s", name, fmt.Sprintf(format, args...))
		}
		s, ok := stateOf(r, spec, now), usable(r, now)
		seen[s]++
		do, wait := pol.plan(r, spec, now, wish{inherited: "old", mine: "mine"})

		// What it does.
		switch {
		case wait < 0:
			wrong("waits %v", wait)
		case do == rest && !ok && s != NeedsReconnect && s != NeverConnected:
			wrong("rests in state %s without a token", s)
		case (do == refresh || do == await || do == giveUp) && s == NeedsReconnect:
			wrong("move %d although only an operator can help", do)
		case (r.Revoked || r.foreign(spec) || r.Dead && spec.Kind == Consent || spec.Kind == Static) && do != rest:
			wrong("move %d", do)
		case do == giveUp && (r.Lease.Attempt < maxPresented || spec.Kind != Consent):
			wrong("gives up at attempt %d", r.Lease.Attempt)
		case do == refresh && wait == 0 && r.Lease != nil && r.Lease.ID == "l" && r.Lease.Holder == "b" && now.day.Before(r.Lease.Deadline) && spec.Kind == Consent:
			wrong("takes a lease that is held")
		case do == refresh && wait == 0 && r.paused(now) > 0:
			wrong("does not back off")
		}

		// What it serves.
		v := &view{rec: r, granted: r.Granted, loaded: true, readAt: now.run, wish: wish{inherited: "old", mine: "mine"}}
		for _, required := range [][]string{nil, {"a"}, {"a", "b"}} {
			tok, refusal, _ := v.answer(pol, spec, required, now, now)
			lacks := len(oauth.MissingScopes(r.Granted, required)) > 0
			served := ok && r.connected() && !r.foreign(spec) && !lacks
			switch {
			case served != (refusal == nil), served != !tok.Access.IsZero():
				wrong("served: %v, want %v (%v)", refusal == nil, served, refusal)
			case served && (s == NeverConnected || s == RefreshUnavailable):
				wrong("served in state %s", s)
			case refusal != nil && (refusal.State == RefreshUnavailable) != (refusal.RetryAfter > 0):
				wrong("%s, retry after %v", refusal.State, refusal.RetryAfter)
			case refusal != nil && refusal.State == NeverConnected && s != NeverConnected,
				refusal != nil && refusal.State == NeedsReconnect && s != NeedsReconnect:
				wrong("refused with %s in state %s", refusal.State, s)
			case refusal != nil && refusal.State != RefreshUnavailable && !strings.Contains(refusal.Error(), "; "):
				wrong("the refusal does not say what to do: %v", refusal)
			}
		}

		// What it says.
		sum := summarize(r, spec, now)
		if calm := s == Healthy || s == Refreshing; calm != (sum.Next == "") {
			wrong("state %s, next %q", s, sum.Next)
		}
		if (s == ScopeMissing) && len(sum.Missing) == 0 || len(sum.Missing) != len(sum.NotRequested)+len(sum.NotGranted)+len(sum.Withdrawn) {
			wrong("state %s, missing %q of %+v", s, sum.Missing, sum.Gap)
		}
		if under := sum.under(spec, now.day); under.State != s && !sum.overdue(now.day) {
			wrong("the stored summary reads as %s, not %s", under.State, s)
		}
	})
	for s := range words {
		if seen[s] == 0 && s != VaultUnavailable { // which is no property of a record
			t.Errorf("no record is %s", s)
		}
	}
	t.Logf("%d records: %v", n, seen)
}
