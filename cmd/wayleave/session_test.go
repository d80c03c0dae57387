package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"wayleave/worker"
)

// gateWith is the sessions of a gate, and some that it has issued.
func (o *office) gateWith(workers ...string) (gate *worker.Sessions, issued []worker.Session) {
	o.t.Helper()
	gate, err := worker.OpenSessions(o.t.Context(), o.docs, worker.LedgerOptions{})
	if err != nil {
		o.t.Fatal(err)
	}
	for _, name := range workers {
		s, _, err := gate.Issue(name, "default", time.Hour, gate.Moment(name, time.Now()))
		if err != nil {
			o.t.Fatal(err)
		}
		gate.Issued(s, "repo:acme/app\x1b[2J", "192.0.2.1")
		issued = append(issued, s)
	}
	ctx, cancel := context.WithCancel(o.t.Context())
	cancel()
	gate.Run(ctx) // which writes everything down at its end
	return gate, issued
}

// check says how a gate that reads everything now judges a session.
func (o *office) check(s worker.Session) error {
	o.t.Helper()
	gate, err := worker.OpenSessions(o.t.Context(), o.docs, worker.LedgerOptions{})
	if err != nil {
		o.t.Fatal(err)
	}
	return gate.Check(s, time.Now())
}

func TestSessionList(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		if err := d.listSessions(t.Context(), ""); err != nil || !strings.Contains(o.out.String(), "no live sessions") {
			t.Errorf("%v: %s", err, &o.out)
		}
		_, issued := o.gateWith("ci", "ci", "laptop")
		o.out.Reset()
		if err := d.listSessions(t.Context(), ""); err != nil || strings.Count(o.out.String(), "\n") != 4 || !strings.Contains(o.out.String(), issued[2].ID) ||
			!strings.Contains(o.out.String(), "192.0.2.1") || !strings.Contains(o.out.String(), "in 59m") {
			t.Errorf("%v: %s", err, &o.out)
		}
		if strings.Contains(o.out.String(), "\x1b") {
			t.Error("what a worker's platform calls it reaches the terminal as it is")
		}
		o.out.Reset()
		if err := d.listSessions(t.Context(), "nobody"); err != nil || !strings.Contains(o.out.String(), "Worker nobody has no live session") {
			t.Errorf("%v: %s", err, &o.out)
		}
		d.json = true
		for name, want := range map[string]int{"": 3, "ci": 2, "nobody": 0} {
			o.out.Reset()
			var got []worker.Live
			if err := errors.Join(d.listSessions(t.Context(), name), json.Unmarshal(o.out.Bytes(), &got)); err != nil || len(got) != want || got == nil {
				t.Errorf("%q: %v: %s", name, err, &o.out)
			}
		}
	})
}

func TestSessionRevoke(t *testing.T) { everyForm(t, testSessionRevoke) }

