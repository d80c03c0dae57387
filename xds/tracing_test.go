package xds

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"wayleave/envoy/envoytest"
)

// spans are those that Envoy tells the gate.
type spans struct {
	collectorv1.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*tracev1.Span // guarded by mu
}

func (s *spans) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		for _, in := range of.GetScopeSpans() {
			s.all = append(s.all, in.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// of returns the spans of a trace, by kind and name.
func (s *spans) of(trace string) map[string]*tracev1.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]*tracev1.Span{}
	for _, span := range s.all {
		if hex.EncodeToString(span.GetTraceId()) == trace {
			found[strings.TrimPrefix(span.GetKind().String(), "SPAN_KIND_")+" "+span.GetName()] = span
		}
	}
	return found
}

// What a worker says of traces, and what becomes of it.
const (
	workersTrace  = "0af7651916cd43dd8448eb211c80319c"
	workersParent = "00-" + workersTrace + "-b7ad6b7169203331-"
)

// traced starts a stack with tracing, and returns where the traceparent of each question to the gate is sent.
func traced(t *testing.T, percent float64) (*stack, chan string) {
	parents := make(chan string, 10)
	s := start(t, func(c *Config) { c.Tracing = &Tracing{Percent: percent} }, nil)
	s.gate.traceparent = func(p string) { parents <- p }
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse { return swap(r.identity) }
	return s, parents
}

// Whether a request is traced is not the worker's to say, neither way.
func TestTracingIsOurs(t *testing.T) {
	for _, c := range []struct {
		percent    float64
		flag, ours string
	}{{0, "01", "-00"}, {100, "00", "-01"}} {
		s, parents := traced(t, c.percent)
		ann := s.worker("ann")
		for _, headers := range [][]string{
			nil,
			{"traceparent", workersParent + c.flag, "tracestate", "a=b"},
			{"x-envoy-force-trace", "true"}, {"x-client-trace-id", "mine"}, {"x-request-id", "aaaaaaaa-aaaa-9aaa-aaaa-aaaaaaaaaaaa"},
			{"x-b3-sampled", "1"}, {"baggage", "c=d"},
		} {
			get(t, ann, "https://"+apiHost+"/", headers...)
			if got := <-parents; !strings.HasSuffix(got, c.ours) {
				t.Errorf("at %g %%, with %v, the gate is told %q", c.percent, headers, got)
			}
		}
	}
}

// Spans of a request are one trace with what the gate is asked, and none of it leaves for the upstream.
func TestTracing(t *testing.T) {
	s, parents := traced(t, 100)
	ann := s.worker("ann")

	get(t, ann, "https://"+apiHost+"/secret/path?key=query", "X-Secret", "header")
	for _, name := range []string{"traceparent", "tracestate", "b3", "baggage"} {
		if got := s.upstream.last.Load().Header.Values(name); got != nil {
			t.Errorf("the upstream saw %s: %q", name, got)
		}
	}
	asked := strings.Split(<-parents, "-")
	var all map[string]*tracev1.Span
	envoytest.Await(t, "the spans", func() error {
		if all = s.spans.of(asked[1]); len(all) != 3 {
			return fmt.Errorf("%d spans: %v", len(all), all)
		}
		return nil
	})
	whole, question, upstream := all["SERVER ingress"], all["CLIENT async envoy.service.ext_proc.v3.ExternalProcessor.Process egress"], all["CLIENT router to_provider egress"]
	if whole == nil || question == nil || upstream == nil {
		t.Fatalf("spans: %v", all)
	}
	if got := hex.EncodeToString(question.GetSpanId()); got != asked[2] {
		t.Errorf("the gate is asked by span %s, and was told of %s", got, asked[2])
	}
	for _, child := range []*tracev1.Span{question, upstream} {
		if string(child.GetParentSpanId()) != string(whole.GetSpanId()) {
			t.Errorf("%s is no part of the request", child.GetName())
		}
	}
	tags := map[string]string{}
	for _, a := range whole.GetAttributes() {
		tags[a.GetKey()] = a.GetValue().GetStringValue()
	}
	if tags["http.url"] != "https://"+apiHost+"/" || tags["node_id"] != "test" || tags[TagPrefix+metadataVerdict] != "swap" {
		t.Errorf("tags: %v", tags)
	}
	for _, span := range all {
		for _, kept := range []string{"secret", "query", "header", "real-ann"} {
			if strings.Contains(span.String(), kept) {
				t.Errorf("a span has what the request carried: %v", span)
			}
		}
	}

	// A worker's own passes byte for byte, and is a tag.
	get(t, ann, "https://"+apiHost+"/", "traceparent", workersParent+"00", "tracestate", "a=b,c=d", "baggage", "e=f")
	h := s.upstream.last.Load().Header
	if got := strings.Join([]string{h.Get("traceparent"), h.Get("tracestate"), h.Get("baggage")}, " "); got != workersParent+"00 a=b,c=d e=f" {
		t.Errorf("the upstream saw %q", got)
	}
	asked = strings.Split(<-parents, "-")
	if asked[1] == workersTrace || asked[3] != "01" {
		t.Errorf("the gate is told %v", asked)
	}
	envoytest.Await(t, "the second request's spans", func() error {
		for _, a := range s.spans.of(asked[1])["SERVER ingress"].GetAttributes() {
			if a.GetKey() == TagWorkersParent && a.GetValue().GetStringValue() == workersParent+"00" {
				return nil
			}
		}
		return errors.New("there is none with the worker's traceparent")
	})
}
