package telemetry

import (
	"encoding/hex"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metricsv1 "go.opentelemetry.io/proto/otlp/metrics/v1"
)

func TestFigures(t *testing.T) {
	const traceID = "0af7651916cd43dd8448eb211c80319c"
	r := prometheus.NewRegistry()
	count := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "c_total", Help: "counts"}, []string{"grant"})
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "g"})
	times := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Buckets: []float64{1, 2}})
	quantiles := prometheus.NewSummary(prometheus.SummaryOpts{Name: "s", Objectives: map[float64]float64{.5: .1}})
	r.MustRegister(count, gauge, times, quantiles)
	count.WithLabelValues("acme").Add(2)
	gauge.Set(-1.5)
	quantiles.Observe(4)
	for _, v := range []float64{.5, 1.5, 1.7} {
		times.Observe(v)
	}
	times.(prometheus.ExemplarObserver).ObserveWithExemplar(9, prometheus.Labels{"trace_id": traceID})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*metricsv1.Metric{}
	for _, m := range figures(families, time.Unix(1, 0), time.Unix(2, 0)) {
		got[m.GetName()] = m
	}

	c := got["c_total"].GetSum().GetDataPoints()[0]
	if c.GetAsDouble() != 2 || c.GetAttributes()[0].GetValue().GetStringValue() != "acme" || c.GetTimeUnixNano() != 2e9 || c.GetStartTimeUnixNano() == 0 || got["c_total"].GetDescription() != "counts" {
		t.Errorf("counter: %v", got["c_total"])
	}
	if got["g"].GetGauge().GetDataPoints()[0].GetAsDouble() != -1.5 {
		t.Errorf("gauge: %v", got["g"])
	}
	h := got["h"].GetHistogram().GetDataPoints()[0]
	if diff := cmp.Diff([]uint64{1, 2, 1}, h.GetBucketCounts()); diff != "" || h.GetCount() != 4 || math.Abs(h.GetSum()-12.7) > 1e-9 || len(h.GetExplicitBounds()) != 2 {
		t.Errorf("histogram: %v", h)
	}
	if e := h.GetExemplars(); len(e) != 1 || hex.EncodeToString(e[0].GetTraceId()) != traceID || e[0].GetAsDouble() != 9 {
		t.Errorf("exemplars: %v", e)
	}
	if s := got["s"].GetSummary().GetDataPoints()[0]; s.GetCount() != 1 || s.GetQuantileValues()[0].GetValue() != 4 {
		t.Errorf("summary: %v", s)
	}
}
