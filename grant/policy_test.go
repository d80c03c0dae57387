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
	pol  = policy{ahead: 5 * time.Minute, call: 15 * time.Second}
)

// hour is a healthy record whose token was issued at t0 for an hour, changed by f.
func hour(f func(r *record)) record {
	r := newRecord(spec, oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour)}, "op1", t0)
	if f != nil {
		f(&r)
	}
	return r
}

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
		if got := stateOf(tt.rec, spec, tt.now); got != tt.want {
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
		if next := s.Next("x1"); !strings.Contains(next, "`wayleave grant connect x1`") {
			t.Errorf("%s: next %q", s, next)
		}
	}
	if next := Healthy.Next("x1"); next != "" {
		t.Errorf("healthy: next %q", next)
	}
}

func TestRefreshAt(t *testing.T) {
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
		if got := pol.refreshAt(r, tt.jitter).Sub(t0); got != tt.want {
			t.Errorf("life %v, jitter %v: after %v, want %v", tt.life, tt.jitter, got, tt.want)
		}
	}
}

func TestPlan(t *testing.T) {
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	due := at(55 * time.Minute)
	deadline := at(56 * time.Minute)
	for _, tt := range []struct {
		name string
		rec  record
		now  time.Time
		mine string
		want move
		when time.Time
	}{
		{"nothing stored", record{}, t0, "", rest, time.Time{}},
		{"early", hour(nil), t0, "", refresh, due},
		{"due", hour(nil), due, "", refresh, due},
		{"backing off", hour(func(r *record) { r.NotBefore = at(57 * time.Minute) }), due, "", refresh, at(57 * time.Minute)},
		{"leased", hour(left("b", deadline, 1)), due, "", await, deadline.Add(clockSkew)},
		{"leased by us, unused", hour(left("b", deadline, 1)), due, "b", refresh, due},
		{"lease left", hour(left("b", deadline, 1)), deadline.Add(clockSkew), "", refresh, due},
		{"second lease left", hour(left("b", deadline, 2)), deadline.Add(clockSkew), "", giveUp, deadline.Add(clockSkew)},
		{"dead", hour(func(r *record) { r.Dead = true }), at(2 * time.Hour), "", rest, time.Time{}},
		{"no refresh token", hour(func(r *record) { r.Refresh = secret.Text{} }), at(2 * time.Hour), "", rest, time.Time{}},
		{"no end", hour(func(r *record) { r.Expires = time.Time{} }), at(2 * time.Hour), "", rest, time.Time{}},
		{"of another provider", hour(func(r *record) { r.Provider = "github" }), at(2 * time.Hour), "", rest, time.Time{}},
	} {
		got, when := pol.plan(tt.rec, spec, tt.now, tt.mine, 0)
		if got != tt.want || !when.Equal(tt.when) {
			t.Errorf("%s: %d from %v, want %d from %v", tt.name, got, when, tt.want, tt.when)
		}
	}
}

// A lease outlasts the slowest call of its holder by more than the clocks may differ, with the default times.
func TestLeaseOutlastsCall(t *testing.T) {
	if spare := pol.lease() + clockSkew - (pol.slack() + pol.call); spare <= clockSkew {
		t.Errorf("only %v between a holder's last moment and a takeover", spare)
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
	want := details{Provider: "anthropic", Account: "quinn", Requested: old.Requested, Granted: []string{"b", "x"}, Epoch: "op1", Generation: 1,
		Issued: t0.Add(time.Hour), Expires: t0.Add(3 * time.Hour), Operation: "op2", Updated: t0.Add(time.Hour)}
	if diff := cmp.Diff(want, full.details); diff != "" {
		t.Errorf("full answer (-want +got):\n%s", diff)
	}
	if full.Access.Reveal() != "a2" || full.Refresh.Reveal() != "r2" {
		t.Error("tokens not replaced")
	}
	bare := old.answered(oauth.Token{Access: secret.New("a2")}, "op2", t0.Add(time.Hour), t0.Add(time.Hour))
	want = details{Provider: "anthropic", Account: "pat", Requested: old.Requested, Granted: old.Granted, Epoch: "op1", Generation: 1,
		Issued: t0.Add(time.Hour), Operation: "op2", Updated: t0.Add(time.Hour)}
	if diff := cmp.Diff(want, bare.details); diff != "" {
		t.Errorf("bare answer (-want +got):\n%s", diff)
	}
	if bare.Refresh.Reveal() != "r1" {
		t.Error("the refresh token was not kept")
	}
}
