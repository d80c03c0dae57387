package operate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"wayleave/approval"
	"wayleave/vault"
)

// longestNote is what fits a message to a worker.
const longestNote = 300

// Approvals is every request that waits for an operator, and what became of those of the last hour.
func (d Desk) Approvals(ctx context.Context) (approval.Held, error) {
	return approval.List(ctx, d.Docs, d.Now())
}

// Approval is one of them.
func (d Desk) Approval(ctx context.Context, id string) (approval.Approval, error) {
	all, err := d.Approvals(ctx)
	if err != nil {
		return approval.Approval{}, err
	}
	for _, a := range all.Approvals {
		if a.ID == id {
			return a, nil
		}
	}
	return approval.Approval{}, noSuchApproval(id)
}

func noSuchApproval(id string) error {
	return refuse(NoSuch, "no approval %q: `wayleave approval list` shows those that wait, and what became of those of the last hour", id)
}

// Ruling is what an operator decides about a request.
type Ruling struct {
	Verdict approval.Verdict
	For     time.Duration // how long it holds for later requests of the session that meet the same rule; 0: for none
	Note    string        // shown to the worker when it is denied
	By      string        // who decides
	From    string        // and from where
}

// CheckNote refuses a note that a worker cannot be shown.
func CheckNote(note string) error {
	if len(note) > longestNote || strings.ContainsFunc(note, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return refuse(Misused, "the note is not one line of at most %d bytes; shorten it", longestNote)
	}
	return nil
}

// Decide decides about a request that waits. The gate that holds it acts on it within two seconds, which Taken waits for.
func (d Desk) Decide(ctx context.Context, id string, r Ruling) (approval.Approval, error) {
	switch {
	case r.For < 0 || r.For > approval.Longest:
		return approval.Approval{}, refuse(Misused, "%v is no time that a decision may hold for: at most %v; for longer write a rule", r.For, approval.Longest)
	case CheckNote(r.Note) != nil:
		return approval.Approval{}, CheckNote(r.Note)
	}
	now := d.Now().UTC().Truncate(time.Second)
	decision := approval.Decision{Verdict: r.Verdict, By: r.By, From: r.From, Note: r.Note, At: now}
	if r.For > 0 {
		decision.Until = now.Add(r.For)
	}
	a, err := approval.Decide(ctx, d.Docs, id, decision, d.Now)
	switch {
	case errors.Is(err, approval.ErrNoSuch):
		return a, noSuchApproval(id)
	case errors.Is(err, approval.ErrDecided):
		return a, refuse(NotNow, "approval %s is decided already: %s, by %s; `wayleave approval show %s` says what became of it", id, a.Decision.Verdict, a.Decision.By, id)
	case errors.Is(err, approval.ErrOver):
		return a, refuse(NotNow, "the request of approval %s does not wait any more: it is %s; nothing was changed", id, strings.ReplaceAll(string(a.State), "_", " "))
	case errors.Is(err, approval.ErrNobody):
		return a, refuse(Misused, "the request of approval %s shows no session, so a decision cannot hold for later ones; decide without --for", id)
	case errors.Is(err, approval.ErrFull):
		return a, refuse(NotNow, "too many decisions hold for later requests; decide without --for, or write a rule")
	case err != nil:
		return a, fmt.Errorf("deciding about approval %s: %w", id, err)
	}
	return a, nil
}

// takenTime is how long a gate is given to act on a decision: it looks every second.
const takenTime = 10 * time.Second

// Rule is Decide, and waits until a gate has acted on it. The approval is as it was last seen, also with an error.
func (d Desk) Rule(ctx context.Context, id string, r Ruling) (approval.Approval, error) {
	if a, err := d.Decide(ctx, id, r); err != nil {
		return a, err
	}
	a, err := d.Taken(ctx, id, takenTime)
	switch {
	case errors.Is(err, ErrNotInTime):
		return a, refuse(NotNow, "the decision is written down, but no gate has acted on it within %v: the gate that held the request (%s) may be gone, and its worker has got an error then; see `wayleave approval show %s`", takenTime, a.Gate, id)
	case err != nil:
		return a, err
	}
	if want := map[approval.Verdict]approval.State{approval.Allow: approval.Allowed, approval.Deny: approval.Denied}[r.Verdict]; a.State != want {
		if a.State == approval.Allowed || a.State == approval.Denied { // somebody else was faster
			return a, refuse(NotNow, "the request was %s by %s at the same moment", a.State, a.Decision.By)
		}
		return a, refuse(NotNow, "the decision came too late: the request is %s", strings.ReplaceAll(string(a.State), "_", " "))
	}
	return a, nil
}

// Taken waits until a gate has acted on a decision; ErrNotInTime is that none did.
func (d Desk) Taken(ctx context.Context, id string, timeout time.Duration) (approval.Approval, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrNotInTime)
	defer cancel()
	tick := time.NewTicker(d.Every)
	defer tick.Stop()
	for {
		a, err := d.Approval(ctx, id)
		switch {
		case err == nil && a.State != approval.Waiting:
			return a, nil
		case err != nil && ctx.Err() == nil && !errors.Is(err, vault.ErrUnavailable):
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Forget ends a decision that holds for later requests, by the approval in which it was made.
func (d Desk) Forget(ctx context.Context, id string) (approval.Kept, error) {
	k, err := approval.Forget(ctx, d.Docs, id, d.Now)
	if errors.Is(err, approval.ErrNoSuch) {
		return k, refuse(NoSuch, "no decision of approval %q holds for later requests: `wayleave approval list` shows those that do", id)
	}
	if err != nil {
		return k, fmt.Errorf("forgetting the decision of approval %s: %w", id, err)
	}
	return k, nil
}
