package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectormetricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const tracingConfig = oneTeam + `
console: {listen: none}
audit: {otlp: true}
telemetry:
  otlp:
    endpoint: unix://$COLLECTOR
    headers: {authorization: {env: COLLECTOR_TOKEN}}
  traces: {sample: 100%}
`

// collector is an OpenTelemetry collector, which keeps what it gets, also in a file that is searched for tokens.
type collector struct {
	collectortracev1.UnimplementedTraceServiceServer
	file string

	mu      sync.Mutex
	tokens  []string        // guarded by mu, and so are the others: those it was shown
	spans   []*tracev1.Span // of all
	figures []string        // names
	records []*logsv1.LogRecord
}

func startCollector(t *testing.T, w *world) *collector {
	t.Helper()
	c := &collector{file: w.saved("collector.json")}
	socket := filepath.Join(w.dir, "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "COLLECTOR="+socket, "COLLECTOR_TOKEN=Bearer of-the-collector")
	g := grpc.NewServer()
	collectortracev1.RegisterTraceServiceServer(g, c)
	collectormetricsv1.RegisterMetricsServiceServer(g, figureCollector{collector: c})
	collectorlogsv1.RegisterLogsServiceServer(g, recordCollector{collector: c})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return c
}

// keep is for what has no path; records of the audit have one, and are kept in a file of their own.
func (c *collector) keep(ctx context.Context, file string, m proto.Message) {
	c.tokens = append(c.tokens, metadata.ValueFromIncomingContext(ctx, "authorization")...)
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, protojson.Format(m))
}

func (c *collector) Export(ctx context.Context, in *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(ctx, c.file, in)
	for _, of := range in.GetResourceSpans() {
		for _, within := range of.GetScopeSpans() {
			c.spans = append(c.spans, within.GetSpans()...)
		}
	}
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

type figureCollector struct {
	collectormetricsv1.UnimplementedMetricsServiceServer
	*collector
}

func (c figureCollector) Export(ctx context.Context, in *collectormetricsv1.ExportMetricsServiceRequest) (*collectormetricsv1.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(ctx, c.file, in)
	for _, m := range in.GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics() {
		c.figures = append(c.figures, m.GetName())
	}
	return &collectormetricsv1.ExportMetricsServiceResponse{}, nil
}

type recordCollector struct {
	collectorlogsv1.UnimplementedLogsServiceServer
	*collector
}

func (c recordCollector) Export(ctx context.Context, in *collectorlogsv1.ExportLogsServiceRequest) (*collectorlogsv1.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(ctx, c.file+".audit", in)
	c.records = append(c.records, in.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()...)
	return &collectorlogsv1.ExportLogsServiceResponse{}, nil
}

// told returns the fields of the audit's record with this path and in a trace.
func (c *collector) told(path string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		fields := map[string]string{}
		for _, f := range r.GetBody().GetKvlistValue().GetValues() {
			fields[f.GetKey()] = strings.Trim(protojson.Format(f.GetValue()), "{} ")
			if s, ok := f.GetValue().GetValue().(*commonv1.AnyValue_StringValue); ok {
				fields[f.GetKey()] = s.StringValue
			}
		}
		if fields["path"] == path && len(r.GetTraceId()) == 16 && fields["trace"] == hex.EncodeToString(r.GetTraceId()) {
			return fields
		}
	}
	return nil
}

// below returns the names of the spans that lead to the span of this name, in its trace, the outermost first; nil when it is not there.
func (c *collector) below(name string) (path []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.spans, func(s *tracev1.Span) bool { return s.GetName() == name })
	for i >= 0 {
		s := c.spans[i]
		path = append([]string{s.GetName()}, path...)
		i = slices.IndexFunc(c.spans, func(o *tracev1.Span) bool {
			return string(o.GetSpanId()) == string(s.GetParentSpanId()) && string(o.GetTraceId()) == string(s.GetTraceId())
		})
	}
	return path
}

