package extproc

import (
	"bytes"
	gocmp "cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"wayleave/grant"
	"wayleave/secret"
	"wayleave/worker"
)

// vault is Tokens with behaviour: a token for each grant, made of its name, or what a test says instead.
type vault struct {
	mu     sync.Mutex
	errs   map[string]error  // guarded by mu
	tokens map[string]string // guarded by mu
	hang   bool              // guarded by mu; waits for the context's end
	asked  []string          // guarded by mu

	version     string // of the tokens; empty: 1
	replaceable bool
	scopes      []string          // of the tokens
	facts       map[string]string // of the grants
}

func realToken(grant string) string { return "REAL-" + grant + "-0123456789" }

func (v *vault) Token(ctx context.Context, name, worker string, required []string) (grant.Token, error) {
	v.mu.Lock()
	err, hang := v.errs[name], v.hang
	token, own := v.tokens[name]
	v.asked = append(v.asked, worker+": "+name+" "+strings.Join(required, ","))
	v.mu.Unlock()
	if hang {
		<-ctx.Done()
		return grant.Token{}, &grant.Unusable{Grant: name, State: grant.RefreshUnavailable, Err: ctx.Err()}
	}
	if err != nil {
		return grant.Token{}, err
	}
	if !own {
		token = realToken(name)
	}
	return grant.Token{Access: secret.New(token), Scopes: v.scopes, Facts: v.facts, Version: gocmp.Or(v.version, "1"), Replaceable: v.replaceable}, nil
}

func (v *vault) Replace(ctx context.Context, name, worker, rejected string, required []string) (grant.Token, error) {
	t, err := v.Token(ctx, name, worker, required)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked[len(v.asked)-1] += " instead of " + rejected
	return t, err
}

func (v *vault) Reject(name, worker, version string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, worker+": rejected "+name+" "+version)
}

type serverFixture struct {
	*fixture
	server *Server
	vault  *vault
	log    *bytes.Buffer
}

func newServer(t testing.TB) *serverFixture {
	f := &serverFixture{fixture: newFixture(t), vault: &vault{}, log: new(bytes.Buffer)}
	f.server = New(testConfig, f.sessions, f.vault, Options{
		Now: func() time.Time { return now },
		Log: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	return f
}

// serve is the server behind gRPC, as Envoy sees it.
func (f *serverFixture) serve(t testing.TB) (extprocv3.ExternalProcessorClient, authv3.AuthorizationClient) {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	f.server.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///gate", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return extprocv3.NewExternalProcessorClient(conn), authv3.NewAuthorizationClient(conn)
}

// message is r as Envoy sends it.
func message(r request) *extprocv3.ProcessingRequest {
	list := []*corev3.HeaderValue{
		{Key: ":method", RawValue: []byte(r.method)}, {Key: ":scheme", RawValue: []byte("https")},
		{Key: ":authority", RawValue: []byte(r.authority)}, {Key: ":path", RawValue: []byte(r.path)},
	}
	for _, h := range r.headers {
		list = append(list, &corev3.HeaderValue{Key: h.name, RawValue: []byte(h.value)})
	}
	attributes, err := structpb.NewStruct(map[string]any{
		attributeIdentity: r.identity, attributeAuthority: r.connectAuthority, attributeSNI: r.serverName, "source.address": "10.0.0.9:1234",
	})
	if err != nil {
		panic(err)
	}
	return &extprocv3.ProcessingRequest{
		Request:    &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: list}, EndOfStream: true}},
		Attributes: map[string]*structpb.Struct{attributeNamespace: attributes},
	}
}

// processMessage is process with the messages that Envoy and the gate send.
func (s *Server) processMessage(ctx context.Context, in *extprocv3.ProcessingRequest, p *phases) (*extprocv3.ProcessingResponse, error) {
	raw, err := proto.Marshal(in)
	if err != nil {
		return nil, err
	}
	q, err := readQuestion(raw)
	if err != nil {
		return nil, err
	}
	out, err := s.process(ctx, &q, p)
	if err != nil {
		return nil, err
	}
	if raw, err = proto.Marshal(out); err != nil {
		return nil, err
	}
	all := &extprocv3.ProcessingResponse{}
	return all, proto.Unmarshal(raw, all)
}

// exchange sends one message on a stream of its own, and sees that there is one answer.
func exchange(t testing.TB, client extprocv3.ExternalProcessorClient, in *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	t.Helper()
	stream, err := client.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(in); err != nil {
		t.Fatal(err)
	}
	out, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if more, err := stream.Recv(); err == nil {
		t.Fatalf("a second answer: %v", more)
	}
	return out
}

func verdictOf(out *extprocv3.ProcessingResponse) string {
	return out.GetDynamicMetadata().GetFields()["wayleave"].GetStructValue().GetFields()["verdict"].GetStringValue()
}

// headersOf is a header list as name: value, with the value Envoy would see.
func headersOf(t testing.TB, list []*corev3.HeaderValueOption) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, h := range list {
		if _, twice := out[h.GetHeader().GetKey()]; twice {
			t.Errorf("%s is set twice", h.GetHeader().GetKey())
		}
		if h.GetHeader().GetValue() != "" || h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("%s has value or another action than overwriting", h.GetHeader().GetKey())
		}
		out[h.GetHeader().GetKey()] = string(h.GetHeader().GetRawValue())
	}
	return out
}

func TestProcessSwaps(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	out := exchange(t, client, message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude(), "proxy-authorization", "x", "x-wayleave-a", "1")))
	mutation := out.GetRequestHeaders().GetResponse().GetHeaderMutation()
	want := map[string]string{"authorization": "Bearer " + realToken("claude"), "anthropic-beta": "oauth-2025-04-20"}
	if diff := cmp.Diff(want, headersOf(t, mutation.GetSetHeaders())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"proxy-authorization", "x-wayleave-a"}, mutation.GetRemoveHeaders()); diff != "" {
		t.Error(diff)
	}
	if v := verdictOf(out); v != "swap" {
		t.Errorf("verdict %q", v)
	}
	if diff := cmp.Diff([]string{"ci: claude user:inference"}, f.vault.asked); diff != "" {
		t.Error(diff)
	}
	if f.log.Len() != 0 {
		t.Errorf("a request that is let out is logged: %s", f.log)
	}
}

