package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/secret"
	"wayleave/xds"
)

// The fast lane: on some routes Envoy has the credential, and sets it by itself for requests about which the gate has just decided.
// Here is which routes those are, and that Envoys have the tokens for them before a lease lets one be sent.

const (
	leaseLasts = time.Second // of which a session that is revoked is served on
	laneEvery  = 250 * time.Millisecond

	// A token is sent by Envoys alone once all gates have read it, each of which tells its own Envoys.
	settlesAlone = 2 * laneEvery
	settlesAmong = 10 * time.Second
	inUse        = 30 * time.Second // since the last use; a gate reads such a grant every few seconds
)

// lanesOf are the routes whose credential Envoy may set by itself, by name. On the others the gate has to look at every request.
func lanesOf(cfg *config.Config) map[string]xds.Lane {
	routes := map[string]int{} // of a host
	for _, r := range cfg.Routes {
		for _, host := range r.Hosts {
			routes[host]++
		}
	}
	all := map[string]xds.Lane{}
	for _, r := range cfg.Routes {
		shared := slices.ContainsFunc(r.Hosts, func(host string) bool { return routes[host] > 1 })
		h := r.Header
		if r.Lane == config.LaneExtProc || shared || h.In != h.Out || h.InQuery != "" || strings.EqualFold(h.OutScheme, "basic") ||
			r.Response.MaskBody || cfg.Grants[r.Grant].Exchange.Wanted() {
			continue
		}
		all[r.Name] = xds.Lane{Credential: laneCredential(r), Header: h.Out}
	}
	return all
}

// laned are those routes.
func laned(cfg *config.Config) (all []config.Route) {
	lanes := lanesOf(cfg)
	for _, r := range cfg.Routes {
		if _, ok := lanes[r.Name]; ok {
			all = append(all, r)
		}
	}
	return all
}

// laneCredential names the value of a header: the token of a grant, and the word before it.
func laneCredential(r config.Route) string { return r.Grant + " " + r.Header.OutScheme }

// lanes keep Envoys in possession of the tokens that they may send by themselves.
type lanes struct {
	current func(name string) (grant.Token, bool)
	set     func(map[string]xds.Credential)
	settle  time.Duration
	now     func() time.Time

	mu   sync.Mutex
	held map[string]heldToken // guarded by mu; by grant
}

// heldToken is what Envoys were last told of a grant.
type heldToken struct {
	version string
	since   time.Time // for how long without a pause in which nobody used it
	used    time.Time
	lost    time.Time // when it could not be used any more; zero: it can
}

func (g gate) newLanes(live *revisions) *lanes {
	settle := settlesAlone
	if len(g.cfg.Listen.Replicas) > 0 {
		settle = settlesAmong
	}
	return &lanes{current: live.grants.Current, set: live.envoys.SetCredentials, settle: settle, now: time.Now, held: map[string]heldToken{}}
}

// leases are how long Envoy may go on by itself: not at all where each request is to be written down before it is let out.
func (g gate) leases() time.Duration {
	if g.cfg.Audit.OnFailure == config.AuditRefuse {
		return 0
	}
	return leaseLasts
}

// settled reports whether Envoys have had a grant's token for long enough. It is asked at each use of one: of a grant that was not used for a while
// the other gates may have an old token, until they are asked for it too.
func (l *lanes) settled(name, version string) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.held[name]
	if !ok || h.version != version || !h.lost.IsZero() {
		return false
	}
	if now.Sub(h.used) > inUse {
		h.since = now
	}
	h.used = now
	l.held[name] = h
	return now.Sub(h.since) >= l.settle
}

// run looks for new tokens until ctx ends.
func (l *lanes) run(ctx context.Context, routes func() []config.Route) {
	tick := time.NewTicker(laneEvery)
	defer tick.Stop()
	for {
		l.tell(routes())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noToken takes the place of a token that nobody may use any more. No lease lets it be sent.
const noToken = "none"

// tell hands the tokens of these routes to Envoys. One that cannot be used any more is taken from them when no lease can be left.
func (l *lanes) tell(routes []config.Route) {
	now := l.now()
	out := map[string]xds.Credential{}
	looked := map[string]xds.Credential{} // by grant
	for _, r := range routes {
		c, done := looked[r.Grant]
		if !done {
			t, ok := l.current(r.Grant)
			ok = ok && extproc.Sendable(t.Access.Reveal()) // or a lease of before would have Envoy send it as it is
			c = l.look(r.Grant, t, ok, now)
			looked[r.Grant] = c
		}
		if c.Version == "" {
			continue
		}
		out[laneCredential(r)] = xds.Credential{Version: c.Version, Value: secret.New(strings.TrimPrefix(r.Header.OutScheme+" "+c.Value.Reveal(), " "))}
	}
	l.set(out)
}

// look notes a grant's token, and says what Envoys are to have of it; no version: what they have.
func (l *lanes) look(name string, t grant.Token, ok bool, now time.Time) xds.Credential {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, had := l.held[name]
	switch {
	case ok:
		if h.version != t.Version || !h.lost.IsZero() {
			l.held[name] = heldToken{version: t.Version, since: now}
		}
		return xds.Credential{Version: t.Version, Value: t.Access}
	case !had:
		return xds.Credential{}
	case h.lost.IsZero():
		h.lost = now
		l.held[name] = h
	case now.Sub(h.lost) > 2*leaseLasts:
		return xds.Credential{Version: noToken, Value: secret.New(noToken)}
	}
	return xds.Credential{}
}

// laned are those routes of all revisions.
func (s *set) laned() (all []config.Route) {
	for _, r := range s.ordered() {
		all = append(all, r.laned...)
	}
	return all
}
