package extproc

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	rules "wayleave/policy"
	"wayleave/worker"
)

// decision is what happens to one request. Exactly one of four: refused (refusal is set), swapped (swap is set), answered
// in the provider's place (answer is set), or passed as it is.
type decision struct {
	refusal *refusal
	swap    *swap
	answer  *Answer

	// For every request that is forwarded.
	remove       []string // headers that must not leave
	upgrade      bool     // it opens a WebSocket
	addSocketKey bool     // Sec-WebSocket-Key is missing
	replayable   bool     // Envoy can keep all of it, to send it again

	// What is known of the request, for the answer and the log.
	by      *policy        // that decided
	route   *Route         // nil: none found
	session worker.Session // zero: none known
	host    string
	to      endpoint // zero: not known
	tunnel  bool     // the connection is one, and what is inside is not seen

	verdict     rules.Action   // of the rules; "" when they were not asked
	rule        string         // that decided; "" when none did
	credential  string         // that the rules were told of
	held        *rules.Verdict // an operator is to decide; refusal is set too, for where nobody can wait
	limited     bool           // it counts against some limit
	wouldRefuse *refusal       // why it would have been refused, were its profile not tried out only
}

// swap is a placeholder to be replaced.
type swap struct {
	grant  string
	scopes []string // the grant must hold
	out    outgoing
	path   string   // with what it goes on; empty: as it came
	remove []string // headers with a credential that the token takes the place of, when it leaves in another
	set    []header // list headers with what they must contain

	rewrite []header // headers with the names of the facts that take the place of their values
}

// decide is the whole of the policy, in the order in which it protects: who is calling, whether what they ask is
// coherent, which route that is, then the credential, and last the operators' own rules. No step looks at what a later one
// decides.
func decide(p *policy, sessions Sessions, r *request, now time.Time) decision {
	d := p.assess(sessions, r, now)
	p.judge(&d, r, now)
	return d
}

