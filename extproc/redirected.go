package extproc

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"wayleave/grant"
	"wayleave/worker"
)

// checkRedirected answers for a connection to a tunnel that a packet filter redirected. What a CONNECT says is made of what the
// connection shows: the worker's address, the server name, and the port that was dialled.
func (s *Server) checkRedirected(ctx context.Context, a *authv3.AttributeContext) *authv3.CheckResponse {
	port := a.GetDestination().GetAddress().GetSocketAddress().GetPortValue()
	r := request{
		method: http.MethodConnect, authority: net.JoinHostPort(a.GetTlsSession().GetSni(), strconv.Itoa(int(port))),
		source: sourceOf(a),
	}
	r.asked(ctx, a.GetContextExtensions())
	r.came = s.now()
	d := redirected(s.live.Load().by(r.revision), &r, r.came)
	s.record(&d, &r)
	s.count(ctx, &d, false)
	id := requestID(nil)
	if d.wouldRefuse != nil {
		s.logDryRun(ctx, d, id)
	}
	kept := s.tell(ctx, &d, &r, grant.Token{}, id).message()
	if d.refusal == nil {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}, DynamicMetadata: kept}
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "connection refused", append(d.attributes(d.refusal, id), slog.String("source", r.source))...)
	out := denied(d.refusal.answer(nil, id)) // of which Envoy reads that it is one: TLS has no words
	out.DynamicMetadata = kept
	return out
}

// redirected decides about a connection that was redirected.
func redirected(p *policy, r *request, now time.Time) decision {
	d := decision{by: p, host: shown(r.authority)}
	address, err := netip.ParseAddr(r.source)
	name, known := p.workerAt(address)
	if err != nil || !known {
		d.refusal = &refusal{reason: proxyAuthRequired}
		return d
	}
	d.session = worker.Session{Worker: name, Profile: p.workers[name]}
	p.admit(&d, r)
	switch {
	case d.refusal != nil:
	case !d.tunnel:
		d.refusal = &refusal{reason: hostNotAllowed, host: d.host, detail: askOperator(d.session.Profile)}
	default:
		p.judgeTunnel(&d, r, now)
	}
	return d
}
