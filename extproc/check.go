package extproc

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"wayleave/grant"
	"wayleave/secret"
	"wayleave/worker"
)

// metadataIdentity is the key of ext_authz's dynamic metadata that Envoy copies into the connection's filter state.
const metadataIdentity = "identity"

// Check answers one request to the proxy, a CONNECT or one for a plain host. It is envoy.service.auth.v3.Authorization.
//
// Who does not say who they are gets a 407 with a challenge, which is how git and others learn to say it. Who asks for
// something else than an allowed host and port gets a 403; most clients do not show its body, so the request path,
// where a refusal is shown, refuses as little as possible here: only what could not be decided there.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	asked := in.GetAttributes().GetRequest().GetHttp()
	if asked == nil {
		return s.checkRedirected(ctx, in.GetAttributes()), nil
	}
	r := newProxyRequest(asked)
	r.asked(ctx, in.GetAttributes().GetContextExtensions())
	r.source = sourceOf(in.GetAttributes())
	policy := s.live.Load().by(r.revision)
	r.came = s.now()
	d := arrive(policy, s.sessions, &r, r.came)
	s.record(&d, &r)
	whole := r.method != http.MethodConnect || d.tunnel // of other hosts each request is counted and told of
	if whole {
		s.count(ctx, &d, false)
	}
	id := requestID(nil)
	if d.wouldRefuse != nil {
		s.logDryRun(ctx, d, id)
	}
	var kept fields
	challenge := d.refusal != nil && !r.has("proxy-authorization") // the first half of it and its response
	if whole && d.refusal == nil || d.refusal != nil && !challenge {
		kept = s.tell(ctx, &d, &r, grant.Token{}, id)
	}
	if d.refusal == nil {
		kept.set(metadataIdentity, d.session.Identity())
		return &authv3.CheckResponse{
			Status:          &rpcstatus.Status{Code: int32(codes.OK)},
			HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}},
			DynamicMetadata: kept.message(),
		}, nil
	}
	level := slog.LevelWarn
	if challenge {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(ctx, level, "connection refused", append(d.attributes(d.refusal, id), slog.String("source", r.source))...)
	out := denied(d.refusal.answer(nil, id))
	if kept != nil {
		out.DynamicMetadata = kept.message()
	}
	return out, nil
}

// sourceOf is the address that a connection comes from; empty when it is none.
func sourceOf(a *authv3.AttributeContext) string {
	address, err := netip.ParseAddr(a.GetSource().GetAddress().GetSocketAddress().GetAddress())
	if err != nil {
		return ""
	}
	return address.Unmap().String()
}

// newProxyRequest reads what ext_authz sends of a request: repeated headers are joined, and pseudo headers are among them.
func newProxyRequest(h *authv3.AttributeContext_HttpRequest) request {
	r := request{method: h.GetMethod(), authority: h.GetHost(), scheme: h.GetScheme(), path: h.GetPath()}
	for name, value := range h.GetHeaders() {
		if !strings.HasPrefix(name, ":") {
			r.headers = append(r.headers, header{strings.ToLower(name), value})
		}
	}
	return r
}

// arrive decides about a request to the proxy itself.
func arrive(p *policy, sessions Sessions, r *request, now time.Time) decision {
	d := decision{by: p, host: shown(r.authority)}
	session, err := authenticate(sessions, strings.Join(r.values("proxy-authorization"), ","))
	if err != nil {
		d.refusal = &refusal{reason: proxyAuthRequired}
		return d
	}
	d.session = session
	if reason := p.over(sessions, session, now); reason != "" {
		d.refusal = &refusal{reason: reason, status: http.StatusProxyAuthRequired}
		return d
	}
	p.admit(&d, r)
	switch {
	case d.refusal != nil:
	case r.method != http.MethodConnect:
		p.judge(&d, r, now)
	case d.tunnel: // of other hosts each request is judged
		p.judgeTunnel(&d, r, now)
	}
	return d
}

// admit finds where a request to the proxy goes, and refuses it if it may not.
func (p *policy) admit(d *decision, r *request) {
	if r.method == http.MethodConnect {
		d.tunnel, d.refusal = p.connect(r, d.session.Profile)
	} else {
		d.refusal = p.forwardPlain(r)
	}
	if d.refusal != nil {
		d.refusal.host = d.host
	}
	d.to, _ = parseAuthority(r.authority, httpPort) // as they did
}