// A request whose token the provider has just revoked is one trace: from Envoy by the gate to the token endpoint and to Vault. Nothing
// of it reaches the provider, nothing that the request carried reaches the collector, and the worker's own trace goes on.
func TestTracing(t *testing.T) {
	t.Parallel()
	world := makeWorld(t)
	told := startCollector(t, world)
	g := startIn(t, world, tracingConfig, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := w.client(t, true)
	if _, err := arrived(client, w); err != nil {
		t.Fatal(err)
	}
	for _, r := range g.API.Requests() {
		for _, name := range []string{"Traceparent", "Tracestate", "Baggage", "X-Request-Id", "X-Wayleave-Traceparent"} {
			if slices.Contains(r.Headers, name) {
				t.Errorf("the API got %s", name)
			}
		}
	}

	g.Provider.ExpireAccess()
	const ofWorker = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	req := w.request(http.MethodGet, "https://api.demo.test/echo?hidden=query", nil)
	req.Header.Set("traceparent", ofWorker)
	req.Header.Set("tracestate", "hidden=state")
	req.Header.Set("user-agent", "hidden-agent \xff") // which is no text
	if a, err := do(client, req); err != nil || a.status != http.StatusOK {
		t.Fatal(a, err)
	}
	if !g.API.Saw(ofWorker) || !g.API.Saw("hidden=state") {
		t.Error("the worker's own trace does not go on to the API")
	}

	for name, want := range map[string]string{
		"token endpoint": "GET api.demo.test > ask the gate > replace the token > wait for a token > refresh the grant > token endpoint",
		"vault update":   "GET api.demo.test > ask the gate > replace the token > wait for a token > refresh the grant > vault update",
		"decide":         "GET api.demo.test > ask the gate > decide",
	} {
		if err := eventually(func() error {
			if got := strings.Join(told.below(name), " > "); got != want {
				return fmt.Errorf("%s is in %q", name, got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}

	// The audit gets there too, and leads to the trace.
	if err := eventually(func() error {
		if r := told.told("/echo"); r["outcome"] != "swapped" || r["grant"] != "claude" || r["worker"] != "w" || r["status"] == "" {
			return fmt.Errorf("of the request the collector has %v", r)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	// The line of a refusal leads to its trace.
	req = w.request(http.MethodGet, "https://api.demo.test/echo", nil)
	req.Header.Set("x-elsewhere", w.placeholder)
	if a, err := do(client, req); err != nil || a.status != http.StatusBadRequest {
		t.Fatal(a, err)
	}
	if err := eventually(func() error {
		_, line, _ := strings.Cut(g.out.String(), `msg="request refused" reason=misplaced_placeholder`)
		_, line, _ = strings.Cut(line, "trace_id=")
		told.mu.Lock()
		defer told.mu.Unlock()
		if len(line) < 32 || !slices.ContainsFunc(told.spans, func(s *tracev1.Span) bool { return hex.EncodeToString(s.GetTraceId()) == line[:32] }) {
			return fmt.Errorf("trace %q is not there", line)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(told.file)
	if err != nil {
		t.Fatal(err)
	}
	for what, found := range map[string]bool{
		"a token": issued.Match(b), "a placeholder": strings.Contains(string(b), placeholderMarker), "what the request carried": strings.Contains(string(b), "hidden"),
		"a path": strings.Contains(string(b), "/echo"), "the collector's own token": strings.Contains(string(b), "of-the-collector"),
	} {
		if found {
			t.Errorf("the collector was told %s", what)
		}
	}
	told.mu.Lock()
	defer told.mu.Unlock()
	if !slices.Contains(told.figures, "wayleave_requests_total") {
		t.Errorf("figures: %q", told.figures)
	}
	if len(told.tokens) == 0 || slices.ContainsFunc(told.tokens, func(s string) bool { return s != "Bearer of-the-collector" }) {
		t.Errorf("the collector was shown %q", told.tokens)
	}
	if strings.Contains(g.out.String(), "of-the-collector") {
		t.Error("the log holds the collector's token")
	}
}
