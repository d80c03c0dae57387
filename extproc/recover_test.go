package extproc

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wayleave/grant"
)

// rejected is what Envoy sends when a provider has answered 401 to the request that out let go: its header as it went
// out, and what was noted of it.
func rejected(out *extprocv3.ProcessingResponse, header, value string) *extprocv3.ProcessingRequest {
	noted := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue()
	fields := map[string]*structpb.Value{"answered": structpb.NewStringValue("401")}
	for k, v := range noted.GetFields() {
		fields[k] = v
	}
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("GET")}, {Key: ":authority", RawValue: []byte("api.example.com")}, {Key: ":path", RawValue: []byte("/")},
			{Key: header, RawValue: []byte(value)},
		}}}},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataNamespace: {Fields: fields}}},
	}
}

// The new token takes the place of the rejected one in whatever form that went out.
func TestAgainKeepsTheForm(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, test := range map[string]struct {
		was        sent
		value      string
		want, fail string
	}{
		"bearer":            {was: sent{header: "authorization"}, value: "Bearer OLD", want: "Bearer NEW"},
		"other scheme":      {was: sent{header: "authorization"}, value: "token OLD", want: "token NEW"},
		"bare":              {was: sent{header: "x-api-key"}, value: "OLD", want: "NEW"},
		"basic password":    {was: sent{header: "authorization", password: true}, value: "Basic " + encode("x-access-token:OLD"), want: "Basic " + encode("x-access-token:NEW")},
		"basic user":        {was: sent{header: "authorization", user: true}, value: "Basic " + encode("OLD:x-oauth-basic"), want: "Basic " + encode("NEW:x-oauth-basic")},
		"basic both":        {was: sent{header: "authorization", user: true, password: true}, value: "Basic " + encode("OLD:OLD"), want: "Basic " + encode("NEW:NEW")},
		"basic that is not": {was: sent{header: "authorization", user: true}, value: "Basic !!", fail: "no Basic credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.was.with(test.value, "NEW")
			if got != test.want || (err == nil) != (test.fail == "") || err != nil && !strings.Contains(err.Error(), test.fail) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// A retry is asked for exactly when another token may be had and Envoy can keep the request, and what is noted of it is no
// secret.
func TestSwapAsksForRetry(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	for _, tt := range []struct {
		length      string
		replaceable bool
		want        bool
	}{{"", true, true}, {"", false, false}, {"0", true, true}, {"1048576", true, true}, {"1048577", true, false}, {"99999999999999999999", true, false}} {
		f.vault.replaceable = tt.replaceable
		headers := []string{"authorization", "Bearer " + f.claude()}
		if tt.length != "" {
			headers = append(headers, "content-length", tt.length)
		}
		out := exchange(t, client, message(f.anthropic("POST", "/", headers...)))
		if text := prototext.Format(out.GetDynamicMetadata()); strings.Contains(text, realToken("claude")) || strings.Contains(text, f.claude()) || !strings.Contains(text, "claude") {
			t.Errorf("noted: %v", text)
		}
		set := headersOf(t, out.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders())
		if asked := set[headerRetryOn] == retryOnStatus; asked != tt.want {
			t.Errorf("%+v: %v", tt, set)
		}
	}
	out := exchange(t, client, message(f.anthropic("GET", "/", "authorization", "Bearer other")))
	if set := out.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders(); len(set) > 0 {
		t.Errorf("a request that is not swapped: %v", set)
	}
}

// What Envoy logs of a rejected token reaches whoever can replace it.
func TestRejectionsAreLearnt(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	first := exchange(t, client, message(f.anthropic("GET", "/", "authorization", "Bearer "+f.claude())))
	entry := func(edit func(map[string]*structpb.Value)) *dataaccesslogv3.HTTPAccessLogEntry {
		m := rejected(first, "x", "y").GetMetadataContext()
		edit(m.GetFilterMetadata()[metadataNamespace].GetFields())
		return &dataaccesslogv3.HTTPAccessLogEntry{CommonProperties: &dataaccesslogv3.AccessLogCommon{Metadata: m}, Response: responded(401, "via_upstream")}
	}
	ok := func(answered string) *dataaccesslogv3.HTTPAccessLogEntry {
		e := entry(func(m map[string]*structpb.Value) { m[fieldAnswered] = structpb.NewStringValue(answered) })
		e.Response = responded(200, "via_upstream")
		return e
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream := &logStream{ctx: ctx, messages: []*accesslogv3.StreamAccessLogsMessage{{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*dataaccesslogv3.HTTPAccessLogEntry{
			entry(func(map[string]*structpb.Value) {}),
			entry(func(m map[string]*structpb.Value) { m[metadataVerdict] = structpb.NewStringValue(verdictPass) }),
			ok(""),
			ok(statusUnauthenticated),
			{},
		}},
	}}, {}}}
	defer cancel()
	f.vault.asked = nil
	if err := f.server.StreamAccessLogs(stream); !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
	if want := []string{"ci: rejected claude 1", "ci: rejected claude 1"}; !slices.Equal(f.vault.asked, want) {
		t.Errorf("got %q, want %q", f.vault.asked, want)
	}
}

func responded(code uint32, details string) *dataaccesslogv3.HTTPResponseProperties {
	return &dataaccesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(code), ResponseCodeDetails: details}
}

// What failed after it was let through counts against the revision that let it through, as long as that is live.
func TestFailuresAreCounted(t *testing.T) {
	f := twoRevisions(t)
	entry := func(verdict, revision string, r *dataaccesslogv3.HTTPResponseProperties) *dataaccesslogv3.HTTPAccessLogEntry {
		fields := map[string]*structpb.Value{metadataVerdict: structpb.NewStringValue(verdict), fieldNote: structpb.NewStringValue(noteOf(Decided{Revision: revision}, nil))}
		return &dataaccesslogv3.HTTPAccessLogEntry{Response: r, CommonProperties: &dataaccesslogv3.AccessLogCommon{
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataNamespace: {Fields: fields}}},
		}}
	}
	logged := func(entries ...*dataaccesslogv3.HTTPAccessLogEntry) *accesslogv3.StreamAccessLogsMessage {
		return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
			HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
		}}
	}
	stable, next := shortRevision(stableRevision), shortRevision(nextRevision)
	first := logged(entry(verdictSwap, stable, responded(503, "upstream_reset_before_response_started{connection_failure}")))
	first.Identifier = &accesslogv3.StreamAccessLogsMessage_Identifier{Node: &corev3.Node{Id: "a"}}
	stream := &logStream{ctx: t.Context(), messages: []*accesslogv3.StreamAccessLogsMessage{first, logged(
		entry(verdictPass, next, responded(500, "via_upstream")),
		entry(verdictSwap, next, responded(200, "upstream_reset_after_response_started{remote_reset}")),
		// None of these.
		entry(verdictSwap, next, responded(101, "upstream_reset_after_response_started{connection_termination}")),
		entry(verdictSwap, next, responded(503, detailsRefused+refreshUnavailable)),
		entry(verdictSwap, next, responded(503, detailsTooLongAgain)),
		entry(verdictPass, next, responded(401, "via_upstream")),
		entry(verdictSwap, "gone", responded(500, "via_upstream")),
	), {LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{
		LogEntry: []*dataaccesslogv3.TCPAccessLogEntry{{}, {}}, // handshakes
	}}}, {}}}
	f.vault.asked = nil
	if err := f.server.StreamAccessLogs(stream); !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
	if diff := gocmp.Diff([]Count{{Node: "a", Requests: 2, Errors: 2}, {Node: "a", Revision: nextRevision, Errors: 2}, {Node: "a", Revision: stableRevision, Errors: 1}}, f.counted()); diff != "" {
		t.Error(diff)
	}
	if len(f.vault.asked) != 1 { // of the one too long to be sent again
		t.Errorf("rejected: %q", f.vault.asked)
	}
}

