// Package extproc owns the decision about each connection and each request, as the two gRPC services Envoy asks: the
// check at the proxy (ext_authz) and the swap of a placeholder for the real credential (ext_proc). It knows no OAuth and no
// store: whose session a token proves is asked of package worker, the real token of package grant. Which requests get
// here, and what happens when none of this answers, is configured by package xds.
//
//	CONNECT ──▶ Check ──▶ 407 | 403 | identity for the connection
//	request ──▶ Process ──▶ decide ──▶ refuse | pass | swap ──▶ Tokens ──▶ header mutation
//
// decide is pure and total: the same policy, request and time always give the same decision. Failing closed is left
// to nobody else: what is not understood is refused.
package extproc

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"wayleave/approval"
	"wayleave/grant"
	"wayleave/limit"
	rules "wayleave/policy"
	"wayleave/secret"
	"wayleave/worker"
)

// Config is what may be reached, by whom, and with which credential. It is expected to have been checked: names are
// names, patterns are patterns.
//
// A host pattern is a lower-case DNS name, or "*.suffix" for every name below suffix, with ":port" unless the port is
// 443. Where several match, the most specific decides: an exact name before a wildcard, a longer wildcard before a
// shorter one; for the same pattern, Quarantined before Deny before Plain before Tunnel before Routes.
type Config struct {
	// Routes are the hosts whose TLS ends at the gate.
	Routes []Route
	// Tunnel are hosts whose bytes pass untouched, for every worker.
	Tunnel []string
	// Plain are hosts that are forwarded to without TLS and without a credential, for every worker.
	Plain []string
	// Deny are hosts that are refused.
	Deny []string
	// Quarantined are hosts that are refused because what is configured for them has a fault.
	Quarantined []string
	// Refused are endpoints that give out tokens, as "host" or "host/path prefix". No request to them is forwarded. Inside
	// a tunnel paths cannot be seen: see NoTunnels.
	Refused []string
	// Replayable is how many bytes of a request's body Envoy keeps, to send it again when the provider rejects the token.
	Replayable uint64
	// Profiles by name say what a session may use. A session of a profile that is not here may use nothing.
	Profiles map[string]Profile
	// Workers by name have the profile of the value. A session of a worker that is not here, or has another profile
	// now, is over: that is how a worker is shut out at once. Nil: sessions are believed.
	Workers map[string]string
	// Limits are what may be sent with each credential, by the name of the grant.
	Limits map[string]limit.Limit
	// Addresses are where workers are known by their address alone, by name. No two overlap.
	Addresses map[string][]netip.Prefix
}

// Profile is what the sessions of one profile may use.
type Profile struct {
	// Grants by name, whose credentials they may have.
	Grants []string
	// Answers are requests of theirs that the gate answers by itself; of several for one request the first counts.
	Answers []Answer
	// Rules decide about the requests that everything else lets out; the first whose condition holds.
	Rules []rules.Rule
	// Default is for requests for which none does: rules.Deny, or rules.Allow (also when empty).
	Default rules.Action
	// Limit is what each of its workers may send.
	Limit limit.Limit
	// DryRun only logs which requests Rules, Default and Limit would have refused.
	DryRun bool
}

