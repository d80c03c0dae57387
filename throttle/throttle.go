// Package throttle owns one thing: slowing down whoever guesses secrets, by how often they were wrong. What a secret is, and what
// whoever has to wait is told, is left to the packages that check secrets.
package throttle

import (
	"sync"
	"time"
)

const maxSources = 4096 // remembered at a time

// Limiter counts failures only, by source, so that a right secret costs nothing; but a source that has used its failures up
// is to be refused before its secret is looked at, else guessing would go on. Those behind one address share its fate. It is
// safe for concurrent use.
type Limiter struct {
	burst  int
	refill time.Duration

	mu      sync.Mutex
	sources map[string]time.Time // guarded by mu; the instant at which all of the source's failures are forgiven
}

// New returns a Limiter that lets a source fail burst times at once, and once more after each refill.
func New(burst int, refill time.Duration) *Limiter {
	return &Limiter{burst: burst, refill: refill, sources: map[string]time.Time{}}
}

// Wait is how long source has to wait before it may try again; zero or less: not at all.
func (l *Limiter) Wait(source string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	forgiven, ok := l.sources[source]
	if !ok {
		return 0
	}
	return forgiven.Sub(now) - time.Duration(l.burst-1)*l.refill
}

// Failed counts one wrong secret against source.
func (l *Limiter) Failed(source string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sources) >= maxSources {
		l.forget(now)
	}
	from := l.sources[source]
	if from.Before(now) {
		from = now
	}
	l.sources[source] = from.Add(l.refill)
}

// forget drops the sources that have no failure left; when every one has some, it drops them all, because memory must
// be bounded and an attacker with thousands of addresses is not slowed down by this in any case.
func (l *Limiter) forget(now time.Time) {
	for source, forgiven := range l.sources {
		if !forgiven.After(now) {
			delete(l.sources, source)
		}
	}
	if len(l.sources) >= maxSources {
		clear(l.sources)
	}
}
