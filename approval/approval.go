// Package approval owns requests that wait for an operator: who waits, for how long, and what became of it. All of it is one
// document that every gate and every operator of a Vault shares.
//
//	request ──Hold──▶ Board ──┐                      ┌── List, Decide ◀── operator
//	                          ├─▶ approvals/held  ◀──┤
//	request ──Hold──▶ Board ──┘                      └── Options.Ask, as a webhook
//
// Nothing is allowed but by a decision that was read: what cannot be asked about is not held, and what ends otherwise is refused.
package approval

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"wayleave/vault"
)

// path is one document, written by whoever holds, withdraws or decides.
const path = "approvals/held"

// Bounds of the document.
const (
	MaxWaiting   = 100 // requests at all gates together
	MaxPerWorker = 20  // of them
	maxFinished  = 100 // that are kept, for operators to see what became of them
	maxKept      = 500 // decisions for later requests
	keepFinished = time.Hour
	maxPath      = 500 // bytes
	tries        = 20  // against other writers
	pause        = 10 * time.Millisecond
	// skew is more than the clocks of gates and operators differ.
	skew = time.Minute
)

// Longest is the most that a decision may hold for later requests.
const Longest = 24 * time.Hour

// Documents is where the document is kept, with check-and-set: a *vault.Client.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
}

// Request is what an operator sees of a request. It has no query and no header.
type Request struct {
	Worker     string `json:"worker"`
	Profile    string `json:"profile"`
	Session    string `json:"session,omitempty"` // empty: the worker is known by its address, and has sent no placeholder
	Source     string `json:"source,omitempty"`  // the worker's address
	Rule       string `json:"rule"`              // that holds it
	Words      string `json:"words"`             // the rule's
	Method     string `json:"method"`
	Host       string `json:"host"`
	Path       string `json:"path"`
	Credential string `json:"credential,omitempty"` // the grant whose token it would get
	RequestID  string `json:"request_id"`
}

// Approval is one request that is or was held.
type Approval struct {
	ID string `json:"id"`
	Request
	Gate     string    `json:"gate"` // that holds it
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until"` // when it is refused if nobody has decided
	Decision *Decision `json:"decision,omitempty"`
	State    State     `json:"state"`
	Ended    time.Time `json:"ended,omitzero"`
}

// State is what became of a request.
type State string

// The states.
const (
	Waiting   State = "waiting"
	Allowed   State = "allowed"
	Denied    State = "denied"
	TimedOut  State = "timed_out"
	Withdrawn State = "withdrawn" // the worker has gone
	Stopped   State = "stopped"   // the gate has
	Lost      State = "lost"      // nobody has said what became of it: the gate was killed
)

// Verdict is what was decided.
type Verdict string

// The verdicts.
const (
	Allow Verdict = "allow"
	Deny  Verdict = "deny"
)

// Decision is somebody's about a request.
type Decision struct {
	Verdict Verdict   `json:"verdict"`
	By      string    `json:"by"`
	From    string    `json:"from,omitempty"` // where they were
	Note    string    `json:"note,omitempty"` // shown to the worker when it is denied
	At      time.Time `json:"at"`
	// Until is how long it holds for later requests of the session that meet the same rule; zero: it does not.
	Until time.Time `json:"until,omitzero"`
}

// Kept is a decision that holds for later requests.
type Kept struct {
	Worker   string `json:"worker"`
	Session  string `json:"session"`
	Rule     string `json:"rule"`
	Approval string `json:"approval"` // in which it was made
	Decision
}

// document is all of it.
type document struct {
	Approvals map[string]Approval `json:"approvals,omitempty"` // by id
	Kept      map[string]Kept     `json:"kept,omitempty"`
}

func keptKey(session, rule string) string { return session + " " + rule }

// read returns an empty document when there is none.
func read(ctx context.Context, docs Documents) (*document, int, error) {
	d := &document{}
	version, err := docs.Get(ctx, path, &vault.Packed{Value: d})
	if errors.Is(err, vault.ErrNotFound) {
		d, err = &document{}, nil
	}
	if d.Approvals == nil {
		d.Approvals = map[string]Approval{}
	}
	if d.Kept == nil {
		d.Kept = map[string]Kept{}
	}
	return d, version, err
}