func TestProcessPasses(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	out := exchange(t, client, message(f.anthropic("GET", "/v1/code/sessions/x/worker", "authorization", "Bearer other", "upgrade", "websocket", "x-wayleave-a", "1")))
	mutation := out.GetRequestHeaders().GetResponse().GetHeaderMutation()
	set := headersOf(t, mutation.GetSetHeaders())
	if key, err := base64.StdEncoding.DecodeString(set["sec-websocket-key"]); err != nil || len(key) != 16 || len(set) != 1 {
		t.Errorf("set: %v", set)
	}
	if diff := cmp.Diff([]string{"x-wayleave-a"}, mutation.GetRemoveHeaders()); diff != "" {
		t.Error(diff)
	}
	if v := verdictOf(out); v != "pass" || f.vault.asked != nil {
		t.Errorf("verdict %q, tokens asked for: %v", v, f.vault.asked)
	}
}

// A token that goes out in another header takes the placeholder's header with it.
func TestProcessRemovesTheHeaderItReplaces(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	out := exchange(t, client, message(f.to("turned.example.com", "GET", "/", "x-api-key", f.placeholder("turned", ""))))
	mutation := out.GetRequestHeaders().GetResponse().GetHeaderMutation()
	if diff := cmp.Diff(map[string]string{"authorization": "Bearer " + realToken("turned")}, headersOf(t, mutation.GetSetHeaders())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"x-api-key"}, mutation.GetRemoveHeaders()); diff != "" {
		t.Error(diff)
	}
}

// Whatever keeps the token away is said, with the status and the shape that the provider's clients show.
func TestProcessRefuses(t *testing.T) {
	unusable := func(s grant.State) *grant.Unusable {
		return &grant.Unusable{Grant: "claude", State: s, Err: errors.New("inner detail")}
	}
	for _, c := range []struct {
		name   string
		err    error
		token  *string
		reason string
		status int
		says   string
		header map[string]string // "" : absent
	}{
		{"never connected", unusable(grant.NeverConnected), nil, "never_connected", 403, "wayleave grant connect claude", map[string]string{"x-should-retry": "false", "retry-after": ""}},
		{"scopes", &grant.Unusable{Grant: "claude", State: grant.ScopeMissing, Missing: []string{"user:a", "user:b"}}, nil, "scope_missing", 403, "user:a user:b", map[string]string{"x-should-retry": "false"}},
		{"reconnect, with the provider's own status", unusable(grant.NeedsReconnect), nil, "needs_reconnect", 400, "wayleave grant connect claude", map[string]string{"x-should-retry": "false"}},
		{"refresh", &grant.Unusable{Grant: "claude", State: grant.RefreshUnavailable, RetryAfter: 1500 * time.Millisecond}, nil, "refresh_unavailable", 503, "try again", map[string]string{"retry-after": "2", "x-should-retry": ""}},
		{"vault", unusable(grant.VaultUnavailable), nil, "vault_unavailable", 503, "try again", map[string]string{"retry-after": "1", "x-should-retry": ""}},
		{"another state", unusable(grant.Ambiguous), nil, "refresh_unavailable", 503, "try again", nil},
		{"another error", errors.New("inner detail"), nil, "refresh_unavailable", 503, "try again", nil},
		{"wrapped", fmt.Errorf("x: %w", unusable(grant.NeverConnected)), nil, "never_connected", 403, "connect", nil},
		{"empty token", nil, new(""), "bad_credential_stored", 503, "replaces it", map[string]string{"x-should-retry": "false", "retry-after": ""}},
		{"line break", nil, new("a\r\nx-evil: 1"), "bad_credential_stored", 503, "replaces it", nil},
		{"space", nil, new("a b"), "bad_credential_stored", 503, "replaces it", nil},
		{"trailing space", nil, new("a "), "bad_credential_stored", 503, "replaces it", nil},
		{"only space", nil, new(" "), "bad_credential_stored", 503, "replaces it", nil},
		{"NUL", nil, new("a\x00"), "bad_credential_stored", 503, "replaces it", nil},
		{"not ASCII", nil, new("ä"), "bad_credential_stored", 503, "replaces it", nil},
		{"DEL", nil, new("a\x7f"), "bad_credential_stored", 503, "replaces it", nil},
		{"trailing line break", nil, new("a\n"), "bad_credential_stored", 503, "replaces it", nil},
		{"a placeholder", nil, new("sk-ant-oat01-" + worker.Marker + "abc"), "bad_credential_stored", 503, "replaces it", nil},
		{"longer than a header", nil, new(strings.Repeat("a", longestToken+1)), "bad_credential_stored", 503, "replaces it", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newServer(t)
			if c.err != nil {
				f.vault.errs = map[string]error{"claude": c.err}
			}
			if c.token != nil {
				f.vault.tokens = map[string]string{"claude": *c.token}
			}
			client, _ := f.serve(t)
			out := exchange(t, client, message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude(), "x-request-id", "request-1234")))
			got := out.GetImmediateResponse()
			if got == nil || verdictOf(out) != "" {
				t.Fatal("not refused, or with a verdict")
			}
			headers := headersOf(t, got.GetHeaders().GetSetHeaders())
			want := map[string]string{"content-type": "application/json", "x-wayleave-reason": c.reason, "x-request-id": "request-1234"}
			for name, value := range c.header {
				want[name] = value
			}
			for name, value := range want {
				if headers[name] != value {
					t.Errorf("%s: %q, want %q", name, headers[name], value)
				}
			}
			var body struct {
				Type  string
				Error struct{ Type, Message string }
			}
			if err := json.Unmarshal(got.GetBody(), &body); err != nil || body.Type != "error" {
				t.Errorf("body %s: %v", got.GetBody(), err)
			}
			if int(got.GetStatus().GetCode()) != c.status || !strings.Contains(body.Error.Message, c.says) || strings.Contains(body.Error.Message, "inner detail") {
				t.Errorf("%d %q", got.GetStatus().GetCode(), body.Error.Message)
			}
			log := f.log.String()
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, "reason="+c.reason) || !strings.Contains(log, "worker=ci") ||
				!strings.Contains(log, "session="+f.session.ID) || !strings.Contains(log, "request_id=request-1234") || strings.Contains(log, worker.Marker) {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestErrorFormats(t *testing.T) {
	for format, want := range map[string]string{
		"anthropic": `{"error":{"message":"m","type":"permission_error"},"request_id":"id","type":"error"}`,
		"openai":    `{"error":{"code":"policy_denied","message":"m","param":null,"type":"invalid_request_error"}}`,
		"github":    `{"message":"m","status":"403"}`,
		"generic":   `{"error":"policy_denied","message":"m","request_id":"id"}`,
		"":          `{"error":"policy_denied","message":"m","request_id":"id"}`,
	} {
		if got := string(errorBody(format, 403, "policy_denied", "m", "id")); got != want {
			t.Errorf("%s: %s", format, got)
		}
	}
}

// An answer of another phase than the one asked about is a fault to some versions of Envoy, and worse to others.
func TestProcessAnswersEachPhaseInKind(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	for _, c := range []struct{ in, want proto.Message }{
		{&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("x")}}},
			&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}},
		{&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}},
			&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}},
		{&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}},
			&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}},
		{&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{}}},
			&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}},
		{&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}},
			&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}},
	} {
		out := exchange(t, client, c.in.(*extprocv3.ProcessingRequest))
		if diff := cmp.Diff(c.want, out, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	stream, err := client.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&extprocv3.ProcessingRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a message of no phase: %v", err)
	}
}

