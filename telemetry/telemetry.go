// Package telemetry owns what a gate tells an OpenTelemetry collector, in OTLP over gRPC or HTTP: spans of its own and of the
// Envoys that ask it, its figures, and log records that it is handed.
//
//	Envoy ──spans──▶ relay ──┐
//	Tracer ──spans───────────┼──▶ queue ──▶ wire ──▶ collector
//	Gather ──figures─────────┤
//	EmitLogs ──records───────┘
//
// Nothing here makes a request wait. What the collector does not take in time is dropped, and counted. What leaves is made of
// names of the configuration and of fixed lists: the relay takes what a worker chose out of Envoy's spans.
package telemetry

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"wayleave/secret"
)

// Signals, as they are counted.
const (
	Traces  = "traces"
	Metrics = "metrics"
	Logs    = "logs"
)

// Config says where the collector is, and who tells it.
type Config struct {
	Endpoint string // https://host:port, http://host:port or unix:///path; empty: nothing is told
	HTTP     bool   // protobuf over HTTP in place of gRPC
	Roots    *x509.CertPool
	Headers  map[string]secret.Text // by their lower-case name

	Gate    string // this gate's name
	Version string // of the product

	Tracing bool // spans are told
	// Gather and Every are the figures to tell, and how often. Every is zero: none are.
	Gather func() ([]*dto.MetricFamily, error)
	Every  time.Duration

	Dropped func(signal string, n int) // is told of what the collector did not get; must not block. Nil: nobody is
	Log     *slog.Logger               // nil: nothing is logged
}

// Telemetry tells a collector. It is safe for concurrent use.
type Telemetry struct {
	c        Config
	wire     wire // nil: there is no collector
	resource *resourcev1.Resource
	spans    *queue[scoped]
	provider trace.TracerProvider
	outages  map[string]*outage // by signal
}

// scoped is a span, and which part of us it is from.
type scoped struct {
	scope string
	span  *tracev1.Span
}

// scopeEnvoy is that of the spans that Envoys tell.
const scopeEnvoy = "envoy"

// New returns a Telemetry. Nothing is sent before Run, but for what EmitLogs is given.
func New(c Config) (*Telemetry, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dropped == nil {
		c.Dropped = func(string, int) {}
	}
	t := &Telemetry{c: c, provider: noop.NewTracerProvider(), outages: map[string]*outage{}}
	for _, signal := range []string{Traces, Metrics, Logs} {
		t.outages[signal] = &outage{signal: signal, dropped: c.Dropped, log: c.Log}
	}
	t.spans = newQueue[scoped](maxSpans, t.outages[Traces])
	if c.Endpoint == "" {
		return t, nil
	}
	var err error
	if t.wire, err = dial(c); err != nil {
		return nil, err
	}
	names := []attribute.KeyValue{
		attribute.String("service.name", "wayleave"),
		attribute.String("service.version", c.Version),
		attribute.String("service.instance.id", c.Gate),
	}
	t.resource = &resourcev1.Resource{}
	for _, n := range names {
		t.resource.Attributes = append(t.resource.Attributes, text(string(n.Key), n.Value.AsString()))
	}
	if c.Tracing {
		// What no request began is rare (refreshes), and always told. Of requests Envoy draws which are.
		t.provider = sdktrace.NewTracerProvider(
			sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
			sdktrace.WithResource(resource.NewSchemaless(names...)),
			sdktrace.WithSpanProcessor(sdktrace.NewSimpleSpanProcessor(otlptrace.NewUnstarted(ownSpans{t.spans}))), // which only queues
		)
	}
	return t, nil
}

// Tracer is for spans of the part of this name.
func (t *Telemetry) Tracer(name string) trace.Tracer { return t.provider.Tracer(name) }

// Register registers the service by which Envoys tell their spans.
func (t *Telemetry) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&relayService, t)
}

// Run sends until ctx ends, and then what is left for a few seconds more.
func (t *Telemetry) Run(ctx context.Context) {
	if t.wire == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.tellFigures(ctx)
	}()
	t.spans.run(ctx, t.sendSpans)
	<-done
}

// Close lets the collector go, when nothing is told any more.
func (t *Telemetry) Close() {
	if t.wire != nil {
		t.wire.close()
	}
}

// ownSpans queues the spans of our own tracers.
type ownSpans struct{ to *queue[scoped] }

func (ownSpans) Start(context.Context) error { return nil }
func (ownSpans) Stop(context.Context) error  { return nil }

func (o ownSpans) UploadTraces(_ context.Context, all []*tracev1.ResourceSpans) error {
	for _, of := range all {
		for _, in := range of.GetScopeSpans() {
			for _, span := range in.GetSpans() {
				o.to.add(scoped{in.GetScope().GetName(), span})
			}
		}
	}
	return nil
}

func (t *Telemetry) sendSpans(ctx context.Context, batch []scoped) error {
	of := &tracev1.ResourceSpans{Resource: t.resource}
	in := map[string]*tracev1.ScopeSpans{}
	for _, s := range batch {
		if in[s.scope] == nil {
			in[s.scope] = &tracev1.ScopeSpans{Scope: &commonv1.InstrumentationScope{Name: s.scope}}
			of.ScopeSpans = append(of.ScopeSpans, in[s.scope])
		}
		in[s.scope].Spans = append(in[s.scope].Spans, s.span)
	}
	out := &collectortracev1.ExportTraceServiceResponse{}
	if err := t.wire.send(ctx, tracesTo, &collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{of}}, out); err != nil {
		return err
	}
	return t.rejected(out.GetPartialSuccess().GetRejectedSpans(), out.GetPartialSuccess().GetErrorMessage())
}

// Rejected says that the collector took some of what it was sent, and does not want the rest.
type Rejected struct {
	Count int64
	Why   string // in the collector's words
}

func (r *Rejected) Error() string {
	return "the collector refused a part of what it was sent: " + cmp.Or(r.Why, "it does not say why")
}

func (t *Telemetry) rejected(n int64, why string) error {
	if n <= 0 {
		return nil // with words it is a warning
	}
	return &Rejected{n, scrub(why, t.c.Headers)}
}

// ErrUnwanted is in the error of what the collector would not take later either: it means what was sent, not who sends.
var ErrUnwanted = errors.New("the collector does not take this")

// errNone is for who tells what nobody is to be told.
var errNone = errors.New("there is no collector; name one in telemetry.otlp.endpoint")

func text(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: value}}}
}

func whole(key string, value int64) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: value}}}
}
