package extproc

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/secret"
	"wayleave/worker"
)

// metadataIdentity is the key of ext_authz's dynamic metadata that Envoy copies into the connection's filter state.
const metadataIdentity = "identity"

// Check answers one request to the proxy, which should be a CONNECT. It is envoy.service.auth.v3.Authorization.
//
// Who does not say who they are gets a 407 with a challenge, which is how git and others learn to say it. Who asks for
// something else than an allowed host and port gets a 403; most clients do not show its body, so the request path,
// where a refusal is shown, refuses as little as possible here: only what could not be decided there.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := in.GetAttributes().GetRequest().GetHttp()
	proxyAuthorization, said := h.GetHeaders()["proxy-authorization"]
	d := connect(s.policy.Load(), s.sessions, h.GetMethod(), h.GetHost(), proxyAuthorization, s.now())
	if d.refusal == nil {
		return &authv3.CheckResponse{
			Status:       &rpcstatus.Status{Code: int32(codes.OK)},
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}},
			DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
				metadataIdentity: structpb.NewStringValue(d.session.Identity()),
			}},
		}, nil
	}
	id := requestID(nil)
	level := slog.LevelWarn
	if !said {
		level = slog.LevelDebug // the first half of a challenge and its response
	}
	s.log.LogAttrs(ctx, level, "connection refused",
		slog.String("reason", d.refusal.reason),
		slog.String("worker", d.session.Worker),
		slog.String("session", d.session.ID),
		slog.String("host", d.host),
		slog.String("source", in.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress()),
		slog.String("request_id", id))
	return denied(d.refusal.answer(nil, id)), nil
}

// connect decides about a request to the proxy itself.
func connect(p *policy, sessions Sessions, method, authority, proxyAuthorization string, now time.Time) decision {
	d := decision{host: shown(authority)}
	session, err := authenticate(sessions, proxyAuthorization, now)
	switch {
	case err == nil && p.ended(session), errors.Is(err, worker.ErrExpired):
		d.refusal = &refusal{reason: sessionExpired, status: http.StatusProxyAuthRequired}
		return d
	case err != nil:
		d.refusal = &refusal{reason: proxyAuthRequired}
		return d
	}
	d.session = session
	f := &refusal{reason: hostNotAllowed, host: d.host, detail: askOperator(session.Profile)}
	target, err := parseAuthority(authority, 0)
	switch {
	case method != http.MethodConnect:
		f.detail = "the gate forwards nothing without TLS; use https, which asks it with CONNECT"
	case err != nil:
		f.detail = "it is not a DNS name with a port; IP addresses, user names and final dots are refused"
	case p.refusesAll(target):
		f.detail = "it gives out tokens, which the gate alone refreshes"
	default:
		t := p.find(target)
		if r := p.routeFor(t, session.Profile); t.tunnel || r != nil && p.mayUse(session.Profile, r.Credential) {
			return d
		}
	}
	d.refusal = f
	return d
}

// authenticate reads Proxy-Authorization: Basic, with the session id as user and its token as password.
func authenticate(sessions Sessions, proxyAuthorization string, now time.Time) (worker.Session, error) {
	scheme, credentials, _ := strings.Cut(proxyAuthorization, " ")
	user, password, ok := basic(strings.TrimSpace(credentials))
	if !strings.EqualFold(scheme, "basic") || !ok {
		return worker.Session{}, worker.ErrUnknown
	}
	return sessions.Verify(user, secret.New(password), now)
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
