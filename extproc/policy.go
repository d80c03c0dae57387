package extproc

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wayleave/limit"
	rules "wayleave/policy"
	"wayleave/worker"
)

// policy is a Config made ready for look-ups. It is never changed.
type policy struct {
	revision string // whose it is

	exact    map[endpoint]target
	wildcard map[endpoint]target // host is the suffix, with its leading dot
	routes   map[string]*Route   // by name

	answers  map[string]map[string][]Answer // profile → host
	profiles map[string]Profile
	rules    map[string]*rules.Set // by profile; none: everything is allowed
	refused  map[string][]string   // host → path prefixes; "" is the whole host
	grants   map[string]map[string]bool
	limits   map[string]limit.Limit  // by grant
	workers  map[string]string       // nil: sessions are believed
	sources  map[netip.Prefix]string // → worker

	// credentialHeaders are all the headers a credential may be in, as canonical has them.
	credentialHeaders map[string]bool

	replayable uint64 // bytes of a body
}

// target is what a host pattern stands for. The zero value is a host that is refused.
type target struct {
	routes []*Route // of which the profile of a session chooses
	tunnel bool
	plain  bool

	quarantined bool // and nothing else
}

func newPolicy(cfg Config) *policy {
	p := &policy{
		exact:             map[endpoint]target{},
		wildcard:          map[endpoint]target{},
		routes:            map[string]*Route{},
		answers:           map[string]map[string][]Answer{},
		profiles:          cfg.Profiles,
		rules:             map[string]*rules.Set{},
		refused:           map[string][]string{},
		grants:            map[string]map[string]bool{},
		limits:            cfg.Limits,
		workers:           cfg.Workers,
		replayable:        cfg.Replayable,
		sources:           map[netip.Prefix]string{},
		credentialHeaders: map[string]bool{"authorization": true, "x-api-key": true},
	}
	for i := range cfg.Routes {
		r := withDefaults(cfg.Routes[i])
		p.routes[r.Name] = &r
		p.credentialHeaders[canonical(r.HeaderIn)], p.credentialHeaders[canonical(r.HeaderOut)] = true, true
		if r.other != nil {
			p.credentialHeaders[canonical(r.AlsoIn)] = true
		}
		for _, h := range r.Hosts {
			p.add(h, target{routes: []*Route{&r}})
		}
	}
	for _, h := range cfg.Tunnel {
		p.add(h, target{tunnel: true})
	}
	for _, h := range cfg.Plain {
		p.add(h, target{plain: true})
	}
	for _, h := range cfg.Deny {
		p.add(h, target{})
	}
	for _, h := range cfg.Quarantined {
		p.add(h, target{quarantined: true})
	}
	for _, r := range cfg.Refused {
		host, path, hasPath := strings.Cut(r, "/")
		if hasPath {
			path = "/" + path
		}
		host, _, _ = strings.Cut(host, ":")
		p.refused[host] = append(p.refused[host], path)
	}
	for name, prefixes := range cfg.Addresses {
		for _, prefix := range prefixes {
			p.sources[prefix.Masked()] = name
		}
	}
	for name, profile := range cfg.Profiles {
		p.answers[name] = map[string][]Answer{}
		for _, a := range profile.Answers {
			p.answers[name][a.Host] = append(p.answers[name][a.Host], a)
		}
		if len(profile.Rules) > 0 || profile.Default == rules.Deny {
			set, err := rules.Compile(profile.Rules, cmp.Or(profile.Default, rules.Allow))
			if err != nil { // a configuration that has this is refused earlier
				set, _ = rules.Compile(nil, rules.Deny)
			}
			p.rules[name] = set
		}
		p.grants[name] = map[string]bool{}
		for _, g := range profile.Grants {
			p.grants[name][g] = true
		}
	}
	return p
}

func withDefaults(r Route) Route {
	if r.AlsoIn != "" {
		other := r
		other.HeaderIn, other.SchemeIn, other.AlsoIn = r.AlsoIn, usualScheme(r.AlsoIn), ""
		other.Lane = "" // what is leased is what comes in the other header
		if cmp.Or(r.HeaderOut, r.HeaderIn) == r.HeaderIn {
			other.HeaderOut, other.SchemeOut = "", ""
		}
		other = withDefaults(other)
		r.other = &other
	}
	if r.HeaderIn == "" {
		r.HeaderIn = "authorization"
		r.SchemeIn = cmp.Or(r.SchemeIn, usualScheme(r.HeaderIn))
	}
	if r.HeaderOut == "" {
		r.HeaderOut = r.HeaderIn
		r.SchemeOut = cmp.Or(r.SchemeOut, r.SchemeIn)
	}
	// Header names are compared with those Envoy sends, which are in lower case.
	ensure := map[string]string{}
	for name, value := range r.EnsureHeaders {
		ensure[strings.ToLower(name)] = value
	}
	r.EnsureHeaders, r.ensured = ensure, slices.Sorted(maps.Keys(ensure))
	return r
}

