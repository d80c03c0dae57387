package grant

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

// A machine's grant needs no operator: its token is fetched by itself, once for all replicas, replaced ahead of its end,
// and again when other scopes are configured.
func TestMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.as.machine = true
		w.spec.Kind = Machine
		a, _ := w.run(Options{})
		b, stop := w.run(Options{})
		var wg sync.WaitGroup
		for range 50 {
			for _, k := range []*Keeper{a, b} {
				wg.Go(func() { w.token(k, "files") })
			}
		}
		wg.Wait()
		w.as.once(t, 1)
		time.Sleep(2 * time.Hour)
		w.token(a)
		w.token(b)
		w.as.once(t, 3)
		if s := w.status(); s.State != Healthy || s.Kind != Machine || !slices.Equal(s.Granted, w.spec.Scopes) {
			t.Errorf("%+v", s)
		}

		w.spec.Scopes = []string{"admin"}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		c, _ := w.run(Options{})
		time.Sleep(10 * time.Second)
		w.token(c, "admin")
		w.as.once(t, 4)
	})
}

// A provider that refuses a machine for hours ends nothing: it works again once that is mended.
func TestMachineRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.as.machine = true
		w.spec.Kind = Machine
		w.as.fail = func(int) error {
			return &oauth.Error{Outcome: oauth.InvalidGrant, Status: 401, Code: "invalid_grant"}
		}
		k, _ := w.run(Options{})
		time.Sleep(3 * time.Hour)
		if _, err := k.Token(t.Context(), "claude", nil); err == nil || !strings.Contains(err.Error(), "invalid_grant") {
			t.Errorf("Token: %v", err)
		}
		if n := w.as.count(); n > 3*60+10 { // one a minute, after a few quick ones
			t.Errorf("%d calls in three hours", n)
		}
		w.as.set(func(a *authority) { a.fail = nil })
		time.Sleep(maxBackoff + time.Second)
		w.token(k)
	})
}

// An imported value is served as it is, without end, and only an import replaces it.
func TestStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.spec.Kind, w.spec.OAuth, w.spec.Scopes = Static, nil, nil
		k, _ := w.run(Options{})
		if _, err := k.Token(t.Context(), "claude", nil); err == nil || !strings.Contains(err.Error(), "`wayleave grant import claude`") {
			t.Errorf("Token: %v", err)
		}
		for _, value := range []string{"key" + mark + "1", "key" + mark + "2"} {
			if _, err := Connect(t.Context(), w.docs, w.spec, oauth.Token{Access: secret.New(value)}, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if got := w.token(k).Access.Reveal(); got != value {
				t.Error("not the imported value")
			}
		}
		time.Sleep(3 * time.Hour)
		w.token(k)
		if s := w.ask(AskRevoke); s.State != NeverConnected || s.Next != "run `wayleave grant import claude`" {
			t.Errorf("%s, next %q", s.State, s.Next)
		}
	})
}

// Why a scope is missing decides what to do about it.
func TestGap(t *testing.T) {
	s := Spec{Name: "claude", Provider: "anthropic", Scopes: []string{"files", "inference", "usage"}}
	tok := oauth.Token{Access: secret.New("a1"), Refresh: secret.New("r1"), Expiry: t0.Add(time.Hour), Scopes: []string{"files", "inference"}}
	r := newRecord(s, tok, "op1", t0)
	r = r.answered(oauth.Token{Access: secret.New("a2"), Scopes: []string{"files"}}, "op2", t0, t0)
	s.Scopes = []string{"admin", "files", "inference", "usage"}
	got := summarize(r, s, on(t0))
	want := Gap{NotRequested: []string{"admin"}, NotGranted: []string{"usage"}, Withdrawn: []string{"inference"}}
	if got.State != ScopeMissing || !slices.Equal(got.NotRequested, want.NotRequested) || !slices.Equal(got.NotGranted, want.NotGranted) || !slices.Equal(got.Withdrawn, want.Withdrawn) {
		t.Errorf("%s, %+v", got.State, got.Gap)
	}
	for _, part := range []string{"usage was asked for and not granted", "inference was granted and later withdrawn", "`wayleave grant connect claude`"} {
		if !strings.Contains(got.Next, part) {
			t.Errorf("next %q lacks %q", got.Next, part)
		}
	}
	// What came with a scope is withdrawn with it.
	implying := s
	implying.Implied = map[string][]string{"inference": {"usage"}}
	if g := summarize(r, implying, on(t0)).Gap; !slices.Equal(g.Withdrawn, []string{"inference", "usage"}) || len(g.NotGranted) > 0 {
		t.Errorf("%+v", g)
	}
	// The same when a stored summary is read under another configuration.
	s.Scopes = append(s.Scopes, "more")
	if under := got.under(s, t0); !slices.Equal(under.NotRequested, []string{"admin", "more"}) || !slices.Equal(under.NotGranted, want.NotGranted) || !slices.Equal(under.Withdrawn, want.Withdrawn) {
		t.Errorf("%+v", under.Gap)
	}
	s.Scopes = []string{"files", "new"}
	if under := got.under(s, t0); under.Next != "run `wayleave grant connect claude` and allow them" {
		t.Errorf("next %q", under.Next)
	}
}

func TestMissing(t *testing.T) {
	for _, tt := range []struct{ granted, requested, want []string }{
		{[]string{"a"}, []string{"a", "b"}, []string{"b"}},
		{[]string{"a"}, []string{"a", "openid", "offline_access"}, nil},
		{[]string{"https://www.googleapis.com/auth/userinfo.email"}, []string{"email", "drive"}, []string{"drive"}},
		{[]string{"https://graph.microsoft.com/User.Read"}, []string{"https://graph.microsoft.com/.default"}, nil},
		{nil, []string{"https://graph.microsoft.com/.default"}, []string{"https://graph.microsoft.com/.default"}},
	} {
		if got := missing(tt.granted, tt.requested); !slices.Equal(got, tt.want) {
			t.Errorf("granted %q, requested %q: %q missing, want %q", tt.granted, tt.requested, got, tt.want)
		}
	}
}

// Nobody connects a machine's grant, so nothing says to.
func TestMachineIsNotConnected(t *testing.T) {
	for s := range words {
		for failure := range remedies {
			if next := next(s, Machine, failure, "bot"); strings.Contains(next, "grant connect") && s != Ambiguous { // which it never is
				t.Errorf("%s after %s: %s", s, failure, next)
			}
		}
	}
}