// Route is a set of hosts whose requests get one credential.
type Route struct {
	// Name is for logs and messages.
	Name string
	// Hosts are patterns.
	Hosts []string
	// Credential is the name of the grant. A profile must have it to reach the hosts at all.
	Credential string
	// Imported says that an operator imports the credential's value and does not connect it.
	Imported bool
	// HeaderIn is the header, in lower case, in which workers send the placeholder. Empty: authorization, with Bearer unless SchemeIn says otherwise.
	HeaderIn string
	// ParameterIn is a query parameter in which workers may send it instead. The token is sent in HeaderOut all the same, and
	// the parameter taken away: addresses end up in logs. Empty: none.
	ParameterIn string
	// AlsoIn is another header in which workers may send it instead, with the usual word before it. Where HeaderOut is HeaderIn, the token then
	// leaves in this one. Empty: none.
	AlsoIn string
	// SchemeIn is the word before it; empty: none. In authorization, Bearer, token and Basic (as user or as password) are understood
	// whatever is set here.
	SchemeIn string
	// HeaderOut is the header in which the real token is sent. Empty: HeaderIn, with SchemeIn unless SchemeOut says otherwise.
	HeaderOut string
	// SchemeOut is the word before it; empty: none. With HeaderOut and SchemeOut as HeaderIn and SchemeIn, the token goes out in the
	// form the placeholder came in.
	SchemeOut string
	// BasicUser is the user name that goes with a token sent as Basic. Empty: the one the worker sent.
	BasicUser string
	// PlaceholderPrefix is what the placeholders of this credential start with.
	PlaceholderPrefix string
	// Lane is how Envoy knows this route where it sets the credential by itself, for what is leased to it. Empty: nothing is.
	Lane string
	// MaskBody takes the real token out of the bodies of answers too. Envoy must be told to send them (package xds).
	MaskBody bool
	// EnsureHeaders are values that must be in these list headers (RFC 9110 section 5.3) of a request that gets the real
	// token. They are added to what the worker sent, once.
	EnsureHeaders map[string]string
	// RewriteHeaders are headers, in lower case, that get a fact of the grant (the value) when the request gets the real token, and are left
	// out while that is not known.
	RewriteHeaders map[string]string
	// EnsurePaths are the path prefixes EnsureHeaders are for. Empty: every path.
	EnsurePaths []string
	// Scopes the grant must hold.
	Scopes []string
	// Methods that are let through. Empty: all. TRACE and CONNECT never are.
	Methods []string
	// Rules for some of the paths; the first that matches decides.
	Rules []Rule
	// Foreign is what happens to a credential that is not a placeholder: Pass (also when empty), Refuse, or Replace: the real
	// token is sent in its place.
	Foreign string
	// Absent is what happens to a request without a credential: Pass (also when empty) or Refuse.
	Absent string
	// ErrorFormat is the shape of a refusal: anthropic, openai, github, or generic (also when empty).
	ErrorFormat string
	// Status replaces the HTTP status of a refusal, by reason.
	Status map[string]int

	ensured []string // the names of EnsureHeaders in a fixed order
	other   *Route   // this one for requests with their credential in AlsoIn; nil: without
}

// Values of Route.Foreign and Route.Absent.
const (
	Pass    = "pass"
	Refuse  = "refuse"
	Replace = "replace"
)

// Rule is what is different for some of a route's paths. It has either PathPrefix or PathExact, compared with the path
// without its query.
type Rule struct {
	PathPrefix, PathExact string
	// Methods the rule is for; with another method the next rule is looked at. Empty: all.
	Methods []string
	// Scopes the grant must hold, in addition to the route's.
	Scopes []string
	// Deny refuses the request; the text is shown to the worker. Empty: not refused.
	Deny string
}

// Sessions says whose a session or a placeholder is, and whether that is over: a *worker.Sessions.
type Sessions interface {
	// Verify returns the session called id that token proves, which may be over.
	Verify(id string, token secret.Text) (worker.Session, error)
	// Check says whether a session may be served at now: the error is worker.ErrExpired or worker.ErrRevoked.
	Check(s worker.Session, now time.Time) error
	// Ends is when a session ends, with its renewals.
	Ends(s worker.Session) time.Time
	// Recognize says whose placeholder value is, and why it is not the session's for the credential, byte for byte, if it is not.
	// A session without ID stands for any of its worker's.
	Recognize(value string, s worker.Session, credential, prefix string) (owner worker.Session, why worker.Mismatch)
	// Damaged reports whether value is a placeholder but for what marks it as one.
	Damaged(value string) bool
	// Placeholder is the session's placeholder for the credential.
	Placeholder(s worker.Session, credential, prefix string) string
}

