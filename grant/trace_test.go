package grant

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"wayleave/oauth"
)

// tree is the names of all spans with those that lead to them, sorted.
func tree(all []sdktrace.ReadOnlySpan) []string {
	var out []string
	for _, s := range all {
		path := s.Name()
		for parent := s.Parent(); parent.IsValid(); {
			i := slices.IndexFunc(all, func(o sdktrace.ReadOnlySpan) bool { return o.SpanContext().SpanID() == parent.SpanID() })
			if i < 0 {
				path = "request > " + path
				break
			}
			path, parent = all[i].Name()+" > "+path, all[i].Parent()
		}
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// A refresh that a traced request waits for is in its trace; one that nobody waits for has a trace of its own; and of requests that wait
// for nothing, or are not traced, there is nothing.
func TestTrace(t *testing.T) {
	request := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled, Remote: true})
	for name, c := range map[string]struct {
		request trace.SpanContext
		expired bool // when it comes
		want    []string
	}{
		"traced, waits":     {request, true, []string{"request > wait for a token", "request > wait for a token > refresh the grant", "request > wait for a token > refresh the grant > token endpoint"}},
		"not traced, waits": {request.WithTraceFlags(0), true, []string{"refresh the grant", "refresh the grant > token endpoint"}},
		"ahead of expiry":   {request, false, []string{"refresh the grant", "refresh the grant > token endpoint"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spans := tracetest.NewSpanRecorder()
				o := Options{Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")}
				w := newWorld(t, time.Hour)
				w.connect()
				if c.expired {
					time.Sleep(2 * time.Hour)
				}
				k := w.keeper(o)
				started := make(chan struct{})
				var stop func() error
				go func() {
					defer close(started)
					time.Sleep(time.Second) // the request is there first
					stop = w.start(k)
				}()
				if !c.expired {
					<-started
					synctest.Wait()
				}
				ctx := trace.ContextWithRemoteSpanContext(t.Context(), c.request)
				if _, err := k.Token(ctx, "claude", nil); err != nil {
					t.Fatal(err)
				}
				<-started
				if !c.expired {
					time.Sleep(time.Hour)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				got := slices.Compact(tree(spans.Ended()))
				if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
					t.Errorf("spans:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
				}
				for _, s := range spans.Ended() {
					if strings.Contains(fmt.Sprint(s.Attributes(), s.Events(), s.Status()), mark) {
						t.Errorf("%s holds a token", s.Name())
					}
				}
			})
		})
	}
}

// What a provider says is in no span, only which kind of failure it was.
func TestTraceOfAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewSpanRecorder()
		w := newWorld(t, time.Hour)
		w.as.fail = func(int) error {
			return &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant", Err: errors.New("said")}
		}
		w.connect()
		time.Sleep(2 * time.Hour)
		k, stop := w.run(Options{Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")})
		if _, err := k.Token(t.Context(), "claude", nil); err == nil {
			t.Fatal("a token, of a family that is revoked")
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, s := range spans.Ended() {
			if s.Status().Description != "invalid_grant" || strings.Contains(fmt.Sprint(s.Attributes(), s.Events(), s.Status()), "said") {
				t.Errorf("%s: %v %v", s.Name(), s.Status(), s.Attributes())
			}
		}
		if n := len(spans.Ended()); n != 2 {
			t.Errorf("%d spans", n)
		}
	})
}
