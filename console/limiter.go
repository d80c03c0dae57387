package console

import (
	"sync"
	"time"
)

const (
	triesAtOnce = 5                // wrong log-ins an address may send at once
	tryAgain    = 10 * time.Second // time after which it may send one more
	maxSources  = 4096             // remembered at a time
)

// limiter slows the guessing of links and tokens down. It counts failures only, by address.
type limiter struct {
	mu      sync.Mutex
	sources map[string]time.Time // guarded by mu; when all failures of the address are forgiven
}

func newLimiter() *limiter { return &limiter{sources: map[string]time.Time{}} }

// wait is how long an address has to wait before it may try again; zero or less: not at all.
func (l *limiter) wait(source string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	forgiven, ok := l.sources[source]
	if !ok {
		return 0
	}
	return forgiven.Sub(now) - (triesAtOnce-1)*tryAgain
}

// failed counts one failure. When there are too many addresses all are forgiven: memory must be bounded, and who has thousands of
// addresses is not slowed down in any case.
func (l *limiter) failed(source string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sources) >= maxSources {
		clear(l.sources)
	}
	from := l.sources[source]
	if from.Before(now) {
		from = now
	}
	l.sources[source] = from.Add(tryAgain)
}
