package extproc

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"wayleave/grant"
)

// Decided is what became of one request, or of one connection that was refused, for whoever watches. It has nothing of what the
// request carried.
type Decided struct {
	At            time.Time
	Swapped       bool   // a placeholder was replaced
	Answered      bool   // the gate answered in the provider's place
	Reason        string // of a refusal; empty: it was let through
	Cause         string // of a placeholder that was not the one that was due: how it differed, a worker.Mismatch
	PlaceholderOf string // of such a one: the session that it is of, if that is known
	Worker        string
	Session       string
	Source        string // the worker's address
	Host          string
	Method        string
	Path          string // without its query
	Route         string
	Grant         string
	Token         string // version of the token that was sent; it tells it from others and is no secret
	Fingerprint   string // of the same token, by which one that somebody holds is found
	Rule          string // of the policy, that decided; empty: none did
	RequestID     string
	Revision      string        // of the configuration that decided, as it is shown
	Leased        bool          // Envoy gave the answer that was leased to the connection; what is told then is told when the request has ended
	Trace         string        // id of its trace; empty: it is not traced
	Took          time.Duration // from Envoy's question on, but while an operator was asked
}

// tell tells who watches of a decision, and counts it. When it cannot be told of, nothing is let out: d is refused then. What
// Envoy is to keep of it is returned.
func (s *Server) tell(ctx context.Context, d *decision, r *request, token grant.Token, id string) fields {
	now := s.now()
	x := Decided{
		At: now, Took: now.Sub(r.came), Worker: d.session.Worker, Session: d.session.ID, Source: r.source, Host: d.host, Method: shown(r.method), Path: pathShown(r),
		RequestID: id, Revision: shortRevision(d.by.revision), Rule: d.rule,
	}
	if d.route != nil {
		x.Route, x.Grant = d.route.Name, d.route.Credential
	}
	if d.refusal != nil {
		x.Reason, x.Cause, x.PlaceholderOf = d.refusal.reason, string(d.refusal.mismatch), d.refusal.owner
	} else {
		x.Swapped, x.Answered = d.swap != nil, d.answer != nil
	}
	if x.Swapped {
		x.Token, x.Fingerprint = token.Version, token.Fingerprint
	}
	span := trace.SpanFromContext(ctx)
	if span.IsRecording() {
		x.Trace = span.SpanContext().TraceID().String()
	}
	if s.decided != nil {
		if err := s.decided(x); err != nil && d.refusal == nil {
			d.refusal, d.swap, d.answer = &refusal{reason: AuditUnavailable, cause: err}, nil, nil
			x.Reason, x.Swapped, x.Answered, x.Token, x.Fingerprint = AuditUnavailable, false, false, "", ""
		}
	}
	note(span, x)
	s.counts.decided(d, r)
	return s.kept(d, x)
}

// pathShown is the path without its query, fit for an account of it; none when there is a placeholder in it.
func pathShown(r *request) string {
	path, _, _ := strings.Cut(r.path, "?")
	if r.method == http.MethodConnect || holdsMarker(path) {
		return ""
	}
	return shown(path)
}
