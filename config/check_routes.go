package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"wayleave/oauth"
	"wayleave/provider"
)

// claim is who a host pattern belongs to.
type claim struct {
	path  string // key path of the pattern
	by    string // such as "route anthropic", "tunnel", "plain" or "deny"
	route *Route // nil for the others
}

// routes checks routes, tunnel, plain and deny: they divide the hosts among them.
func (k *checker) routes() {
	names := map[string]int{}
	claims := map[string][]claim{} // by pattern
	chains := map[string]claim{}   // by name: how its TLS is handled
	for i, pattern := range k.Tunnel {
		path := item("tunnel", i)
		if k.host(pattern, 2, claim{path: path, by: "tunnel"}, claims) {
			name, port := SplitHost(pattern)
			k.oneHandling(path, name, "tunnelled to port "+port, chains)
		}
	}
	for i, r := range k.Routes {
		path := item("routes", i)
		k.routeName(path+".name", r)
		if first, twice := names[r.Name]; twice && r.Name != "" {
			k.fault(path+".name", quote(r.Name)+" is the name of "+item("routes", first)+" too", "name one of them differently")
		} else {
			names[r.Name] = i
		}
		if len(r.Hosts) == 0 {
			k.fault(path+".hosts", "is missing", "list the hosts of the route: [api.example.com]")
		}
		for j, pattern := range r.Hosts {
			at := item(path+".hosts", j)
			if k.host(pattern, 2, claim{at, "route " + r.Name, &k.Routes[i]}, claims) {
				name, _ := SplitHost(pattern)
				k.tokenEndpoint(at, name)
				k.oneHandling(at, name, "routed with alpn "+strings.Join(slices.Sorted(slices.Values(r.ALPN)), " and "), chains)
			}
		}
		k.route(path, r)
	}
	for i, pattern := range k.Plain {
		path := item("plain", i)
		name, port := SplitHost(pattern)
		if k.host(pattern, 2, claim{path: path, by: "plain"}, claims) {
			k.tokenEndpoint(path, name)
			if port == defaultPort {
				k.fault(path, quote(pattern)+" has the port of TLS", "write the port where the host speaks HTTP without TLS")
			}
		}
	}
	for i, pattern := range k.Deny {
		k.host(pattern, 1, claim{path: item("deny", i), by: "deny"}, claims)
	}
}

// routeName checks a name that is written, or made of a host that is right.
func (k *checker) routeName(path string, r Route) {
	if k.doc.given(path) {
		k.name(path, r.Name)
	} else if len(r.Hosts) > 0 && !namePattern.MatchString(r.Name) {
		if what, _ := hostProblem(r.Hosts[0], 2); what == "" {
			k.fault(path, "is missing: the first host is too long to serve as one", "give the route a name")
		}
	}
}

// oneHandling reports a name that is handled in two ways on two ports: a ClientHello names no port, so that the gate
// could not choose.
func (k *checker) oneHandling(path, name, how string, chains map[string]claim) {
	switch c, taken := chains[name]; {
	case !taken:
		chains[name] = claim{path: path, by: how}
	case c.by != how:
		k.fault(path, fmt.Sprintf("%s is %s here and %s in %s, but TLS names carry no port", quote(name), how, c.by, c.path), "keep one of the two")
	}
}

// host checks one pattern and claims it; it reports whether the pattern is good and nobody else's.
func (k *checker) host(pattern string, minLabels int, by claim, claims map[string][]claim) bool {
	if k.doc.isBroken(by.path) {
		return false
	}
	if what, fix := hostProblem(pattern, minLabels); what != "" {
		k.fault(by.path, what, fix)
		return false
	}
	for _, c := range claims[pattern] {
		if why, fix := k.clash(c, by); fix != "" {
			k.fault(by.path, fmt.Sprintf("%s already belongs to %s (%s)%s", quote(pattern), c.by, c.path, why), fix)
			return false
		}
	}
	claims[pattern] = append(claims[pattern], by)
	return true
}

// clash says how to mend two claims that cannot share a host, or "" when they can: two routes can when the profile of
// a worker tells which of them is meant, as for two teams with an account each at one provider.
func (k *checker) clash(a, b claim) (why, fix string) {
	switch {
	case a.route == nil || b.route == nil || a.route == b.route:
		return "", "keep one of the two"
	case a.route.Grant == b.route.Grant:
		return "", "keep it in one route, and use paths for differences in scopes"
	case a.route.ConnectTo != b.route.ConnectTo:
		return ", which dials another address", "give both the same connect_to"
	case a.route.Response != b.route.Response:
		return ", which treats answers differently", "give both the same response"
	}
	for _, name := range keys(k.Profiles) {
		if grants := k.Profiles[name].Grants; slices.Contains(grants, a.route.Grant) && slices.Contains(grants, b.route.Grant) {
			return fmt.Sprintf(", and profile %s holds the grants of both", quote(name)),
				"give the workers of each account a profile of their own, so that the profile says which grant is meant"
		}
	}
	return "", ""
}