// update reads the document, has change change it, and writes it, again when somebody else wrote in between. When change says
// that it changed nothing, nothing is written.
func update(ctx context.Context, docs Documents, now func() time.Time, change func(*document) (bool, error)) error {
	for try := 1; ; try++ {
		d, version, err := read(ctx, docs)
		if err != nil {
			return err
		}
		pruned := d.prune(now())
		changed, err := change(d)
		if err != nil || !changed && !pruned {
			return err
		}
		_, err = docs.Put(ctx, path, vault.Packed{Value: d}, version)
		if err == nil || !errors.Is(err, vault.ErrConflict) || try == tries {
			return err
		}
		select {
		case <-time.After(mathrand.N(time.Duration(try) * pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// state is what became of an approval, as known at now.
func (a Approval) state(now time.Time) State {
	if a.State == Waiting && now.Sub(a.Until) > skew {
		return Lost
	}
	return a.State
}

// prune forgets what nobody needs any more, and reports whether there was something.
func (d *document) prune(now time.Time) bool {
	before := len(d.Approvals) + len(d.Kept)
	var finished []Approval
	for id, a := range d.Approvals {
		if a.state(now) == Waiting {
			continue
		}
		if now.Sub(cmp.Or(a.Ended, a.Until)) > keepFinished {
			delete(d.Approvals, id)
			continue
		}
		finished = append(finished, a)
	}
	slices.SortFunc(finished, func(a, b Approval) int { return cmp.Or(b.Since.Compare(a.Since), strings.Compare(a.ID, b.ID)) })
	for _, a := range finished[min(len(finished), maxFinished):] {
		delete(d.Approvals, a.ID)
	}
	for key, k := range d.Kept {
		if !now.Before(k.Until) {
			delete(d.Kept, key)
		}
	}
	return before != len(d.Approvals)+len(d.Kept)
}

// Held is what operators see.
type Held struct {
	Approvals []Approval `json:"approvals"` // those that wait in front, the oldest first; then the others, the newest first
	Kept      []Kept     `json:"kept"`      // those that end first in front
}

// List returns what waits, what became of what waited in the last hour, and the decisions that hold for later requests.
func List(ctx context.Context, docs Documents, now time.Time) (Held, error) {
	d, _, err := read(ctx, docs)
	if err != nil {
		return Held{}, fmt.Errorf("listing approvals: %w", err)
	}
	d.prune(now)
	out := Held{Approvals: []Approval{}, Kept: []Kept{}}
	for _, a := range d.Approvals {
		a.State = a.state(now)
		out.Approvals = append(out.Approvals, a)
	}
	slices.SortFunc(out.Approvals, func(a, b Approval) int {
		waitsA, waitsB := a.State == Waiting, b.State == Waiting
		switch {
		case waitsA && !waitsB:
			return -1
		case waitsB && !waitsA:
			return 1
		case waitsA:
			return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.ID, b.ID))
		}
		return cmp.Or(b.Since.Compare(a.Since), strings.Compare(a.ID, b.ID))
	})
	for _, k := range d.Kept {
		out.Kept = append(out.Kept, k)
	}
	slices.SortFunc(out.Kept, func(a, b Kept) int { return cmp.Or(a.Until.Compare(b.Until), strings.Compare(a.Approval, b.Approval)) })
	return out, nil
}

// Errors of Decide.
var (
	ErrNoSuch  = errors.New("there is no such approval")
	ErrDecided = errors.New("it is decided already")
	ErrOver    = errors.New("the request does not wait any more")
	ErrNobody  = errors.New("the request is of no session, so nothing can be kept for its later ones")
	ErrFull    = errors.New("too many decisions are kept for later requests")
)

// Decide writes a decision down; the gate that holds the request reads it within a second. The approval that comes with ErrDecided and ErrOver says
// what became of it.
func Decide(ctx context.Context, docs Documents, id string, decision Decision, now func() time.Time) (Approval, error) {
	var a Approval
	err := update(ctx, docs, now, func(d *document) (bool, error) {
		var ok bool
		a, ok = d.Approvals[id]
		a.State = a.state(now())
		switch {
		case !ok:
			return false, ErrNoSuch
		case a.State != Waiting:
			return false, ErrOver
		case a.Decision != nil:
			return false, ErrDecided
		}
		return true, d.decide(&a, decision)
	})
	return a, err
}

// decide makes a decision part of an approval that waits.
func (d *document) decide(a *Approval, decision Decision) error {
	if !decision.Until.IsZero() {
		switch {
		case a.Session == "":
			return ErrNobody
		case len(d.Kept) >= maxKept:
			return ErrFull
		}
		d.Kept[keptKey(a.Session, a.Rule)] = Kept{Worker: a.Worker, Session: a.Session, Rule: a.Rule, Approval: a.ID, Decision: decision}
	}
	a.Decision = &decision
	d.Approvals[a.ID] = *a
	return nil
}

// Forget ends a decision that holds for later requests, by the approval in which it was made.
func Forget(ctx context.Context, docs Documents, id string, now func() time.Time) (Kept, error) {
	var kept Kept
	err := update(ctx, docs, now, func(d *document) (bool, error) {
		for key, k := range d.Kept {
			if k.Approval == id {
				kept = k
				delete(d.Kept, key)
				return true, nil
			}
		}
		return false, ErrNoSuch
	})
	return kept, err
}