// assess is all of decide but the rules.
func (p *policy) assess(sessions Sessions, r *request, now time.Time) decision {
	d := decision{by: p, host: shown(r.authority)}
	refuse := func(f refusal) decision {
		d.refusal, d.swap = &f, nil
		return d
	}

	// Who is calling: the connection says so, no header does.
	session, unknown := p.caller(sessions, r.identity, now)
	d.session = session
	if unknown != nil {
		return refuse(*unknown)
	}

	// One name, three times: what CONNECT asked for, what TLS asked for, what HTTP asks for.
	connect, err := parseAuthority(r.connectAuthority, 0)
	name, ok := dnsName(r.serverName)
	if err != nil || !ok || name != connect.host || !r.isFor(connect, httpsPort) {
		return refuse(refusal{reason: misdirected, host: d.host})
	}
	d.to, d.host = connect, connect.String()
	target := p.find(connect)
	if target.quarantined { // since this connection was opened, or nobody asked before
		return refuse(refusal{reason: hostQuarantined, host: d.host})
	}

	if d.answer = p.answerTo(connect, r, session.Profile, session.ID); d.answer != nil {
		return d
	}

	// Which route, and which of its rules.
	route := p.routeFor(target, session.Profile)
	if route == nil && p.answersAt(connect, session.Profile) && p.refusedPaths(connect) != nil {
		return refuse(refusal{reason: tokenEndpoint, host: d.host})
	}
	if route == nil {
		return refuse(refusal{reason: hostNotAllowed, host: d.host, detail: askOperator(session.Profile)})
	}
	route = route.forCredentialOf(r)
	d.route = route
	about := refusal{grant: route.Credential, host: d.host, header: route.HeaderIn}
	because := func(reason, detail string) decision {
		about.reason, about.detail = reason, detail
		return refuse(about)
	}
	// TRACE echoes the request with its credential (RFC 9110 section 9.3.8), CONNECT leaves what was checked.
	if r.overrides().many {
		return because(policyDenied, overridden)
	}
	methods := append([]string{r.method}, r.overrides().methods...)
	for _, method := range methods {
		if !validMethod(method) {
			return because(policyDenied, "the method "+shown(method)+" is not forwarded, since it could show the credential to somebody else; use another")
		}
	}
	if r.path != "*" && !strings.HasPrefix(r.path, "/") {
		return because(policyDenied, "the path does not begin with /; send it so")
	}
	paths, few := readings(r.path)
	if !few {
		return because(policyDenied, "the path can be read in too many ways; send it in its plain form")
	}
	for _, target := range r.overrides().targets {
		more, few := readings(target)
		if !few || !strings.HasPrefix(target, "/") {
			return because(policyDenied, overridden)
		}
		paths = append(paths, more...)
	}
	if deniedUnder(paths, p.refusedPaths(connect)) {
		return because(tokenEndpoint, "")
	}
	for _, method := range methods {
		if len(route.Methods) > 0 && !slices.Contains(route.Methods, method) {
			return because(policyDenied, fmt.Sprintf("%s is not among the methods of route %s", shown(method), route.Name))
		}
	}
	rule, plain := ruleFor(route.Rules, methods, paths)
	if !plain {
		return because(policyDenied, "the request can be read in more than one way, and route "+route.Name+" has different rules for them; send it in its plain form")
	}
	scopes := route.Scopes
	if rule != nil {
		if rule.Deny != "" {
			return because(policyDenied, rule.Deny)
		}
		scopes = union(scopes, rule.Scopes)
	}

	// One credential, where the upstream will look for it.
	lines := r.values(route.HeaderIn)
	query := takeParameter(r.path, route.ParameterIn)
	if len(lines)+query.times > 1 || r.lists("connection", p.isCredential) {
		return because(duplicateCredential, "")
	}
	var value string
	if len(lines) == 1 {
		value = lines[0]
	}
	credential := present(route, value)
	if query.times == 1 {
		value, credential = query.value, presented{value: query.value, understood: true, parameter: true}
	}
	if credential.joined() {
		return because(duplicateCredential, "")
	}
	candidates := credential.candidates(sessions)
	others := r.otherCredentials(p, route.HeaderIn)
	if len(candidates) > 0 && len(others) > 0 {
		return because(duplicateCredential, "")
	}

	// A placeholder anywhere else would leave as it is.
	if where := r.misplaced(route.HeaderIn, query.rest); where != "" {
		return because(misplacedPlaceholder, where)
	}

	d.remove, d.upgrade, d.addSocketKey, d.replayable = r.unforwarded(), r.opensWebSocket(), r.lacksSocketKey(), r.atMost(p.replayable)
	foreign := len(candidates) == 0 && (value != "" && (route.Foreign == Replace || !credential.nobody()) || len(others) > 0)
	switch {
	case foreign && route.Foreign != Replace && r.bindsConnection():
		return because(policyDenied, connectionBound)
	case foreign && route.Foreign == Replace && session.ID == "":
		return because(policyDenied, fmt.Sprintf("without a proxy, route %s replaces nothing but the placeholder for %s: only that shows a session", route.Name, route.Credential))
	case len(candidates) > 0, foreign && route.Foreign == Replace: // swapped, or refused below
	case !foreign && route.Absent == Refuse && !r.preflight():
		about.asks = route.BasicUser != "" // git sends nothing before that
		return because(policyDenied, fmt.Sprintf("route %s wants a credential: send the placeholder for %s in %s", route.Name, route.Credential, route.HeaderIn))
	case foreign && route.Foreign == Refuse:
		about.asks = route.BasicUser != "" && credential.nameOnly() && len(others) == 0
		return because(policyDenied, fmt.Sprintf("route %s takes no other credential than the placeholder for %s", route.Name, route.Credential))
	case !p.mayUse(session.Profile, route.Credential):
		return because(hostNotAllowed, askOperator(session.Profile))
	default:
		return d // passed
	}

	// The placeholder: this session's, or one of the worker at this address, for this route's credential, byte for byte.
	for _, c := range candidates {
		owner, why := worker.Session{}, worker.Altered
		if credential.understood {
			owner, why = sessions.Recognize(c, session, route.Credential, route.PlaceholderPrefix)
		}
		if why != "" {
			about.mismatch, about.owner = why, owner.ID
			return because(notYourPlaceholder, "")
		}
		d.session.ID = owner.ID
		if session.ID == "" { // the connection has not said so yet
			owner.Profile = session.Profile
			if reason := p.over(sessions, owner, now); reason != "" {
				return because(reason, "")
			}
		}
	}
	if !p.mayUse(session.Profile, route.Credential) {
		return because(policyDenied, fmt.Sprintf("profile %s does not have %s", session.Profile, route.Credential))
	}
	d.swap = &swap{
		grant:  route.Credential,
		scopes: scopes,
		out:    outgoingFor(route, credential),
		set:    r.ensure(route, paths),
	}
	if len(route.RewriteHeaders) > 0 {
		for _, name := range slices.Sorted(maps.Keys(route.RewriteHeaders)) {
			if r.has(name) {
				d.swap.rewrite = append(d.swap.rewrite, header{name, route.RewriteHeaders[name]})
			}
		}
	}
	if query.times > 0 {
		d.swap.path = query.rest
	}
	for _, name := range append(others, route.HeaderIn) {
		if name != route.HeaderOut && r.has(name) {
			d.swap.remove = append(d.swap.remove, name)
		}
	}
	return d
}

