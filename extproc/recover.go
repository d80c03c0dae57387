package extproc

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/grant"
)

// When a provider answers 401 to a request that was swapped, Envoy asks once more before it sends the request again:
// between the router and the connection, where the header holds the token that was rejected. What was decided at first
// comes along as dynamic metadata. A request that is not sent again ends in the access log, from which we learn of it too.

const (
	// Envoy sends a request again after a 401 only if the swap has asked for that.
	headerRetryOn     = "x-envoy-retry-on"
	retryOnStatus     = "retriable-status-codes"
	headerRetryStatus = "x-envoy-retriable-status-codes"
	statusRejected    = "401"
)

// sent is a swap that was made: what Envoy keeps of it as dynamic metadata. Nothing in it is secret.
type sent struct {
	revision             string // of the configuration that decided, as it is shown
	route, worker, grant string
	scopes               []string
	version              string // of the token
	header               string // that holds the token
	user, password       bool   // of Basic credentials, which part the token is; neither: it is all of them
	unsearched           bool   // the answer's body, so that it must not pass unless it is a WebSocket
}

func sentBy(d decision, t grant.Token) sent {
	out := d.swap.out
	return sent{
		revision: shortRevision(d.by.revision),
		route:    d.route.Name, worker: d.session.Worker, grant: d.swap.grant, scopes: d.swap.scopes, version: t.Version,
		header: out.header, user: out.basic && out.tokenIsUser, password: out.basic && out.tokenIsPassword,
		unsearched: d.upgrade && d.route.MaskBody,
	}
}

// metadata is s as the fields of our namespace. The access log and the search of the answer read them too.
func (s sent) metadata() map[string]*structpb.Value {
	return map[string]*structpb.Value{
		metadataVerdict: structpb.NewStringValue(verdictSwap),
		fieldRevision:   structpb.NewStringValue(s.revision),
		"route":         structpb.NewStringValue(s.route),
		"worker":        structpb.NewStringValue(s.worker),
		"grant":         structpb.NewStringValue(s.grant),
		"scopes":        structpb.NewStringValue(strings.Join(s.scopes, " ")), // RFC 6749 section 3.3: none has a space in it
		"version":       structpb.NewStringValue(s.version),
		"header":        structpb.NewStringValue(s.header),
		"user":          structpb.NewBoolValue(s.user),
		"password":      structpb.NewBoolValue(s.password),
		"unsearched":    structpb.NewBoolValue(s.unsearched),
	}
}

// sentBefore returns the swap of which m is the metadata, false when it is of none, and how the provider answered the last
// attempt where that matters. No worker can write metadata.
func sentBefore(m *corev3.Metadata) (s sent, answered string, ok bool) {
	f := m.GetFilterMetadata()[metadataNamespace].GetFields()
	text := func(name string) string { return f[name].GetStringValue() }
	return sent{
		revision: text(fieldRevision),
		route:    text("route"), worker: text("worker"), grant: text("grant"), scopes: strings.Fields(text("scopes")), version: text("version"),
		header: text("header"), user: f["user"].GetBoolValue(), password: f["password"].GetBoolValue(),
		unsearched: f["unsearched"].GetBoolValue(),
	}, text("answered"), text(metadataVerdict) == verdictSwap
}

// StreamAccessLogs learns from Envoy of the requests that failed after they were let through: swapped ones that ended with a 401, or
// could not be sent again after one, and those that count against their revision. So do handshakes that workers ended because they do
// not trust the certificate. It is envoy.service.accesslog.v3.AccessLogService.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	var node string
	for {
		in, err := stream.Recv()
		if err != nil {
			return err // io.EOF too: Envoy keeps the stream for as long as it has something to say
		}
		if id := in.GetIdentifier(); id != nil { // the first message of a stream has it
			node = id.GetNode().GetId()
		}
		if n := len(in.GetTcpLogs().GetLogEntry()); n > 0 {
			s.counts.add(node, "", Count{Requests: n, Errors: n}) // of each, a request would have come
		}
		for _, e := range in.GetHttpLogs().GetLogEntry() {
			was, _, swapped := sentBefore(e.GetCommonProperties().GetMetadata())
			switch {
			case !rejection(e.GetResponse()):
				s.failed(node, was.revision, e.GetResponse())
			case swapped:
				s.tokens.Reject(was.grant, was.worker, was.version)
			}
		}
	}
}

// rejection reports whether the provider's answer was that it does not take the token.
func rejection(r *dataaccesslogv3.HTTPResponseProperties) bool {
	return r.GetResponseCode().GetValue() == http.StatusUnauthorized || strings.HasPrefix(r.GetResponseCodeDetails(), detailsTooLongAgain)
}

// again answers about a request whose token was rejected: it goes out with another, or with the same when there is no
// better one, and the worker then gets the provider's own answer.
func (s *Server) again(ctx context.Context, in *extprocv3.ProcessingRequest, was sent) (*extprocv3.ProcessingResponse, error) {
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
		d := decision{by: by, refusal: refused, route: route, host: shown(r.authority)}
		d.session.Worker = was.worker
		id := requestID(nil)
		s.logRefusal(ctx, d, id)
		return immediate(refused.answer(route, id), refused.reason), nil
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
		slog.String("grant", was.grant), slog.String("worker", was.worker), slog.String("host", shown(r.authority)))
	was.version = got.Version
	fields := was.metadata()
	fields["answered"] = structpb.NewStringValue("") // a retry for another reason is none of ours
	return answered([][2]string{{was.header, value}}, fields), nil
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
