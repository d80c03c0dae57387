package extproc

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

// logged is what Envoy's log has of something whose metadata in a namespace is m.
func logged(namespace string, m *structpb.Struct) *dataaccesslogv3.AccessLogCommon {
	return &dataaccesslogv3.AccessLogCommon{
		StartTime: timestamppb.New(began), Duration: durationpb.New(1500 * time.Microsecond),
		Metadata:                &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespace: m, "envoy.filters.http.rbac": {}}},
		UpstreamRemoteAddress:   socket("10.0.0.7", 443),
		DownstreamLocalAddress:  socket("203.0.113.1", 8443),
		TlsProperties:           &dataaccesslogv3.TLSProperties{TlsSniHostname: "pypi.org"},
		ResponseFlags:           &dataaccesslogv3.ResponseFlags{UpstreamConnectionFailure: true, UpstreamRetryLimitExceeded: true},
		DownstreamWireBytesSent: 20, DownstreamWireBytesReceived: 10, UpstreamRequestAttemptCount: 2,
	}
}

func socket(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

// hears makes the server read messages of a stream from Envoy.
func (f *serverFixture) hears(t testing.TB, messages ...*accesslogv3.StreamAccessLogsMessage) []Ended {
	t.Helper()
	var all []Ended
	f.server.ended = func(x Ended) { all = append(all, x) }
	messages[0].Identifier = &accesslogv3.StreamAccessLogsMessage_Identifier{Node: &corev3.Node{Id: "envoy-1"}}
	if err := f.server.StreamAccessLogs(&logStream{ctx: t.Context(), messages: messages}); !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
	return all
}

func requestsLogged(all ...*dataaccesslogv3.HTTPAccessLogEntry) *accesslogv3.StreamAccessLogsMessage {
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: all}}}
}

func connectionsLogged(all ...*dataaccesslogv3.TCPAccessLogEntry) *accesslogv3.StreamAccessLogsMessage {
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: all}}}
}

