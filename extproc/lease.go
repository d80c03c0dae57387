package extproc

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/grant"
)

// A lease lets Envoy give an answer of ours again, by itself, to further requests of the same connection (xds/lane.lua). It is for
// requests about which we would decide the same, and says how to tell them: with the same placeholder for the same host, in a form that can
// be read in one way only, and with nothing that is decided otherwise. It is short, since all that it rests on may change: the session may be
// revoked, the configuration, the token. What somebody is to decide, count or write down beforehand is never leased.

// Words of a lease, each of which begins a line.
const (
	leaseLane      = "lane"      // that the answer was about
	leaseLasts     = "ms"        // how long it lasts
	leaseHeader    = "header"    // that holds the placeholder
	leaseValue     = "value"     // of that header
	leaseAuthority = "authority" // that was asked for
	leaseMethod    = "method"    // one that is covered
	leaseAvoid     = "avoid"     // the start of paths that are not
	leaseAbsent    = "absent"    // a header with which none is
	leaseEnsure    = "ensure"    // a list header and what must be in it
	leaseUnder     = "under"     // the start of paths where that is so; none: everywhere
	leaseRetry     = "retry"     // the request is sent again after a 401
)

// plainMethods are those that are covered where a route names none.
var plainMethods = []string{
	http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
}

// leaseOf is the lease of a decision to swap; empty when there is none.
func (s *Server) leaseOf(d *decision, r *request, token grant.Token, traced bool, now time.Time) string {
	if s.leases == 0 || s.records.To != nil || traced || !d.leasable() {
		return ""
	}
	lasts := s.leases
	for _, end := range []time.Time{s.sessions.Ends(d.session), token.Expires} {
		if !end.IsZero() {
			lasts = min(lasts, end.Sub(now))
		}
	}
	out := d.swap.out
	if lasts < time.Millisecond || out.basic || out.scheme != d.route.SchemeOut || s.settled != nil && !s.settled(d.swap.grant, token.Version) {
		return ""
	}
	return d.lease(r, lasts, token.Replaceable)
}

// leasable reports whether all that d depends on is the connection, its placeholder and what a lease says.
func (d *decision) leasable() bool {
	p, route := d.by, d.route
	return d.swap != nil && d.refusal == nil && d.wouldRefuse == nil && !d.upgrade &&
		route.Lane != "" && route.HeaderIn == route.HeaderOut && route.ParameterIn == "" && !route.MaskBody &&
		len(d.swap.remove) == 0 && len(d.swap.rewrite) == 0 && d.swap.path == "" &&
		p.rules[d.session.Profile] == nil && !d.limited && len(p.find(d.to).routes) == 1
}

func (d *decision) lease(r *request, lasts time.Duration, retry bool) string {
	p, route := d.by, d.route
	var b strings.Builder
	say := func(word, what string) { b.WriteString(word + " " + what + "\n") }
	say(leaseLane, route.Lane)
	say(leaseLasts, strconv.FormatInt(lasts.Milliseconds(), 10))
	say(leaseHeader, route.HeaderIn)
	say(leaseValue, r.values(route.HeaderIn)[0])
	say(leaseAuthority, r.authority)
	for _, method := range plainMethods {
		if len(route.Methods) == 0 || slices.Contains(route.Methods, method) {
			say(leaseMethod, method)
		}
	}
	for _, rule := range route.Rules {
		say(leaseAvoid, rule.PathPrefix+strings.TrimRight(rule.PathExact, "/. ")) // see loose
	}
	for _, prefix := range p.refusedPaths(d.to) {
		say(leaseAvoid, prefix)
	}
	for _, a := range p.answers[d.session.Profile][d.to.host] {
		say(leaseAvoid, a.Path)
	}
	for _, name := range slices.Concat(methodHeaders, targetHeaders, slices.Sorted(maps.Keys(route.RewriteHeaders))) {
		say(leaseAbsent, name)
	}
	for _, name := range route.ensured {
		for item := range strings.SplitSeq(route.EnsureHeaders[name], ",") {
			if item = strings.TrimSpace(item); item != "" {
				say(leaseEnsure, name+" "+item)
			}
		}
	}
	for _, prefix := range route.EnsurePaths {
		say(leaseUnder, prefix)
	}
	if retry {
		say(leaseRetry, "401")
	}
	return b.String()
}
