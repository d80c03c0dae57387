package extproc

import (
	"context"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"wayleave/approval"
)

// Headroom is what Envoy gives a request that was held beyond the time it may be held for: enough for its token, or for words.
const Headroom = 30 * time.Second

// awaitOperator makes a request wait for an operator, and decides about it again when one has allowed it: its session may be over by
// then, and the configuration another. The error is that the worker has gone.
func (s *Server) awaitOperator(ctx context.Context, send func(*extprocv3.ProcessingResponse) error, d decision, r *request, id string) (decision, error) {
	// Envoy takes this once for each message that it waits for an answer to.
	if err := send(&extprocv3.ProcessingResponse{OverrideMessageTimeout: durationpb.New(d.held.For + Headroom)}); err != nil {
		return d, err
	}
	path, _, _ := strings.Cut(r.path, "?")
	q := approval.Request{
		Worker: d.session.Worker, Profile: d.session.Profile, Session: d.session.ID, Source: r.source, Rule: d.rule, Words: d.held.Words,
		Method: shown(r.method), Host: d.host, Path: printable(path), Credential: d.credential, RequestID: id,
	}
	got := s.approvals.Hold(ctx, q, d.held.For)
	if ctx.Err() != nil {
		return d, status.FromContextError(ctx.Err()).Err()
	}
	f := &refusal{approval: got.ID, host: d.host, detail: d.held.Words}
	switch got.State {
	case approval.Allowed:
		r.approved = d.rule
		again := decide(s.live.Load().by(r.revision), s.sessions, r, s.now())
		if again.held == nil {
			return again, nil
		}
		f.reason, f.detail = approvalUnavailable, "the rules have changed while it waited, and rule "+again.rule+" holds it now"
	case approval.Denied:
		f.reason = approvalDenied
		if got.Decision.Note != "" {
			f.detail = printable(got.Decision.Note)
		}
	case approval.TimedOut:
		f.reason = approvalTimedOut
	case approval.Waiting, approval.Withdrawn, approval.Stopped, approval.Lost:
		fallthrough
	default:
		f.reason, f.cause = approvalUnavailable, got.Err
		f.detail = "the gate cannot say what became of it"
		if got.Err != nil {
			f.detail = got.Err.Error()
		}
	}
	d.refusal = f
	return d, nil
}

// printable makes all of a text fit for a message or a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}