// usualScheme is the word before a credential in a header.
func usualScheme(header string) string {
	if header == "authorization" {
		return "Bearer"
	}
	return ""
}

// add makes pattern stand for t; routes that share a pattern stand beside one another. What is no pattern stands for
// nothing; configurations that have one are refused earlier.
func (p *policy) add(pattern string, t target) {
	suffix, wild := strings.CutPrefix(pattern, "*.")
	e, err := parseAuthority(suffix, httpsPort)
	if err != nil {
		return
	}
	targets := p.exact
	if wild {
		targets, e.host = p.wildcard, "."+e.host
	}
	if t.routes != nil {
		t.routes = append(targets[e].routes, t.routes...)
	}
	targets[e] = t
}

// routeFor returns the route of t for sessions of profile: the one whose credential the profile has. When it has none, any
// route tells what is missing; nil when there is no route at all.
func (p *policy) routeFor(t target, profile string) *Route {
	for _, r := range t.routes {
		if p.mayUse(profile, r.Credential) {
			return r
		}
	}
	if len(t.routes) == 0 {
		return nil
	}
	return t.routes[0]
}

// find returns what the most specific pattern for e stands for.
func (p *policy) find(e endpoint) target {
	if t, ok := p.exact[e]; ok {
		return t
	}
	for rest := e.host; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return target{}
		}
		if t, ok := p.wildcard[endpoint{rest[i:], e.port}]; ok {
			return t
		}
		rest = rest[i+1:]
	}
}

// refusedPaths are the path prefixes of e's host that give out tokens. The port does not matter: a host that gives out
// tokens at one gives out none at another, or the same.
func (p *policy) refusedPaths(e endpoint) []string { return p.refused[e.host] }

// refusesAll reports whether everything at e's host is refused.
func (p *policy) refusesAll(e endpoint) bool { return slices.Contains(p.refusedPaths(e), "") }

// caller is who is calling by what the connection says: the holder of a session, or the worker at an address, whose session
// has neither ID nor end. The refusal is nil unless that is nobody, or over.
func (p *policy) caller(sessions Sessions, identity string, now time.Time) (worker.Session, *refusal) {
	if address, ok := worker.ParseAddress(identity); ok {
		name, known := p.workerAt(address)
		if !known {
			return worker.Session{}, &refusal{reason: proxyAuthRequired, status: http.StatusForbidden}
		}
		return worker.Session{Worker: name, Profile: p.workers[name]}, nil
	}
	session, err := worker.ParseIdentity(identity)
	if err != nil {
		return worker.Session{}, &refusal{reason: proxyAuthRequired}
	}
	if reason := p.over(sessions, session, now); reason != "" {
		return session, &refusal{reason: reason}
	}
	return session, nil
}

// over is the reason why a session that was proved is not served any more, or empty.
func (p *policy) over(sessions Sessions, s worker.Session, now time.Time) string {
	switch err := sessions.Check(s, now); {
	case errors.Is(err, worker.ErrRevoked):
		return sessionRevoked
	case err != nil || p.ended(s):
		return sessionExpired
	}
	return ""
}

// workerAt returns the worker whose address this is.
func (p *policy) workerAt(address netip.Addr) (name string, known bool) {
	for bits := range address.BitLen() + 1 {
		prefix, err := address.Prefix(bits)
		if err != nil {
			return "", false
		}
		if name, known = p.sources[prefix]; known {
			break
		}
	}
	return name, known
}

// ended reports whether the configuration has put an end to a session that its token would still prove.
func (p *policy) ended(s worker.Session) bool {
	if p.workers == nil {
		return false
	}
	profile, ok := p.workers[s.Worker]
	return !ok || profile != s.Profile
}

// isCredential reports whether a credential may be in the header called name.
func (p *policy) isCredential(name string) bool { return p.credentialHeaders[canonical(name)] }

// canonical makes one of the header names that servers with CGI variables cannot tell apart.
func canonical(name string) string { return strings.ReplaceAll(name, "_", "-") }

// mayUse reports whether sessions of profile may have the credential.
func (p *policy) mayUse(profile, credential string) bool { return p.grants[profile][credential] }
