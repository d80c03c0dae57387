package operate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/approval"
	"wayleave/vault/vaulttest"
)

func TestDecide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs := vaulttest.NewMemory()
		d := Desk{Docs: docs, Now: time.Now, Every: time.Second}
		board := approval.NewBoard(docs, approval.Options{Gate: "one"})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { board.Run(ctx); close(done) }()
		hold := func(session string) (string, <-chan approval.Result) {
			got := make(chan approval.Result, 1)
			go func() {
				got <- board.Hold(ctx, approval.Request{Worker: "ci", Session: session, Rule: "r" + session}, time.Minute)
			}()
			time.Sleep(2 * time.Second)
			all, err := d.Approvals(ctx)
			if err != nil || len(all.Approvals) == 0 || all.Approvals[0].State != approval.Waiting {
				t.Fatalf("%+v, %v", all, err)
			}
			return all.Approvals[0].ID, got
		}
		refused := func(id string, r Ruling, kind Kind, words string) {
			t.Helper()
			_, err := d.Decide(ctx, id, r)
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Kind != kind || !strings.Contains(err.Error(), words) {
				t.Errorf("%+v: %v", r, err)
			}
		}
		id, got := hold("s1")
		refused("none", Ruling{Verdict: approval.Allow}, NoSuch, "approval list")
		refused(id, Ruling{Verdict: approval.Allow, For: 25 * time.Hour}, Misused, "at most 24h")
		refused(id, Ruling{Verdict: approval.Allow, Note: "two\nlines"}, Misused, "one line")
		if _, err := d.Decide(ctx, id, Ruling{Verdict: approval.Allow, For: time.Hour, By: "ann", From: "desk"}); err != nil {
			t.Fatal(err)
		}
		refused(id, Ruling{Verdict: approval.Deny}, NotNow, "decided already: allow, by ann")
		a, err := d.Taken(ctx, id, 10*time.Second)
		if err != nil || a.State != approval.Allowed || (<-got).State != approval.Allowed {
			t.Errorf("%+v, %v", a, err)
		}
		refused(id, Ruling{Verdict: approval.Deny}, NotNow, "it is allowed")
		if k, err := d.Forget(ctx, id); err != nil || k.Session != "s1" || k.By != "ann" {
			t.Errorf("%+v, %v", k, err)
		}
		if _, err := d.Forget(ctx, id); err == nil || !strings.Contains(err.Error(), "approval list") {
			t.Errorf("forgotten twice: %v", err)
		}
		nameless, end := hold("")
		refused(nameless, Ruling{Verdict: approval.Allow, For: time.Hour}, Misused, "without --for")
		if _, err := d.Taken(ctx, nameless, 3*time.Second); !errors.Is(err, ErrNotInTime) {
			t.Errorf("nobody has decided: %v", err)
		}
		stop()
		<-end
		<-done
	})
}
