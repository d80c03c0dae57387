package extproc

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"wayleave/grant"
)

// Process answers one stream, which is one request. It is envoy.service.ext_proc.v3.ExternalProcessor.
//
// Envoy is configured to send the request headers, and of the routes that want it the answer. Should it be configured
// otherwise, the other phases are answered too, and change nothing.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	var first emptypb.Empty // which leaves all as it came, for us to read
	if err := stream.RecvMsg(&first); err != nil {
		return err // io.EOF too: Envoy has nothing to ask
	}
	q, err := readQuestion(first.ProtoReflect().GetUnknown())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	p := begin(&q)
	p.send = stream.Send
	defer p.end()
	out, err := s.process(stream.Context(), &q, p)
	for err == nil {
		if err := stream.SendMsg(out); err != nil || ends(out) {
			return err
		}
		if p.open {
			return s.keepOpen(stream, p)
		}
		if p.over() {
			return nil
		}
		in, failed := stream.Recv()
		if failed != nil {
			return failed
		}
		out, err = p.answer(stream.Context(), in)
	}
	return err
}

// ends reports whether an answer is the last one.
func ends(out proto.Message) bool {
	r, ok := out.(*extprocv3.ProcessingResponse)
	return ok && r.GetImmediateResponse() != nil
}

// process answers the first message.
func (s *Server) process(ctx context.Context, q *question, p *phases) (proto.Message, error) {
	if q.other != nil {
		return p.answer(ctx, q.other)
	}
	return s.requestHeaders(ctx, q, p)
}

// unchanged answers a message in the way of its phase, and changes nothing.
func unchanged(in *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	switch in.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}, nil
	case *extprocv3.ProcessingRequest_RequestBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}, nil
	case *extprocv3.ProcessingRequest_ResponseBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}, nil
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}, nil
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "a message of no phase this version of Envoy's API has")
}

func (s *Server) requestHeaders(ctx context.Context, q *question, p *phases) (proto.Message, error) {
	r := &q.request
	if q.kept.text(fieldAnswered) == statusRejected {
		if was, ok := sentBefore(q.kept); ok {
			return s.again(ctx, r, was, cmp.Or(was.RequestID, requestID(nil)))
		}
	}
	r.asked(ctx, nil)
	r.came = s.now()
	ctx, span := s.trace(ctx, "decide", r)
	defer span.End()
	d := decide(s.live.Load().by(r.revision), s.sessions, r, r.came)
	s.record(&d, r)
	id := requestID(r.values("x-request-id"))
	if d.held != nil && s.approvals != nil {
		var err error
		asked := s.now()
		if d, err = s.awaitOperator(ctx, p.send, d, r, id); err != nil {
			return nil, err
		}
		r.came = r.came.Add(s.now().Sub(asked))
	}
	p.release = s.count(ctx, &d, true) // after all that may refuse it or take long by itself
	var token grant.Token
	if d.swap != nil {
		var refused *refusal
		if token, refused = s.take(ctx, d.swap.grant, d.route, func(ctx context.Context) (grant.Token, error) {
			return s.tokens.Token(ctx, d.swap.grant, d.session.Worker, d.swap.scopes)
		}); refused != nil {
			d.refusal = refused
		}
	}
	if ctx.Err() != nil { // the worker went away
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	kept := s.tell(ctx, &d, r, token, id)
	if d.answer != nil {
		return kept.in(s.ownAnswer(ctx, d)), nil
	}
	if d.wouldRefuse != nil {
		s.logDryRun(ctx, d, id)
	}
	if d.refusal != nil {
		s.logRefusal(ctx, d, id)
		awaitBody(ctx, r)
		return kept.in(d.refusal.immediate(r, d.route, id)), nil
	}
	if d.swap != nil {
		if d.route.MaskBody && !d.upgrade {
			p.mask = s.masker(d, token)
		}
		kept.set(fieldLease, s.leaseOf(&d, r, token, kept.text(fieldRequest) != "", s.now()))
	}
	out := forward(&d, token, kept)
	p.open = p.release != nil && p.canKeepOpen()
	out.toEnd = p.open
	return out.message(), s.examine(ctx, p, d.route)
}

// bodyComes is how long a short body may take to arrive behind its head.
const bodyComes = 20 * time.Millisecond

// awaitBody gives a short body time to arrive. Over HTTP/2 an answer that comes before it ends the stream (RFC 9113 section 8.1), which some clients,
// curl 7.88 among them, take for an error of the connection: they show nothing of the answer.
func awaitBody(ctx context.Context, r *request) {
	length := r.values("content-length")
	if len(length) != 1 || length[0] == "0" || len(length[0]) > 5 { // a long one takes its time in any case
		return
	}
	t := time.NewTimer(bodyComes)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// examine says once what is wrong with what Envoy sends, and is an error where the answer would pass unsearched.
func (s *Server) examine(ctx context.Context, p *phases, route *Route) error {
	const remedy = "give ext_proc the processing mode that 'wayleave config render' shows"
	if p.mask != nil && p.told && !p.canSearch() {
		s.log.LogAttrs(ctx, slog.LevelError, "request refused, since Envoy does not send its answer to be searched: "+remedy, slog.String("route", route.Name),
			slog.String("request_body_mode", p.request.String()), slog.String("response_body_mode", p.response.String()))
		return status.Error(codes.FailedPrecondition, "mask_body wants response_body_mode STREAMED")
	}
	if p.request != procv3.ProcessingMode_NONE || p.response != procv3.ProcessingMode_NONE && !route.MaskBody {
		s.bodies.Do(func() {
			s.log.LogAttrs(ctx, slog.LevelWarn, "Envoy sends bodies that the gate does not look at: "+remedy,
				slog.String("request_body_mode", p.request.String()), slog.String("response_body_mode", p.response.String()))
		})
	}
	return nil
}

// take gets a token of the grant that can be sent, by asking for it within our deadline, or says why there is none. The
// route is nil when there is none any more.
func (s *Server) take(ctx context.Context, name string, route *Route, ask func(context.Context) (grant.Token, error)) (grant.Token, *refusal) {
	ctx, cancel := context.WithTimeout(ctx, s.deadline)
	defer cancel()
	f := &refusal{grant: name, imported: route != nil && route.Imported}
	got, err := ask(ctx)
	if err != nil {
		f.reason, f.cause = refreshUnavailable, err
		if u, ok := errors.AsType[*grant.Unusable](err); ok {
			f.scopes, f.retryAfter = u.Missing, u.RetryAfter
			switch reason := string(u.State); reason {
			case neverConnected, scopeMissing, needsReconnect, refreshUnavailable, vaultUnavailable:
				f.reason = reason
			}
		}
		return grant.Token{}, f
	}
	if !Sendable(got.Access.Reveal()) {
		f.reason = badCredentialStored
		return grant.Token{}, f
	}
	return got, nil
}

// logRefusal writes the one line of a refusal. It never holds a header's value, save the request id.
func (s *Server) logRefusal(ctx context.Context, d decision, requestID string) {
	s.log.LogAttrs(ctx, slog.LevelWarn, "request refused", d.attributes(d.refusal, requestID)...)
}

// attributes are what the log has of a decision because of which, f, a request is refused or would be.
func (d *decision) attributes(f *refusal, requestID string) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("reason", f.reason),
		slog.String("worker", d.session.Worker),
		slog.String("session", d.session.ID),
		slog.String("host", d.host),
		slog.String("request_id", requestID),
	}
	if d.by.revision != "" {
		attrs = append(attrs, slog.String("revision", shortRevision(d.by.revision)))
	}
	if d.rule != "" {
		attrs = append(attrs, slog.String("rule", d.rule))
	}
	if f.mismatch != "" {
		attrs = append(attrs, slog.String("cause", string(f.mismatch)))
	}
	if f.owner != "" {
		attrs = append(attrs, slog.String("placeholder_of", f.owner))
	}
	if f.cause != nil {
		attrs = append(attrs, slog.Any("err", f.cause))
	}
	return attrs
}

