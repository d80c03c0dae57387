package worker

import (
	"sync"
	"time"
)

const (
	burst      = 10              // wrong tokens a source may send at once
	refill     = 2 * time.Second // time after which it may send one more
	maxSources = 4096            // remembered at a time
)

// limiter slows the guessing of worker tokens down. It counts failures only, by source, so a right token costs nothing;
// but a source that has used its failures up is refused before its token is looked at, else guessing would go on.
// Workers behind one address share its fate.
type limiter struct {
	mu      sync.Mutex
	sources map[string]time.Time // guarded by mu; the instant at which all of the source's failures are forgiven
}

func newLimiter() *limiter { return &limiter{sources: map[string]time.Time{}} }

// wait is how long source has to wait before it may try again; zero or less: not at all.
func (l *limiter) wait(source string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	forgiven, ok := l.sources[source]
	if !ok {
		return 0
	}
	return forgiven.Sub(now) - (burst-1)*refill
}

// failed counts one wrong token against source.
func (l *limiter) failed(source string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sources) >= maxSources {
		l.forget(now)
	}
	l.sources[source] = later(l.sources[source], now).Add(refill)
}

// forget drops the sources that have no failure left; when every one has some, it drops them all, because memory must
// be bounded and an attacker with thousands of addresses is not slowed down by this in any case.
func (l *limiter) forget(now time.Time) {
	for source, forgiven := range l.sources {
		if !forgiven.After(now) {
			delete(l.sources, source)
		}
	}
	if len(l.sources) >= maxSources {
		clear(l.sources)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
