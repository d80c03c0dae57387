package worker

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// errOver says that the gate knows the session and does not renew it, now or later.
var errOver = errors.New("the gate does not renew this session")

// Renew makes the session last longer and returns for how long from now. The errors are as those of Enrol.
func (e Enrolment) Renew(ctx context.Context, roots *x509.CertPool) (lasts time.Duration, err error) {
	req, err := http.NewRequest(http.MethodPost, e.Gate.JoinPath(renewPath).String(), nil)
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth(e.Session.ID, e.Password.Reveal())
	resp, body, err := call(ctx, roots, req)
	switch {
	case err != nil:
		return 0, unreachable(e.Gate, err)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return 0, fmt.Errorf("%w: %w", errOver, refused(e.Gate, resp, body))
	case resp.StatusCode != http.StatusOK:
		return 0, refused(e.Gate, resp, body)
	}
	var w wireRenewal
	if json.Unmarshal(body, &w) != nil || w.API != apiVersion || w.Session.ID != e.Session.ID {
		return 0, notAGate(e.Gate, resp)
	}
	return time.Duration(w.Session.ExpiresIn) * time.Second, nil
}

// End ends the session, after which its token and its placeholders are worth nothing.
func (e Enrolment) End(ctx context.Context, roots *x509.CertPool) error {
	req, err := http.NewRequest(http.MethodDelete, e.Gate.JoinPath(sessionsPath).String(), nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(e.Session.ID, e.Password.Reveal())
	resp, body, err := call(ctx, roots, req)
	switch {
	case err != nil:
		return unreachable(e.Gate, err)
	case resp.StatusCode != http.StatusNoContent:
		return refused(e.Gate, resp, body)
	}
	return nil
}

// How a session is kept: renewed when a third of its time is over, so that two further attempts come before its end, and a gate
// that was restarted hears of it. An attempt that failed is repeated.
const (
	renewAfter = 3
	lookEvery  = time.Minute // at the clock: a timer does not count the time a machine sleeps
	retryFirst = 2 * time.Second
	retryMost  = time.Minute
	atLeast    = 5 * time.Second // a renewal that adds less adds nothing
)

// KeepAlive renews the session until ctx ends, the gate does not want to, or the session is as old as it may get. It says a line
// when something is wrong that a person should know, once, and another when that is mended.
func (e Enrolment) KeepAlive(ctx context.Context, roots *x509.CertPool, say func(format string, args ...any)) {
	if e.Lasts <= 0 { // a gate of an earlier version, which renews nothing
		return
	}
	keeper{func(ctx context.Context) (time.Duration, error) { return e.Renew(ctx, roots) }, say}.keep(ctx, e.Lasts)
}

// keeper keeps one session.
type keeper struct {
	renew func(context.Context) (lasts time.Duration, err error)
	say   func(format string, args ...any)
}

func (k keeper) keep(ctx context.Context, lasts time.Duration) {
	renewed := time.Now()
	for failed := 0; ; {
		pause := min(lasts/renewAfter-since(renewed), lookEvery)
		if failed > 0 {
			pause = min(retryFirst<<min(failed-1, 10), retryMost)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(pause, time.Second)):
		}
		if failed == 0 && since(renewed) < lasts/renewAfter {
			continue
		}
		at := time.Now()
		got, err := k.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errOver):
			k.say("%v", err)
			return
		case err != nil:
			if failed++; failed == 1 {
				k.say("the session is not renewed yet, and ends at %s: %v", renewed.Add(lasts).Format(time.DateTime), err)
			}
			continue
		case failed > 0:
			k.say("the session is renewed again")
			failed = 0
		}
		longer := got - (lasts - since(renewed))
		renewed, lasts = at, got
		if longer < atLeast {
			k.say("the session ends for good at %s: it is as old as its profile lets it get", renewed.Add(lasts).Format(time.DateTime))
			return
		}
	}
}

// since is the time that has passed by whichever clock says more: the running one stands still while a machine sleeps, and the one
// on the wall may be set back.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}
