package grant

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// ask asks, as an operator who may not read grants, and waits until a replica has done it.
func (w *world) ask(what Request) Summary {
	w.Helper()
	id, err := Ask(w.Context(), blind{w.docs}, "claude", what, time.Now())
	if err != nil {
		w.Fatal(err)
	}
	for range 100 {
		time.Sleep(time.Second)
		if s, err := getStatus(w.Context(), w.docs, "claude"); err == nil && s.Request == id {
			return s
		}
	}
	w.Fatal("no replica did what was asked for")
	return Summary{}
}

// A refresh that is asked for happens once, whatever the token's life, earlier failures, and the number of replicas.
func TestAskRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		w.run(Options{})
		w.token(k)
		if s := w.ask(AskRefresh); s.State != Healthy || s.Generation != 1 {
			t.Errorf("%s, generation %d", s.State, s.Generation)
		}
		time.Sleep(20 * time.Minute)
		w.as.once(t, 1)

		// One that fails is done too, and is said.
		w.as.set(func(a *authority) {
			a.fail = func(int) error {
				return &oauth.Error{Outcome: oauth.Refused, Status: 401, Code: "invalid_client"}
			}
		})
		s := w.ask(AskRefresh)
		if s.State != Degraded || s.ErrorKind != oauth.KindInvalidClient || s.Next != remedies[oauth.KindInvalidClient] {
			t.Errorf("%s, %s, %q", s.State, s.ErrorKind, s.Next)
		}
		w.as.set(func(a *authority) { a.fail = nil })
		if s = w.ask(AskRefresh); s.State != Healthy || s.LastError != "" {
			t.Errorf("%s, %q", s.State, s.LastError)
		}
		var what []What
		for _, e := range s.History {
			what = append(what, e.What)
		}
		if n := len(what); n < 4 || what[0] != Connected || what[1] != Refreshed || what[2] != Failed || what[n-1] != Refreshed {
			t.Errorf("history %v", what)
		}
	})
}

// A revocation ends the tokens at the provider, forgets them here, and is meant for this consent only.
func TestAskRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		other, _ := w.run(Options{})
		w.token(k)
		if s := w.ask(AskRevoke); s.State != NeverConnected || s.History[len(s.History)-1].What != Revoked {
			t.Errorf("%s, history %+v", s.State, s.History)
		}
		w.as.mu.Lock()
		if !w.as.revoked {
			t.Error("not revoked at the provider")
		}
		w.as.mu.Unlock()
		if r := w.stored(); !r.Access.IsZero() || !r.Refresh.IsZero() {
			t.Error("tokens are still stored")
		}
		time.Sleep(10 * time.Second)
		w.refused(k, NeverConnected)
		w.refused(other, NeverConnected)

		w.connect()
		time.Sleep(10 * time.Second)
		w.token(k)
		time.Sleep(5 * time.Minute)
		if s := w.status(); s.State != Healthy {
			t.Errorf("the revocation of an earlier consent made it %s", s.State)
		}
	})
}

// A request counts as carried out only by what it asked for, not by what was under way when it came.
func TestAskDuringRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.as.latency = 20 * time.Second
		w.run(Options{})
		for w.as.count() == 0 {
			time.Sleep(time.Second)
		}
		if s := w.ask(AskRevoke); s.State != NeverConnected || s.History[len(s.History)-1].What != Revoked {
			t.Errorf("%s, history %+v", s.State, s.History)
		}
		w.as.mu.Lock()
		defer w.as.mu.Unlock()
		if !w.as.revoked {
			t.Error("not revoked at the provider")
		}
	})
}

// A provider in trouble may call every refresh token invalid. Operators have one tried again when that is over, and need not connect the grant
// anew; and what fails meanwhile is retried like any other failure.
func TestAskRefreshOfWhatWasCalledInvalid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		k, _ := w.run(Options{})
		w.run(Options{})
		answers := func(err error) func(*authority) {
			return func(a *authority) { a.fail = func(int) error { return err } }
		}
		invalid := &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
		w.as.set(answers(invalid))
		time.Sleep(2 * time.Hour)
		w.refused(k, NeedsReconnect)
		calls := w.as.count()
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
		if s := w.ask(AskRefresh); s.State != NeedsReconnect || s.ErrorKind != oauth.KindInvalidGrant || s.History[len(s.History)-1].What != Ended {
			t.Errorf("%s, %s, history %+v", s.State, s.ErrorKind, s.History)
		}
		time.Sleep(time.Hour)
		if n := w.as.count(); n != calls+1 {
			t.Errorf("asked once, %d calls", n-calls)
		}
		w.as.set(answers(&oauth.Error{Outcome: oauth.NotSent}))
		if s := w.ask(AskRefresh); s.State != RefreshUnavailable || s.ErrorKind != oauth.KindUnreachable {
			t.Errorf("%s, %s", s.State, s.ErrorKind)
		}
		w.as.set(func(a *authority) { a.fail = nil })
		time.Sleep(5 * time.Minute)
		if s := w.status(); s.State != Healthy || s.Generation != 1 || s.LastError != "" {
			t.Errorf("%s, generation %d, %q", s.State, s.Generation, s.LastError)
		}
		w.token(k)
	})
}