// Tokens gives out real tokens, of a grant and for a worker: a *grant.Exchanger. An error is a *grant.Unusable.
type Tokens interface {
	Token(ctx context.Context, name, worker string, required []string) (grant.Token, error)
	// Replace is Token after the provider has rejected the token of the version rejected. It returns that one again when
	// there is none better.
	Replace(ctx context.Context, name, worker, rejected string, required []string) (grant.Token, error)
	// Reject says the same and does not wait.
	Reject(name, worker, version string)
}

// Approvals hold a request until an operator decides about it: an *approval.Board.
type Approvals interface {
	Hold(ctx context.Context, r approval.Request, patience time.Duration) approval.Result
}

// Options are optional.
type Options struct {
	// Deadline is how long a request may wait for its token. It must be shorter than Envoy's message_timeout, so that a
	// worker sees our reason and not Envoy's timeout. Zero: 30 seconds.
	Deadline time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Approvals are where requests wait for an operator. Nil: those that would are refused.
	Approvals Approvals
	// Decided is told of every decision before Envoy is; it must not block. With an error what was to be let out, or answered, is
	// refused. Nil: nobody is told.
	Decided func(Decided) error
	// Ended is told by Envoy's access log how what was decided came to its end; it must not block. Nil: nobody is told, and Envoy tells of
	// failures alone.
	Ended func(Ended)
	// Gate is this gate's name among those that an Envoy asks. Envoy tells ends to the gate that decided. Empty: it is alone.
	Gate string
	// Shown says that Envoy writes the route, the grant and the revision of a request to a log of its own.
	Shown bool
	// Leases is how long Envoy may give the answer about a request to others of the same connection, for which it would be the same. Zero:
	// it asks about each.
	Leases time.Duration
	// OpenFor is after how long Envoy tells of a request that it let out by a lease and that has not ended, and again each time.
	OpenFor time.Duration
	// Settled reports whether Envoys have the version of a grant's token that they are to send by themselves. Nil: always.
	Settled func(grant, version string) bool
	// Recording is told what was decided of which facts.
	Recording Recording
	// Tracer is for a span of each decision that Envoy traces. Nil: there are none.
	Tracer trace.Tracer
	// Log gets one line per refusal, never a header's value. Nil: none.
	Log *slog.Logger
}

// Server is the services. It is safe for concurrent use.
type Server struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	authv3.UnimplementedAuthorizationServer
	extprocv3.UnimplementedExternalProcessorServer

	live      atomic.Pointer[policies]
	sessions  Sessions
	tokens    Tokens
	deadline  time.Duration
	now       func() time.Time
	approvals Approvals
	decided   func(Decided) error
	ended     func(Ended)
	gate      string
	shown     bool
	leases    time.Duration
	openFor   time.Duration
	settled   func(grant, version string) bool
	records   Recording
	tracer    trace.Tracer
	log       *slog.Logger
	bodies    sync.Once    // warns of them
	meters    limit.Meters // of all revisions: no worker is allowed more by asking two
	counts    counts
	leaving   chan struct{} // closed by leave
	leave     func()
}

// New returns a Server that decides by cfg, whatever revision an Envoy says.
func New(cfg Config, sessions Sessions, tokens Tokens, o Options) *Server {
	s := &Server{sessions: sessions, tokens: tokens, deadline: o.Deadline, now: o.Now, approvals: o.Approvals, decided: o.Decided, ended: o.Ended, gate: o.Gate, shown: o.Shown, leases: o.Leases, openFor: o.OpenFor, settled: o.Settled, records: o.Recording, tracer: o.Tracer, log: o.Log, leaving: make(chan struct{})}
	s.leave = sync.OnceFunc(func() { close(s.leaving) })
	if s.deadline == 0 {
		s.deadline = 30 * time.Second
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.Update("", map[string]Config{"": cfg})
	return s
}

// Register registers the services.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	authv3.RegisterAuthorizationServer(r, s)
	extprocv3.RegisterExternalProcessorServer(r, s)
	accesslogv3.RegisterAccessLogServiceServer(r, s)
}
