package vault

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// Whoever watches is told of each call once, with what became of it.
func TestCalled(t *testing.T) {
	server := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errors":["check-and-set parameter did not match the current version"]}`)
		case r.URL.Path == "/v1/wayleave/data/grants/a":
			fmt.Fprint(w, aDocument)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errors":[]}`)
		}
	}))
	defer server.Close()
	var told []Call
	c := openAt(t, Config{Address: server.URL, Called: func(c Call) { told = append(told, c) }})
	_, _ = c.Get(t.Context(), "grants/a", &struct{}{})
	_, _ = c.Get(t.Context(), "grants/b", &struct{}{})
	_, _ = c.Put(t.Context(), "grants/a", struct{}{}, 1)
	want := []Call{{Operation: "read"}, {Operation: "read", Err: ErrNotFound}, {Operation: "update", Err: ErrConflict}}
	if len(told) != len(want) {
		t.Fatalf("%d calls: %v", len(told), told)
	}
	for i, w := range want {
		if told[i].Operation != w.Operation || !errors.Is(told[i].Err, w.Err) || told[i].Took <= 0 {
			t.Errorf("call %d: %+v, want %+v", i, told[i], w)
		}
	}
}

// A call for something that is traced is shown, with which kind of failure it was; any other is not.
func TestTraced(t *testing.T) {
	server := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":["hidden"]}`)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[]}`)
	}))
	defer server.Close()
	spans := tracetest.NewSpanRecorder()
	c := openAt(t, Config{Address: server.URL, Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")})
	_, _ = c.Get(t.Context(), "grants/a", &struct{}{})
	if n := len(spans.Ended()); n != 0 {
		t.Errorf("%d spans of what is not traced", n)
	}
	of := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(t.Context(), of)
	_, _ = c.Get(ctx, "grants/a", &struct{}{})
	_, _ = c.Put(ctx, "grants/a", struct{}{}, 1)
	var got []string
	for _, s := range spans.Ended() {
		got = append(got, fmt.Sprint(s.Name(), " ", s.Status().Code, " ", s.Status().Description, " ", s.Parent().SpanID() == of.SpanID()))
	}
	if want := []string{"vault read Unset  true", "vault update Error permission denied true"}; !slices.Equal(got, want) {
		t.Errorf("spans %q, want %q", got, want)
	}
}
