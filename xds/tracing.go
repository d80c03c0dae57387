package xds

import (
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Tracing has Envoy tell the gate how long the parts of a request took, as spans of OpenTelemetry.
type Tracing struct {
	// Percent of the requests that it tells of, from 0 to 100.
	Percent float64
}

// traceTags are what the gate noted of a request and a span has too, each with TagPrefix before it.
var traceTags = []string{"request", "worker", "route", "grant", metadataVerdict, "reason", "revision"}

const (
	traceparent = "traceparent" // W3C Trace Context
	// hiddenTraceparent is where a worker's is meanwhile. hygiene removes it.
	hiddenTraceparent = "x-wayleave-traceparent"
	// TagWorkersParent is the tag with the traceparent that the worker sent.
	TagWorkersParent = "traceparent"
	// TagPrefix begins the name of each tag of a span that the gate has noted.
	TagPrefix = "wayleave."
)

// hideTraceparent keeps the worker's traceparent from Envoy's tracer, which would trace no request with one that says so, and
// call the trace what it says.
func hideTraceparent() []*mutationv3.HeaderMutation {
	return []*mutationv3.HeaderMutation{remove(hiddenTraceparent), copyHeader(traceparent, hiddenTraceparent), remove(traceparent)}
}

// showTraceparent lets it go on to the upstream.
func showTraceparent(t *Tracing) []*mutationv3.HeaderMutation {
	if t == nil {
		return nil
	}
	return []*mutationv3.HeaderMutation{copyHeader(hiddenTraceparent, traceparent)}
}

// tracing sends spans to the gate, which takes out of them what a worker chose, and knows where they go: Envoy needs neither
// a way there nor a secret for it. No header with the trace leaves for the upstream, and what a worker sends there passes untouched.
//
// Whether there is a trace, and how it is called, is not the worker's to say: its traceparent is put away before Envoy looks
// (hideTraceparent), and of who is not internal Envoy heeds no x-envoy-force-trace.
func tracing(t *Tracing, gates int) *hcmv3.HttpConnectionManager_Tracing {
	if t == nil {
		return nil
	}
	tags := []*tracingv3.CustomTag{{Tag: TagWorkersParent, Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: traceparent}}}}
	for _, name := range traceTags {
		tags = append(tags, noted(name))
	}
	return &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling:       &typev3.Percent{},
		RandomSampling:       &typev3.Percent{Value: t.Percent},
		SpawnUpstreamSpan:    yes(),
		NoContextPropagation: true,
		MaxPathTagLength:     number(1), // of the address only the host is of use: 0 would be no limit
		CustomTags:           tags,
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(&tracev3.OpenTelemetryConfig{
				GrpcService:                       gateService(gates, 5*time.Second),
				ServiceName:                       "wayleave",
				SetTelemetrySdkResourceAttributes: no(),
			})},
		},
	}
}

// noted is a tag with a string of the gate's metadata; there is none where that is not.
func noted(name string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: TagPrefix + name, Type: &tracingv3.CustomTag_Metadata_{Metadata: &tracingv3.CustomTag_Metadata{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Request_{Request: &metadatav3.MetadataKind_Request{}}},
		MetadataKey: &metadatav3.MetadataKey{Key: metadataNamespace, Path: []*metadatav3.MetadataKey_PathSegment{
			{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: name}},
		}},
	}}}
}
