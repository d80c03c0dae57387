package console

import (
	"fmt"
	"net/http"
	"os"
	"strconv"

	"wayleave/api"
	"wayleave/approval"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/rollout"
)

// endpoints is the whole API.
func (s *Server) endpoints() []endpoint {
	return []endpoint{
		{"GET", "/me", Viewer, "Who you are, and what you may do", "", nil, Me{}, nil, s.me},
		{"GET", "/grants", Viewer, "Every grant, configured or stored", "", nil, api.Grants{}, nil, s.listGrants},
		{"GET", "/grants/{grant}", Viewer, "One grant, its history and who uses it", "", nil, api.GrantDetail{}, nil, s.showGrant},
		{"POST", "/grants/{grant}/connect", Operator, "Begin to connect a grant; look at the connect until it is connected or failed", "grant.connect.begin", api.ConnectRequest{}, api.Flow{}, nil, s.connect},
		{"GET", "/connects/{id}", Operator, "How far a connect of yours is", "", nil, api.Flow{}, nil, s.showConnect},
		{"POST", "/connects/{id}/answer", Operator, "Paste the answer of the consent page: its code, or the address the browser ended up at", "", api.AnswerRequest{}, api.Flow{}, nil, s.answerConnect},
		{"DELETE", "/connects/{id}", Operator, "Give up a connect of yours that nobody has agreed to yet", "", nil, api.Flow{}, nil, s.endConnect},
		{"POST", "/grants/{grant}/refresh", Operator, "Have a gate refresh a grant now, and wait for what comes of it", "grant.refresh", api.RefreshRequest{}, api.GrantDetail{}, nil, s.refresh},
		{"POST", "/grants/{grant}/disconnect", Operator, "Have a gate revoke a grant's tokens at the provider, and forget them in any case", "grant.disconnect", api.DisconnectRequest{}, api.Disconnected{}, nil, s.disconnect},
		{"POST", "/grants/{grant}/import", Operator, "Store a key, a password or tokens that were given out elsewhere; they are never shown again", "grant.import", api.ImportRequest{}, operate.Imported{}, nil, s.importGrant},
		{"GET", "/routes", Viewer, "Which hosts get which grant's credential", "", nil, Routes{}, nil, s.listRoutes},
		{"GET", "/workers", Viewer, "The workers of the configuration and their live sessions", "", nil, Workers{}, nil, s.listWorkers},
		{"POST", "/workers/{worker}/revoke", Operator, "End all sessions that a worker has now", "session.revoke", nil, Revoked{}, nil, s.revokeWorker},
		{"GET", "/sessions", Viewer, "Every session that lives, those that end first in front", "", nil, api.Sessions{}, nil, s.listSessions},
		{"POST", "/sessions/revoke", Operator, "End sessions: some, all of workers, or all", "session.revoke", operate.SessionsToEnd{}, operate.SessionsEnded{}, nil, s.revokeSessions},
		{"POST", "/sessions/{id}/revoke", Operator, "End one session", "session.revoke", nil, Revoked{}, nil, s.revokeSession},
		{"GET", "/approvals", Viewer, "The requests that wait for an operator, and what became of those of the last hour", "", nil, api.Approvals{}, nil, s.listApprovals},
		{"GET", "/approvals/{id}", Viewer, "One request that waits, or waited in the last hour", "", nil, approval.Approval{}, nil, s.showApproval},
		{"POST", "/approvals/{id}/decide", Operator, "Allow or deny a request that waits, and wait until a gate has acted on it", "approval.decide", api.DecisionRequest{}, approval.Approval{}, nil, s.decideApproval},
		{"POST", "/approvals/{id}/forget", Operator, "Take back a decision that holds for later requests", "approval.forget", nil, approval.Kept{}, nil, s.forgetApproval},
		{"GET", "/decisions", Viewer, "What became of the latest requests at this gate, the newest first", "", nil, DecisionList{}, []parameter{
			{"worker", "only this worker's"}, {"grant", "only for this grant"}, {"host", "only where the host has this in it"}, {"reason", "only refusals for this reason"},
			{"outcome", "swapped, passed or refused"}, {"limit", "how many at most; 200 if not said"},
		}, s.listDecisions},
		{"GET", "/audit", Operator, "What was done through the gates of this machine, and by operators, the newest first", "", nil, AuditList{}, auditParameters, s.listAudit},
		{"GET", "/fleet", Viewer, "The gates there are and the Envoys that are connected to them", "", nil, api.Fleet{}, nil, s.listFleet},
		{"GET", "/fleet/{envoy}", Viewer, "One Envoy, with what it has of each kind of resource", "", nil, operate.EnvoyStatus{}, nil, s.showEnvoy},
		{"POST", "/fleet/{envoy}/drain", Operator, "Have an Envoy close its listeners, so that workers go elsewhere", "fleet.drain", api.DrainRequest{}, api.Drained{}, nil, s.drainEnvoy},
		{"POST", "/fleet/{envoy}/undrain", Operator, "Have it open them again", "fleet.undrain", nil, api.Drained{}, nil, s.undrainEnvoy},
		{"GET", "/rollout", Viewer, "How far the rollout is, and which were before", "", nil, api.Rollouts{}, nil, s.showRollout},
		{"POST", "/rollout", Admin, "Begin to roll a configuration out", "rollout.start", api.StartRequest{}, operate.Started{}, nil, s.startRollout},
		{"POST", "/rollout/pause", Operator, "Keep the rollout at its step; it still goes back by itself", "rollout.pause", api.LeadRequest{}, api.Rollouts{}, nil, s.lead(operate.Desk.PauseRollout)},
		{"POST", "/rollout/resume", Operator, "Let a paused rollout go on", "rollout.resume", api.LeadRequest{}, api.Rollouts{}, nil, s.lead(operate.Desk.ResumeRollout)},
		{"POST", "/rollout/promote", Admin, "End the rollout with every Envoy on the new revision, whatever is left of it", "rollout.promote", api.LeadRequest{}, api.Rollouts{}, nil, s.lead(operate.Desk.PromoteRollout)},
		{"POST", "/rollout/abort", Operator, "End the rollout with every Envoy on the old revision", "rollout.abort", api.LeadRequest{}, api.Rollouts{}, nil, s.lead(operate.Desk.AbortRollout)},
		{"GET", "/revisions", Viewer, "The configurations that are kept, the latest first, without their texts", "", nil, api.Revisions{}, nil, s.listRevisions},
		{"GET", "/revisions/{id}", Operator, "One of them, by the first digits of its id, or as stable", "", nil, fleet.Revision{}, nil, s.showRevision},
		{"GET", "/configuration", Operator, "The configuration that runs, and how the file differs from it now", "", nil, Configuration{}, nil, s.configuration},
		{"GET", "/log", Viewer, "How much each part of the gate that answers logs", "", nil, api.LogLevels{}, nil, s.showLog},
		{"PUT", "/log", Operator, "Have parts of the gate that answers log more or less for a while, or as its file says", "log.level", api.LogRequest{}, api.LogLevels{}, nil, s.setLog},
		{"GET", "/tokens", Viewer, "Your API tokens, without themselves; for an admin everybody's", "", nil, TokenList{}, nil, s.listTokens},
		{"POST", "/tokens", Viewer, "Make an API token of yours, which is shown this once and never may more than you", "token.create", TokenRequest{}, NewToken{}, nil, s.createToken},
		{"DELETE", "/tokens/{token}", Viewer, "End an API token of yours; for an admin of anybody", "token.end", nil, TokenList{}, nil, s.endToken},
	}
}

