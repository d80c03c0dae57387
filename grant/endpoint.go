package grant

import (
	"errors"
	"sync"
	"time"

	"wayleave/oauth"
)

const (
	maxCalls = 16          // at once to one provider, from one replica
	maxAhead = 4           // of these, for grants whose present token still serves
	tripsAt  = 3           // calls that fail in a row, of whatever grant, before the provider counts as down
	nextSlot = time.Second // until a grant that found no free call asks again; less for one that workers wait for
	soonSlot = 100 * time.Millisecond
)

// endpoint is what one replica knows of one provider's token endpoint: how many calls are under way, and whether it is
// down. The minders of its grants share it, so that a thousand grants that expire together, or a provider that fails, cost
// it no storm.
type endpoint struct {
	mu       sync.Mutex
	calls    int
	failures int           // in a row
	until    time.Duration // by the running clock: it is left alone
}

// enter reports whether a call may be made now; then leave must follow. If not, it says when to ask again. With urgent, no
// token serves while it waits.
func (e *endpoint) enter(now time.Duration, urgent bool, jitter float64) (ok bool, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if wait := e.until - now; wait > 0 {
		return false, wait
	}
	most, slot := maxAhead, nextSlot
	if urgent {
		most, slot = maxCalls, soonSlot
	}
	if e.failures >= tripsAt {
		most = 1 // finds out for the others
	}
	if e.calls >= most {
		return false, slot + time.Duration(jitter*float64(slot))
	}
	e.calls++
	return true, 0
}

// leave ends a call. err is what it came to; errUnused means that none was made.
func (e *endpoint) leave(now time.Duration, err error, jitter float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls--
	switch failure, ok := errors.AsType[*oauth.Error](err); {
	case errors.Is(err, errUnused):
	case ok && down[failure.Kind()]:
		e.failures++
		if n := e.failures - tripsAt + 1; n > 0 {
			e.until = now + min(max(backoff(n, jitter), failure.RetryAfter), maxBackoff)
		}
	default: // also a refusal is the answer of a provider that is up
		e.failures, e.until = 0, 0
	}
}

// down are the failures that say something about the provider and not about the grant.
var down = map[oauth.Kind]bool{
	oauth.KindRateLimited: true, oauth.KindProviderChanged: true, oauth.KindProviderFailed: true,
	oauth.KindUnreachable: true, oauth.KindNoAnswer: true,
}

var errUnused = errors.New("no call was made")