// A stream ends with its first answer where nothing more is to be said, so that none is held for the length of an answer,
// and stays where a body may be on its way.
func TestStreamEnds(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	modes := func(request, response bodyMode) *extprocv3.ProtocolConfiguration {
		return &extprocv3.ProtocolConfiguration{RequestBodyMode: request, ResponseBodyMode: response}
	}
	const none, streamed, buffered = procv3.ProcessingMode_NONE, procv3.ProcessingMode_STREAMED, procv3.ProcessingMode_BUFFERED
	body := func(last bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("x"), EndOfStream: last}}}
	}
	answer := func(last bool) *extprocv3.ProcessingRequest {
		return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{EndOfStream: last}}}
	}
	for name, c := range map[string]struct {
		config  *extprocv3.ProtocolConfiguration
		headers []string
		more    []*extprocv3.ProcessingRequest
		ends    bool
	}{
		"as we configure it":                 {modes(none, none), nil, nil, true},
		"it is not told what comes":          {nil, nil, nil, false},
		"the request's body comes":           {modes(streamed, none), nil, []*extprocv3.ProcessingRequest{body(false)}, false},
		"the request's body is over":         {modes(streamed, none), nil, []*extprocv3.ProcessingRequest{body(false), body(true)}, true},
		"the answer is buffered":             {modes(buffered, buffered), nil, []*extprocv3.ProcessingRequest{body(true)}, true},
		"the answer is streamed":             {modes(streamed, streamed), nil, []*extprocv3.ProcessingRequest{body(true)}, false},
		"the answer has begun":               {modes(streamed, buffered), nil, []*extprocv3.ProcessingRequest{answer(false), body(true)}, false},
		"the answer is over":                 {modes(streamed, streamed), nil, []*extprocv3.ProcessingRequest{answer(true)}, true},
		"a WebSocket is asked for":           {modes(buffered, streamed), []string{"upgrade", "websocket"}, nil, true},
		"the answer alone comes, after this": {modes(none, streamed), nil, nil, true},
		"the trailers of the request end it": {modes(streamed, none), nil, []*extprocv3.ProcessingRequest{{Request: &extprocv3.ProcessingRequest_RequestTrailers{}}}, true},
		"the trailers of the answer end it":  {modes(streamed, streamed), nil, []*extprocv3.ProcessingRequest{{Request: &extprocv3.ProcessingRequest_ResponseTrailers{}}}, true},
	} {
		in := message(f.anthropic("POST", "/v1/messages", append(c.headers, "authorization", "Bearer "+f.claude())...))
		in.GetRequestHeaders().EndOfStream, in.ProtocolConfig = false, c.config
		stream, err := client.Process(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range append([]*extprocv3.ProcessingRequest{in}, c.more...) {
			if err := stream.Send(m); err != nil {
				t.Fatal(name, err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(name, err)
			}
		}
		// A stream that has not ended answers once more.
		_ = stream.Send(answer(true))
		if _, err := stream.Recv(); (err != nil) != c.ends {
			t.Errorf("%s: %v; want the stream's end: %v", name, err, c.ends)
		}
	}
}

// Our deadline ends the wait for a token, and the worker gets our words rather than a timeout.
func TestProcessHasADeadline(t *testing.T) {
	f := newServer(t)
	f.vault.hang = true
	f.server.deadline = 5 * time.Second
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		out, err := f.server.processMessage(t.Context(), message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude())), &phases{})
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("waited %v", waited)
		}
		if got := headersOf(t, out.GetImmediateResponse().GetHeaders().GetSetHeaders())["x-wayleave-reason"]; got != "refresh_unavailable" {
			t.Errorf("reason %q", got)
		}
	})
}

// Nobody is told about a request whose worker has gone away.
func TestProcessCancelled(t *testing.T) {
	f := newServer(t)
	f.vault.hang = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.server.processMessage(ctx, message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude())), &phases{})
	if status.Code(err) != codes.Canceled || f.log.Len() != 0 {
		t.Errorf("err = %v, log: %s", err, f.log)
	}
}