// tokenEndpoint reports a host that a provider refuses to workers whole. One that is refused at some paths only may be
// routed: those paths stay refused.
func (k *checker) tokenEndpoint(path, host string) {
	for _, name := range keys(k.Providers) {
		if slices.Contains(k.Providers[name].RefusedHosts, host) {
			k.fault(path, fmt.Sprintf("%s is among the refused_hosts of provider %s", quote(host), quote(name)),
				"remove it, or write refused_hosts with the path that gives out tokens: "+host+"/oauth/token")
			return
		}
	}
}

func (k *checker) route(path string, r Route) {
	k.reference(path+".grant", "grant", r.Grant, "grants", keys(k.Grants))
	k.required(path+".required_scopes", r.Grant, r.RequiredScopes)
	k.methods(path+".methods", r.Methods)
	for i, rule := range r.Paths {
		k.rule(item(path+".paths", i), r.Grant, rule)
		k.unreached(path+".paths", i, r.Paths)
	}
	k.header(path+".header", r.Header)
	k.notEmpty(path+".alpn", len(r.ALPN))
	k.unique(path+".alpn", r.ALPN)
	if r.ConnectTo != "" {
		if what, fix := dialProblem(r.ConnectTo); what != "" {
			k.fault(path+".connect_to", what, fix)
		}
	}
}

// required checks scopes that requests need: a grant that never asks for one would refuse every request.
func (k *checker) required(path, grant string, scopes []string) {
	k.unique(path, scopes)
	g, ok := k.Grants[grant]
	at := join("grants", grant)
	if !ok || k.doc.isBroken(at+".scopes") {
		return
	}
	static := k.Providers[g.Provider].Kind == provider.Static
	missing := oauth.MissingScopes(g.Scopes, scopes)
	for i, s := range scopes {
		if !slices.Contains(missing, s) {
			continue
		}
		if static {
			k.fault(item(path, i), fmt.Sprintf("grant %s is of a static provider, whose values have no scopes", quote(grant)), "remove it; what the value may do is decided where it was issued")
			continue
		}
		fix := "add it to " + at + ".scopes"
		if meant := nearest(s, g.Scopes); meant != "" {
			fix = fmt.Sprintf("did you mean %q? Otherwise %s", meant, fix)
		} else if !k.doc.given(at+".scopes") && len(g.Scopes) > 0 {
			fix = fmt.Sprintf("set %s.scopes to what it asks for by default (%s) and this one", at, strings.Join(g.Scopes, ", "))
		}
		k.fault(item(path, i), fmt.Sprintf("grant %s does not ask for the scope %s", quote(grant), quote(s)), fix)
	}
}

var methodPattern = regexp.MustCompile(`^[A-Z][A-Z-]{0,30}$`)

func (k *checker) methods(path string, methods []string) {
	k.notEmpty(path, len(methods))
	k.unique(path, methods)
	for i, m := range methods {
		switch upper := strings.ToUpper(m); {
		case upper == "TRACE":
			k.fault(item(path, i), "TRACE is never let through: its answer repeats the request with the real credential", "remove it")
		case upper == "CONNECT":
			k.fault(item(path, i), "CONNECT is never let through: it would open a tunnel inside the connection", "remove it")
		case methodPattern.MatchString(m):
		case methodPattern.MatchString(upper):
			k.fault(item(path, i), quote(m)+" is not in upper case", "write "+upper)
		default:
			k.fault(item(path, i), quote(m)+" is not a method", "write one such as GET")
		}
	}
}

func (k *checker) rule(path, grant string, r Rule) {
	switch {
	case r.Prefix == "" && r.Exact == "":
		k.fault(path+".prefix", "is missing", "write prefix: /… or exact: /…")
	case r.Prefix != "" && r.Exact != "":
		k.fault(path+".exact", "written beside prefix", "keep one of the two")
	case r.Prefix != "":
		k.path(path+".prefix", r.Prefix)
	default:
		k.path(path+".exact", r.Exact)
	}
	k.methods(path+".methods", r.Methods)
	k.required(path+".required_scopes", grant, r.RequiredScopes)
	if r.Deny != "" && len(r.RequiredScopes) > 0 {
		k.fault(path+".required_scopes", "of a rule that denies", "remove deny or required_scopes")
	}
	k.words(path+".deny", r.Deny)
}

