package grant

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/oauth"
	"wayleave/secret"
)

var (
	t0   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	spec = Spec{Name: "claude", Provider: "anthropic", Scopes: []string{"files", "inference"}}
	pol  = policy{ahead: 5 * time.Minute, call: time.Minute, lease: 20 * time.Second}
)

// hour is a healthy record whose token was issued at t0 for an hour, changed by f.
func hour(f func(r *record)) record {
	r := newRecord(spec, oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour)}, "op1", t0)
	if f != nil {
		f(&r)
	}
	return r
}

// on is the moment a record was written at, or will be looked at, by somebody whose clocks are right.
func on(t time.Time) moment { return moment{day: t, run: t.Sub(t0)} }

func left(by string, deadline time.Time, attempt int) func(*record) {
	return func(r *record) { r.Lease = &lease{ID: by, Holder: by, Deadline: deadline, Attempt: attempt} }
}

func TestStateOf(t *testing.T) {
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	for _, tt := range []struct {
		name string
		rec  record
		now  time.Time
		want State
	}{
		{"nothing stored", record{}, t0, NeverConnected},
		{"fresh", hour(nil), t0, Healthy},
		{"expired, nobody has tried", hour(nil), at(2 * time.Hour), Healthy},
		{"without an end", hour(func(r *record) { r.Expires, r.Refresh = time.Time{}, secret.Text{} }), at(10000 * time.Hour), Healthy},
		{"leased", hour(left("b", at(30*time.Second), 1)), t0, Refreshing},
		{"lease left behind", hour(left("b", t0, 1)), at(time.Minute), Ambiguous},
		{"failing", hour(func(r *record) { r.Failures = 1 }), t0, Degraded},
		{"failing and expired", hour(func(r *record) { r.Failures = 1 }), at(time.Hour), RefreshUnavailable},
		{"no answer", hour(func(r *record) { r.Failures, r.Unanswered = 1, 1 }), t0, Ambiguous},
		{"narrow", hour(func(r *record) { r.Granted = []string{"files"} }), t0, ScopeMissing},
		{"narrow and failing", hour(func(r *record) { r.Granted, r.Failures = nil, 1 }), t0, ScopeMissing},
		{"dead", hour(func(r *record) { r.Dead = true }), t0, NeedsReconnect},
		{"expired without refresh token", hour(func(r *record) { r.Refresh = secret.Text{} }), at(time.Hour), NeedsReconnect},
		{"of another provider", hour(func(r *record) { r.Provider = "github" }), t0, NeedsReconnect},
	} {
		if got := stateOf(tt.rec, spec, on(tt.now)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Every state has words, and those an operator must act on name the command.
func TestWords(t *testing.T) {
	for s, w := range words {
		if w.means == "" {
			t.Errorf("%s means nothing", s)
		}
	}
	for _, s := range []State{NeverConnected, ScopeMissing, NeedsReconnect, Ambiguous} {
		if next := next(s, Consent, "", "x1"); !strings.Contains(next, "`wayleave grant connect x1`") {
			t.Errorf("%s: next %q", s, next)
		}
		if next := next(s, Static, "", "x1"); !strings.Contains(next, "`wayleave grant import x1`") {
			t.Errorf("%s: next %q", s, next)
		}
	}
	if next := next(Healthy, Consent, oauth.KindRateLimited, "x1"); next != "" {
		t.Errorf("healthy: next %q", next)
	}
	for kind := range remedies {
		if a, b := next(Degraded, Consent, kind, "x1"), next(Degraded, Consent, "", "x1"); a == b || a == "" {
			t.Errorf("%s: next %q", kind, a)
		}
	}
}

func TestAhead(t *testing.T) {
	for _, tt := range []struct {
		life   time.Duration
		jitter float64
		want   time.Duration // after issue
	}{
		{time.Hour, 0, 55 * time.Minute},
		{time.Hour, 0.5, 53*time.Minute + 45*time.Second},
		{20 * time.Second, 0, 16 * time.Second},
		{20 * time.Second, 0.99, 14020 * time.Millisecond},
		{time.Second, 0, 800 * time.Millisecond},
	} {
		r := hour(func(r *record) { r.Expires = t0.Add(tt.life) })
		if do, got := pol.plan(r, spec, on(t0), wish{jitter: tt.jitter}); do != refresh || got != tt.want {
			t.Errorf("life %v, jitter %v: after %v, want %v", tt.life, tt.jitter, got, tt.want)
		}
	}
}

func TestPlan(t *testing.T) {
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	due, expired := at(55*time.Minute), at(2*time.Hour)
	machine := Spec{Name: "bot", Provider: "idp", Kind: Machine, Scopes: []string{"read"}}
	bot := func(f func(*record)) record {
		r := begun(machine, "op1").minted(machine, oauth.Token{Access: secret.New("a1"), Expiry: t0.Add(time.Hour)}, "op1", t0, t0)
		if f != nil {
			f(&r)
		}
		return r
	}
	ask := func(do Request, epoch string) wish {
		return wish{asked: &request{ID: "q", Do: do, Epoch: epoch, At: due}}
	}
	for _, tt := range []struct {
		name string
		rec  record
		spec Spec
		now  time.Time
		wish wish
		want move
		wait time.Duration
	}{
		{"nothing stored", record{}, spec, t0, wish{}, rest, 0},
		{"early", hour(nil), spec, t0, wish{}, refresh, 55 * time.Minute},
		{"due", hour(nil), spec, due, wish{}, refresh, 0},
		{"refresh token dies first", hour(func(r *record) { r.RefreshExpires = at(30 * time.Minute) }), spec, t0, wish{}, refresh, 24 * time.Minute},
		{"refresh token dies unused, access token has no end", hour(func(r *record) { r.Expires, r.RefreshExpires = time.Time{}, at(30*24*time.Hour) }), spec, t0, wish{}, refresh, 24 * 24 * time.Hour},
		{"refresh token of seconds", hour(func(r *record) { r.RefreshExpires = at(5 * time.Second) }), spec, t0, wish{}, refresh, 55 * time.Minute},
		{"consent ends soon, whatever is done", hour(func(r *record) { r.RefreshExpires, r.RefreshFixed = at(30*time.Minute), true }), spec, t0, wish{}, refresh, 55 * time.Minute},
		{"backing off", hour(func(r *record) { r.NotBefore = at(57 * time.Minute) }), spec, due, wish{}, refresh, 2 * time.Minute},
		{"dead", hour(func(r *record) { r.Dead = true }), spec, expired, wish{}, rest, 0},
		{"no refresh token", hour(func(r *record) { r.Refresh = secret.Text{} }), spec, expired, wish{}, rest, 0},
		{"no end", hour(func(r *record) { r.Expires = time.Time{} }), spec, expired, wish{}, rest, 0},
		{"of another provider", hour(func(r *record) { r.Provider = "github" }), spec, expired, wish{}, rest, 0},
		{"of another kind", hour(nil), Spec{Name: "claude", Provider: "anthropic", Kind: Machine}, expired, wish{}, rest, 0},
		{"an imported value", hour(func(r *record) { r.Kind = Static }), Spec{Provider: "anthropic", Kind: Static}, expired, wish{}, rest, 0},

		{"leased, token serves", hour(left("b", due.Add(20*time.Second), 1)), spec, due, wish{}, await, 200 * time.Second},
		{"lease left, token serves", hour(left("b", due.Add(20*time.Second), 1)), spec, due.Add(199 * time.Second), wish{}, await, time.Second},
		{"lease left, token about to end", hour(left("b", due.Add(20*time.Second), 1)), spec, due.Add(201 * time.Second), wish{}, refresh, 0},
		{"leased, token expired", hour(left("b", expired.Add(20*time.Second), 1)), spec, expired, wish{}, await, 21 * time.Second},
		{"lease left, token expired", hour(left("b", expired, 1)), spec, expired.Add(time.Second), wish{}, refresh, 0},
		{"second lease left", hour(left("b", expired, 2)), spec, expired.Add(time.Second), wish{}, giveUp, 0},
		{"leased by us, unused", hour(left("b", expired.Add(20*time.Second), 1)), spec, expired, wish{mine: "b"}, refresh, 0},
		{"leased by the process before us", hour(left("b", expired.Add(20*time.Second), 1)), spec, expired, wish{inherited: "b"}, refresh, 0},
		{"leased for the second time by the process before us", hour(left("b", expired.Add(20*time.Second), 2)), spec, expired, wish{inherited: "b"}, giveUp, 0},
		{"left long ago", hour(left("b", t0, 1)), spec, due, wish{}, refresh, 0},

		{"asked", hour(nil), spec, due.Add(-time.Minute), ask(AskRefresh, "op1"), refresh, 0},
		{"asked while backing off", hour(func(r *record) { r.NotBefore, r.Failures = at(58*time.Minute), 1 }), spec, due, ask(AskRefresh, "op1"), refresh, 0},
		{"asked while another replica may be at the provider", hour(func(r *record) { r.NotBefore = due.Add(time.Minute) }), spec, due, ask(AskRefresh, "op1"), refresh, time.Minute},
		{"asked for a refresh of a token without end", hour(func(r *record) { r.Expires = time.Time{} }), spec, due, ask(AskRefresh, "op1"), refresh, 0},
		{"asked and done", hour(func(r *record) { r.Handled = "q" }), spec, due.Add(-time.Minute), ask(AskRefresh, "op1"), refresh, time.Minute},
		{"asked and done, and something else since", hour(func(r *record) { *r = r.handled("q").handled("r") }), spec, due.Add(-time.Minute), ask(AskRefresh, "op1"), refresh, time.Minute},
		{"asked before a reconnect", hour(nil), spec, due.Add(-time.Minute), ask(AskRevoke, "op0"), refresh, time.Minute},
		{"asked long ago", hour(nil), spec, at(10 * time.Minute), ask(AskRevoke, "op1"), refresh, 45 * time.Minute},
		{"asked for a refresh of what the provider calls invalid", hour(func(r *record) { r.Dead = true }), spec, due, ask(AskRefresh, "op1"), refresh, 0},
		{"asked for a refresh of what may be spent", hour(func(r *record) { r.Dead, r.Unanswered = true, 1 }), spec, due, ask(AskRefresh, "op1"), decline, 0},
		{"asked for a refresh of an imported value", hour(func(r *record) { r.Kind = Static }), Spec{Provider: "anthropic", Kind: Static}, due, ask(AskRefresh, "op1"), decline, 0},
		{"asked to revoke", hour(nil), spec, due, ask(AskRevoke, "op1"), revoke, 0},
		{"asked to revoke what is dead", hour(func(r *record) { r.Dead = true }), spec, due, ask(AskRevoke, "op1"), revoke, 0},
		{"asked to revoke while leased", hour(left("b", due.Add(20*time.Second), 1)), spec, due, ask(AskRevoke, "op1"), await, 200 * time.Second},
		{"revoked", hour(nil).revoked(nil, "op2", t0), spec, due, ask(AskRevoke, "op1"), rest, 0},

		{"machine, nothing stored", record{}, machine, t0, wish{}, refresh, 0},
		{"machine, early", bot(nil), machine, t0, wish{}, refresh, 55 * time.Minute},
		{"machine, failed before its first token", begun(machine, "op1").leased(lease{ID: "l"}, "").failed(errors.New("?"), "op2", t0, 0), machine, t0, wish{}, refresh, time.Second},
		{"machine, lease left", bot(left("b", expired, 5)), machine, expired.Add(time.Second), wish{}, refresh, 0},
		{"machine, other scopes configured", bot(nil), machine, t0, wish{rescope: true}, refresh, 0},
	} {
		got, wait := pol.plan(tt.rec, tt.spec, on(tt.now), tt.wish)
		if got != tt.want || wait != tt.wait {
			t.Errorf("%s: %d after %v, want %d after %v", tt.name, got, wait, tt.want, tt.wait)
		}
	}
}

// The time of day may be set, on this machine or another, at any moment after a record was read: a token is not served
// longer, a lease is not taken over sooner, and a pause does not last longer than it would have.
func TestClockSet(t *testing.T) {
	set := func(m moment, jump time.Duration) moment { m.day = m.day.Add(jump); return m }
	for _, jump := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		read := on(t0.Add(54 * time.Minute))
		r := hour(nil).noted(record{}, read)
		if later := set(on(t0.Add(61*time.Minute)), jump); usable(r, later) {
			t.Errorf("jump %v: served after its end", jump)
		}
		if do, wait := pol.plan(r, spec, set(on(t0.Add(55*time.Minute)), jump), wish{}); do != refresh || wait > 0 {
			t.Errorf("jump %v: refreshed after %v", jump, wait)
		}

		read = on(t0.Add(2 * time.Hour))
		r = hour(left("b", read.day.Add(20*time.Second), 1)).noted(record{}, read)
		if do, wait := pol.plan(r, spec, set(on(read.day.Add(time.Second)), jump), wish{}); do != await || wait != 20*time.Second {
			t.Errorf("jump %v: lease taken over after %v", jump, wait)
		}
		// Also when the holder's clock is another than ours.
		r = hour(left("b", read.day.Add(20*time.Second).Add(jump), 1)).noted(record{}, read)
		if do, wait := pol.plan(r, spec, read, wish{}); do != await || wait != 21*time.Second {
			t.Errorf("holder's clock is off by %v: lease taken over after %v", jump, wait)
		}

		r = hour(func(r *record) { r.Updated, r.NotBefore = read.day, read.day.Add(time.Minute) }).noted(record{}, read)
		if do, wait := pol.plan(r, spec, set(on(read.day.Add(50*time.Second)), jump), wish{}); do != refresh || wait != 10*time.Second {
			t.Errorf("jump %v: backs off for %v", jump, wait)
		}
		r = hour(func(r *record) { r.Updated, r.NotBefore = read.day.Add(jump), read.day.Add(jump+time.Minute) }).noted(record{}, read)
		if do, wait := pol.plan(r, spec, read, wish{}); do != refresh || wait > time.Minute {
			t.Errorf("the clock of whoever failed is off by %v: backs off for %v", jump, wait)
		}
	}
}

// A lease is renewed in good time, with the default times: the first time, and when one renewal fails.
func TestLeaseIsRenewedInTime(t *testing.T) {
	const storeCall = 2 * time.Second
	if last := pol.slack() + 2*(pol.renewal()+storeCall); last >= pol.lease {
		t.Errorf("a lease of %v is renewed only after %v", pol.lease, last)
	}
}

// A grant without a refresh token ends with its token, which is known, and said with what to do, while it still serves.
func TestNoRefreshToken(t *testing.T) {
	ends := t0.Add(time.Hour)
	s := summarize(newRecord(spec, oauth.Token{Access: secret.New("a1"), Expiry: ends}, "op", t0), spec, on(t0))
	if s.State != Healthy || !s.ConsentEnds.Equal(ends) || !strings.Contains(s.LastError, "offline_access") {
		t.Errorf("%+v", s)
	}
	forever := summarize(newRecord(spec, oauth.Token{Access: secret.New("a1")}, "op", t0), spec, on(t0))
	if !forever.ConsentEnds.IsZero() || forever.LastError != "" {
		t.Errorf("a token that lasts: %+v", forever)
	}
	bot := spec
	bot.Kind, bot.OAuth = Machine, nil
	if s := summarize(begun(bot, "e").minted(bot, oauth.Token{Access: secret.New("a1"), Expiry: ends}, "op", t0, t0), bot, on(t0)); !s.ConsentEnds.IsZero() || s.LastError != "" {
		t.Errorf("a machine's: %+v", s)
	}
}

// Whether the end of a refresh token moves with its use shows after the first refresh, however often it is refreshed.
func TestRefreshTokenLife(t *testing.T) {
	for name, tt := range map[string]struct {
		life, every time.Duration
		fixed       bool
	}{
		"counted anew":                 {30 * time.Minute, 24 * time.Minute, false},
		"counted anew, refreshed soon": {30 * time.Minute, 10 * time.Second, false},
		"from the consent on":          {7 * 24 * time.Hour, time.Hour, true},
	} {
		consent := t0
		answer := func(at time.Time) oauth.Token {
			from := at
			if tt.fixed {
				from = consent
			}
			return oauth.Token{Access: secret.New("a"), Refresh: secret.New("r"), Expiry: at.Add(time.Hour), RefreshExpiry: from.Add(tt.life)}
		}
		r := newRecord(spec, answer(t0), "op", t0)
		if r.RefreshFixed || !r.RefreshExpires.Equal(t0.Add(tt.life)) {
			t.Errorf("%s: at first %v, %v", name, r.RefreshExpires, r.RefreshFixed)
		}
		for i := 1; i < 5; i++ {
			at := t0.Add(time.Duration(i) * tt.every)
			r = r.answered(answer(at), "op", at, at)
			if r.RefreshFixed != tt.fixed {
				t.Errorf("%s: fixed %v after refresh %d", name, r.RefreshFixed, i)
			}
			if ends := summarize(r, spec, on(at)).ConsentEnds; tt.fixed != ends.Equal(consent.Add(tt.life)) {
				t.Errorf("%s: the consent ends %v", name, ends)
			}
		}
		// A provider that no longer says, for a new token; and an answer without a new token.
		at := t0.Add(5 * tt.every)
		if same := r.answered(oauth.Token{Access: secret.New("a")}, "op", at, at); !same.RefreshExpires.Equal(r.RefreshExpires) {
			t.Errorf("%s: forgotten", name)
		}
		if other := r.answered(oauth.Token{Access: secret.New("a"), Refresh: secret.New("r2")}, "op", at, at); !other.RefreshExpires.IsZero() || other.RefreshFixed {
			t.Errorf("%s: kept for another token", name)
		}
	}
}

func TestSuperseded(t *testing.T) {
	base := hour(left("a", t0.Add(time.Minute), 1))
	rotated := base.answered(oauth.Token{Access: secret.New("a2"), Refresh: secret.New("r2"), Expiry: t0.Add(time.Hour)}, "op2", t0, t0)
	dead := base.failed(&oauth.Error{Outcome: oauth.InvalidGrant}, "op2", t0, 0)
	taken := hour(left("b", t0.Add(time.Minute), 2))
	for _, tt := range []struct {
		name      string
		cur, next record
		want      bool
	}{
		{"nothing happened, rotated", base, rotated, false},
		{"nothing happened, dead", base, dead, false},
		{"stored already", rotated, rotated, true},
		{"lease taken over, rotated", taken, rotated, false},
		{"lease taken over, dead", taken, dead, true},
		{"sibling rotated", base.answered(oauth.Token{Access: secret.New("a3")}, "op3", t0, t0), rotated, true},
		{"sibling rotated, dead", base.answered(oauth.Token{Access: secret.New("a3")}, "op3", t0, t0), dead, true},
		{"reconnected", newRecord(spec, oauth.Token{Access: secret.New("a4")}, "op4", t0), rotated, true},
		{"older than what was spent", func() record { r := base; r.Generation = -1; return r }(), rotated, false},
	} {
		if got := superseded(tt.cur, base, tt.next); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 7: 64 * time.Second, 8: maxBackoff, 1 << 40: maxBackoff} {
		if got := backoff(failures, 0); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
		if got := backoff(failures, 1); got != want/2 {
			t.Errorf("after %d failures at least %v, want %v", failures, got, want/2)
		}
	}
}

// A lease that was left behind counts as a presentation without an answer; an own one that was not used does not.
func TestLeased(t *testing.T) {
	r := hour(left("b", t0, 1))
	if n := r.leased(lease{ID: "a"}, ""); n.Unanswered != 1 || n.Lease.Attempt != 2 || n.Lease.ID != "a" || r.Lease.ID != "b" {
		t.Errorf("over another's: unanswered %d, attempt %d", n.Unanswered, n.Lease.Attempt)
	}
	if n := r.leased(lease{ID: "a"}, "b"); n.Unanswered != 0 || n.Lease.Attempt != 1 {
		t.Errorf("over our own: unanswered %d, attempt %d", n.Unanswered, n.Lease.Attempt)
	}
}

// What a failed refresh does to a record. Errors that are none of oauth's tell nothing, so the token may be spent.
func TestFailed(t *testing.T) {
	type result struct {
		Dead                 bool
		Unanswered, Failures int
		Pause                time.Duration
	}
	now := t0.Add(55 * time.Minute)
	for _, tt := range []struct {
		name    string
		attempt int
		err     error
		want    result
	}{
		{"not sent", 1, &oauth.Error{Outcome: oauth.NotSent}, result{Failures: 1, Pause: time.Second}},
		{"refused", 1, &oauth.Error{Outcome: oauth.Refused, Status: 429, RetryAfter: time.Minute}, result{Failures: 1, Pause: time.Minute}},
		{"server error", 1, &oauth.Error{Outcome: oauth.Unknown, Status: 502}, result{Failures: 1, Pause: time.Second}},
		{"invalid grant", 1, &oauth.Error{Outcome: oauth.InvalidGrant}, result{Dead: true, Failures: 1}},
		{"no answer", 1, &oauth.Error{Outcome: oauth.Unknown}, result{Unanswered: 1, Failures: 1, Pause: maxBackoff}},
		{"no answer again", 2, &oauth.Error{Outcome: oauth.Unknown}, result{Dead: true, Unanswered: 2, Failures: 1}},
		{"refused after no answer", 2, &oauth.Error{Outcome: oauth.Refused}, result{Unanswered: 1, Failures: 1, Pause: time.Second}},
		{"foreign error", 1, errors.New("?"), result{Unanswered: 1, Failures: 1, Pause: maxBackoff}},
	} {
		r := hour(func(r *record) { r.Unanswered = tt.attempt - 1 })
		r = r.leased(lease{ID: "a"}, "")
		if r.Lease.Attempt != tt.attempt {
			t.Fatalf("%s: attempt %d", tt.name, r.Lease.Attempt)
		}
		n := r.failed(tt.err, "op2", now, 0)
		got := result{Dead: n.Dead, Unanswered: n.Unanswered, Failures: n.Failures}
		if !n.NotBefore.IsZero() {
			got.Pause = n.NotBefore.Sub(now)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if n.Lease != nil || n.LastError == "" || n.Generation != r.Generation || !n.Refresh.Equal(r.Refresh) {
			t.Errorf("%s: lease %v, error %q, generation %d", tt.name, n.Lease, n.LastError, n.Generation)
		}
	}
}

// What an answer replaces, and what it leaves alone.
func TestAnswered(t *testing.T) {
	old := hour(func(r *record) {
		r.Account, r.Failures, r.Unanswered, r.LastError, r.NotBefore = "pat", 3, 1, "?", t0
		r.Lease = &lease{ID: "a"}
	})
	full := old.answered(oauth.Token{Access: secret.New("a2"), Refresh: secret.New("r2"), Scopes: []string{"x", "b", "x"}, Expiry: t0.Add(3 * time.Hour), Account: "quinn"}, "op2", t0.Add(time.Hour), t0.Add(time.Hour))
	want := details{Provider: "anthropic", Account: "quinn", Requested: old.Requested, Consented: old.Consented, Granted: []string{"b", "x"}, Epoch: "op1", Origin: old.Origin, Generation: 1,
		Issued: t0.Add(time.Hour), Expires: t0.Add(3 * time.Hour), Operation: "op2", Updated: t0.Add(time.Hour)}
	if diff := cmp.Diff(want, full.details); diff != "" {
		t.Errorf("full answer (-want +got):\n%s", diff)
	}
	if full.Access.Reveal() != "a2" || full.Refresh.Reveal() != "r2" {
		t.Error("tokens not replaced")
	}
	bare := old.answered(oauth.Token{Access: secret.New("a2")}, "op2", t0.Add(time.Hour), t0.Add(time.Hour))
	want = details{Provider: "anthropic", Account: "pat", Requested: old.Requested, Consented: old.Consented, Granted: old.Granted, Epoch: "op1", Origin: old.Origin, Generation: 1,
		Issued: t0.Add(time.Hour), Operation: "op2", Updated: t0.Add(time.Hour)}
	if diff := cmp.Diff(want, bare.details); diff != "" {
		t.Errorf("bare answer (-want +got):\n%s", diff)
	}
	if bare.Refresh.Reveal() != "r1" {
		t.Error("the refresh token was not kept")
	}
}