// Requests that workers give up while they wait, and streams that Envoy resets at any step, leave nothing behind.
func TestAbandonedStreamsEnd(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	in := message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude()))
	exchange(t, client, in) // with all that is there once
	before := runtime.NumGoroutine()
	f.vault.mu.Lock()
	f.vault.hang = true
	f.vault.mu.Unlock()
	for i := range 300 {
		ctx, leave := context.WithCancel(t.Context())
		stream, err := client.Process(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 {
			if err := stream.Send(in); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 > 1 {
			_ = stream.CloseSend()
		}
		leave()
	}
	until := time.Now().Add(30 * time.Second)
	for runtime.NumGoroutine() > before+5 && time.Now().Before(until) {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
	f.vault.mu.Lock()
	f.vault.hang = false
	f.vault.mu.Unlock()
	if v := verdictOf(exchange(t, client, in)); v != "swap" {
		t.Errorf("afterwards: %q", v)
	}
}

func TestUpdate(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	in := message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude()))
	if v := verdictOf(exchange(t, client, in)); v != "swap" {
		t.Fatalf("verdict %q", v)
	}
	changed := testConfig
	changed.Workers = map[string]string{}
	f.server.only(changed)
	out := exchange(t, client, in)
	if got := headersOf(t, out.GetImmediateResponse().GetHeaders().GetSetHeaders())["x-wayleave-reason"]; got != "session_expired" {
		t.Errorf("a worker that was removed is answered %q", got)
	}
}

func TestRequestID(t *testing.T) {
	if got := requestID([]string{"abcdefgh-1234"}); got != "abcdefgh-1234" {
		t.Errorf("a good one became %q", got)
	}
	for _, bad := range [][]string{nil, {""}, {"short"}, {"with space 12345"}, {"line\nbreak12345"}, {strings.Repeat("a", 65)}, {"abcdefgh", "abcdefgh"}} {
		if got := requestID(bad); len(got) < 16 || strings.Contains(strings.Join(bad, " "), got) {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func checkRequest(method, authority, proxyAuthorization string) *authv3.CheckRequest {
	headers := map[string]string{}
	if proxyAuthorization != "" {
		headers["proxy-authorization"] = proxyAuthorization
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: method, Host: authority, Headers: headers},
	}}}
}

// A request for a plain host is let through as it is, or not at all.
func TestCheckPlain(t *testing.T) {
	f := newServer(t)
	_, client := f.serve(t)
	good := basicAuth(f.session.ID, f.token.Reveal())
	for _, c := range []struct {
		name    string
		edit    func(*authv3.AttributeContext_HttpRequest)
		reason  string // "": let through
		expects string // in its words
	}{
		{"plain", nil, "", ""},
		{"with the port", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "PLAIN.example.com:80" }, "", ""},
		{"by wildcard", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "a.b.plain.example.com:8080" }, "", ""},
		{"any method", func(r *authv3.AttributeContext_HttpRequest) { r.Method = "PROPFIND" }, "", ""},
		{"the worker's own credential", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["authorization"] = "Bearer own" }, "", ""},
		{"the same Host", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["host"] = "plain.example.com:80" }, "", ""},

		{"nobody", func(r *authv3.AttributeContext_HttpRequest) { delete(r.Headers, "proxy-authorization") }, "proxy_auth_required", ""},
		{"a fault under a wildcard", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "faulty.plain.example.com:8080" }, "host_quarantined", "config check"},
		{"https", func(r *authv3.AttributeContext_HttpRequest) { r.Scheme = "https" }, "host_not_allowed", "without TLS"},
		{"no scheme", func(r *authv3.AttributeContext_HttpRequest) { r.Scheme = "" }, "host_not_allowed", "without TLS"},
		{"another port", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "plain.example.com:8080" }, "host_not_allowed", ""},
		{"another host", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "api.anthropic.com" }, "host_not_allowed", ""},
		{"the wildcard's own name", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "example.com:8080" }, "host_not_allowed", ""},
		{"an address", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "127.0.0.1" }, "host_not_allowed", "DNS name"},
		{"a user", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "x@plain.example.com" }, "host_not_allowed", "DNS name"},
		{"a final dot", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "plain.example.com." }, "host_not_allowed", "DNS name"},
		{"by CONNECT", func(r *authv3.AttributeContext_HttpRequest) { r.Method, r.Host = "CONNECT", "plain.example.com:80" }, "host_not_allowed", "without CONNECT"},
		{"another Host", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["host"] = "evil.example.com" }, "misdirected", ""},
		{"TRACE", func(r *authv3.AttributeContext_HttpRequest) { r.Method = "TRACE" }, "policy_denied", "TRACE"},
		{"a credential of the connection", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["authorization"] = "NTLM TlRMTVNTUAAB" }, "policy_denied", "authenticate a connection"},
		{"a placeholder as one", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["authorization"] = "Negotiate " + f.claude() }, "misplaced_placeholder", ""},
		{"gives out tokens", func(r *authv3.AttributeContext_HttpRequest) { r.Host = "tokens.pythonhosted.org" }, "token_endpoint", ""},
		{"a placeholder as bearer", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["authorization"] = "Bearer " + f.claude() }, "misplaced_placeholder", "over https"},
		{"a placeholder as password", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["authorization"] = basicAuth("x", f.claude()) }, "misplaced_placeholder", ""},
		{"a placeholder somewhere", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["x-any"] = "a, " + f.claude() }, "misplaced_placeholder", "x-any"},
		{"a placeholder in the query", func(r *authv3.AttributeContext_HttpRequest) { r.Path = "/?key=" + f.claude() }, "misplaced_placeholder", "query"},
		{"a placeholder in the path, encoded", func(r *authv3.AttributeContext_HttpRequest) {
			r.Path = "/" + strings.ReplaceAll(f.claude(), "w", "%77")
		}, "misplaced_placeholder", ""},
		{"a placeholder in a name", func(r *authv3.AttributeContext_HttpRequest) { r.Headers["x-"+f.claude()] = "a" }, "misplaced_placeholder", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := checkRequest("GET", "plain.example.com", good)
			r := in.GetAttributes().GetRequest().GetHttp()
			r.Scheme, r.Path = "http", "/a?b=c"
			r.Headers[":path"], r.Headers[":authority"] = r.Path, r.Host
			if c.edit != nil {
				c.edit(r)
			}
			out, err := client.Check(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if let := out.GetOkResponse() != nil; let != (c.reason == "") {
				t.Fatalf("let through: %v: %v", let, out)
			}
			if body := out.GetDeniedResponse().GetBody(); !strings.Contains(body, c.reason) || !strings.Contains(body, c.expects) {
				t.Errorf("got %s; want %s and %q", body, c.reason, c.expects)
			}
			if strings.Contains(f.log.String(), f.claude()) {
				t.Error("the log shows a placeholder")
			}
		})
	}
}

