package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"time"

	"wayleave/vault"
)

// revokedPath is one small document, written by operators and read by every gate every two seconds.
const revokedPath = "sessions/revoked"

// LongestSession is the most that a profile may let a session last, however often it is renewed: what is known of sessions, and
// the keys they were made with, are kept for as long.
const LongestSession = 90 * 24 * time.Hour

const revokeTries = 20 // against other operators

// Revocation is what an operator ends. At least one of its parts must be there.
type Revocation struct {
	// Sessions by ID.
	Sessions []string
	// Workers, whose sessions that were issued before NotBefore end.
	Workers []string
	// All ends the sessions of every worker that were issued before NotBefore.
	All bool
	// NotBefore is in whole seconds.
	NotBefore time.Time
}

// revocations is the stored form.
type revocations struct {
	Sessions map[string]time.Time `json:"sessions,omitempty"` // id → when it can be forgotten
	Workers  map[string]time.Time `json:"workers,omitempty"`  // name → not before
	All      time.Time            `json:"all,omitzero"`       // not before
}

// covers reports whether the session is among those that were ended.
func (r *revocations) covers(id, worker string) bool {
	if r.All.IsZero() && len(r.Workers) == 0 && len(r.Sessions) == 0 { // as on most days
		return false
	}
	if _, ok := r.Sessions[id]; ok {
		return true
	}
	issued, _ := times(id)
	return issued < r.notBefore(worker)
}

// notBefore is the moment from which sessions of the worker are good, in seconds since 1970.
func (r *revocations) notBefore(worker string) int64 {
	moment := int64(0)
	if !r.All.IsZero() {
		moment = r.All.Unix()
	}
	if own, ok := r.Workers[worker]; ok {
		moment = max(moment, own.Unix())
	}
	return moment
}

// add makes r what it is with q. The moments of r stand where those of q are earlier.
func (r *revocations) add(q Revocation) {
	if r.Sessions == nil {
		r.Sessions = map[string]time.Time{}
	}
	if r.Workers == nil {
		r.Workers = map[string]time.Time{}
	}
	for _, id := range q.Sessions {
		issued, _ := times(id)
		r.Sessions[id] = time.Unix(issued, 0).UTC().Add(LongestSession)
	}
	moment := q.NotBefore.UTC().Truncate(time.Second)
	for _, name := range q.Workers {
		r.Workers[name] = later(r.Workers[name], moment)
	}
	if q.All {
		r.All = later(r.All, moment)
	}
}

// join adds what was known before: nobody takes a revocation back, but a store that is set back to a backup has fewer of them.
func (r *revocations) join(old *revocations) {
	if old == nil {
		return
	}
	for id, until := range old.Sessions {
		if r.Sessions == nil {
			r.Sessions = map[string]time.Time{}
		}
		r.Sessions[id] = later(r.Sessions[id], until)
	}
	for name, moment := range old.Workers {
		if r.Workers == nil {
			r.Workers = map[string]time.Time{}
		}
		r.Workers[name] = later(r.Workers[name], moment)
	}
	r.All = later(r.All, old.All)
}

// prune forgets what is said of sessions of which none is left.
func (r *revocations) prune(now time.Time) {
	maps.DeleteFunc(r.Sessions, func(_ string, until time.Time) bool { return now.After(until) })
	maps.DeleteFunc(r.Workers, func(_ string, moment time.Time) bool { return now.Sub(moment) > LongestSession })
	if now.Sub(r.All) > LongestSession { // or there is none
		r.All = time.Time{}
	}
}

// Revoke ends sessions before their time. Every gate knows of it within five seconds, as long as it reaches Vault; it is done
// with an operator's rights.
func Revoke(ctx context.Context, docs Documents, q Revocation, now time.Time) error {
	for try := 1; ; try++ {
		r, version, err := readRevocations(ctx, docs)
		if err != nil {
			return fmt.Errorf("revoking sessions: %w", err)
		}
		r.prune(now)
		r.add(q)
		switch _, err = docs.Put(ctx, revokedPath, vault.Packed{Value: r}, version); {
		case err == nil:
			return nil
		case !errors.Is(err, vault.ErrConflict) || try == revokeTries:
			return fmt.Errorf("revoking sessions: %w; revoke them again", err)
		}
		select {
		case <-time.After(mathrand.N(time.Duration(try) * conflictPause)):
		case <-ctx.Done():
			return fmt.Errorf("revoking sessions: %w", ctx.Err())
		}
	}
}

// readRevocations returns an empty document when there is none.
func readRevocations(ctx context.Context, docs Documents) (*revocations, int, error) {
	r := new(revocations)
	version, err := docs.Get(ctx, revokedPath, &vault.Packed{Value: r})
	if errors.Is(err, vault.ErrNotFound) {
		r, err = new(revocations), nil
	}
	return r, version, err
}
