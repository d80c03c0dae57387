package telemetry

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

var someTrace, someSpan = []byte("0123456789abcdef"), []byte("01234567")

// of makes a span of an Envoy, as xds has it send them.
func of(kind tracev1.Span_SpanKind, name string, attributes ...string) *tracev1.Span {
	s := &tracev1.Span{TraceId: someTrace, SpanId: someSpan, Kind: kind, Name: name, StartTimeUnixNano: 5, EndTimeUnixNano: 9, Flags: 257}
	for i := 0; i < len(attributes); i += 2 {
		s.Attributes = append(s.Attributes, text(attributes[i], attributes[i+1]))
	}
	return s
}

func shownOf(s *tracev1.Span) map[string]string {
	all := map[string]string{"": s.GetName()}
	for _, a := range s.GetAttributes() {
		all[a.GetKey()] = strings.Trim(strings.TrimPrefix(strings.TrimPrefix(a.GetValue().String(), "string_value:"), "int_value:"), `"`)
	}
	return all
}

func TestCleaned(t *testing.T) {
	whole := of(tracev1.Span_SPAN_KIND_SERVER, "ingress",
		"node_id", "edge-1", "zone", "", "http.url", "https://api.example.com:8443/v1?key=query", "http.method", "POST", "user_agent", "chosen", "http.protocol", "HTTP/2",
		"peer.address", "10.0.0.7", "request_size", "12", "response_size", "34", "component", "proxy", "upstream_cluster", "upstream", "upstream_cluster.name", "upstream",
		"http.status_code", "503", "response_flags", "UF", "guid:x-request-id", "chosen", "wayleave.worker", "ci", "wayleave.request", "r-1", "wayleave.route", "api",
		"wayleave.grant", "acme", "wayleave.reason", "scope_missing", "wayleave.session", "never", "error", "true")
	whole.TraceState, whole.Events = "chosen=1", []*tracev1.Span_Event{{Name: "chosen"}}
	whole.Status = &tracev1.Status{Code: tracev1.Status_STATUS_CODE_ERROR, Message: "chosen"}
	got, ok := cleaned(whole)
	want := map[string]string{
		"": "POST api", "wayleave.envoy": "edge-1", "server.address": "api.example.com", "http.request.method": "POST", "network.protocol.version": "2",
		"http.request.body.size": "12", "http.response.body.size": "34", "envoy.cluster": "upstream", "http.response.status_code": "503", "envoy.response_flags": "UF",
		"wayleave.worker": "ci", "wayleave.request_id": "r-1", "wayleave.route": "api", "wayleave.grant": "acme", "wayleave.reason": "scope_missing",
	}
	if diff := cmp.Diff(want, shownOf(got)); !ok || diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if strings.Contains(got.String(), "chosen") || got.GetStatus().GetCode() != tracev1.Status_STATUS_CODE_ERROR || got.GetStartTimeUnixNano() != 5 || got.GetEndTimeUnixNano() != 9 {
		t.Errorf("span: %v", got)
	}

	for name, c := range map[string]struct {
		in   *tracev1.Span
		want map[string]string
	}{
		"a method that somebody made up": {of(tracev1.Span_SPAN_KIND_SERVER, "x", "http.method", "SECRET"), map[string]string{"": "request", "http.request.method": "_OTHER"}},
		"a question":                     {of(tracev1.Span_SPAN_KIND_CLIENT, "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress", "upstream_address", "gate"), map[string]string{"": "ask the gate"}},
		"the upstream":                   {of(tracev1.Span_SPAN_KIND_CLIENT, "router upstream egress", "upstream_address", "192.0.2.1:443"), map[string]string{"": "upstream", "network.peer.address": "192.0.2.1:443"}},
		"anything else":                  {of(tracev1.Span_SPAN_KIND_INTERNAL, "chosen", "http.url", "https://a b/", "request_size", "-1x"), map[string]string{"": "envoy"}},
		"no text":                        {of(tracev1.Span_SPAN_KIND_SERVER, "x", "wayleave.worker", "a\nb\xff"), map[string]string{"": "request", "wayleave.worker": "a?b?"}},
	} {
		got, _ := cleaned(c.in)
		if diff := cmp.Diff(c.want, shownOf(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, spoil := range map[string]func(*tracev1.Span){
		"no trace":    func(s *tracev1.Span) { s.TraceId = nil },
		"zero":        func(s *tracev1.Span) { s.SpanId = make([]byte, 8) },
		"long parent": func(s *tracev1.Span) { s.ParentSpanId = make([]byte, 9) },
	} {
		s := of(tracev1.Span_SPAN_KIND_SERVER, "x")
		spoil(s)
		if _, ok := cleaned(s); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Bytes that are no text are left out of the span that has them, and the others of the same message are read.
func TestSpansThatAreNoText(t *testing.T) {
	server := func(attributes ...string) *tracev1.Span { return of(tracev1.Span_SPAN_KIND_SERVER, "x", attributes...) }
	request, err := proto.Marshal(&collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{ScopeSpans: []*tracev1.ScopeSpans{
		{Spans: []*tracev1.Span{server("http.method", "GET", "user_agent", "ODD!", "wayleave.route", "api"), server("http.method", "PUT")}},
		{Spans: []*tracev1.Span{of(tracev1.Span_SPAN_KIND_SERVER, "ODD!"), server("ODD!", "x", "http.method", "POST")}},
	}}, {ScopeSpans: []*tracev1.ScopeSpans{{Spans: []*tracev1.Span{server("http.method", "HEAD")}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	request = bytes.ReplaceAll(request, []byte("ODD!"), []byte("\xff\xfe\xff\xfe"))
	var got []string
	for span := range spansOf(request) {
		clean, _ := cleaned(span)
		got = append(got, clean.GetName())
	}
	if diff := cmp.Diff([]string{"GET api", "PUT", "POST", "HEAD"}, got); diff != "" {
		t.Error(diff)
	}
	for end := range request { // what is cut off is read as far as it goes
		for range spansOf(request[:end]) {
		}
	}
}

func TestLinkTo(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if got := linkTo(good); len(got) != 1 || len(got[0].GetTraceId()) != 16 || got[0].GetTraceState() != "" {
		t.Errorf("link: %v", got)
	}
	for _, bad := range []string{"", "00", "ff" + good[2:], good[:40], strings.Replace(good, "0af7", "zzzz", 1), "00-00000000000000000000000000000000-b7ad6b7169203331-01", good[:53]} {
		if got := linkTo(bad); got != nil {
			t.Errorf("%q is a link", bad)
		}
	}
}

// Whatever an Envoy says, what is made of it can be sent, and has nothing that is not listed.
func FuzzCleaned(f *testing.F) {
	seed, _ := proto.Marshal(of(tracev1.Span_SPAN_KIND_SERVER, "ingress", "http.url", "https://h/", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	f.Add(seed)
	known := map[string]bool{
		"wayleave.envoy": true, "http.request.method": true, "server.address": true, "http.response.status_code": true, "http.request.body.size": true,
		"http.response.body.size": true, "network.protocol.version": true, "envoy.cluster": true, "network.peer.address": true, "envoy.response_flags": true,
	}
	for _, name := range noted {
		known[name] = true
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := &tracev1.Span{}
		if proto.Unmarshal(data, in) != nil {
			return
		}
		out, ok := cleaned(in)
		if !ok {
			return
		}
		if _, err := proto.Marshal(out); err != nil {
			t.Fatal(err)
		}
		for _, a := range out.GetAttributes() {
			if _, isText := a.GetValue().GetValue().(*commonv1.AnyValue_StringValue); !known[a.GetKey()] || isText && len(a.GetValue().GetStringValue()) > maxValue {
				t.Errorf("attribute %v", a)
			}
		}
	})
}