// Me is who asks.
type Me struct {
	Name string `json:"name"`
	Role Role   `json:"role"`
	Via  string `json:"via"`
}

func (s *Server) me(c *call) (any, error) { return Me{c.who.Name, c.who.Role, c.who.Via}, nil }

// Route is one of the configuration.
type Route struct {
	Name    string   `json:"name"`
	Hosts   []string `json:"hosts"`
	Grant   string   `json:"grant"`
	State   string   `json:"grant_state"`
	Scopes  []string `json:"required_scopes"`
	Rules   []Rule   `json:"rules"`
	Workers []string `json:"workers"`
}

// Rule is what is different for some paths of a route.
type Rule struct {
	Paths   string   `json:"paths"`
	Methods []string `json:"methods"`
	Scopes  []string `json:"required_scopes"`
	Deny    string   `json:"deny,omitempty"`
}

// Routes is where requests may go.
type Routes struct {
	Routes []Route  `json:"routes"`
	Tunnel []string `json:"tunnel"` // let through untouched
	Plain  []string `json:"plain"`  // forwarded without TLS
	Deny   []string `json:"deny"`   // refused
}

func (s *Server) listRoutes(*call) (any, error) {
	return s.routesOf(func(all []config.Route) []config.Route { return all }), nil
}

// routesOf are those that chosen makes of all.
func (s *Server) routesOf(chosen func(all []config.Route) []config.Route) Routes {
	cfg := s.Desk().Config
	list := func(l []string) []string { return append([]string{}, l...) }
	out := Routes{Routes: []Route{}, Tunnel: list(cfg.Tunnel), Plain: list(cfg.Plain), Deny: list(cfg.Deny)}
	for _, r := range chosen(cfg.Routes) {
		x := Route{
			Name: r.Name, Hosts: r.Hosts, Grant: r.Grant, State: string(s.Grants.Summary(r.Grant).State), Scopes: list(r.RequiredScopes), Rules: []Rule{}, Workers: s.workersOf(r.Grant),
		}
		for _, p := range r.Paths {
			paths := p.Exact
			if p.Prefix != "" {
				paths = p.Prefix + "…"
			}
			x.Rules = append(x.Rules, Rule{Paths: paths, Methods: list(p.Methods), Scopes: list(p.RequiredScopes), Deny: p.Deny})
		}
		out.Routes = append(out.Routes, x)
	}
	return out
}

