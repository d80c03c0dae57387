package extproc

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"wayleave/grant"
)

// When a provider answers 401 to a request that was swapped, Envoy asks once more before it sends the request again:
// between the router and the connection, where the header holds the token that was rejected. What was decided at first
// comes along as dynamic metadata. A request that is not sent again ends in the access log, from which we learn of it too (ended.go).

const (
	// Envoy sends a request again after a 401 only if the swap has asked for that.
	headerRetryOn  = "x-envoy-retry-on"
	retryOnStatus  = "retriable-status-codes"
	statusRejected = "401"
	// gRPC's UNAUTHENTICATED, which comes with status 200 and is not asked about.
	statusUnauthenticated = "16"
)

// sent is a swap that was made, as Envoy keeps it.
type sent struct {
	Decided
	scopes         []string
	header         string // that holds the token
	user, password bool   // of Basic credentials, which part the token is; neither: it is all of them
}

// sentBefore returns the swap of which f is the metadata, false when it is of none. No worker can write metadata.
func sentBefore(f fields) (s sent, ok bool) {
	s = sent{header: f.text(fieldHeader), user: f.text(fieldUser) != "", password: f.text(fieldPassword) != ""}
	s.Decided, s.scopes = readNote(f.text(fieldNote))
	return s, f.text(metadataVerdict) == verdictSwap
}

// again answers about a request whose token was rejected: it goes out with another, or with the same when there is no
// better one, and the worker then gets the provider's own answer.
func (s *Server) again(ctx context.Context, r *request, was sent, id string) (proto.Message, error) {
	ctx, span := s.trace(ctx, "replace the token", nil)
	x := Decided{Swapped: true, Route: was.Route, Worker: was.Worker, Grant: was.Grant}
	defer func() { note(span, x); span.End() }()
	values := r.values(was.header)
	by := s.live.Load().by(was.Revision)
	route := by.routes[was.Route]
	got, refused := s.take(ctx, was.Grant, route, func(ctx context.Context) (grant.Token, error) {
		return s.tokens.Replace(ctx, was.Grant, was.Worker, was.Token, was.scopes)
	})
	if ctx.Err() != nil { // the worker went away
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	now := was.Decided
	if refused != nil {
		x.Reason, now.Reason = refused.reason, refused.reason
		d := decision{by: by, refusal: refused, route: route, host: shown(r.authority)}
		d.session.Worker = was.Worker
		s.logRefusal(ctx, d, id)
		kept := fields{{fieldNote, noteOf(now, was.scopes)}, {fieldReason, refused.reason}}
		return kept.in(refused.immediate(r, route, id)), nil
	}
	if got.Version == was.Token {
		return new(reply).message(), nil
	}
	if len(values) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "%d lines of %s in a request that was swapped", len(values), was.header)
	}
	value, err := was.with(values[0], got.Access.Reveal())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "token rejected by the provider, request sent again with another",
		slog.String("grant", was.Grant), slog.String("worker", was.Worker), slog.String("host", shown(r.authority)), slog.String("request_id", id))
	now.Token, now.Fingerprint = got.Version, got.Fingerprint
	again := reply{set: [][2]string{{was.header, value}}, kept: fields{ // the rest stays
		{fieldNote, noteOf(now, was.scopes)},
		{fieldAnswered, ""}, // a retry for another reason is none of ours
	}}
	return again.message(), nil
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
