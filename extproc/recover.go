package extproc

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/grant"
)

// When a provider answers 401 to a request that was swapped, Envoy asks once more before it sends the request again:
// between the router and the connection, where the header holds the token that was rejected. What was decided at first
// comes along as dynamic metadata. A request that is not sent again ends in the access log, from which we learn of it too (ended.go).

const (
	// Envoy sends a request again after a 401 only if the swap has asked for that.
	headerRetryOn     = "x-envoy-retry-on"
	retryOnStatus     = "retriable-status-codes"
	headerRetryStatus = "x-envoy-retriable-status-codes"
	statusRejected    = "401"
)

// sent is a swap that was made, as Envoy keeps it.
type sent struct {
	revision             string // of the configuration that decided, as it is shown
	route, worker, grant string
	scopes               []string
	version, fingerprint string // of the token
	header               string // that holds the token
	user, password       bool   // of Basic credentials, which part the token is; neither: it is all of them
	unsearched           bool   // the answer's body, so that it must not pass unless it is a WebSocket
}

// swapped adds to f, which Envoy is to keep, what only a swap has.
func (f fields) swapped(d decision) {
	out := d.swap.out
	f.set(fieldScopes, strings.Join(d.swap.scopes, " ")) // RFC 6749 section 3.3: none has a space in it
	f.set(fieldHeader, out.header)
	f.flag(fieldUser, out.basic && out.tokenIsUser)
	f.flag(fieldPassword, out.basic && out.tokenIsPassword)
	f.flag(fieldUnsearched, d.upgrade && d.route.MaskBody)
}

// sentBefore returns the swap of which f is the metadata, false when it is of none. No worker can write metadata.
func sentBefore(f fields) (s sent, ok bool) {
	return sent{
		revision: f.text(fieldRevision),
		route:    f.text(fieldRoute), worker: f.text(fieldWorker), grant: f.text(fieldGrant), scopes: strings.Fields(f.text(fieldScopes)), version: f.text(fieldVersion),
		fingerprint: f.text(fieldFingerprint),
		header:      f.text(fieldHeader), user: f[fieldUser].GetBoolValue(), password: f[fieldPassword].GetBoolValue(),
		unsearched: f[fieldUnsearched].GetBoolValue(),
	}, f.text(metadataVerdict) == verdictSwap
}

// again answers about a request whose token was rejected: it goes out with another, or with the same when there is no
// better one, and the worker then gets the provider's own answer.
func (s *Server) again(ctx context.Context, in *extprocv3.ProcessingRequest, was sent, id string) (*extprocv3.ProcessingResponse, error) {
	ctx, span := s.trace(ctx, "replace the token", nil)
	x := Decided{Swapped: true, Route: was.route, Worker: was.worker, Grant: was.grant}
	defer func() { note(span, x); span.End() }()
	r := newRequest(in.GetRequestHeaders(), nil)
	values := r.values(was.header)
	by := s.live.Load().by(was.revision)
	route := by.routes[was.route]
	got, refused := s.take(ctx, was.grant, route, func(ctx context.Context) (grant.Token, error) {
		return s.tokens.Replace(ctx, was.grant, was.worker, was.version, was.scopes)
	})
	if ctx.Err() != nil { // the worker went away
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if refused != nil {
		x.Reason = refused.reason
		d := decision{by: by, refusal: refused, route: route, host: shown(r.authority)}
		d.session.Worker = was.worker
		s.logRefusal(ctx, d, id)
		kept := fields{}
		kept.set(fieldReason, refused.reason)
		return kept.in(immediate(refused.answer(route, id), refused.reason)), nil
	}
	if got.Version == was.version {
		return answered(nil, nil), nil
	}
	if len(values) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "%d lines of %s in a request that was swapped", len(values), was.header)
	}
	value, err := was.with(values[0], got.Access.Reveal())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "token rejected by the provider, request sent again with another",
		slog.String("grant", was.grant), slog.String("worker", was.worker), slog.String("host", shown(r.authority)), slog.String("request_id", id))
	kept := fields{fieldVersion: structpb.NewStringValue(got.Version), fieldFingerprint: structpb.NewStringValue(got.Fingerprint)} // the rest stays
	kept[fieldAnswered] = structpb.NewStringValue("")                                                                              // a retry for another reason is none of ours
	return answered([][2]string{{was.header, value}}, kept), nil
}

// with is the header's value with token in place of the one it holds.
func (s sent) with(value, token string) (string, error) {
	scheme, credential, ok := strings.Cut(value, " ")
	if !ok {
		scheme, credential = "", value
	}
	if s.user || s.password {
		user, password, ok := basic(credential)
		if !ok {
			return "", fmt.Errorf("%s of a request that was swapped holds no Basic credentials", s.header)
		}
		if s.user {
			user = token
		}
		if s.password {
			password = token
		}
		token = base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	return strings.TrimPrefix(scheme+" "+token, " "), nil
}
