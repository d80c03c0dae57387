package operate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/worker"
)

// Objection is a reason not to roll a configuration out, which an operator may overrule by its name.
type Objection struct {
	Name  string `json:"name"`
	Words string `json:"words"`
}

// Names of objections.
const (
	DropsWorker      = "drops_worker"      // the worker of a live session would lose every route it has
	NeedsReconnect   = "needs_reconnect"   // a grant that serves requests would have to be connected first
	EnvoyRefuses     = "envoy_refuses"     // envoy --mode validate does
	QuarantinedHosts = "quarantined_hosts" // hosts would be refused for a fault
	RolledBack       = "rolled_back"       // it was rolled back the last time; for automatic starts only
	NothingKnown     = "nothing_known"     // of the configuration before, so that nothing can be said of what would be lost
)

var objectionNames = []string{DropsWorker, NeedsReconnect, EnvoyRefuses, QuarantinedHosts, RolledBack, NothingKnown}

// ObjectionNames are all of them.
func ObjectionNames() []string { return slices.Clone(objectionNames) }

// Objections are why a configuration was not rolled out.
type Objections struct{ All []Objection }

func (o *Objections) Error() string {
	var b strings.Builder
	var names []string
	b.WriteString("not rolled out:\n")
	for _, a := range o.All {
		fmt.Fprintf(&b, "  %s: %s\n", a.Name, a.Words)
		names = append(names, a.Name)
	}
	slices.Sort(names)
	fmt.Fprintf(&b, "mend it, or say that it is meant, by name: --force %s", strings.Join(slices.Compact(names), ","))
	return b.String()
}

// Vet says what live workers and connected grants would lose by the step from one configuration to another.
func Vet(before, after *config.Config, grants []grant.Summary, live []worker.Live) []Objection {
	was, is := newReach(before), newReach(after)
	return append(lostWorkers(was, is, live), lostGrants(was, is, grants)...)
}

// lostWorkers are those with live sessions that would have no route of those they have.
func lostWorkers(was, is *reach, live []worker.Live) (found []Objection) {
	sessions := map[string]int{}
	for _, s := range live {
		if w, known := was.Workers[s.Worker]; known && w.Profile == s.Profile {
			sessions[s.Worker]++ // of the others the configuration has made an end before
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sessions)) {
		profile := was.Workers[name].Profile
		next, still := is.Workers[name]
		var why string
		switch {
		case len(was.hosts(profile)) == 0:
			continue // there is nothing to lose
		case !still:
			why = "workers does not have it any more"
		case next.Profile != profile:
			why = fmt.Sprintf("its profile is %s in place of %s, which ends its sessions", next.Profile, profile)
		case !slices.ContainsFunc(was.hosts(profile), func(host string) bool { return is.route(profile, host) != nil }):
			why = "none of the hosts that it is routed to stays"
		default:
			continue
		}
		found = append(found, Objection{DropsWorker, fmt.Sprintf("worker %s, with %s, would lose every route it has: %s", name, count(sessions[name], "live session"), why)})
	}
	return found
}

// lostGrants are those that serve requests now and could not then.
func lostGrants(was, is *reach, grants []grant.Summary) (found []Objection) {
	granted := map[string][]string{} // by the provider, of grants that serve
	for _, g := range grants {
		if g.State != grant.NeverConnected && g.State != grant.NeedsReconnect {
			granted[g.Name] = g.FromProvider()
		}
	}
	type loss struct {
		grant, is string   // what is wrong with it
		scopes    []string // that it lacks
		at        []string // hosts and paths
	}
	var losses []*loss
	lose := func(name, is, scope, at string) {
		i := slices.IndexFunc(losses, func(l *loss) bool { return l.grant == name && l.is == is })
		if i < 0 {
			i, losses = len(losses), append(losses, &loss{grant: name, is: is})
		}
		l := losses[i]
		if scope != "" && !slices.Contains(l.scopes, scope) {
			l.scopes = append(l.scopes, scope)
		}
		if !slices.Contains(l.at, at) {
			l.at = append(l.at, at)
		}
	}
	for _, profile := range slices.Sorted(maps.Keys(was.Profiles)) {
		for _, host := range was.hosts(profile) {
			a, b := was.route(profile, host), is.route(profile, host)
			if b == nil {
				continue // whoever loses it all is among the workers
			}
			held, serves := granted[a.Grant]
			if !serves {
				continue
			}
			for _, p := range probes(a, b) {
				needed, ok := requires(a, p)
				if !ok || len(oauth.MissingScopes(was.held(a.Grant, held), needed)) > 0 {
					continue // refused today
				}
				needs, ok := requires(b, p)
				if !ok {
					continue // refused on purpose
				}
				at := host + p.rule
				of, _ := is.ProviderOf(b.Grant)
				holds, connected := granted[b.Grant]
				switch byItself := !of.NeedsOperator(); {
				case byItself:
				case !connected:
					lose(b.Grant, "is not connected", "", at)
				case was.Grants[b.Grant].Provider != is.Grants[b.Grant].Provider:
					lose(b.Grant, "is connected at another provider", "", at)
				default:
					for _, scope := range oauth.MissingScopes(is.held(b.Grant, holds), needs) {
						lose(b.Grant, "lacks scopes", scope, at)
					}
				}
			}
		}
	}
	slices.SortStableFunc(losses, func(a, b *loss) int { return cmp.Compare(a.grant, b.grant) })
	for _, l := range losses {
		if len(l.scopes) > 0 {
			l.is += " (" + strings.Join(l.scopes, ", ") + ")"
		}
		found = append(found, Objection{NeedsReconnect, fmt.Sprintf("requests to %s that are served now would need grant %s, which %s; connect it with the new file first: wayleave grant connect %s -c FILE", some(l.at), l.grant, l.is, l.grant)})
	}
	return found
}

