package grant

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"wayleave/oauth"
)

// Event is one line of a grant's history. It has no secrets.
type Event struct {
	ID         string        `json:"id"`
	At         time.Time     `json:"at"`
	What       What          `json:"what"`
	By         string        `json:"by,omitempty"`         // the replica; empty: an operator
	Generation int           `json:"generation"`           // of the tokens held after it
	Took       time.Duration `json:"took_ns,omitempty"`    // of the call
	ErrorKind  oauth.Kind    `json:"error_kind,omitempty"` // of what failed
	Error      string        `json:"error,omitempty"`
	Cause      string        `json:"cause,omitempty"`       // what Error says, without what failed; of a revocation
	Rejected   bool          `json:"rejected,omitempty"`    // the provider had rejected the token that this refresh replaced
	Lost       []string      `json:"scopes_lost,omitempty"` // scopes that this answer no longer grants
}

const notRevoked = "not revoked at the provider: "

// Why is the reason of what failed, without what failed. Revocations that were written down by earlier versions have no cause of their own.
func (e Event) Why() string { return cmp.Or(e.Cause, strings.TrimPrefix(e.Error, notRevoked)) }

// What happened to a grant.
type What string

// What can happen.
const (
	Connected   What = "connected"
	Refreshed   What = "refreshed"
	Failed      What = "failed"      // a refresh; it is tried again
	Ended       What = "ended"       // a refresh, for good: the grant must be connected again
	GivenUp     What = "given_up"    // the refresh token may be spent
	Revoked     What = "revoked"     // at the provider
	RevokeFails What = "revoke_fail" // the provider did not take the revocation
	Declined    What = "declined"    // a refresh that was asked for and cannot be
)

// happened is r with e as what happened to it last.
func (r record) happened(e Event) record {
	e.ID, e.At, e.Generation = r.Operation, wall(e.At), r.Generation
	r.Last = &e
	return r
}

const maxHistory = 30 // events that a status document keeps

// followed is a history with what happened later, unless it is in it. Each replica that writes the status document knows the
// last event; whoever comes first adds it.
func followed(history, later []Event) []Event {
	all := slices.Clone(history)
	for _, e := range later {
		if !slices.ContainsFunc(all, func(old Event) bool { return old.ID == e.ID }) {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int { return a.At.Compare(b.At) })
	return all[max(0, len(all)-maxHistory):]
}