// forCredentialOf is the route as it is for a request that has its credential in the route's other header.
func (r *Route) forCredentialOf(req *request) *Route {
	if r.other != nil && req.has(r.other.HeaderIn) && !req.has(r.HeaderIn) {
		return r.other
	}
	return r
}

// validMethod reports whether s is a method (RFC 9110 section 9.1) that is ever forwarded. Methods are told apart by
// case, but an upstream that does not should not echo either.
func validMethod(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; (c < 'a' || c > 'z') && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	switch strings.ToUpper(s) {
	case "", "CONNECT", "TRACE", "TRACK":
		return false
	}
	return true
}

// isFor reports whether the request names e, in :authority and in Host if there is one too; defaultPort is that of a name
// without one.
func (r *request) isFor(e endpoint, defaultPort uint16) bool {
	is := func(authority string) bool {
		got, err := parseAuthority(authority, defaultPort)
		return err == nil && got == e
	}
	for _, h := range r.headers {
		if h.name == "host" && !is(h.value) {
			return false
		}
	}
	return is(r.authority)
}

// otherCredentials are the other headers than in that hold a credential.
func (r *request) otherCredentials(p *policy, in string) []string {
	var out []string
	for _, h := range r.headers {
		if h.value != "" && h.name != in && p.isCredential(h.name) {
			out = append(out, h.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// sentName is the header in which Envoy has what a worker calls its request, in X-Request-Id; as in xds.
const sentName = "x-request-id-sent"

// misplaced says where a placeholder is outside the header called in and, of path and query, in rest, or returns "".
func (r *request) misplaced(in, rest string) string {
	if holdsMarker(rest) {
		return "the path or query"
	}
	for _, h := range r.headers {
		if holdsMarker(h.name) {
			return "the name of a header"
		}
		switch {
		case h.name == in, !holdsMarker(h.value):
		case h.name == sentName:
			return "x-request-id"
		default:
			return shown(h.name)
		}
	}
	return ""
}

// unforwarded are the headers of the request that are for a proxy, or that only we may write.
func (r *request) unforwarded() []string {
	var out []string
	for _, h := range r.headers {
		if h.name == "proxy-authorization" || h.name == "proxy-connection" || strings.HasPrefix(h.name, "x-wayleave-") {
			out = append(out, h.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// lacksSocketKey reports whether the request opens a WebSocket without the key HTTP/1.1 wants: over HTTP/2 (RFC 8441)
// there is none, and Envoy adds none when it goes on as HTTP/1.1.
func (r *request) lacksSocketKey() bool {
	return !r.has("sec-websocket-key") && r.opensWebSocket()
}

func (r *request) opensWebSocket() bool {
	return r.lists("upgrade", func(item string) bool { return item == "websocket" })
}

// preflight reports whether a browser asks by it what it may ask (Fetch section 3.3.2), and no server can take it for anything else. No preflight has
// a credential.
func (r *request) preflight() bool {
	return r.method == http.MethodOptions && len(r.overrides().methods) == 0 && r.has("origin") && r.has("access-control-request-method")
}

// atMost reports whether the body has no more than limit bytes, as far as its length is known beforehand.
func (r *request) atMost(limit uint64) bool {
	for _, length := range r.values("content-length") {
		if n, err := strconv.ParseUint(length, 10, 64); err != nil || n > limit {
			return false
		}
	}
	return true
}

// ensure returns the list headers of the route that lack what they must contain, complete.
func (r *request) ensure(route *Route, paths []string) []header {
	if len(route.EnsurePaths) > 0 && !underAny(paths[:1], route.EnsurePaths) {
		return nil
	}
	var out []header
	for _, name := range route.ensured {
		missing := false
		list := strings.Join(r.values(name), ",")
		for item := range strings.SplitSeq(route.EnsureHeaders[name], ",") {
			if item = strings.TrimSpace(item); item == "" || contains(list, item) {
				continue
			}
			missing = true
			list = strings.TrimPrefix(list+","+item, ",")
		}
		if missing {
			out = append(out, header{name, list})
		}
	}
	return out
}

// contains reports whether item is in a comma-separated list.
func contains(list, item string) bool {
	for have := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(have) == item {
			return true
		}
	}
	return false
}

// union is a and what b adds to it; a is not changed.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// shown makes text from a request fit for a message: short, and printable ASCII.
func shown(s string) string {
	const limit = 100
	printable := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), limit)])
	if len(s) > limit {
		printable += "..."
	}
	return printable
}
