package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"wayleave/audit"
	"wayleave/config"
	"wayleave/secret"
	"wayleave/telemetry"
	"wayleave/xds"
)

// openTelemetry is who tells the configuration's collector how the gate is; where there is none, nobody.
func (g gate) openTelemetry(figured *measured) (*telemetry.Telemetry, error) {
	t := g.cfg.Telemetry
	c := telemetry.Config{
		Endpoint: t.OTLP.Endpoint, HTTP: t.OTLP.Protocol == config.OTLPHTTP, Headers: map[string]secret.Text{},
		Gate: gateName(g.replica), Version: version(), Tracing: t.Percent() > 0,
		Gather: figured.Gather, Every: t.Metrics.Every, Dropped: figured.Untold, Log: g.log,
	}
	for name, h := range t.OTLP.Headers {
		c.Headers[name] = h.Value
	}
	var err error
	if c.Roots, err = rootsAnd(g.cfg.Path(t.OTLP.CAFile)); err != nil {
		return nil, fmt.Errorf("telemetry.otlp.ca_file: %w", err)
	}
	return telemetry.New(c)
}

// envoyTracing has Envoys trace a part of the requests; nil: none.
func envoyTracing(t config.Telemetry) *xds.Tracing {
	if t.Percent() == 0 {
		return nil
	}
	return &xds.Tracing{Percent: t.Percent()}
}

// auditLogs sends the audit to the collector.
type auditLogs struct{ to *telemetry.Telemetry }

// Write implements audit.Sink.
func (a auditLogs) Write(ctx context.Context, lines [][]byte, records []audit.Record) error {
	events := make([]telemetry.LogEvent, len(records))
	for i, r := range records {
		events[i] = telemetry.LogEvent{Time: r.Time, Severity: severityOf(r), Name: "wayleave.audit." + string(r.Kind), Trace: r.Trace, Body: lines[i]}
	}
	err := a.to.EmitLogs(ctx, events)
	if some, ok := errors.AsType[*telemetry.Rejected](err); ok {
		return &audit.Unwanted{Count: int(some.Count), Err: err}
	}
	if errors.Is(err, telemetry.ErrUnwanted) {
		return &audit.Unwanted{Count: len(records), Err: err}
	}
	return err
}

// Close implements audit.Sink. Telemetry has an owner of its own.
func (auditLogs) Close() error { return nil }

// severityOf is how much a record wants to be looked at.
func severityOf(r audit.Record) slog.Level {
	switch {
	case r.Kind == audit.Gap:
		return slog.LevelError
	case r.Outcome == audit.Refused, r.Outcome == audit.Failed:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
