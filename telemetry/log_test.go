package telemetry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
)

func TestWithTrace(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(WithTrace(slog.NewTextHandler(&out, nil))).With("a", 1).WithGroup("g")
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID(someTrace), SpanID: trace.SpanID(someSpan), TraceFlags: trace.FlagsSampled})
	log.InfoContext(trace.ContextWithSpanContext(t.Context(), parent), "traced")
	log.InfoContext(trace.ContextWithSpanContext(t.Context(), parent.WithTraceFlags(0)), "drawn by nobody")
	log.InfoContext(t.Context(), "not")
	lines := strings.Split(out.String(), "\n")
	if !strings.Contains(lines[0], "trace_id=30313233") || strings.Contains(lines[1]+lines[2], "trace_id") {
		t.Errorf("log:\n%s", out.String())
	}
}
