package telemetry

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectormetricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// collector takes everything, by both protocols.
type collector struct {
	came chan proto.Message

	mu      sync.Mutex
	header  string // of the last
	refuse  error  // of the next, over gRPC; its code says the HTTP status
	partial int64  // of all
}

func newCollector() *collector { return &collector{came: make(chan proto.Message, 1000)} }

func (c *collector) take(m proto.Message, header string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header = header
	if err := c.refuse; err != nil {
		c.refuse = nil
		return err
	}
	c.came <- m
	return nil
}

func (c *collector) lastHeader() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.header
}

type (
	grpcTraces struct {
		collectortracev1.UnimplementedTraceServiceServer
		*collector
	}
	grpcMetrics struct {
		collectormetricsv1.UnimplementedMetricsServiceServer
		*collector
	}
	grpcLogs struct {
		collectorlogsv1.UnimplementedLogsServiceServer
		*collector
	}
)

func (c grpcTraces) Export(ctx context.Context, in *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	return &collectortracev1.ExportTraceServiceResponse{}, c.take(in, authorization(ctx))
}

func (c grpcMetrics) Export(ctx context.Context, in *collectormetricsv1.ExportMetricsServiceRequest) (*collectormetricsv1.ExportMetricsServiceResponse, error) {
	return &collectormetricsv1.ExportMetricsServiceResponse{}, c.take(in, authorization(ctx))
}

func (c grpcLogs) Export(ctx context.Context, in *collectorlogsv1.ExportLogsServiceRequest) (*collectorlogsv1.ExportLogsServiceResponse, error) {
	out := &collectorlogsv1.ExportLogsServiceResponse{}
	if c.partial > 0 {
		out.PartialSuccess = &collectorlogsv1.ExportLogsPartialSuccess{RejectedLogRecords: c.partial, ErrorMessage: "too old, said Bearer collector-token"}
	}
	return out, c.take(in, authorization(ctx))
}

func authorization(ctx context.Context) string {
	if v := metadata.ValueFromIncomingContext(ctx, "authorization"); len(v) == 1 {
		return v[0]
	}
	return ""
}

// overGRPC serves it on a unix socket and returns the endpoint.
func (c *collector) overGRPC(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	collectortracev1.RegisterTraceServiceServer(g, grpcTraces{collector: c})
	collectormetricsv1.RegisterMetricsServiceServer(g, grpcMetrics{collector: c})
	collectorlogsv1.RegisterLogsServiceServer(g, grpcLogs{collector: c})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return "unix://" + path
}

// overHTTP serves it over TLS.
func (c *collector) overHTTP(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in := map[string]proto.Message{
			"/v1/traces": &collectortracev1.ExportTraceServiceRequest{}, "/v1/metrics": &collectormetricsv1.ExportMetricsServiceRequest{}, "/v1/logs": &collectorlogsv1.ExportLogsServiceRequest{},
		}[r.URL.Path]
		body, err := io.ReadAll(r.Body)
		if in == nil || err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, in) != nil {
			http.Error(w, "what is this?", http.StatusBadRequest)
			return
		}
		switch status.Code(c.take(in, r.Header.Get("Authorization"))) {
		case codes.OK:
			w.Header().Set("Content-Type", "application/x-protobuf")
		case codes.Unavailable:
			http.Error(w, "later", http.StatusServiceUnavailable)
		default:
			http.Error(w, "no", http.StatusBadRequest)
		}
	}))
	t.Cleanup(s.Close)
	return s
}
