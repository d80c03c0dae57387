package extproc

import (
	"net/http"
	"strings"
	"sync"
)

// Count is what one Envoy's requests by one revision came to. Handshakes that failed at the certificate are of no revision: they count
// as requests and errors of none.
type Count struct {
	Node, Revision string
	// Requests are those that the revision was asked about: let through, refused, or answered by the gate.
	Requests int
	// Errors are those let through that ended in an answer of 5xx, of the upstream's or in place of one, or in a part of an answer.
	Errors int
	// Refusals are those refused for a reason that a configuration can bring about.
	Refusals int
}

// maxCounts is for how many pairs of an Envoy and a revision there are counts between two calls of Counted. Of others nothing is known.
const maxCounts = 10_000

// notOfRevision are the reasons of refusals that say nothing of a revision, since they come about in every one alike, with why. Such a
// request counts as nothing. Any other reason may be of a configuration's making: a route that has gone, or has another grant, another
// header, another prefix; a rule that refuses or holds; a limit; a provider's address.
var notOfRevision = map[string]string{
	proxyAuthRequired:   "a challenge, which most clients want before they say who they are",
	sessionExpired:      "sessions end by the clock",
	sessionRevoked:      "an operator has ended it",
	approvalDenied:      "an operator has looked at it",
	approvalUnavailable: "what keeps approvals fails",
	vaultUnavailable:    "what keeps credentials fails",
	AuditUnavailable:    "what keeps the audit fails",
}

// counts are those since they were last taken.
type counts struct {
	mu sync.Mutex
	of map[countKey]*Count // guarded by mu
}

type countKey struct{ node, revision string }

func (c *counts) add(node, revision string, more Count) {
	key := countKey{node, revision}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.of[key]
	if n == nil {
		if len(c.of) >= maxCounts {
			return
		}
		if c.of == nil {
			c.of = map[countKey]*Count{}
		}
		n = &Count{Node: node, Revision: revision}
		c.of[key] = n
	}
	n.Requests += more.Requests
	n.Errors += more.Errors
	n.Refusals += more.Refusals
}

// decided counts a request about which was decided.
func (c *counts) decided(d *decision, r *request) {
	more := Count{Requests: 1}
	if d.refusal != nil {
		if notOfRevision[d.refusal.reason] != "" {
			return
		}
		more.Refusals = 1
	}
	c.add(r.node, d.by.revision, more)
}

// failed counts a request that was let through as an error: it ended in an answer of 5xx, of the upstream's or in place of one, or
// its answer broke off. A revision that is not live any more is not counted: another one must not be charged with what it did.
func (s *Server) failed(node, revision string, status uint64, details string) {
	p := s.live.Load().of[revision]
	if p == nil || strings.HasPrefix(details, detailsRefused) { // the gate refused its second attempt
		return
	}
	if status >= http.StatusInternalServerError || status != http.StatusSwitchingProtocols && strings.HasPrefix(details, detailsBrokeOff) {
		s.counts.add(node, p.revision, Count{Errors: 1})
	}
}

// Counted returns what was counted since the last call, in no order.
func (s *Server) Counted() []Count {
	s.counts.mu.Lock()
	taken := s.counts.of
	s.counts.of = nil
	s.counts.mu.Unlock()
	all := make([]Count, 0, len(taken))
	for _, n := range taken {
		all = append(all, *n)
	}
	return all
}
