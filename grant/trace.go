package grant

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"wayleave/oauth"
)

// What a grant's goroutine does belongs to no request. While one that is traced waits for it, it is shown in that request's trace; and
// each refresh is shown, in a trace of its own where nobody waits.

// waiting begins the span of a request that is traced and waits for a token of m, whose work is shown below it until end is called.
func (m *minder) waiting(ctx context.Context) (end func()) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return func() {}
	}
	_, span := m.span(ctx, "wait for a token")
	mine := span.SpanContext()
	m.waiter.CompareAndSwap(nil, &mine) // of several the first
	return func() {
		m.waiter.CompareAndSwap(&mine, nil)
		span.End()
	}
}

// shown is the context of what m does now.
func (m *minder) shown(work context.Context) context.Context {
	if first := m.waiter.Load(); first != nil {
		return trace.ContextWithSpanContext(work, *first)
	}
	return work
}

// name is what m's work is called in a trace.
func (m move) name() string {
	if m == revoke {
		return "revoke the grant"
	}
	return "refresh the grant"
}

// span begins one of m's own work.
func (m *minder) span(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	return m.tracer.Start(ctx, name, append(o, trace.WithAttributes(attribute.String("wayleave.grant", m.spec.Name), attribute.String("wayleave.provider", m.spec.Provider)))...)
}

// leaseAwaited tells of a wait of d for another replica, which is over.
func (m *minder) leaseAwaited(d time.Duration) {
	if m.watch.Awaited != nil {
		m.watch.Awaited(m.spec.Name, d)
	}
	if first := m.waiter.Load(); first != nil {
		now := m.now().day
		_, span := m.span(trace.ContextWithSpanContext(context.Background(), *first), "wait for another gate's lease", trace.WithTimestamp(now.Add(-d)))
		span.End(trace.WithTimestamp(now))
	}
}

// called ends the span of a call of a provider. What a provider says is not shown, only which kind of error it is.
func called(span trace.Span, err error) {
	if err != nil && !errors.Is(err, errUnused) {
		kind := "error"
		if e, ok := errors.AsType[*oauth.Error](err); ok {
			kind = string(e.Kind())
		}
		span.SetStatus(codes.Error, kind)
	}
	span.End()
}
