package worker

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"sync/atomic"
	"time"

	"wayleave/secret"
)

// Worker is one client of the gate that authenticates with a static token.
type Worker struct {
	// Name and Profile are names as in the configuration.
	Name, Profile string
	// TokenSHA256 is the hash of the worker's token. A plain hash is enough for what it protects: a random token of 128
	// bits or more cannot be guessed from it, and a shorter one should not be used.
	TokenSHA256 [sha256.Size]byte
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
// calling would then depend on their order, and the hash of an empty token.
func (r *Registry) Update(workers []Worker) error {
	seen := map[[sha256.Size]byte]string{sha256.Sum256(nil): "the empty token"}
	for _, w := range workers {
		if err := checkNames(w.Name, w.Profile); err != nil {
			return fmt.Errorf("worker %s: %w", w.Name, err)
		}
		if w.SessionTTL <= 0 {
			return fmt.Errorf("worker %s: sessions of %v are over before they start: give the profile a session_ttl", w.Name, w.SessionTTL)
		}
		if w.MaxSession < w.SessionTTL || w.MaxSession > LongestSession {
			return fmt.Errorf("worker %s: sessions cannot last %v with their renewals: give the profile a max_session from its session_ttl to %v", w.Name, w.MaxSession, LongestSession)
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