func TestCheck(t *testing.T) {
	f := newServer(t)
	_, client := f.serve(t)
	issue := func(worker, profile string, ttl time.Duration) (string, string) {
		s, token, err := f.sessions.Issue(worker, profile, ttl, now)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID, token.Reveal()
	}
	good := basicAuth(f.session.ID, f.token.Reveal())
	for _, c := range []struct {
		name              string
		method, authority string
		auth              string
		status            int // 0: let through
		reason            string
	}{
		{"route", "CONNECT", "api.anthropic.com:443", good, 0, ""},
		{"route, upper case", "CONNECT", "API.anthropic.com:443", good, 0, ""},
		{"route, scheme in lower case", "CONNECT", "api.anthropic.com:443", "basic" + good[len("Basic"):], 0, ""},
		{"wildcard route", "CONNECT", "raw.githubusercontent.com:443", good, 0, ""},
		{"another port", "CONNECT", "keyed.example.com:8443", good, 0, ""},
		{"tunnel", "CONNECT", "pypi.org:443", good, 0, ""},
		{"tunnel by wildcard", "CONNECT", "files.pythonhosted.org:443", good, 0, ""},
		{"tunnel for a profile with nothing", "CONNECT", "pypi.org:443", basicAuth(issue("poor", "poor", time.Hour)), 0, ""},

		{"nobody", "CONNECT", "api.anthropic.com:443", "", 407, "proxy_auth_required"},
		{"wrong password", "CONNECT", "api.anthropic.com:443", basicAuth(f.session.ID, "x"), 407, "proxy_auth_required"},
		{"another's password", "CONNECT", "api.anthropic.com:443", basicAuth(f.other.ID, f.token.Reveal()), 407, "proxy_auth_required"},
		{"a bearer", "CONNECT", "api.anthropic.com:443", "Bearer " + f.token.Reveal(), 407, "proxy_auth_required"},
		{"two joined", "CONNECT", "api.anthropic.com:443", good + "," + good, 407, "proxy_auth_required"},
		{"not base64", "CONNECT", "api.anthropic.com:443", "Basic !!!", 407, "proxy_auth_required"},
		{"no colon", "CONNECT", "api.anthropic.com:443", "Basic eA==", 407, "proxy_auth_required"},
		{"a placeholder as password", "CONNECT", "api.anthropic.com:443", basicAuth(f.session.ID, f.claude()), 407, "proxy_auth_required"},
		{"over", "CONNECT", "api.anthropic.com:443", basicAuth(issue("ci", "default", -time.Second)), 407, "session_expired"},
		{"removed worker", "CONNECT", "api.anthropic.com:443", basicAuth(issue("gone", "default", time.Hour)), 407, "session_expired"},
		{"nobody, to nowhere", "CONNECT", "evil.example.com:443", "", 407, "proxy_auth_required"},

		{"no such host", "CONNECT", "evil.example.com:443", good, 403, "host_not_allowed"},
		{"no such port", "CONNECT", "api.anthropic.com:80", good, 403, "host_not_allowed"},
		{"denied", "CONNECT", "telemetry.wild.example.com:443", good, 403, "host_not_allowed"},
		{"a fault under a tunnel", "CONNECT", "x.faulty.pythonhosted.org:443", good, 403, "host_quarantined"},
		{"a fault of a route", "CONNECT", "faulty.example.com:443", good, 403, "host_quarantined"},
		{"gives out tokens", "CONNECT", "tokens.pythonhosted.org:443", good, 403, "host_not_allowed"},
		{"gives out tokens at a path, under a tunnel", "CONNECT", "login.pythonhosted.org:443", good, 403, "host_not_allowed"},
		{"gives out tokens at a path, and is tunnelled by name", "CONNECT", "pypi.org:443", good, 0, ""},
		{"profile without it", "CONNECT", "api.anthropic.com:443", basicAuth(issue("poor", "poor", time.Hour)), 403, "host_not_allowed"},
		{"no port", "CONNECT", "api.anthropic.com", good, 403, "host_not_allowed"},
		{"final dot", "CONNECT", "api.anthropic.com.:443", good, 403, "host_not_allowed"},
		{"user", "CONNECT", "x@api.anthropic.com:443", good, 403, "host_not_allowed"},
		{"address", "CONNECT", "169.254.169.254:80", good, 403, "host_not_allowed"},
		{"address as a number", "CONNECT", "2852039166:80", good, 403, "host_not_allowed"},
		{"address in IPv6", "CONNECT", "[::ffff:169.254.169.254]:80", good, 403, "host_not_allowed"},
		{"nothing", "CONNECT", "", good, 403, "host_not_allowed"},
		{"plain HTTP", "GET", "api.anthropic.com", good, 403, "host_not_allowed"},
		{"absolute form", "POST", "api.anthropic.com:443", good, 403, "host_not_allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.log.Reset()
			out, err := client.Check(t.Context(), checkRequest(c.method, c.authority, c.auth))
			if err != nil {
				t.Fatal(err)
			}
			if c.status == 0 {
				identity := out.GetDynamicMetadata().GetFields()["identity"].GetStringValue()
				if _, err := worker.ParseIdentity(identity); err != nil || out.GetStatus().GetCode() != 0 || out.GetOkResponse() == nil {
					t.Errorf("identity %q, %v", identity, out)
				}
				return
			}
			denied := out.GetDeniedResponse()
			headers := map[string]string{}
			for _, h := range denied.GetHeaders() {
				if h.GetHeader().GetRawValue() != nil {
					t.Errorf("%s has raw_value, which ext_authz does not read", h.GetHeader().GetKey())
				}
				headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
			}
			challenge := ""
			if c.status == 407 {
				challenge = `Basic realm="wayleave"`
			}
			told := c.reason // Envoy is, for its access log, but of the first half of a challenge
			if c.auth == "" {
				told = ""
			}
			var body struct{ Error, Message string }
			if err := json.Unmarshal([]byte(denied.GetBody()), &body); err != nil || body.Error != c.reason || body.Message == "" {
				t.Errorf("body %s: %v", denied.GetBody(), err)
			}
			if int(denied.GetStatus().GetCode()) != c.status || headers["x-wayleave-reason"] != c.reason || headers["proxy-authenticate"] != challenge ||
				out.GetStatus().GetCode() != int32(codes.PermissionDenied) || out.GetDynamicMetadata().GetFields()[metadataIdentity] != nil || reasonIn(out.GetDynamicMetadata()) != told {
				t.Errorf("%d %v", denied.GetStatus().GetCode(), headers)
			}
			log := f.log.String()
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, "reason="+c.reason) || strings.Contains(log, "wls1") ||
				strings.Contains(log, "level=DEBUG") != (c.auth == "") {
				t.Errorf("log: %s", log)
			}
		})
	}
	t.Run("not HTTP", func(t *testing.T) {
		if out, err := client.Check(t.Context(), &authv3.CheckRequest{}); err != nil || out.GetStatus().GetCode() == 0 {
			t.Errorf("%v, %v", out, err)
		}
	})
}