// logStream is a stream from Envoy that ends after its messages.
type logStream struct {
	grpc.ServerStream
	ctx      context.Context
	messages []*accesslogv3.StreamAccessLogsMessage
}

func (s *logStream) Context() context.Context { return s.ctx }

func (s *logStream) SendAndClose(*accesslogv3.StreamAccessLogsResponse) error { return nil }

func (*logStream) Recv() (*accesslogv3.StreamAccessLogsMessage, error) {
	return nil, errors.ErrUnsupported
}

func (s *logStream) RecvMsg(m any) error {
	if len(s.messages) == 0 {
		return io.EOF
	}
	raw, err := proto.Marshal(s.messages[0])
	s.messages = s.messages[1:]
	if err != nil {
		return err
	}
	return proto.Unmarshal(raw, m.(proto.Message))
}

func TestAgain(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	first := exchange(t, client, message(f.anthropic("GET", "/", "authorization", "Bearer "+f.claude())))
	header := headersOf(t, first.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders())["authorization"]
	in := rejected(first, "authorization", header)

	t.Run("another token", func(t *testing.T) {
		f.vault.tokens, f.vault.version = map[string]string{"claude": "REAL-another"}, "2"
		out := exchange(t, client, in)
		m := out.GetRequestHeaders().GetResponse().GetHeaderMutation()
		if got := headersOf(t, m.GetSetHeaders()); len(got) != 1 || got["authorization"] != "Bearer REAL-another" || len(m.GetRemoveHeaders()) > 0 {
			t.Errorf("set %v, removed %v", got, m.GetRemoveHeaders())
		}
		fields := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()
		if x, _ := readNote(fields[fieldNote].GetStringValue()); x.Token != "2" || x.Grant != "claude" || fields["answered"] == nil || fields["answered"].GetStringValue() != "" {
			t.Errorf("noted %v", fields)
		}
		if asked := f.vault.asked[len(f.vault.asked)-1]; !strings.HasPrefix(asked, "ci: claude") || !strings.Contains(asked, "instead of 1") {
			t.Errorf("asked %q", asked)
		}
	})
	t.Run("no other token", func(t *testing.T) {
		f.vault.tokens, f.vault.version = nil, "1"
		out := exchange(t, client, in)
		if m := out.GetRequestHeaders().GetResponse().GetHeaderMutation(); len(m.GetSetHeaders())+len(m.GetRemoveHeaders()) > 0 || out.GetDynamicMetadata() != nil {
			t.Errorf("got %v", out)
		}
	})
	t.Run("refused", func(t *testing.T) {
		f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: grant.NeedsReconnect}}
		defer func() { f.vault.errs = nil }()
		out := exchange(t, client, in).GetImmediateResponse()
		if got := headersOf(t, out.GetHeaders().GetSetHeaders())["x-wayleave-reason"]; got != needsReconnect {
			t.Errorf("got %v", out)
		}
	})
	t.Run("not a swap, or no 401", func(t *testing.T) {
		for name, edit := range map[string]func(map[string]*structpb.Value){
			"passed": func(m map[string]*structpb.Value) { m[metadataVerdict] = structpb.NewStringValue(verdictPass) },
			"200":    func(m map[string]*structpb.Value) { m["answered"] = structpb.NewStringValue("200") },
		} {
			in := rejected(first, "authorization", header)
			edit(in.GetMetadataContext().GetFilterMetadata()[metadataNamespace].GetFields())
			if out := exchange(t, client, in); out.GetImmediateResponse() == nil { // it has no identity
				t.Errorf("%s: got %v", name, out)
			}
		}
	})
	if strings.Contains(f.log.String(), "REAL-") {
		t.Errorf("a token was logged: %s", f.log)
	}
}