// held are the scopes of a grant to which the provider granted these.
func (r *reach) held(name string, granted []string) []string {
	p, _ := r.ProviderOf(name)
	return oauth.WithImplied(granted, p.ImpliedScopes)
}

// some are the first of many.
func some(all []string) string {
	if len(all) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:3], ", "), len(all)-3)
	}
	return strings.Join(all, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// reach is where workers get by a configuration.
type reach struct {
	*config.Config
	routes map[string][]*config.Route // by pattern with port; nil for hosts without a credential
}

func newReach(c *config.Config) *reach {
	r := &reach{c, map[string][]*config.Route{}}
	for _, pattern := range slices.Concat(c.Tunnel, c.Plain, c.Deny) {
		r.routes[withPort(pattern)] = nil
	}
	for i := range c.Routes {
		for _, pattern := range c.Routes[i].Hosts {
			p := withPort(pattern)
			r.routes[p] = append(r.routes[p], &c.Routes[i])
		}
	}
	return r
}

func withPort(pattern string) string {
	name, port := config.SplitHost(pattern)
	return name + ":" + port
}

// hosts are the patterns of the routes that workers of a profile have.
func (r *reach) hosts(profile string) (all []string) {
	for _, route := range r.Routes {
		if slices.Contains(r.Profiles[profile].Grants, route.Grant) {
			all = append(all, route.Hosts...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// route is that of workers of a profile to the hosts of a pattern: the most specific one decides. Nil: they have none.
func (r *reach) route(profile, pattern string) *config.Route {
	name, port := config.SplitHost(pattern)
	routes, found := r.routes[name+":"+port]
	for rest := name; !found; {
		_, parent, more := strings.Cut(rest, ".")
		if !more {
			return nil
		}
		rest = parent
		routes, found = r.routes["*."+rest+":"+port]
	}
	for _, route := range routes {
		if slices.Contains(r.Profiles[profile].Grants, route.Grant) {
			return route
		}
	}
	return nil
}

// probe stands for requests that two routes may treat alike or not.
type probe struct {
	method, path string
	rule         string // whose path it is, in words
}

// probes are requests of every kind that one of the routes tells from the others.
func probes(routes ...*config.Route) (all []probe) {
	methods, paths := []string{"GET", "POST"}, []probe{{path: "/\x00"}} // which no rule names
	for _, r := range routes {
		methods = append(methods, r.Methods...)
		for _, rule := range r.Paths {
			methods = append(methods, rule.Methods...)
			p := probe{path: rule.Exact + rule.Prefix, rule: rule.Exact + rule.Prefix}
			if rule.Prefix != "" {
				p.rule += "*"
			}
			paths = append(paths, p)
		}
	}
	slices.Sort(methods)
	for _, p := range paths {
		for _, p.method = range slices.Compact(methods) {
			all = append(all, p)
		}
	}
	return all
}

// requires are the scopes that a request of the route needs; not ok: it is refused in any case.
func requires(r *config.Route, p probe) (scopes []string, ok bool) {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, p.method) {
		return nil, false
	}
	for _, rule := range r.Paths {
		if (rule.Exact == p.path || rule.Prefix != "" && strings.HasPrefix(p.path, rule.Prefix)) && (len(rule.Methods) == 0 || slices.Contains(rule.Methods, p.method)) {
			return slices.Concat(r.RequiredScopes, rule.RequiredScopes), rule.Deny == ""
		}
	}
	return r.RequiredScopes, true
}