// Sixteen workers at once, under changes of the configuration: each gets its own credential, and nobody another's.
func TestIsolation(t *testing.T) {
	f := newServer(t)
	client, checker := f.serve(t)
	const workers, requests = 16, 40
	stop := make(chan struct{})
	var updating, working sync.WaitGroup
	updating.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				f.server.only(testConfig)
			}
		}
	})
	for i := range workers {
		working.Go(func() {
			s, token, err := f.sessions.Issue("ci", "default", time.Hour, now)
			if err != nil {
				t.Error(err)
				return
			}
			grant, host, prefix := "claude", "api.anthropic.com", "sk-ant-oat01-"
			if i%2 == 1 {
				grant, host, prefix = "github", "github.com", "gho_"
			}
			own := f.sessions.Placeholder(s, grant, prefix)
			stolen := f.sessions.Placeholder(f.session, grant, prefix)
			for range requests {
				out, err := checker.Check(t.Context(), checkRequest("CONNECT", host+":443", basicAuth(s.ID, token.Reveal())))
				if err != nil {
					t.Error(err)
					return
				}
				identity := out.GetDynamicMetadata().GetFields()["identity"].GetStringValue()
				if identity != s.Identity() {
					t.Errorf("identity %q, want %q", identity, s.Identity())
				}
				for placeholder, want := range map[string]string{own: "Bearer " + realToken(grant), stolen: ""} {
					r := f.to(host, "GET", "/", "authorization", "Bearer "+placeholder)
					r.identity = identity
					stream, err := client.Process(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					if err := stream.Send(message(r)); err != nil {
						t.Error(err)
						return
					}
					out, err := stream.Recv()
					if err != nil {
						t.Error(err)
						return
					}
					got := ""
					for _, h := range out.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders() {
						if h.GetHeader().GetKey() == "authorization" {
							got = string(h.GetHeader().GetRawValue())
						}
					}
					if got != want {
						t.Errorf("sent %q, want %q", got, want)
					}
				}
			}
		})
	}
	working.Wait()
	close(stop)
	updating.Wait()
}

// judge checks an answer against what may ever leave the server, knowing nothing of how it decides: a swap of the exact
// expected shape, a pass in which no placeholder is left, or a refusal from the table.
func judge(t *testing.T, f *serverFixture, in *extprocv3.ProcessingRequest, out *extprocv3.ProcessingResponse) {
	t.Helper()
	if out.GetImmediateResponse() != nil {
		got := out.GetImmediateResponse()
		headers := headersOf(t, got.GetHeaders().GetSetHeaders())
		known := false
		for _, r := range Reasons() {
			known = known || r.Name == headers["x-wayleave-reason"]
		}
		if code := got.GetStatus().GetCode(); !known || code < 400 || code > 599 || !json.Valid(got.GetBody()) || verdictOf(out) != "" || strings.Contains(prototext.Format(out.GetDynamicMetadata()), "REAL-") {
			t.Errorf("a refusal that is none: %v", out)
		}
		if bytes.Contains(got.GetBody(), []byte(worker.Marker)) || bytes.Contains(got.GetBody(), []byte("REAL-")) {
			t.Error("a refusal shows a credential or a placeholder")
		}
		return
	}
	if out.GetRequestHeaders() == nil {
		if in.GetRequestHeaders() != nil || out.GetDynamicMetadata() != nil {
			t.Errorf("an answer of another phase, or with a verdict: %v", out)
		}
		return
	}
	mutation := out.GetRequestHeaders().GetResponse().GetHeaderMutation()
	set := headersOf(t, mutation.GetSetHeaders())
	removed := map[string]bool{}
	for _, name := range mutation.GetRemoveHeaders() {
		removed[name] = true
	}
	// What the upstream sees.
	var seen []string
	for _, h := range in.GetRequestHeaders().GetHeaders().GetHeaders() {
		name, value := strings.ToLower(h.GetKey()), h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if _, replaced := set[name]; replaced || removed[name] {
			continue
		}
		seen = append(seen, name+": "+value)
		if scheme, _, _ := strings.Cut(strings.ToLower(value), " "); name == "authorization" && connectionSchemes[scheme] {
			t.Errorf("%s authenticates the connection", value)
		}
		if strings.HasPrefix(name, "proxy-auth") || strings.HasPrefix(name, "x-wayleave-") {
			t.Errorf("%s leaves", name)
		}
	}
	real := 0
	for name, value := range set {
		seen = append(seen, name+": "+value)
		if scheme, credentials, _ := strings.Cut(value, " "); strings.EqualFold(scheme, "basic") {
			user, password, ok := basic(credentials)
			if !ok {
				t.Errorf("%s is not Basic", name)
			}
			seen = append(seen, user, password)
			value = user + password // the placeholder may have been either, or both
		}
		switch {
		case strings.Contains(value, "REAL-"):
			real++
		case name != "sec-websocket-key" && name != "anthropic-beta":
			t.Errorf("%s was set", name)
		}
	}
	for _, s := range seen {
		plain, _ := url.QueryUnescape(s)
		if strings.Contains(strings.ToLower(s+plain), worker.Marker) {
			t.Errorf("a placeholder leaves: %q", s)
		}
	}
	switch verdict := verdictOf(out); {
	case verdict == "swap" && real == 1 && f.presentsOwn(in):
	case verdict == "pass" && real == 0:
	default:
		t.Errorf("verdict %q with %d real credentials", verdict, real)
	}
}

