package worker

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"sync/atomic"
	"time"

	"wayleave/identity"
	"wayleave/secret"
)

// Worker is one client of the gate. It has a token of the gate's, or a Match.
type Worker struct {
	// Name and Profile are names as in the configuration.
	Name, Profile string
	// TokenSHA256 is the hash of the worker's token. A plain hash is enough for what it protects: a random token of 128
	// bits or more cannot be guessed from it, and a shorter one should not be used.
	TokenSHA256 [sha256.Size]byte
	// Match says by what its platform says about it that it is this worker.
	Match identity.Match
	// SessionTTL is how long the sessions of this worker last; it must be positive.
	SessionTTL time.Duration
	// MaxSession is how long one may last with its renewals; it must not be less than SessionTTL, and at most LongestSession.
	MaxSession time.Duration
}

// Registry knows the workers of the configuration by the hash of their token. It is safe for concurrent use.
type Registry struct {
	workers atomic.Pointer[[]Worker]
}

// NewRegistry returns a Registry of these workers.
func NewRegistry(workers []Worker) (*Registry, error) {
	r := new(Registry)
	return r, r.Update(workers)
}

// Update replaces the workers; on an error it keeps those it had. It refuses two workers with one token, since who is
// calling would then depend on their order, the hash of an empty token, and two workers that one caller may be.
func (r *Registry) Update(workers []Worker) error {
	seen := map[[sha256.Size]byte]string{sha256.Sum256(nil): "the empty token"}
	for i, w := range workers {
		if err := checkNames(w.Name, w.Profile); err != nil {
			return fmt.Errorf("worker %s: %w", w.Name, err)
		}
		if w.SessionTTL <= 0 {
			return fmt.Errorf("worker %s: sessions of %v are over before they start: give the profile a session_ttl", w.Name, w.SessionTTL)
		}
		if w.MaxSession < w.SessionTTL || w.MaxSession > LongestSession {
			return fmt.Errorf("worker %s: sessions cannot last %v with their renewals: give the profile a max_session from its session_ttl to %v", w.Name, w.MaxSession, LongestSession)
		}
		if (w.TokenSHA256 == [sha256.Size]byte{}) == w.Match.IsZero() {
			return fmt.Errorf("worker %s has not one way to prove who it is: give it a token, or say by which issuer it is known", w.Name)
		}
		for _, o := range workers[:i] {
			if !w.Match.IsZero() && !o.Match.IsZero() && w.Match.Ambiguous(o.Match) {
				return fmt.Errorf("worker %s may be worker %s too, by what their issuer says: narrow one of them", w.Name, o.Name)
			}
		}
		if !w.Match.IsZero() {
			continue
		}
		if other, dup := seen[w.TokenSHA256]; dup {
			return fmt.Errorf("worker %s has the same token as %s: give it one of its own", w.Name, other)
		}
		seen[w.TokenSHA256] = w.Name
	}
	workers = append([]Worker(nil), workers...)
	r.workers.Store(&workers)
	return nil
}

// Named returns the worker called name.
func (r *Registry) Named(name string) (Worker, bool) {
	for _, w := range *r.workers.Load() {
		if w.Name == name {
			return w, true
		}
	}
	return Worker{}, false
}

// Lookup returns the worker whose token this is. It compares with every worker, whichever matches, so that timing tells
// nothing about which tokens exist.
func (r *Registry) Lookup(token secret.Text) (Worker, bool) {
	sum := sha256.Sum256([]byte(token.Reveal()))
	var found Worker
	ok := false
	for _, w := range *r.workers.Load() {
		if subtle.ConstantTimeCompare(sum[:], w.TokenSHA256[:]) == 1 {
			found, ok = w, true
		}
	}
	return found, ok
}

// Admit returns the worker that a proof is about; none has no name, and where several are meant alike it returns their names.
func (r *Registry) Admit(p identity.Proof) (found Worker, several []string) {
	workers := *r.workers.Load()
	matches := make([]identity.Match, len(workers))
	for i, w := range workers {
		matches[i] = w.Match
	}
	chosen, alike := identity.Choose(p, matches)
	if chosen >= 0 {
		return workers[chosen], nil
	}
	for _, i := range alike {
		several = append(several, workers[i].Name)
	}
	return Worker{}, several
}
