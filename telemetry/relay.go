package telemetry

import (
	"encoding/hex"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
)

// This file makes of an Envoy's spans what may leave. Envoy tells of a request as it came, so all that is handed on is listed
// here, in the words of OpenTelemetry's conventions.

// relay takes the spans of an Envoy, an ExportTraceServiceRequest.
func (t *Telemetry) relay(request []byte) {
	if !t.c.Tracing || t.wire == nil {
		return // an Envoy that is not told otherwise yet
	}
	for span := range spansOf(request) {
		if clean, ok := cleaned(span); ok {
			t.spans.add(scoped{scopeEnvoy, clean})
		}
	}
}

// tagPrefix begins the names of tags with what the gate has noted of a request, as xds.TagPrefix does.
const tagPrefix = "wayleave."

const (
	maxValue     = 256 // bytes of an attribute
	workerParent = "traceparent"
)

// noted are the tags with what the gate has noted, and what they are called.
var noted = map[string]string{
	"request": "wayleave.request_id", "worker": "wayleave.worker", "route": "wayleave.route", "grant": "wayleave.grant",
	"verdict": "wayleave.verdict", "reason": "wayleave.reason", "revision": "wayleave.revision",
}

var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace,
}

// cleaned is what may leave of an Envoy's span; false: nothing.
func cleaned(in *tracev1.Span) (*tracev1.Span, bool) {
	if !isID(in.GetTraceId(), 16) || !isID(in.GetSpanId(), 8) || len(in.GetParentSpanId()) != 0 && !isID(in.GetParentSpanId(), 8) {
		return nil, false
	}
	out := &tracev1.Span{
		TraceId: in.GetTraceId(), SpanId: in.GetSpanId(), ParentSpanId: in.GetParentSpanId(), Flags: in.GetFlags(), Kind: in.GetKind(),
		StartTimeUnixNano: in.GetStartTimeUnixNano(), EndTimeUnixNano: max(in.GetStartTimeUnixNano(), in.GetEndTimeUnixNano()),
	}
	if in.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
		out.Status = &tracev1.Status{Code: tracev1.Status_STATUS_CODE_ERROR}
	}
	var method, route string
	for _, a := range in.GetAttributes() {
		key, value := a.GetKey(), a.GetValue().GetStringValue()
		if key == workerParent {
			out.Links = append(out.Links, linkTo(value)...)
			continue
		}
		kept := attributeOf(key, value)
		if kept == nil {
			continue
		}
		out.Attributes = append(out.Attributes, kept)
		switch kept.GetKey() {
		case "http.request.method":
			method = value
		case "wayleave.route":
			route = kept.GetValue().GetStringValue()
		}
	}
	out.Name = nameOf(in, method, route)
	return out, true
}

// nameOf is one of few, as backends group spans by it.
func nameOf(in *tracev1.Span, method, route string) string {
	switch {
	case in.GetKind() == tracev1.Span_SPAN_KIND_SERVER && slices.Contains(methods, method):
		return strings.TrimSpace(method + " " + route)
	case in.GetKind() == tracev1.Span_SPAN_KIND_SERVER:
		return strings.TrimSpace("request " + route)
	case strings.HasPrefix(in.GetName(), "async envoy.service.ext_proc."):
		return "ask the gate"
	case strings.HasPrefix(in.GetName(), "router "):
		return "upstream"
	}
	return "envoy"
}

// attributeOf is what is kept of an attribute; nil: nothing.
func attributeOf(key, value string) *commonv1.KeyValue {
	if value == "" || value == "-" {
		return nil
	}
	if name, ok := strings.CutPrefix(key, tagPrefix); ok {
		if name := noted[name]; name != "" {
			return text(name, printable(value))
		}
		return nil
	}
	switch key {
	case "node_id":
		return text("wayleave.envoy", printable(value))
	case "http.method":
		if !slices.Contains(methods, value) {
			value = "_OTHER"
		}
		return text("http.request.method", value)
	case "http.url":
		if u, err := url.Parse(value); err == nil && isHost(u.Hostname()) {
			return text("server.address", u.Hostname())
		}
	case "http.status_code":
		return number("http.response.status_code", value)
	case "request_size":
		return number("http.request.body.size", value)
	case "response_size":
		return number("http.response.body.size", value)
	case "http.protocol":
		if version, ok := strings.CutPrefix(value, "HTTP/"); ok && len(version) <= 3 {
			return text("network.protocol.version", printable(version))
		}
	case "upstream_cluster":
		return text("envoy.cluster", printable(value))
	case "upstream_address":
		if _, err := netip.ParseAddrPort(value); err == nil {
			return text("network.peer.address", value)
		}
	case "response_flags":
		return text("envoy.response_flags", printable(value))
	}
	return nil
}

func number(key, value string) *commonv1.KeyValue {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return nil
	}
	return whole(key, n)
}

// linkTo is a link to the span that a worker says it made the request in (W3C Trace Context, version 00); none when it says no such thing.
func linkTo(traceparent string) []*tracev1.Span_Link {
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 || len(parts[0]) != 2 || parts[0] == "ff" || len(parts[3]) != 2 {
		return nil
	}
	trace, err := hex.DecodeString(parts[1])
	span, failed := hex.DecodeString(parts[2])
	if err != nil || failed != nil || !isID(trace, 16) || !isID(span, 8) {
		return nil
	}
	return []*tracev1.Span_Link{{TraceId: trace, SpanId: span, Attributes: []*commonv1.KeyValue{text("wayleave.link", "worker")}}}
}

func isID(id []byte, size int) bool {
	return len(id) == size && slices.ContainsFunc(id, func(b byte) bool { return b != 0 })
}

// isHost reports whether s is a DNS name that can be shown.
func isHost(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}

// printable is s as an attribute may have it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxValue)]
}