// reasonIn is that of the note in what Envoy keeps.
func reasonIn(kept *structpb.Struct) string {
	x, _ := readNote(kept.GetFields()[fieldNote].GetStringValue())
	return x.Reason
}

// presentsOwn reports whether a header of in is a placeholder of the fixture's session, whole, or has one as user or
// password, and the connection is that session's.
func (f *serverFixture) presentsOwn(in *extprocv3.ProcessingRequest) bool {
	r := newRequest(in.GetRequestHeaders())
	identity := in.GetAttributes()[attributeNamespace].GetFields()[attributeIdentity].GetStringValue()
	var parts []string
	for _, h := range r.headers {
		credential := h.value[strings.LastIndexByte(h.value, ' ')+1:]
		user, password, _ := basic(credential)
		parts = append(parts, credential, user, password)
	}
	return identity == f.session.Identity() && slices.ContainsFunc(testConfig.Routes, func(route Route) bool {
		return slices.Contains(parts, f.placeholder(route.Credential, route.PlaceholderPrefix))
	})
}

// Any message: from bytes, as protocol buffers.
func FuzzProcess(f *testing.F) {
	s := newServer(f)
	for _, r := range []request{
		s.anthropic("POST", "/v1/messages", "authorization", "Bearer "+s.claude()),
		s.to("github.com", "GET", "/", "authorization", basicAuth("u", s.placeholder("github", "gho_"))),
		s.anthropic("GET", "/x", "authorization", "Bearer other"),
	} {
		raw, err := proto.Marshal(message(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := new(extprocv3.ProcessingRequest)
		if proto.Unmarshal(raw, in) != nil {
			return
		}
		out, err := s.server.processMessage(t.Context(), in, &phases{})
		if err != nil {
			if in.GetRequest() != nil {
				t.Errorf("an error: %v", err)
			}
			return
		}
		judge(t, s, in, out)
	})
}

// Requests that get further than random messages do: a good connection, and a request of the fuzzer's. In each text
// {placeholder}, {other} and {session} stand for what only a test can know.
func FuzzRequests(f *testing.F) {
	s := newServer(f)
	hosts := []string{"api.anthropic.com", "github.com", "turned.example.com", "basic.example.com", "plain.example.com", "custom.example.com"}
	f.Add(uint8(0), "POST", "/v1/messages?x", "authorization", "Bearer {placeholder}", "anthropic-beta", "a")
	f.Add(uint8(1), "GET", "/", "authorization", "token {placeholder}", "connection", "authorization")
	f.Add(uint8(1), "GET", "/", "authorization", "{basic}", "cookie", "{placeholder}")
	f.Add(uint8(2), "GET", "/%77l", "x-api-key", "{placeholder}", "authorization", "Bearer {other}")
	f.Add(uint8(4), "GET", "/", "authorization", "{basic}", "upgrade", "websocket")
	f.Add(uint8(3), "GET", "/", "Authorization", "bearer {placeholder}", "x-wayleave-x", "y")
	f.Add(uint8(2), "GET", "/", "authorization", "NTLM abc", "x-api-key", "other")
	f.Add(uint8(0), "POST", "/v1/messages", "x-original-url", "/v1/oauth/token", "x-http-method-override", "GET")
	f.Fuzz(func(t *testing.T, which uint8, method, path, name1, value1, name2, value2 string) {
		if !utf8.ValidString(name1) || !utf8.ValidString(name2) { // which is no name, and no message can have it
			return
		}
		host := hosts[int(which)%len(hosts)]
		route := s.policy.find(endpoint{host, httpsPort}).routes[0]
		own := s.placeholder(route.Credential, route.PlaceholderPrefix)
		fill := strings.NewReplacer("{placeholder}", own, "{other}", s.sessions.Placeholder(s.other, route.Credential, route.PlaceholderPrefix),
			"{session}", s.session.ID, "{basic}", basicAuth("u", own), "{basicuser}", basicAuth(own, "u")).Replace
		in := message(s.to(host, method, fill(path), name1, fill(value1), name2, fill(value2)))
		out, err := s.server.processMessage(t.Context(), in, &phases{})
		if err != nil {
			t.Fatal(err)
		}
		judge(t, s, in, out)
	})
}

// script is a stream on which Envoy says what a test wrote down.
type script struct {
	extprocv3.ExternalProcessor_ProcessServer
	ctx context.Context
	in  []*extprocv3.ProcessingRequest
	out []*extprocv3.ProcessingResponse
}

func (s *script) Context() context.Context { return s.ctx }

func (s *script) RecvMsg(m any) error {
	if len(s.in) == 0 {
		return io.EOF
	}
	raw, err := proto.Marshal(s.in[0])
	if err != nil {
		return err
	}
	s.in = s.in[1:]
	return proto.Unmarshal(raw, m.(proto.Message))
}

func (s *script) Recv() (*extprocv3.ProcessingRequest, error) {
	m := new(extprocv3.ProcessingRequest)
	return m, s.RecvMsg(m)
}

func (s *script) SendMsg(m any) error {
	raw, err := proto.Marshal(m.(proto.Message))
	if err != nil {
		return err
	}
	out := new(extprocv3.ProcessingResponse)
	s.out = append(s.out, out)
	return proto.Unmarshal(raw, out)
}

func (s *script) Send(m *extprocv3.ProcessingResponse) error { return s.SendMsg(m) }

// Whatever Envoy sends of a request, and in whatever order, each message is answered in its kind or the stream ends, and bodies come through as they
// were, but for a token that is to be masked.
func FuzzStream(f *testing.F) {
	plain, masking := newServer(f), newServer(f)
	masked := testConfig
	masked.Routes = slices.Clone(testConfig.Routes)
	masked.Routes[0].MaskBody = true
	masking.server.only(masked)
	f.Add(uint8(0), []byte{0}, "")
	f.Add(uint8(7), []byte{0, 1, 2, 4, 5, 6}, "you sent {token}")
	f.Add(uint8(12), []byte{0, 4, 5, 5, 6}, "{token}{token}")
	f.Add(uint8(9), []byte{4, 6, 0, 3, 7}, "a")
	f.Add(uint8(31), []byte{0, 0, 2, 8}, "abc")
	f.Fuzz(func(t *testing.T, modes uint8, kinds []byte, body string) {
		s := plain
		if modes&1 != 0 {
			s = masking
		}
		token := realToken("claude")
		body = strings.ReplaceAll(body, "{token}", token)
		take := func() []byte { // the next piece
			n := min(len(body), 7)
			piece := body[:n]
			body = body[n:]
			return []byte(piece)
		}
		var in []*extprocv3.ProcessingRequest
		var sent []byte
		for _, k := range kinds[:min(len(kinds), 50)] {
			m := &extprocv3.ProcessingRequest{}
			switch k % 9 {
			case 0:
				m = message(s.anthropic("POST", "/v1/messages", "authorization", "Bearer "+s.claude()))
				m.GetRequestHeaders().EndOfStream = k > 127
			case 1, 2:
				m.Request = &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("x"), EndOfStream: k%9 == 2}}
			case 3:
				m.Request = &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}
			case 4, 8:
				m.Request = &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{EndOfStream: k%9 == 8}}
			case 5, 6:
				m.Request = &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: take(), EndOfStream: k%9 == 6}}
			case 7:
				m.Request = &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}
			}
			if len(in) == 0 && modes&2 != 0 {
				m.ProtocolConfig = &extprocv3.ProtocolConfiguration{
					RequestBodyMode: procv3.ProcessingMode_BodySendMode(modes >> 2 % 5), ResponseBodyMode: procv3.ProcessingMode_BodySendMode(modes >> 4 % 5),
				}
			}
			in = append(in, m)
		}
		stream := &script{ctx: t.Context(), in: in}
		err := s.server.Process(stream)
		if len(stream.out) > len(in) {
			t.Fatalf("%d answers to %d messages", len(stream.out), len(in))
		}
		var passed []byte
		for i, out := range stream.out {
			asked, answered := in[i].ProtoReflect().WhichOneof(oneofRequest), out.ProtoReflect().WhichOneof(oneofResponse)
			if out.GetImmediateResponse() == nil && asked.Name() != answered.Name() || out.GetImmediateResponse() != nil && i != len(stream.out)-1 {
				t.Errorf("message %d, %s, is answered with %s", i, asked.Name(), answered.Name())
			}
			if in[i].GetRequestHeaders() != nil && i > 0 {
				t.Error("headers in the middle of a stream are answered")
			}
			if b := in[i].GetResponseBody(); b != nil {
				sent = append(sent, b.GetBody()...)
				switch mutation := out.GetResponseBody().GetResponse().GetBodyMutation(); {
				case mutation.GetStreamedResponse() != nil:
					passed = append(passed, mutation.GetStreamedResponse().GetBody()...)
				case mutation != nil:
					passed = append(passed, mutation.GetBody()...)
				default:
					passed = append(passed, b.GetBody()...)
				}
			}
		}
		swapped := len(stream.out) > 0 && verdictOf(stream.out[0]) == "swap"
		want := string(sent)
		if modes&1 != 0 && swapped {
			want = strings.ReplaceAll(want, token, strings.Repeat("*", len(token)))
			if held := len(want) - len(passed); held > 0 && held < len(token) { // until the next piece comes
				want = want[:len(passed)]
			}
		}
		if string(passed) != want {
			t.Errorf("of %q came %q, error %v", sent, passed, err)
		}
	})
}

var (
	oneofRequest  = new(extprocv3.ProcessingRequest).ProtoReflect().Descriptor().Oneofs().ByName("request")
	oneofResponse = new(extprocv3.ProcessingResponse).ProtoReflect().Descriptor().Oneofs().ByName("response")
)

func FuzzCheck(f *testing.F) {
	s := newServer(f)
	f.Add("CONNECT", "api.anthropic.com:443", basicAuth(s.session.ID, s.token.Reveal()))
	f.Add("CONNECT", "api.anthropic.com:443", "Basic !")
	f.Fuzz(func(t *testing.T, method, authority, auth string) {
		out, err := s.server.Check(t.Context(), checkRequest(method, authority, auth))
		if err != nil {
			t.Fatal(err)
		}
		identity := out.GetDynamicMetadata().GetFields()["identity"].GetStringValue()
		if ok := out.GetStatus().GetCode() == 0; ok != (identity == s.session.Identity()) || ok && method != "CONNECT" {
			t.Errorf("%v", out)
		}
	})
}

func BenchmarkProcess(b *testing.B) {
	for _, c := range []struct {
		name        string
		tracer      trace.Tracer
		id, flagged string
	}{
		{"no tracing", nil, untracedID, ""},
		{"not traced", sdktrace.NewTracerProvider().Tracer("b"), untracedID, "00"},
		{"traced", sdktrace.NewTracerProvider().Tracer("b"), tracedID, "01"},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := newServer(b)
			f.server.tracer = c.tracer
			in := message(f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude(), "user-agent", "claude-cli/2.1.331", "accept", "*/*", "x-request-id", c.id))
			ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("traceparent", "00-"+envoysTrace+"-"+envoysSpan+"-"+c.flagged))
			raw, err := proto.Marshal(in)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				q, err := readQuestion(raw)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.server.process(ctx, &q, &phases{}); err != nil || f.log.Len() > 0 {
					b.Fatal("not swapped")
				}
			}
		})
	}
}
