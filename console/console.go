// Package console owns the operators' web pages and their HTTP API: who may come in and what each may do, what is shown, and how
// it stays up to date while it is looked at. What is done to a grant is package operate's; how a grant is kept, package grant's.
//
//	browser ── cookie ──┐            ┌─▶ pages (html/template, htmx)
//	                    ├─▶ guard ───┤                              ──▶ operate.Desk, worker, …
//	script ── Bearer ───┘   (roles)  └─▶ /api/v1 (endpoints.go; the OpenAPI document is made from the same table)
//
// It is served on a listener of its own, which workers cannot reach. No token of a grant is ever in an answer, and none in a
// request but that of an import.
package console

import (
	"context"
	"crypto/x509"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/logs"
	"wayleave/notify"
	"wayleave/operate"
	"wayleave/throttle"
	"wayleave/worker"
)

// Wrong log-ins that an address may send at once, and the time after which it may send one more.
const (
	triesAtOnce = 5
	tryAgain    = 10 * time.Second
)

// Config is what a console works with. It is not changed afterwards.
type Config struct {
	// Desk does what operators want done, with the rights of the gate, by the configuration of the moment.
	Desk func() operate.Desk
	// Source is the text of that configuration.
	Source func() []byte
	// Grants are as this gate knows them, without asking the store. Reread has one read again soon: somebody has changed it here.
	Grants interface {
		Summary(name string) grant.Summary
		Reread(name string)
	}
	// Needs are all that needs an operator now, which operators are told of too. It does not ask the store. The URL of each is the path of
	// its page, empty where there is none. Nil: nothing does.
	Needs func() []notify.Alert
	// Sessions are as this gate knows them, likewise. Reread has it learn what has just been ended here.
	Sessions interface {
		Counts(now time.Time) map[string]int
		Of(now time.Time, workers ...string) map[string][]worker.Live
		Lookup(id string) (worker.Record, bool)
		Changes() uint64
		Reread(ctx context.Context) error
	}
	// Fleet is what this gate knows of the fleet by itself, without asking the store. Nil: nothing.
	Fleet func() fleet.View
	// Decisions were made about requests by this gate. Nil: none.
	Decisions *Decisions
	// File is the path of the configuration.
	File string
	// URL is where operators reach the console: a scheme and a host.
	URL *url.URL
	// Alias reports whether a host that a request names is another name of ours, such as localhost. Nil: there is none.
	Alias func(host string) bool
	// TrustedProxies are believed about where requests come from (X-Forwarded-For).
	TrustedProxies []netip.Prefix
	// Local lets somebody in with a link that is good for one log-in, which NewLink is told whenever there is a new one. Only for
	// consoles on loopback. Nil: nobody.
	NewLink func(link string)
	// OIDC is the operators' identity provider, if its issuer is set.
	OIDC config.OIDC
	// OIDCRoots may sign for it. Nil: the system's.
	OIDCRoots *x509.CertPool
	// Idle and Life are how long a log-in lasts unused, and at most.
	Idle, Life time.Duration
	// SearchAudit looks through the audit of this machine's gates. Nil: there is none.
	SearchAudit func(ctx context.Context, f audit.Filter, limit int) (audit.Found, error)
	// Audit is told of everything that changes something, beside the log. May be nil.
	Audit func(Event)
	// Levels are how much the gate logs. Nil: that is not to be changed.
	Levels *logs.Levels
	// Version is the product's.
	Version string

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: none
}

// Event is one thing that an operator did or was refused.
type Event struct {
	At     time.Time
	Actor  string // who, as they log in
	Role   Role
	Via    string // how they came in: oidc, link or token
	From   string // the client's address
	Action string // such as grant.connect
	Target string // what it was done to
	Err    error  // why it failed; nil: it did not
}

// Server is the console.
type Server struct {
	Config
	logins    *logins
	tokens    *tokens
	flows     *flows
	hub       *hub
	oidc      *oidcLogin // nil: none
	limiter   *throttle.Limiter
	doors     doors
	handler   http.Handler
	templates map[string]*template.Template // by page
	began     time.Time

	asking singleflight.Group
	saying sync.Mutex             // held by whoever changes last
	last   atomic.Pointer[stored] // nil: the store was not asked yet
}

// New returns a Server. Its Run keeps pages that are being looked at up to date.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Decisions == nil {
		c.Decisions = NewDecisions(1)
	}
	if c.Needs == nil {
		c.Needs = func() []notify.Alert { return nil }
	}
	if c.Fleet == nil {
		c.Fleet = func() fleet.View { return fleet.View{} }
	}
	s := &Server{
		Config: c, logins: newLogins(c.Idle, c.Life, c.Now), flows: newFlows(c.Now), hub: newHub(), limiter: throttle.New(triesAtOnce, tryAgain),
		began: c.Now(),
	}
	s.tokens = &tokens{docs: c.Desk().Docs, now: c.Now, roleOf: s.roleOf}
	if c.OIDC.Issuer != "" {
		s.oidc = newOIDC(c)
	}
	var err error
	if s.handler, err = s.routes(); err != nil {
		return nil, err
	}
	if c.NewLink != nil {
		s.newLink()
	}
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Run keeps pages that are open up to date until ctx ends, and then ends what they wait for. It returns when no consent is under
// way any more, or after flowLast.
func (s *Server) Run(ctx context.Context) {
	defer s.flows.end()
	s.watch(ctx)
}

// roleOf is what somebody may who has not just come: as the configuration has it now.
func (s *Server) roleOf(id string, is []string) Role {
	switch {
	case id == byLink && s.NewLink != nil:
		return Admin
	case s.oidc != nil && strings.HasPrefix(id, s.oidc.id("")):
		return s.oidc.role(is)
	}
	return ""
}

// logEvent writes the log's line of what an operator did.
func (s *Server) logEvent(e Event) {
	attrs := []any{"actor", e.Actor, "role", string(e.Role), "via", e.Via, "from", e.From, "action", e.Action, "target", e.Target}
	if e.Err != nil {
		s.Log.Warn("an operator could not do something", append(attrs, "err", e.Err)...)
		return
	}
	s.Log.Info("an operator did something", attrs...)
}