// requestID is the one the request came with, if it can be shown, else a new one.
func requestID(sent []string) string {
	if len(sent) == 1 && len(sent[0]) >= 8 && len(sent[0]) <= 64 && !strings.ContainsFunc(sent[0], func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return sent[0]
	}
	return strings.ToLower(rand.Text())
}

// How what Envoy's log says of a request begins.
const (
	detailsRefused      = "wayleave_" // the gate refused it
	detailsTooLongAgain = "request_payload_exceeded_retry_buffer_limit"
	detailsBrokeOff     = "upstream_reset_after_response_started"
)

// immediate is the refusal in place of the upstream's answer. Whoever speaks gRPC does not get to see a body: Envoy makes of it the message of a
// status, and the text alone is what belongs there.
func (f *refusal) immediate(r *request, route *Route, id string) *extprocv3.ProcessingResponse {
	a := f.answer(route, id)
	if !r.speaksGRPC() {
		return immediate(a, f.reason)
	}
	a.body = []byte(f.text())
	out := immediate(a, f.reason)
	out.GetImmediateResponse().GrpcStatus = &extprocv3.GrpcStatus{Status: uint32(f.code())}
	return out
}

// immediate answers in place of the upstream.
func immediate(a answer, reason string) *extprocv3.ProcessingResponse {
	headers := &extprocv3.HeaderMutation{}
	for _, h := range a.headers {
		headers.SetHeaders = append(headers.SetHeaders, overwrite(h[0], h[1]))
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode(a.status)},
		Headers: headers,
		Body:    a.body,
		Details: detailsRefused + reason,
	}}}
}

// forward lets the request out, with token in place of the placeholder if there is a swap, and has Envoy keep what is given of it.
func forward(d *decision, token grant.Token, kept fields) reply {
	out := reply{remove: d.remove, kept: kept}
	set := func(name, value string) { out.set = append(out.set, [2]string{name, value}) }
	if d.swap != nil {
		out.set = make([][2]string, 0, 8)
		for _, h := range d.swap.set {
			set(h.name, h.value)
		}
		if d.route.Lane != "" { // there Envoy puts the header last, and all requests of a route are to be alike
			out.remove = append(out.remove, d.swap.out.header)
		}
		set(d.swap.out.header, d.swap.out.value(token.Access.Reveal()))
		out.remove = append(out.remove, d.swap.remove...)
		for _, h := range d.swap.rewrite {
			if fact := token.Facts[h.value]; fact != "" {
				set(h.name, fact)
			} else {
				out.remove = append(out.remove, h.name)
			}
		}
		if d.route.MaskBody {
			set("accept-encoding", "identity")                   // what is compressed cannot be searched
			out.remove = append(out.remove, "range", "if-range") // nor can half a credential; a server may always send all (RFC 9110 section 14.2)
		}
		if d.swap.path != "" {
			set(":path", d.swap.path)
		}
		if d.replayable && token.Replaceable {
			set(headerRetryOn, retryOnStatus)
		}
	}
	if d.addSocketKey {
		set("sec-websocket-key", socketKey())
	}
	return out
}

// socketKey is a Sec-WebSocket-Key, RFC 6455 section 4.1.
func socketKey() string {
	key := make([]byte, 16)
	rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

// overwrite sets a header to one value, whatever was there. Envoy's ext_proc reads raw_value; value would arrive empty.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
