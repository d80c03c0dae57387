package telemetry

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"
	collectormetricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	metricsv1 "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// This file tells the figures that Prometheus scrapes, by the same names.

// tellFigures sends them until ctx ends, and once more then.
func (t *Telemetry) tellFigures(ctx context.Context) {
	if t.c.Every <= 0 || t.c.Gather == nil {
		return
	}
	started := time.Now()
	tick := time.NewTicker(t.c.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.sendFigures(ctx, started, sendTimeout)
		case <-ctx.Done():
			t.sendFigures(context.WithoutCancel(ctx), started, lastCall)
			return
		}
	}
}

// sendFigures tries once: the next ones say all that these do.
func (t *Telemetry) sendFigures(ctx context.Context, started time.Time, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	families, err := t.c.Gather()
	if err != nil && len(families) == 0 {
		t.c.Log.Warn("figures cannot be read, and are not sent", "err", err)
		return
	}
	out := &collectormetricsv1.ExportMetricsServiceResponse{}
	err = t.wire.send(ctx, metricsTo, &collectormetricsv1.ExportMetricsServiceRequest{ResourceMetrics: []*metricsv1.ResourceMetrics{{
		Resource:     t.resource,
		ScopeMetrics: []*metricsv1.ScopeMetrics{{Scope: &commonv1.InstrumentationScope{Name: "wayleave"}, Metrics: figures(families, started, time.Now())}},
	}}}, out)
	if err == nil {
		err = t.rejected(out.GetPartialSuccess().GetRejectedDataPoints(), out.GetPartialSuccess().GetErrorMessage())
	}
	if _, again := errors.AsType[*retry](err); again && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	t.outages[Metrics].ended(err, points(families))
}

func points(families []*dto.MetricFamily) (n int) {
	for _, f := range families {
		n += len(f.GetMetric())
	}
	return n
}

// figures are what Prometheus gathers, as OTLP has it. Counters count since the process started.
func figures(families []*dto.MetricFamily, started, now time.Time) (all []*metricsv1.Metric) {
	for _, f := range families {
		m := &metricsv1.Metric{Name: f.GetName(), Description: f.GetHelp(), Unit: f.GetUnit()}
		switch f.GetType() {
		case dto.MetricType_COUNTER:
			sum := &metricsv1.Sum{AggregationTemporality: metricsv1.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE, IsMonotonic: true}
			for _, x := range f.GetMetric() {
				p := point(x, x.GetCounter().GetValue(), now)
				p.StartTimeUnixNano = since(x.GetCounter().GetCreatedTimestamp(), started)
				p.Exemplars = exemplars(x.GetCounter().GetExemplar())
				sum.DataPoints = append(sum.DataPoints, p)
			}
			m.Data = &metricsv1.Metric_Sum{Sum: sum}
		case dto.MetricType_GAUGE, dto.MetricType_UNTYPED:
			gauge := &metricsv1.Gauge{}
			for _, x := range f.GetMetric() {
				gauge.DataPoints = append(gauge.DataPoints, point(x, x.GetGauge().GetValue()+x.GetUntyped().GetValue(), now)) // one of them is there
			}
			m.Data = &metricsv1.Metric_Gauge{Gauge: gauge}
		case dto.MetricType_HISTOGRAM:
			histogram := &metricsv1.Histogram{AggregationTemporality: metricsv1.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE}
			for _, x := range f.GetMetric() {
				histogram.DataPoints = append(histogram.DataPoints, distribution(x, started, now))
			}
			m.Data = &metricsv1.Metric_Histogram{Histogram: histogram}
		case dto.MetricType_SUMMARY:
			summary := &metricsv1.Summary{}
			for _, x := range f.GetMetric() {
				p := &metricsv1.SummaryDataPoint{
					Attributes: labels(x), TimeUnixNano: nano(now), StartTimeUnixNano: since(x.GetSummary().GetCreatedTimestamp(), started),
					Count: x.GetSummary().GetSampleCount(), Sum: x.GetSummary().GetSampleSum(),
				}
				for _, q := range x.GetSummary().GetQuantile() {
					p.QuantileValues = append(p.QuantileValues, &metricsv1.SummaryDataPoint_ValueAtQuantile{Quantile: q.GetQuantile(), Value: q.GetValue()})
				}
				summary.DataPoints = append(summary.DataPoints, p)
			}
			m.Data = &metricsv1.Metric_Summary{Summary: summary}
		default:
			continue // none of ours
		}
		all = append(all, m)
	}
	return all
}

func point(x *dto.Metric, value float64, now time.Time) *metricsv1.NumberDataPoint {
	return &metricsv1.NumberDataPoint{Attributes: labels(x), TimeUnixNano: nano(now), Value: &metricsv1.NumberDataPoint_AsDouble{AsDouble: value}}
}

// distribution is a histogram. Prometheus's buckets each hold those below, OTLP's do not, and have one more for what is above the last bound.
func distribution(x *dto.Metric, started, now time.Time) *metricsv1.HistogramDataPoint {
	h := x.GetHistogram()
	p := &metricsv1.HistogramDataPoint{
		Attributes: labels(x), TimeUnixNano: nano(now), StartTimeUnixNano: since(h.GetCreatedTimestamp(), started), Count: h.GetSampleCount(), Sum: h.SampleSum,
	}
	var below uint64
	for _, b := range h.GetBucket() {
		if math.IsInf(b.GetUpperBound(), 1) {
			p.Exemplars = append(p.Exemplars, exemplars(b.GetExemplar())...)
			continue
		}
		p.ExplicitBounds = append(p.ExplicitBounds, b.GetUpperBound())
		p.BucketCounts = append(p.BucketCounts, b.GetCumulativeCount()-below)
		p.Exemplars = append(p.Exemplars, exemplars(b.GetExemplar())...)
		below = b.GetCumulativeCount()
	}
	p.BucketCounts = append(p.BucketCounts, h.GetSampleCount()-below)
	return p
}

func labels(x *dto.Metric) (all []*commonv1.KeyValue) {
	for _, l := range x.GetLabel() {
		all = append(all, text(l.GetName(), l.GetValue()))
	}
	return all
}

// exemplars is one that leads to a trace.
func exemplars(e *dto.Exemplar) []*metricsv1.Exemplar {
	if e == nil {
		return nil
	}
	out := &metricsv1.Exemplar{TimeUnixNano: uint64(max(e.GetTimestamp().AsTime().UnixNano(), 0)), Value: &metricsv1.Exemplar_AsDouble{AsDouble: e.GetValue()}}
	for _, l := range e.GetLabel() {
		if id, err := hex.DecodeString(l.GetValue()); l.GetName() == "trace_id" && err == nil && isID(id, 16) {
			out.TraceId = id
		}
	}
	return []*metricsv1.Exemplar{out}
}

func since(created *timestamppb.Timestamp, started time.Time) uint64 {
	if created != nil {
		return nano(created.AsTime())
	}
	return nano(started)
}

func nano(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }
