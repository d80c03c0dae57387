package telemetry

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectormetricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"wayleave/secret"
)

// running is a Telemetry that runs until the test ends, or stop is called.
func running(t *testing.T, c Config) (tell *Telemetry, stop func()) {
	t.Helper()
	c.Gate, c.Version, c.Tracing = "host/a", "1.2.3", true
	c.Headers = map[string]secret.Text{"authorization": secret.New("Bearer collector-token")}
	tell, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); tell.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(func() { stop(); tell.Close() })
	return tell, stop
}

// await takes what comes until it is an M.
func await[M any](t *testing.T, c *collector) M {
	t.Helper()
	for late := time.After(20 * time.Second); ; {
		select {
		case m := <-c.came:
			if m, ok := m.(M); ok {
				return m
			}
		case <-late:
			t.Fatal("it has not come")
		}
	}
}

func counted() func() ([]*dto.MetricFamily, error) {
	r := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_things_total"})
	c.Add(3)
	r.MustRegister(c)
	return r.Gather
}

// All signals arrive by both protocols, with the header and who tells.
func TestSignals(t *testing.T) {
	for name, protocol := range map[string]func(*testing.T, *collector, *Config){
		"grpc": func(t *testing.T, c *collector, o *Config) { o.Endpoint = c.overGRPC(t) },
		"http": func(t *testing.T, c *collector, o *Config) {
			s := c.overHTTP(t)
			o.Endpoint, o.HTTP, o.Roots = s.URL, true, x509.NewCertPool()
			o.Roots.AddCert(s.Certificate())
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, o := newCollector(), Config{Gather: counted(), Every: time.Hour}
			protocol(t, c, &o)
			tell, stop := running(t, o)

			_, span := tell.Tracer("wayleave/test").Start(t.Context(), "refresh", trace.WithAttributes(attribute.String("wayleave.grant", "g")))
			span.End()
			spans := await[*collectortracev1.ExportTraceServiceRequest](t, c).GetResourceSpans()[0]
			if got := spans.GetScopeSpans()[0]; got.GetScope().GetName() != "wayleave/test" || got.GetSpans()[0].GetName() != "refresh" {
				t.Errorf("spans: %v", spans)
			}
			if got := spans.GetResource().String(); !strings.Contains(got, "host/a") || !strings.Contains(got, "1.2.3") {
				t.Errorf("resource: %v", got)
			}
			if c.lastHeader() != "Bearer collector-token" {
				t.Errorf("the collector got %q", c.lastHeader())
			}

			if err := tell.EmitLogs(t.Context(), []LogEvent{{Time: time.Unix(1, 0), Severity: slog.LevelWarn, Body: []byte(`{"a":1,"took_ms":2}`), Attributes: map[string]any{"b": true}}}); err != nil {
				t.Fatal(err)
			}
			record := await[*collectorlogsv1.ExportLogsServiceRequest](t, c).GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()[0]
			body := record.GetBody().GetKvlistValue().GetValues()
			if record.GetSeverityNumber() != 13 || record.GetTimeUnixNano() != 1e9 || len(body) != 2 || body[0].GetValue().GetIntValue() != 1 || body[1].GetValue().GetDoubleValue() != 2 || !record.GetAttributes()[0].GetValue().GetBoolValue() {
				t.Errorf("record: %v", record)
			}

			stop()
			figures := await[*collectormetricsv1.ExportMetricsServiceRequest](t, c).GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics()
			if m := figures[0]; m.GetName() != "wayleave_things_total" || m.GetSum().GetDataPoints()[0].GetAsDouble() != 3 || !m.GetSum().GetIsMonotonic() {
				t.Errorf("figures: %v", figures)
			}
		})
	}
}

// What may be tried again is, and what may not is counted.
func TestCollectorRefuses(t *testing.T) {
	var log syncBuffer
	var dropped atomic.Int64
	c := newCollector()
	tell, stop := running(t, Config{Endpoint: c.overGRPC(t), Dropped: func(signal string, n int) {
		if signal == Traces {
			dropped.Add(int64(n))
		}
	}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	start := func(name string) { _, span := tell.Tracer("x").Start(context.Background(), name); span.End() }

	c.refuse = status.Error(codes.Unavailable, "not now, Bearer collector-token")
	start("again")
	if got := await[*collectortracev1.ExportTraceServiceRequest](t, c).GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName(); got != "again" {
		t.Errorf("came: %s", got)
	}
	c.mu.Lock()
	c.refuse = status.Error(codes.InvalidArgument, "never")
	c.mu.Unlock()
	start("never")
	start("never")
	stop()
	if got := dropped.Load(); got != 2 {
		t.Errorf("%d spans are counted as dropped", got)
	}
	said := log.String()
	if strings.Count(said, "not reached") != 2 || strings.Count(said, "reached again") != 1 || strings.Contains(said, "collector-token") {
		t.Errorf("log:\n%s", said)
	}
}

func TestEmitLogsPartly(t *testing.T) {
	var lost atomic.Int64
	c := newCollector()
	c.partial = 1
	tell, _ := running(t, Config{Endpoint: c.overGRPC(t), Dropped: func(_ string, n int) { lost.Add(int64(n)) }})
	err := tell.EmitLogs(t.Context(), []LogEvent{{Body: []byte("no JSON")}, {}})
	some, ok := errors.AsType[*Rejected](err)
	if !ok || some.Count != 1 || lost.Load() != 1 || strings.Contains(err.Error(), "collector-token") {
		t.Errorf("error %v, lost %d", err, lost.Load())
	}
	c.refuse = status.Error(codes.Unavailable, "")
	if err := tell.EmitLogs(t.Context(), []LogEvent{{}}); err == nil || errors.Is(err, ErrUnwanted) || lost.Load() != 1 {
		t.Errorf("error %v, lost %d: it may be sent again", err, lost.Load())
	}
	c.refuse = status.Error(codes.InvalidArgument, "")
	if err := tell.EmitLogs(t.Context(), []LogEvent{{}}); !errors.Is(err, ErrUnwanted) {
		t.Errorf("error %v: it may not be sent again", err)
	}
}

func TestNoCollector(t *testing.T) {
	tell, err := New(Config{Tracing: true})
	if err != nil {
		t.Fatal(err)
	}
	tell.Run(t.Context())
	if _, span := tell.Tracer("x").Start(t.Context(), "y"); span.IsRecording() {
		t.Error("a span is recorded for nobody")
	}
	if err := tell.EmitLogs(t.Context(), []LogEvent{{}}); err == nil {
		t.Error("records went nowhere, and nobody says so")
	}
	text, err := proto.Marshal(&collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{ScopeSpans: []*tracev1.ScopeSpans{{Spans: []*tracev1.Span{of(tracev1.Span_SPAN_KIND_SERVER, "x")}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	tell.relay(text)
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