var pathPattern = regexp.MustCompile(`^/[A-Za-z0-9._~!$&'()*+,;=:@/-]*$`)

// path checks a path to match. Only spellings that every server reads alike are allowed: what differs in encoding or dots
// could be written differently by a worker to pass a rule by.
func (k *checker) path(path, p string) {
	switch {
	case !strings.HasPrefix(p, "/"):
		k.fault(path, quote(p)+" does not start with /", "write "+quote("/"+p))
	case strings.ContainsAny(p, "?#"):
		k.fault(path, quote(p)+" has a query or fragment, which rules do not look at", "remove everything from ? or # on")
	case strings.Contains(p, "%"):
		k.fault(path, quote(p)+" is percent-encoded, and one path has many encodings", "use a prefix that ends before it")
	case strings.ContainsAny(p, "*{}"):
		k.fault(path, quote(p)+" has wildcards, which rules do not know", "use prefix, with what stands before the wildcard")
	case !pathPattern.MatchString(p):
		k.fault(path, quote(p)+" has characters that do not occur in a path", "remove them")
	case strings.Contains(p, "//") || slices.ContainsFunc(strings.Split(p, "/"), func(s string) bool { return s == "." || s == ".." }):
		k.fault(path, quote(p)+" has empty or dot segments, which are removed before matching", "write the path without them")
	}
}

// unreached warns about a rule that an earlier one covers.
func (k *checker) unreached(path string, i int, rules []Rule) {
	target := rules[i].Prefix + rules[i].Exact
	for j, earlier := range rules[:i] {
		sameMethods := len(earlier.Methods) == 0 || len(rules[i].Methods) > 0 &&
			!slices.ContainsFunc(rules[i].Methods, func(m string) bool { return !slices.Contains(earlier.Methods, m) })
		covered := earlier.Prefix != "" && strings.HasPrefix(target, earlier.Prefix) || earlier.Exact != "" && earlier.Exact == rules[i].Exact
		if sameMethods && covered {
			k.warn(item(path, i), fmt.Sprintf("never reached: %s matches everything it matches", item(path, j)), "put the narrower rule first, or remove it")
			return
		}
	}
}

var headerName = regexp.MustCompile(`^[a-z0-9!#$%&'*+.^_|~-]{1,100}$`)

var parameterName = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,100}$`)

// Headers that HTTP itself, Envoy or the gate sets; a credential in them would be dropped or would break the request.
var reservedHeaders = []string{
	"connection", "content-length", "content-type", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
	"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

func (k *checker) header(path string, h Header) {
	for _, n := range []struct{ key, name string }{{"in", h.In}, {"also_in", h.AlsoIn}, {"out", h.Out}} {
		at := path + "." + n.key
		switch lower := strings.ToLower(n.name); {
		case n.key == "out" && n.name == h.In:
			// The same as the other one, which is checked.
		case n.key == "also_in" && n.name == "":
		case n.key == "also_in" && n.name == h.In:
			k.fault(at, quote(n.name)+" is what in names already", "leave it out, or name another")
		case lower != n.name && headerName.MatchString(lower):
			k.fault(at, quote(n.name)+" is not in lower case", "write "+lower)
		case !headerName.MatchString(n.name):
			k.fault(at, quote(n.name)+" is not a header name", "write one such as authorization or x-api-key")
		case slices.Contains(reservedHeaders, n.name) || strings.HasPrefix(n.name, "x-envoy-") || strings.HasPrefix(n.name, "x-wayleave-"):
			k.fault(at, quote(n.name)+" cannot carry a credential", "write one such as authorization or x-api-key")
		}
	}
	if h.InQuery != "" && !parameterName.MatchString(h.InQuery) {
		k.fault(path+".in_query", quote(h.InQuery)+" is not the name of a query parameter", "write one such as key")
	}
	for _, s := range []struct{ key, scheme string }{{"in_scheme", h.InScheme}, {"out_scheme", h.OutScheme}} {
		if s.scheme != "" && !headerName.MatchString(strings.ToLower(s.scheme)) {
			k.fault(path+"."+s.key, quote(s.scheme)+" is not one word", `write one such as Bearer, Basic or token, or "" for none`)
		}
	}
}
