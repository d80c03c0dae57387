package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// at moves the gate's clock.
func (g *gate) at(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now = t
}

func TestRenew(t *testing.T) {
	g := newGate(t)
	e, err := Enrol(t.Context(), g.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	if e.Lasts != time.Hour {
		t.Errorf("lasts %v", e.Lasts)
	}
	renew := func(at, want time.Duration) {
		t.Helper()
		g.at(now.Add(at))
		got, err := e.Renew(t.Context(), nil)
		if err != nil || got != want {
			t.Errorf("at %v: %v, %v; want %v", at, got, err, want)
		}
		if err := g.sessions.Check(e.Session, now.Add(at+want-time.Second)); err != nil {
			t.Errorf("at %v, before the new end: %v", at, err)
		}
		if err := g.sessions.Check(e.Session, now.Add(at+want)); !errors.Is(err, ErrExpired) {
			t.Errorf("at %v, after the new end: %v", at, err)
		}
	}
	renew(0, time.Hour)
	renew(20*time.Minute, time.Hour)
	renew(70*time.Minute, time.Hour) // after its first end
	renew(125*time.Minute, 55*time.Minute)
	renew(150*time.Minute, 30*time.Minute) // as old as it may get
	if s, err := g.sessions.Verify(e.Session.ID, e.Password); err != nil || s != e.Session {
		t.Errorf("the token is not the same: %v, %v", s, err)
	}
	if strings.Count(g.log.String(), "session renewed") != 3 {
		t.Errorf("log: %s", g.log)
	}
	g.at(now.Add(3 * time.Hour))
	if _, err := e.Renew(t.Context(), nil); !errors.Is(err, errOver) || !strings.Contains(err.Error(), "is over: start the worker again") {
		t.Errorf("after its end: %v", err)
	}
}

func TestEndASession(t *testing.T) {
	g := newGate(t)
	e, err := Enrol(t.Context(), g.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.End(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := g.sessions.Check(e.Session, now); !errors.Is(err, ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := e.Renew(t.Context(), nil); !errors.Is(err, errOver) {
		t.Errorf("renewed: %v", err)
	}
	if err := e.End(t.Context(), nil); err == nil {
		t.Error("ended twice")
	}
}

// Who may not renew a session, and what they are told.
func TestRenewRefusals(t *testing.T) {
	docs := vaulttest.NewMemory()
	g := newGateOn(t, docs)
	e, err := Enrol(t.Context(), g.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	other, err := Enrol(t.Context(), g.url(t), nil, Presented{Token: secret.New(ciToken)})
	if err != nil {
		t.Fatal(err)
	}
	gone, goneToken := issue(t, g.sessions.Keyring, "gone", "default")
	moved, movedToken := issue(t, g.sessions.Keyring, "ci", "elsewhere")
	revoked, revokedToken := issue(t, g.sessions.Keyring, "ci", "default")
	if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{revoked.ID}}, now); err != nil {
		t.Fatal(err)
	}
	if err := g.sessions.readRevoked(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, id, token, reason string
		status                  int
	}{
		{"nobody", "", "", "unknown_session", 401},
		{"no token", e.Session.ID, "", "unknown_session", 401},
		{"another session's token", e.Session.ID, other.Password.Reveal(), "unknown_session", 401},
		{"a placeholder", e.Session.ID, g.sessions.Placeholder(e.Session, "claude", ""), "unknown_session", 401},
		{"a worker token", "ci", ciToken, "unknown_session", 401},
		{"a worker that is gone", gone.ID, goneToken.Reveal(), "unknown_worker", 403},
		{"a worker with another profile", moved.ID, movedToken.Reveal(), "unknown_worker", 403},
		{"revoked", revoked.ID, revokedToken.Reveal(), "session_revoked", 403},
	} {
		for _, method := range []string{http.MethodPost, http.MethodDelete} {
			if method == http.MethodDelete && c.reason == "unknown_worker" {
				continue // it may always end
			}
			path := map[string]string{http.MethodPost: renewPath, http.MethodDelete: sessionsPath}[method]
			req, err := http.NewRequestWithContext(t.Context(), method, g.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.id != "" {
				req.SetBasicAuth(c.id, c.token)
			}
			g.at(g.Now().Add(refill)) // nobody is slowed down
			resp, err := g.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.status || resp.Header.Get(reasonHeader) != c.reason {
				t.Errorf("%s: %s answered with %d %s, want %d %s", c.name, method, resp.StatusCode, resp.Header.Get(reasonHeader), c.status, c.reason)
			}
		}
	}
	if log := g.log.String(); strings.Contains(log, "wls1") || strings.Contains(log, Marker) {
		t.Error("the log holds a token")
	}
	// Guessing is slowed down here too.
	for range burst + 1 {
		_, err = Enrolment{Gate: g.url(t), Session: e.Session, Password: secret.New("x")}.Renew(t.Context(), nil)
	}
	if err == nil || errors.Is(err, errOver) || !strings.Contains(err.Error(), "too many") {
		t.Errorf("err = %v", err)
	}
}

// A session is renewed for as long as its worker lives, whatever comes between.
func TestKeepAlive(t *testing.T) {
	const ttl = 90 * time.Minute
	transient := errors.New("not now")
	for _, c := range []struct {
		name   string
		answer func(n int, at time.Duration) (time.Duration, error)
		lives  time.Duration
		calls  []time.Duration
		says   []string
	}{
		{
			"each third", func(int, time.Duration) (time.Duration, error) { return ttl, nil }, 2 * time.Hour,
			[]time.Duration{30 * time.Minute, time.Hour, 90 * time.Minute, 2 * time.Hour}, nil,
		},
		{
			"the gate is away for a while", func(n int, _ time.Duration) (time.Duration, error) {
				if n < 4 {
					return 0, transient
				}
				return ttl, nil
			}, time.Hour,
			[]time.Duration{30 * time.Minute, 30*time.Minute + 2*time.Second, 30*time.Minute + 6*time.Second, 30*time.Minute + 14*time.Second, 30*time.Minute + 30*time.Second},
			[]string{"is not renewed yet", "renewed again"},
		},
		{
			"the gate ends it", func(int, time.Duration) (time.Duration, error) { return 0, fmt.Errorf("%w: revoked", errOver) }, 10 * time.Hour,
			[]time.Duration{30 * time.Minute}, []string{"revoked"},
		},
		{
			"as old as it gets", func(_ int, at time.Duration) (time.Duration, error) { return min(ttl, 110*time.Minute-at), nil }, 10 * time.Hour,
			[]time.Duration{30 * time.Minute, 56*time.Minute + 40*time.Second}, []string{"for good"},
		},
		{
			"never renewed", func(_ int, at time.Duration) (time.Duration, error) { return ttl - at, nil }, 10 * time.Hour,
			[]time.Duration{30 * time.Minute}, []string{"for good"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var calls []time.Duration
				var said []string
				k := keeper{
					renew: func(context.Context) (time.Duration, error) {
						at := time.Since(start)
						calls = append(calls, at)
						return c.answer(len(calls)-1, at)
					},
					say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) },
				}
				ctx, cancel := context.WithTimeout(t.Context(), c.lives+time.Second)
				defer cancel()
				k.keep(ctx, ttl)
				for i := range calls {
					calls[i] = calls[i].Round(time.Second)
				}
				if !slices.Equal(calls, c.calls) {
					t.Errorf("renewed at %v, want %v", calls, c.calls)
				}
				if len(said) != len(c.says) {
					t.Fatalf("said %q", said)
				}
				for i, want := range c.says {
					if !strings.Contains(said[i], want) {
						t.Errorf("said %q, want %q", said[i], want)
					}
				}
			})
		})
	}
}