func testSessionRevoke(t *testing.T, newOffice func(*testing.T) *office) {
	for _, c := range []struct {
		name  string
		q     revokeFlags
		ids   func([]worker.Session) []string
		ended []bool // of ci, ci, laptop
		says  string
	}{
		{"by id", revokeFlags{}, func(s []worker.Session) []string { return []string{s[0].ID} }, []bool{true, false, false}, "(1 session was live)"},
		{"by worker", revokeFlags{workers: []string{"ci"}}, nil, []bool{true, true, false}, "(2 sessions were live)"},
		{"all", revokeFlags{all: true}, nil, []bool{true, true, true}, "(3 sessions were live)"},
		{"issued before", revokeFlags{all: true, notBefore: "2026-01-01T00:00:00Z"}, nil, []bool{false, false, false}, "(0 sessions were live)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOffice(t)
			_, issued := o.gateWith("ci", "ci", "laptop")
			var ids []string
			if c.ids != nil {
				ids = c.ids(issued)
			}
			if err := o.desk("").revokeSessions(t.Context(), c.q, ids); err != nil || !strings.Contains(o.out.String(), c.says) {
				t.Errorf("%v: %s", err, &o.out)
			}
			for i, want := range c.ended {
				if err := o.check(issued[i]); errors.Is(err, worker.ErrRevoked) != want {
					t.Errorf("session %d: %v", i, err)
				}
			}
			// Who enrols again is let in.
			_, again := o.gateWith("ci")
			if err := o.check(again[0]); err != nil {
				t.Error(err)
			}
		})
	}

	o := newOffice(t)
	_, issued := o.gateWith("ci")
	for name, c := range map[string]struct {
		q   revokeFlags
		ids []string
	}{
		"nothing":                   {},
		"an id that is none":        {ids: []string{"ci"}},
		"an id of another time":     {ids: []string{strings.Repeat("7", 24)}},
		"ids and a worker":          {revokeFlags{workers: []string{"ci"}}, []string{issued[0].ID}},
		"all and a worker":          {revokeFlags{workers: []string{"ci"}, all: true}, nil},
		"no name":                   {revokeFlags{workers: []string{"a b"}}, nil},
		"a moment for an id":        {revokeFlags{notBefore: "2026-01-01T00:00:00Z"}, []string{issued[0].ID}},
		"a moment that is none":     {revokeFlags{all: true, notBefore: "yesterday"}, nil},
		"a moment that is to come":  {revokeFlags{all: true, notBefore: time.Now().Add(time.Hour).Format(time.RFC3339)}, nil},
		"a worker and an empty one": {revokeFlags{workers: []string{"ci", ""}}, nil},
	} {
		if err := o.desk("").revokeSessions(t.Context(), c.q, c.ids); codeOf(err) != exitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := o.check(issued[0]); err != nil {
		t.Errorf("a mistake revoked something: %v", err)
	}

	// A gate whose clock is ahead has issued sessions of the future.
	ahead, err := worker.OpenSessions(t.Context(), o.docs, worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := ahead.Issue("ci", "default", time.Hour, time.Now().Add(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	ahead.Issued(s, "", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ahead.Run(ctx)
	o.out.Reset()
	d := o.desk("")
	d.json = true
	if err := d.revokeSessions(t.Context(), revokeFlags{workers: []string{"ci"}}, nil); err != nil || !strings.Contains(o.out.String(), s.ID) {
		t.Errorf("%v: %s", err, &o.out)
	}
	if err := o.check(s); !errors.Is(err, worker.ErrRevoked) {
		t.Errorf("a session of a gate that is ahead: %v", err)
	}
}

func TestSessionRotateKeys(t *testing.T) {
	o := newOffice(t)
	at := desk{o.vaultDesk(), o.stdio("")}
	if err := at.rotateKeys(t.Context(), false, false, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no gate has rotated") {
		t.Errorf("without a gate: %v", err)
	}
	if err := o.docs.Delete(t.Context(), "requests/sessions"); err != nil { // which stands, and would be done too
		t.Fatal(err)
	}
	gate, issued := o.gateWith("ci")
	tend := func(d desk, endSessions bool) error {
		done := make(chan error, 1)
		go func() { done <- d.rotateKeys(t.Context(), endSessions, false, time.Minute) }()
		for {
			if _, err := gate.Tend(t.Context(), time.Now()); err != nil {
				t.Error(err)
			}
			select {
			case err := <-done:
				return err
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	if err := tend(at, false); err != nil || !strings.Contains(o.out.String(), "key 2 makes sessions now, and live sessions go on (keys accepted: 1, 2)") {
		t.Errorf("%v: %s", err, &o.out)
	}
	if err := o.check(issued[0]); err != nil {
		t.Error(err)
	}
	o.out.Reset()
	d := at
	d.json = true
	var status worker.KeyStatus
	if err := errors.Join(tend(d, true), json.Unmarshal(o.out.Bytes(), &status)); err != nil || len(status.Accepted) != 1 || status.Accepted[0] != status.Current {
		t.Errorf("%v: %s", err, &o.out)
	}
	if err := o.check(issued[0]); !errors.Is(err, worker.ErrRevoked) {
		t.Errorf("err = %v", err)
	}
}
