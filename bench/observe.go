package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"wayleave/audit"
	"wayleave/extproc"
	"wayleave/journal"
	"wayleave/metrics"
	"wayleave/telemetry"
	"wayleave/xds"
)

// observe: what it costs to be able to see what is done, against a gate that keeps nothing. The audit is a file, the collector of the
// spans is in bench, and counts them.

const (
	unseen    = "nothing is kept"
	figured   = "metrics"
	audited   = "and the audit"
	traced    = "and traces of 1 %"
	tracedAll = "and traces of all"
)

// observer is what a gate keeps of the requests.
type observer struct {
	metrics, audit bool
	percent        float64 // of the requests are traced
}

var observers = map[string]observer{
	unseen:    {},
	figured:   {metrics: true},
	audited:   {metrics: true, audit: true},
	traced:    {metrics: true, audit: true, percent: 1},
	tracedAll: {metrics: true, audit: true, percent: 100},
}

func observeFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &swapRun{}
	r.flags(f)
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if err := checkSizes(r.requests, r.rounds); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "wl")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		collector, spans, err := startCollector(ctx, filepath.Join(dir, "otlp.sock"))
		if err != nil {
			return err
		}
		defer collector.Stop()
		r.collector = "unix://" + filepath.Join(dir, "otlp.sock")
		if err := r.compare(ctx, "A small GET over HTTP/1.1, by what is kept of it; CPU time is for one request", unseen, []string{unseen, figured, audited, traced, tracedAll}); err != nil {
			return err
		}
		if spans.Load() == 0 {
			return errors.New("the collector was told of no span: tracing was not measured")
		}
		return nil
	}
}

// collector takes spans, and counts them.
type collector struct {
	collectortracev1.UnimplementedTraceServiceServer
	spans atomic.Int64
}

// startCollector starts one that listens on a unix socket.
func startCollector(ctx context.Context, socket string) (*grpc.Server, *atomic.Int64, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, nil, err
	}
	c := &collector{}
	server := grpc.NewServer()
	collectortracev1.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }() // until Stop
	return server, &c.spans, nil
}

// Export implements collectortracev1.TraceServiceServer.
func (c *collector) Export(_ context.Context, r *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	for _, of := range r.GetResourceSpans() {
		for _, in := range of.GetScopeSpans() {
			c.spans.Add(int64(len(in.GetSpans())))
		}
	}
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

// observing is a gate's part of that, as cmd/wayleave has it.
type observing struct {
	options   extproc.Options
	telemetry *telemetry.Telemetry
	stop      func()
}

// observe starts what is kept by the variant of a gate. What is no variant of this scenario has nothing of it.
func observe(ctx context.Context, spec *gateSpec, log *slog.Logger) (observing, error) {
	o := observing{options: extproc.Options{Shown: spec.Envoy.AccessLogPath != "", Log: log}, stop: func() {}}
	if spec.Variant == allEnds {
		o.options.Ended = func(extproc.Ended) {}
	}
	keep := observers[spec.Variant]
	var figures *metrics.Metrics
	if keep.metrics {
		var reasons []string
		for _, r := range extproc.Reasons() {
			reasons = append(reasons, r.Name)
		}
		figures = metrics.New("bench", reasons)
	}
	var ledger *audit.Ledger
	if keep.audit {
		path := filepath.Join(filepath.Dir(spec.Socket), "audit.jsonl")
		file, err := journal.OpenLines("audit.file", path, 64<<20, 1)
		if err != nil {
			return o, err
		}
		run, err := audit.StartRun(path, time.Now())
		if err != nil {
			return o, err
		}
		out := audit.NewLog(audit.LogOptions{File: file, Run: run, Now: time.Now, Log: log, Watch: audit.Watch{
			Written: func(r audit.Record) { figures.AuditWritten(string(r.Kind), r.Open) }, Dropped: figures.AuditDropped, Lost: figures.AuditLost,
		}})
		ledger = audit.NewLedger(out, "", time.Now)
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { out.Run(ctx) })
		wg.Go(func() { ledger.Run(ctx) })
		o.stop = func() { cancel(); wg.Wait() }
		o.options.Ended = func(e extproc.Ended) {
			r := recordOf(e.Decided)
			r.Status, r.Received, r.Sent = e.Status, e.BytesReceived, e.BytesSent
			r.DurationMS = float64(e.Duration.Microseconds()) / 1000
			r.Attempts, r.Upstream, r.Protocol, r.Flags, r.Details = e.Attempts, e.Upstream, e.Protocol, e.Flags, e.Details
			ledger.Ended(r)
		}
	}
	o.options.Decided = func(d extproc.Decided) error {
		if figures != nil {
			figures.Decided(string(audit.Swapped), d.Grant, d.Reason, d.Trace, d.Took)
		}
		if ledger != nil {
			return ledger.Decided(recordOf(d))
		}
		return nil
	}
	if keep.percent > 0 {
		var err error
		if o.telemetry, err = telemetry.New(telemetry.Config{Endpoint: spec.Collector, Gate: "bench", Version: "bench", Tracing: true, Dropped: figures.Untold, Log: log}); err != nil {
			return o, err
		}
		o.options.Tracer = o.telemetry.Tracer("wayleave/extproc")
		spec.Envoy.Tracing = &xds.Tracing{Percent: keep.percent}
		go o.telemetry.Run(ctx) // until ctx ends
	}
	return o, nil
}

// register has the gate take what Envoy tells of spans.
func (o observing) register(server *grpc.Server) {
	if o.telemetry != nil {
		o.telemetry.Register(server)
	}
}

// recordOf is what the audit keeps of a request that was swapped.
func recordOf(d extproc.Decided) audit.Record {
	return audit.Record{
		Time: d.At.UTC(), Kind: audit.Request, Outcome: audit.Swapped, Reason: d.Reason, Worker: d.Worker, Session: d.Session, Grant: d.Grant, Route: d.Route, Host: d.Host,
		Method: d.Method, Path: d.Path, Request: d.RequestID, Source: d.Source, Revision: d.Revision, Token: d.Token, Fingerprint: d.Fingerprint, Rule: d.Rule,
	}
}

// observed is how a variant of this scenario is in the list of all.
func observed() variant { return variant{status: http.StatusOK} }