// What Envoy keeps of a decision is enough to tell all of it again at the end, whatever gate is told.
func TestEndsTellTheDecision(t *testing.T) {
	f := newServer(t)
	f.server.only(standInConfig())
	f.server.gate = "a"
	var told Decided
	f.server.decided = func(d Decided) error { told = d; return nil }
	process := func(host, method, path string, headers ...string) (string, *structpb.Struct) {
		t.Helper()
		out, err := f.server.processMessage(t.Context(), message(f.to(host, method, path, append(headers, "x-request-id", "request-1")...)), new(phases))
		if err != nil {
			t.Fatal(err)
		}
		return metadataNamespace, out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue()
	}
	check := func(host string) (string, *structpb.Struct) {
		t.Helper()
		in := checkRequest(http.MethodConnect, host, basicAuth(f.session.ID, f.token.Reveal()))
		in.Attributes.Source = &authv3.AttributeContext_Peer{Address: socket("10.0.0.9", 5)}
		out, err := f.server.Check(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return namespaceProxy, out.GetDynamicMetadata()
	}
	for name, c := range map[string]struct {
		decide    func() (string, *structpb.Struct)
		authority string
		method    corev3.RequestMethod
		path      string
	}{
		"swapped": {func() (string, *structpb.Struct) {
			return process("api.anthropic.com", "POST", "/v1/messages?q=secret", "authorization", "Bearer "+f.claude())
		}, "api.anthropic.com", corev3.RequestMethod_POST, "/v1/messages?q=secret"},
		"passed": {func() (string, *structpb.Struct) {
			return process("api.anthropic.com", "GET", "/v1/models")
		}, "api.anthropic.com", corev3.RequestMethod_GET, "/v1/models"},
		"answered": {func() (string, *structpb.Struct) {
			return process("api.anthropic.com", "POST", "/v1/oauth/token", "authorization", "Bearer x")
		}, "api.anthropic.com", corev3.RequestMethod_POST, "/v1/oauth/token"},
		"a method that Envoy has no word for": {func() (string, *structpb.Struct) {
			return process("api.anthropic.com", "PROPFIND", "/v1/models")
		}, "api.anthropic.com", corev3.RequestMethod_METHOD_UNSPECIFIED, "/v1/models"},
		"refused": {func() (string, *structpb.Struct) {
			return process("api.anthropic.com", "GET", "/v1/"+f.claude())
		}, "api.anthropic.com", corev3.RequestMethod_GET, "/v1/" + f.claude()},
		"a tunnel":         {func() (string, *structpb.Struct) { return check("pypi.org:443") }, "pypi.org:443", corev3.RequestMethod_CONNECT, ""},
		"a refused tunnel": {func() (string, *structpb.Struct) { return check("nowhere.example:443") }, "nowhere.example:443", corev3.RequestMethod_CONNECT, ""},
	} {
		t.Run(name, func(t *testing.T) {
			told = Decided{}
			namespace, kept := c.decide()
			got := f.hears(t, requestsLogged(&dataaccesslogv3.HTTPAccessLogEntry{
				CommonProperties: logged(namespace, kept), ProtocolVersion: dataaccesslogv3.HTTPAccessLogEntry_HTTP2,
				Request:  &dataaccesslogv3.HTTPRequestProperties{RequestMethod: c.method, Authority: c.authority, Path: c.path},
				Response: &dataaccesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(503), ResponseCodeDetails: "because"},
			}))
			want := Ended{
				Decided: told, Node: "envoy-1", Status: 503, Details: "because", Flags: "UF,URX", BytesReceived: 10, BytesSent: 20,
				Duration: 1500 * time.Microsecond, Attempts: 2, Upstream: "10.0.0.7:443", Protocol: "HTTP/2",
			}
			want.At, want.Took = began, 0
			if told.RequestID == "" || kept.GetFields()[fieldGate].GetStringValue() != "a" {
				t.Errorf("told %+v, kept %v", told, kept)
			}
			if diff := cmp.Diff([]Ended{want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A CONNECT to a host whose requests are decided one by one is not decided about, and so has no end; nor has a challenge.
func TestNoEndOfWhatIsNotTold(t *testing.T) {
	f := newServer(t)
	f.server.gate = "a"
	for _, password := range []string{f.token.Reveal(), ""} {
		auth := ""
		if password != "" {
			auth = basicAuth(f.session.ID, password)
		}
		out, err := f.server.Check(t.Context(), checkRequest(http.MethodConnect, "api.anthropic.com:443", auth))
		if err != nil {
			t.Fatal(err)
		}
		if m := out.GetDynamicMetadata().GetFields(); m[fieldNote] != nil || m[fieldGate] != nil {
			t.Errorf("kept %v", m)
		}
		if got := f.hears(t, requestsLogged(&dataaccesslogv3.HTTPAccessLogEntry{CommonProperties: logged(namespaceProxy, out.GetDynamicMetadata())})); len(got) > 0 {
			t.Errorf("told of %+v", got)
		}
	}
}

// Envoy is to tell of failures alone where nobody keeps an account, and what it keeps for its own log is there where it has one.
func TestWhatIsKeptForWhom(t *testing.T) {
	f := newServer(t)
	for _, c := range []struct {
		ended func(Ended)
		shown bool
		want  []string
	}{
		{nil, false, []string{fieldFailures, fieldHeader, fieldNote, metadataVerdict}},
		{func(Ended) {}, false, []string{fieldHeader, fieldNote, metadataVerdict}},
		{func(Ended) {}, true, []string{fieldGrant, fieldHeader, fieldNote, fieldRoute, metadataVerdict}},
	} {
		f.server.ended, f.server.shown = c.ended, c.shown
		out, err := f.server.processMessage(t.Context(), message(f.anthropic("GET", "/", "authorization", "Bearer "+f.claude())), new(phases))
		if err != nil {
			t.Fatal(err)
		}
		kept := out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue().GetFields()
		if diff := cmp.Diff(c.want, slices.Sorted(maps.Keys(kept))); diff != "" {
			t.Error(diff)
		}
	}
}

// Tunnels that were redirected are told of as those that a CONNECT opens; handshakes that failed are told of by the same log and are none.
func TestEndOfRedirectedTunnels(t *testing.T) {
	f := newServer(t)
	kept := f.server.kept(nil, Decided{RequestID: "tunnel-1", Worker: "ci", Source: "10.0.0.9"}).message()
	c := logged(namespaceRedirected, kept)
	c.ConnectionTerminationDetails = "because"
	got := f.hears(t, connectionsLogged(&dataaccesslogv3.TCPAccessLogEntry{}, &dataaccesslogv3.TCPAccessLogEntry{
		CommonProperties: c, ConnectionProperties: &dataaccesslogv3.ConnectionProperties{ReceivedBytes: 3, SentBytes: 4},
	}))
	want := []Ended{{
		Decided: Decided{At: began, Worker: "ci", Source: "10.0.0.9", Host: "pypi.org:8443", Method: "CONNECT", RequestID: "tunnel-1"}, Node: "envoy-1",
		Details: "because", Flags: "UF,URX", BytesReceived: 3, BytesSent: 4, Duration: 1500 * time.Microsecond, Upstream: "10.0.0.7:443",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Count{{Node: "envoy-1", Requests: 1, Errors: 1}}, f.counted()); diff != "" {
		t.Error(diff)
	}
}

// A request that was to be sent once more and was refused instead ends with the reason, and keeps its name.
func TestEndOfARetryThatIsRefused(t *testing.T) {
	f := newServer(t)
	client, _ := f.serve(t)
	first := exchange(t, client, message(f.anthropic("GET", "/", "authorization", "Bearer "+f.claude(), "x-request-id", "request-1")))
	in := rejected(first, "authorization", "Bearer "+realToken("claude"))
	f.vault.errs = map[string]error{"claude": errors.New("no")}
	out := exchange(t, client, in)
	if id := headersOf(t, out.GetImmediateResponse().GetHeaders().GetSetHeaders())["x-request-id"]; id != "request-1" {
		t.Errorf("the worker is told of request %q", id)
	}
	kept := in.GetMetadataContext().GetFilterMetadata()[metadataNamespace]
	proto.Merge(kept, out.GetDynamicMetadata().GetFields()[metadataNamespace].GetStructValue()) // as Envoy does
	got := f.hears(t, requestsLogged(&dataaccesslogv3.HTTPAccessLogEntry{CommonProperties: logged(metadataNamespace, kept)}))
	if len(got) != 1 || got[0].RequestID != "request-1" || got[0].Reason != refreshUnavailable || !got[0].Swapped || got[0].Token != "1" {
		t.Errorf("got %+v", got)
	}
}

// What cannot be told of is refused, whatever was to become of it, and a refusal stays what it is.
func TestWhatCannotBeToldIsRefused(t *testing.T) {
	f := newServer(t)
	f.server.only(standInConfig())
	f.server.decided = func(Decided) error { return errors.New("the disk is full") }
	for name, c := range map[string]struct {
		path, want string
		headers    []string
	}{
		"swapped":  {"/v1/messages", AuditUnavailable, []string{"authorization", "Bearer " + f.claude()}},
		"passed":   {"/v1/messages", AuditUnavailable, nil},
		"answered": {"/v1/oauth/token", AuditUnavailable, []string{"authorization", "Bearer x"}},
		"refused":  {"/v1/" + f.claude(), misplacedPlaceholder, nil},
	} {
		out, err := f.server.processMessage(t.Context(), message(f.to("api.anthropic.com", "POST", c.path, c.headers...)), new(phases))
		if err != nil {
			t.Fatal(err)
		}
		if _, reason, _, after := refusalOf(t, out); reason != c.want || (after != "") != (c.want == AuditUnavailable) || verdictOf(out) != "" {
			t.Errorf("%s: %v", name, out)
		}
	}
	if out, err := f.server.Check(t.Context(), checkRequest(http.MethodConnect, "pypi.org:443", basicAuth(f.session.ID, f.token.Reveal()))); err != nil || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
		t.Errorf("a tunnel: %v, %v", out, err)
	}
	for _, c := range f.counted() {
		if c.Refusals != 1 { // the one that a configuration can bring about
			t.Errorf("counted %+v", c)
		}
	}
}

// Each of Envoy's flags has its letters.
func TestFlags(t *testing.T) {
	of := func(f *dataaccesslogv3.ResponseFlags) string {
		raw, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return flags(raw)
	}
	all := (&dataaccesslogv3.ResponseFlags{}).ProtoReflect()
	names := all.Descriptor().Fields()
	seen := map[string]bool{}
	for i := range names.Len() {
		f := &dataaccesslogv3.ResponseFlags{}
		if field := names.Get(i); field.Kind() == protoreflect.BoolKind {
			f.ProtoReflect().Set(field, protoreflect.ValueOfBool(true))
		} else {
			f.ProtoReflect().Mutable(field)
		}
		got := of(f)
		if got == "" || strings.Contains(got, ",") || seen[got] {
			t.Errorf("%s is %q", names.Get(i).Name(), got)
		}
		seen[got] = true
	}
	if got := of(nil); got != "" {
		t.Errorf("none are %q", got)
	}
}

func swapOf(header string) *decision { return &decision{swap: &swap{out: outgoing{header: header}}} }

// Whatever Envoy's log says, a record of it is fit to be read.
func FuzzEnded(f *testing.F) {
	s := newServer(f)
	kept := s.server.kept(swapOf("authorization"), Decided{RequestID: "request-1", Swapped: true}).message()
	for _, e := range []*dataaccesslogv3.HTTPAccessLogEntry{
		{},
		{CommonProperties: logged(metadataNamespace, kept), Request: &dataaccesslogv3.HTTPRequestProperties{Authority: "a:b\n", Path: "/\x00?q=" + s.claude()}},
		{CommonProperties: logged(namespaceProxy, kept), Request: &dataaccesslogv3.HTTPRequestProperties{Authority: "", Path: s.claude()}},
	} {
		raw, err := proto.Marshal(requestsLogged(e))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte("7")) // of no type that there is
	f.Fuzz(func(t *testing.T, raw []byte) {
		s.server.ended = func(x Ended) {
			for _, text := range []string{x.Host, x.Path, x.Details} {
				if printable(text) != text {
					t.Errorf("%q cannot be shown", text)
				}
			}
			if holdsMarker(x.Path) {
				t.Errorf("a placeholder is in %q", x.Path)
			}
		}
		s.server.hear("envoy-1", raw)
	})
}