func (s *Server) listDecisions(c *call) (any, error) {
	q := c.URL.Query()
	limit := 200
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%w: limit is not a number above zero", errBadRequest)
		}
		limit = n
	}
	return DecisionList{s.Decisions.Last(filterOf(q.Get), limit)}, nil
}

// filterOf reads a filter from a query.
func filterOf(get func(string) string) Filter {
	return Filter{Worker: get("worker"), Grant: get("grant"), Host: get("host"), Reason: get("reason"), Outcome: get("outcome")}
}

// DecisionList is the latest decisions.
type DecisionList struct {
	Decisions []Decision `json:"decisions"`
}

// Configuration is what runs, and what would run after a restart.
type Configuration struct {
	File     string `json:"file"`
	Revision string `json:"revision"` // of what runs
	Text     string `json:"text"`     // the file as it was when the gate started
	OnDisk   string `json:"on_disk"`  // revision of the file as it is now; empty: it has a fault
	Fault    string `json:"fault,omitempty"`
	Diff     string `json:"diff,omitempty"` // from what runs to the file as it is now
	// Changes are the same in an operator's terms; none when both mean the same.
	Changes []config.Change `json:"changes,omitempty"`
}

func (s *Server) configuration(*call) (any, error) { return s.configurationNow(), nil }

func (s *Server) configurationNow() Configuration {
	source := string(s.Source())
	c := Configuration{File: s.File, Revision: short(s.Desk().Config.Hash()), Text: source}
	now, err := os.ReadFile(s.File)
	if err != nil {
		c.Fault = err.Error()
		return c
	}
	parsed, err := config.Parse(s.File, now)
	if err != nil {
		c.Fault = err.Error()
	} else {
		c.OnDisk = short(parsed.Hash())
		c.Changes = config.Compare(s.Desk().Config, parsed)
	}
	c.Diff = textDiff(source, string(now))
	return c
}

// short is how a revision is shown everywhere.
func short(revision string) string { return rollout.Short(revision) }

// TokenList is API tokens.
type TokenList struct {
	Tokens []Token `json:"tokens"`
}

func (s *Server) listTokens(c *call) (any, error) {
	all, err := s.tokens.list(c.Context(), c.who)
	return TokenList{all}, err
}

// TokenRequest asks for an API token.
type TokenRequest struct {
	Name string `json:"name"`
	Role Role   `json:"role"`           // no more than yours
	Days int    `json:"days,omitempty"` // it is good for, up to 366; 90 if not said
}

// Target is what a request is about.
func (r *TokenRequest) Target() string { return r.Name }

// NewToken is an API token with itself.
type NewToken struct {
	Token
	Secret string `json:"secret"` // sent as Authorization: Bearer; it is not kept
}

func (s *Server) createToken(c *call) (any, error) {
	in := c.in.(*TokenRequest)
	t, text, err := s.tokens.create(c.Context(), c.who, in.Name, in.Role, in.Days)
	if err != nil {
		return nil, err
	}
	return NewToken{t, text.Reveal()}, nil
}

func (s *Server) endToken(c *call) (any, error) {
	if err := s.tokens.end(c.Context(), c.who, c.PathValue("token")); err != nil {
		return nil, err
	}
	return s.listTokens(c)
}

var _ http.Handler = (*Server)(nil)
