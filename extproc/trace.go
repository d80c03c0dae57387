package extproc

import (
	"context"
	"encoding/hex"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// Envoy draws which requests are traced, and says so twice: in the request's id, and in the gRPC metadata of its question, which
// names the span that the question is.

// drawnAt is the digit of an id of Envoy's that is drawn for a request which is traced.
const drawnAt, drawn = 14, '9'

// trace begins a span of a request that is traced, as a part of Envoy's; of any other it does nothing, and costs nothing.
func (s *Server) trace(ctx context.Context, name string, r *request) (context.Context, trace.Span) {
	none := trace.SpanFromContext(ctx)
	if s.tracer == nil || r != nil && !r.isDrawn() {
		return ctx, none
	}
	values := metadata.ValueFromIncomingContext(ctx, "traceparent")
	if len(values) != 1 {
		return ctx, none
	}
	parent := parseTraceparent(values[0])
	if !parent.IsValid() || !parent.IsSampled() {
		return ctx, none
	}
	return s.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, parent), name, trace.WithSpanKind(trace.SpanKindServer))
}

func (r *request) isDrawn() bool {
	for _, h := range r.headers {
		if h.name == "x-request-id" {
			return len(h.value) == 36 && h.value[drawnAt] == drawn
		}
	}
	return false
}

// parseTraceparent reads one of Envoy's (W3C Trace Context, version 00). What is none is not valid.
func parseTraceparent(text string) trace.SpanContext {
	var c trace.SpanContextConfig
	if len(text) != 55 || !strings.HasPrefix(text, "00-") || text[35] != '-' || text[52] != '-' {
		return trace.SpanContext{}
	}
	var flags [1]byte
	for _, part := range []struct {
		into []byte
		from string
	}{{c.TraceID[:], text[3:35]}, {c.SpanID[:], text[36:52]}, {flags[:], text[53:]}} {
		if _, err := hex.Decode(part.into, []byte(part.from)); err != nil {
			return trace.SpanContext{}
		}
	}
	c.TraceFlags, c.Remote = trace.TraceFlags(flags[0]), true
	return trace.NewSpanContext(c)
}

// note says in a span what was decided: names of the configuration, and what the gate calls the request.
func note(span trace.Span, x Decided) {
	if !span.IsRecording() {
		return
	}
	outcome := "passed"
	switch {
	case x.Reason != "":
		outcome = "refused"
		span.SetStatus(codes.Error, x.Reason)
	case x.Swapped:
		outcome = "swapped"
	case x.Answered:
		outcome = "answered"
	}
	span.SetAttributes(attribute.String("wayleave.outcome", outcome))
	for _, a := range [...]struct{ key, value string }{
		{"wayleave.reason", x.Reason}, {"wayleave.worker", x.Worker}, {"wayleave.grant", x.Grant}, {"wayleave.route", x.Route},
		{"wayleave.rule", x.Rule}, {"wayleave.request_id", x.RequestID}, {"wayleave.revision", x.Revision},
	} {
		if a.value != "" {
			span.SetAttributes(attribute.String(a.key, a.value))
		}
	}
}
