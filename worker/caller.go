package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"wayleave/identity"
	"wayleave/secret"
)

// caller is who an enrolment request is from.
type caller struct {
	worker Worker
	// issuer and subject are who says so, and what they call the worker; empty for a token of the gate's.
	issuer, subject string
}

// stranger is why a request is from nobody we know.
type stranger struct {
	reason  string
	message string        // for whoever started the worker
	cause   error         // for the log
	subject string        // for the log; what was proved although it does not help
	after   time.Duration // when to try again; zero: it will not help
	guess   bool          // what was presented may have been made up
}

// identify says who a request is from: by a token of ours, by what the worker's platform says about it, or, without a token, by
// the certificate that Envoy has verified.
func (a *api) identify(ctx context.Context, r *http.Request) (caller, *stranger) {
	token, given := bearer(r)
	if header := r.Header.Values(identity.ForwardedCertificate); !given && len(header) > 0 {
		proof, refusal := identity.Certificate(strings.Join(header, ","), a.Now())
		if refusal != nil {
			return caller{}, &stranger{reason: string(refusal.Reason), message: refusal.Words}
		}
		return a.admit(proof)
	}
	if !given {
		return caller{}, &stranger{reason: "unknown_worker", guess: true,
			message: "a worker token is missing: send \"Authorization: Bearer <worker token>\", which may be one of the worker's platform"}
	}
	if worker, known := a.Workers.Lookup(token); known {
		return caller{worker: worker}, nil
	}
	return a.vouched(ctx, token)
}

// vouched says who a worker is by a token of its platform.
func (a *api) vouched(ctx context.Context, token secret.Text) (caller, *stranger) {
	proof, err := a.Issuers.Verify(ctx, token)
	if refusal, ok := errors.AsType[*identity.Refusal](err); ok {
		return caller{}, &stranger{reason: string(refusal.Reason), message: refusal.Words, cause: refusal.Cause, after: refusal.After, guess: refusal.Reason == identity.Invalid}
	}
	if err != nil {
		return caller{}, &stranger{reason: "unknown_worker", guess: true,
			message: "this gate knows no worker with this token: set WAYLEAVE_TOKEN to a token it issued, or ask its operator to add the worker"}
	}
	return a.admit(proof)
}

// admit finds the worker that a proof is about.
func (a *api) admit(p identity.Proof) (caller, *stranger) {
	worker, several := a.Workers.Admit(p)
	by := "a certificate"
	if p.Issuer != "" {
		by = "issuer " + p.Issuer
	}
	switch {
	case len(several) > 0:
		return caller{}, &stranger{reason: "identity_ambiguous", subject: p.Subject,
			message: fmt.Sprintf("%s says that this is %s, which fits the workers %s alike: ask the gate's operator to narrow one of them", by, quoted(p.Subject), strings.Join(several, " and "))}
	case worker.Name == "":
		return caller{}, &stranger{reason: "identity_not_admitted", subject: p.Subject,
			message: fmt.Sprintf("%s says that this is %s, and the gate has no worker of that kind: ask its operator to add one to workers", by, quoted(p.Subject))}
	}
	return caller{worker: worker, issuer: p.Issuer, subject: p.Subject}, nil
}

// quoted shows what somebody else wrote.
func quoted(s string) string { return fmt.Sprintf("%+q", oneLine(s)) }

// attributes are for the log.
func (s *stranger) attributes() []any {
	var out []any
	if s.cause != nil {
		out = append(out, "err", s.cause)
	}
	if s.subject != "" {
		out = append(out, "subject", s.subject)
	}
	return out
}