// Asking for a refresh that cannot be is answered too.
func TestAskDeclined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.spec.Kind, w.spec.OAuth, w.spec.Scopes = Static, nil, nil
		if _, err := Connect(t.Context(), w.docs, w.spec, oauth.Token{Access: secret.New("key" + mark)}, time.Now()); err != nil {
			t.Fatal(err)
		}
		k, _ := w.run(Options{})
		if s := w.ask(AskRefresh); s.State != Healthy || s.History[len(s.History)-1].What != Declined {
			t.Errorf("%s, history %+v", s.State, s.History)
		}
		w.token(k)
	})
}

func TestAskErrors(t *testing.T) {
	mem := vaulttest.NewMemory()
	var u *Unusable
	if _, err := Ask(t.Context(), mem, "claude", AskRefresh, t0); !errors.As(err, &u) || u.State != NeverConnected {
		t.Errorf("nothing stored: %v", err)
	}
	if _, err := Connect(t.Context(), mem, spec, newAuthority(time.Hour).grant(), t0); err != nil {
		t.Fatal(err)
	}
	first, err := Ask(t.Context(), mem, "claude", AskRefresh, t0)
	if err != nil {
		t.Fatal(err)
	}
	// Two operators at once; and what was asked for long ago goes.
	busy := true
	mem.Inject(func(op, _ string) vaulttest.Fault {
		if op == "put" && busy {
			busy = false
			return vaulttest.Fault{Before: vault.ErrConflict}
		}
		return vaulttest.Fault{}
	})
	second, err := Ask(t.Context(), mem, "claude", AskRevoke, t0.Add(time.Hour))
	if err != nil || first == second {
		t.Errorf("over another: %v", err)
	}
	all, _, err := getRequests(t.Context(), mem)
	if err != nil || len(all) != 1 || all["claude"].ID != second || all["claude"].Epoch == "" {
		t.Errorf("requests %+v, %v", all, err)
	}
	mem.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrDenied} })
	if _, err := Ask(t.Context(), mem, "claude", AskRefresh, t0); !errors.Is(err, vault.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
}

// A script may ask for all grants of a fleet, one after the other.
func TestAskForMany(t *testing.T) {
	mem := vaulttest.NewMemory()
	ids := map[string]string{}
	for i := range 300 {
		one := spec
		one.Name = fmt.Sprintf("claude-%d", i)
		if _, err := Connect(t.Context(), mem, one, newAuthority(time.Hour).grant(), t0); err != nil {
			t.Fatal(err)
		}
		id, err := Ask(t.Context(), mem, one.Name, AskRefresh, t0)
		if err != nil {
			t.Fatalf("the %dth: %v", i, err)
		}
		ids[one.Name] = id
	}
	all, _, err := getRequests(t.Context(), mem)
	if err != nil || len(all) != len(ids) {
		t.Fatalf("%d requests, %v", len(all), err)
	}
	for name, r := range all {
		if r.ID != ids[name] {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// A gateway whose policy lets it read no requests goes on.
func TestRequestsDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect()
		w.mem.Inject(func(_, path string) vaulttest.Fault {
			if path == requestsPath {
				return vaulttest.Fault{Before: vault.ErrDenied}
			}
			return vaulttest.Fault{}
		})
		k, _ := w.run(Options{})
		time.Sleep(2 * time.Hour)
		w.token(k)
		if n := w.logged("requests of operators cannot be read"); n != 1 {
			t.Errorf("%d log lines", n)
		}
	})
}

// A history keeps its newest events, each once, in their order.
func TestHistory(t *testing.T) {
	event := func(i int) Event {
		return Event{ID: fmt.Sprint(i), At: t0.Add(time.Duration(i) * time.Second), What: Refreshed}
	}
	var h []Event
	for i := range maxHistory + 5 {
		h = followed(h, []Event{event(i)})
		h = followed(h, []Event{event(i)})
	}
	if n := len(h); n != maxHistory || h[0].ID != "5" || h[n-1].ID != fmt.Sprint(maxHistory+4) {
		t.Errorf("%d events, from %s on", n, h[0].ID)
	}
	// A replica that was cut off comes late with what it knows.
	late := followed([]Event{event(1), event(3)}, []Event{event(2)})
	if len(late) != 3 || late[1].ID != "2" {
		t.Errorf("%+v", late)
	}
}
