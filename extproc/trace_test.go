package extproc

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"
)

const (
	tracedID    = "5f077397-e51a-908e-ad56-61ceb4e6119c" // as Envoy makes them
	untracedID  = "a34129c6-a4d5-47d3-8b08-dbf548f2b5a5"
	envoysTrace = "bcb831df7c6565f984ce94c31f9945a1"
	envoysSpan  = "6bc11b55783a29f9"
)

// Of a request that Envoy draws there is a span below Envoy's, with names and nothing that the request carried; of others there is none.
func TestTrace(t *testing.T) {
	f := newServer(t)
	spans := tracetest.NewSpanRecorder()
	f.server.tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	var traces []string
	f.server.decided = func(d Decided) error { traces = append(traces, d.Trace); return nil }
	ask := func(traceparent, id string, r request) {
		t.Helper()
		r.headers = append(r.headers, header{"x-request-id", id})
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", traceparent))
		if _, err := f.server.processMessage(ctx, message(r), &phases{}); err != nil {
			t.Fatal(err)
		}
	}
	swapped := f.anthropic("POST", "/v1/messages?hidden=query", "authorization", "Bearer "+f.claude(), "cookie", "hidden")

	for _, c := range []struct{ traceparent, id string }{
		{"00-" + envoysTrace + "-" + envoysSpan + "-01", untracedID},
		{"00-" + envoysTrace + "-" + envoysSpan + "-00", tracedID},
		{"00-" + strings.Repeat("0", 32) + "-" + envoysSpan + "-01", tracedID},
		{"00-" + strings.Repeat("x", 32) + "-" + envoysSpan + "-01", tracedID},
		{"", tracedID},
	} {
		ask(c.traceparent, c.id, swapped)
		if n := len(spans.Ended()); n != 0 || traces[len(traces)-1] != "" {
			t.Fatalf("%d spans of %v", n, c)
		}
	}

	ask("00-"+envoysTrace+"-"+envoysSpan+"-01", tracedID, swapped)
	ask("00-"+envoysTrace+"-"+envoysSpan+"-01", tracedID, f.to("elsewhere.example.com", "GET", "/hidden"))
	all := spans.Ended()
	if len(all) != 2 {
		t.Fatalf("%d spans", len(all))
	}
	for i, want := range []string{"swapped", "refused"} {
		s := all[i]
		attributes := map[string]string{}
		for _, a := range s.Attributes() {
			attributes[string(a.Key)] = a.Value.AsString()
			if strings.Contains(a.Value.AsString(), "hidden") {
				t.Errorf("%s is %q", a.Key, a.Value.AsString())
			}
		}
		if s.Name() != "decide" || s.Parent().SpanID().String() != envoysSpan || s.SpanContext().TraceID().String() != envoysTrace || traces[len(traces)-2+i] != envoysTrace ||
			attributes["wayleave.outcome"] != want || attributes["wayleave.worker"] != f.session.Worker || attributes["wayleave.request_id"] != tracedID {
			t.Errorf("span %s of %v: %v", s.Name(), s.Parent(), attributes)
		}
	}
	if all[0].Status().Code == codes.Error || all[1].Status().Description != "host_not_allowed" {
		t.Errorf("status: %v, %v", all[0].Status(), all[1].Status())
	}
}

// A request that is not traced costs nothing.
func TestTraceCostsNothing(t *testing.T) {
	f := newServer(t)
	f.server.tracer = sdktrace.NewTracerProvider().Tracer("test")
	r := f.anthropic("POST", "/", "authorization", "x", "x-request-id", untracedID)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "00-"+envoysTrace+"-"+envoysSpan+"-00"))
	if n := testing.AllocsPerRun(1000, func() {
		_, span := f.server.trace(ctx, "decide", &r)
		span.End()
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add("00-" + envoysTrace + "-" + envoysSpan + "-01")
	f.Fuzz(func(t *testing.T, text string) {
		if c := parseTraceparent(text); c.IsValid() && "00-"+c.TraceID().String()+"-"+c.SpanID().String()+"-"+c.TraceFlags().String() != strings.ToLower(text) {
			t.Errorf("%q is read as %v", text, c)
		}
	})
}