const notAName = "it is not a DNS name with a port; IP addresses, user names and final dots are refused"

// connect refuses a CONNECT, or reports whether what is inside passes as it is.
func (p *policy) connect(r *request, profile string) (tunnel bool, f *refusal) {
	f = &refusal{reason: hostNotAllowed, detail: askOperator(profile)}
	target, err := parseAuthority(r.authority, 0)
	if err != nil {
		f.detail = notAName
		return false, f
	}
	t := p.find(target)
	switch route := p.routeFor(t, profile); {
	case t.quarantined:
		return false, &refusal{reason: hostQuarantined}
	case p.answersAt(target, profile): // what is not answered there is refused there
		return false, nil
	case p.refusesAll(target) || t.tunnel && p.hidesTokens(target):
		f.detail = "it gives out tokens, which the gate alone refreshes"
	case t.plain:
		f.detail = "it is reached without TLS, by an http URL and without CONNECT"
	case t.tunnel:
		return true, nil
	case route != nil && p.mayUse(profile, route.Credential):
		return false, nil
	}
	return false, f
}

// hidesTokens reports whether tokens could come out of a tunnel to e, where nobody sees paths. That of a host which gives them out at some
// is somebody's will where its very name is tunnelled, and not where a wildcard covers it.
func (p *policy) hidesTokens(e endpoint) bool {
	return p.refusesAll(e) || len(p.refusedPaths(e)) > 0 && !p.exact[e].tunnel
}

// NoTunnels are the hosts, with their ports, that Tunnel covers and that are no tunnels all the same, since they give out tokens.
func (cfg Config) NoTunnels() (hosts []string) {
	p := newPolicy(cfg)
	for host := range p.refused {
		for _, pattern := range cfg.Tunnel {
			tunnelled, err := parseAuthority(strings.TrimPrefix(pattern, "*."), httpsPort)
			e := endpoint{host, tunnelled.port}
			if err == nil && p.find(e).tunnel && p.hidesTokens(e) {
				hosts = append(hosts, e.String())
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// forwardPlain refuses a request to be forwarded without TLS, or returns nil. Nothing is swapped on this way: a placeholder
// would leave as it is.
func (p *policy) forwardPlain(r *request) *refusal {
	f := &refusal{reason: hostNotAllowed}
	target, err := parseAuthority(r.authority, httpPort)
	switch {
	case err != nil:
		f.detail = notAName
	case p.find(target).quarantined:
		f.reason = hostQuarantined
	case r.scheme != "http" || !p.find(target).plain:
		f.detail = "the gate forwards nothing without TLS but to the hosts an operator lists in plain; use https, which asks it with CONNECT"
	case !r.isFor(target, httpPort):
		f.reason = misdirected
	case !validMethod(r.method):
		f.reason, f.detail = policyDenied, "the method "+shown(r.method)+" is not forwarded, since its answer may show the request to somebody else; use another"
	case p.refusesAll(target) || len(p.refusedPaths(target)) > 0:
		f.reason = tokenEndpoint
	default:
		where := r.misplaced("", r.path)
		switch {
		case where != "":
			f.reason, f.detail, f.header = misplacedPlaceholder, where+" of a request without TLS", "a request over https"
		case r.bindsConnection():
			f.reason, f.detail = policyDenied, connectionBound
		default:
			return nil
		}
	}
	return f
}

// authenticate reads Proxy-Authorization: Basic, with the session id as user and its token as password.
func authenticate(sessions Sessions, proxyAuthorization string) (worker.Session, error) {
	scheme, credentials, _ := strings.Cut(proxyAuthorization, " ")
	user, password, ok := basic(strings.TrimSpace(credentials))
	if !strings.EqualFold(scheme, "basic") || !ok {
		return worker.Session{}, worker.ErrUnknown
	}
	return sessions.Verify(user, secret.New(password))
}

// denied is a refusal for ext_authz, which reads value where ext_proc reads raw_value; the wrong one arrives empty.
func denied(a answer) *authv3.CheckResponse {
	var headers []*corev3.HeaderValueOption
	for _, h := range a.headers {
		headers = append(headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h[0], Value: h[1]},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(a.status)},
			Headers: headers,
			Body:    string(a.body),
		}},
	}
}
