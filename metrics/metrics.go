// Package metrics owns the figures of a gate: what is counted, under which names, and whether the gate is alive and ready.
//
//	what happens ──▶ the methods of Metrics ──┐
//	what is kept ──▶ Look, at each scrape ────┴──▶ Handler: /metrics, /livez, /readyz
//
// It imports nothing of ours: who owns a figure has a hook for it, and cmd/wayleave ties the two. What is a label is of the
// configuration or of a fixed list. Nothing that a worker sends is one, so no worker can make a series.
package metrics

import (
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// What became of a request.
const (
	Swapped  = "swapped"
	Passed   = "passed"
	Answered = "answered"
	Refused  = "refused"
)

// minted is what becomes of a leaf certificate that is not refused.
const minted = "minted"

// other stands for what is not in a fixed list.
const other = "other"

// Metrics is what one gate counts. It is safe for concurrent use, and none of its methods waits.
type Metrics struct {
	registry *prometheus.Registry
	reasons  []string

	leased       *prometheus.CounterVec
	requests     *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	decisions    *prometheus.HistogramVec
	tokens       *prometheus.CounterVec
	refreshes    *prometheus.CounterVec
	refreshTimes prometheus.Histogram
	leaseWaits   prometheus.Histogram
	vaultCalls   *prometheus.CounterVec
	vaultTimes   *prometheus.HistogramVec
	leaves       *prometheus.CounterVec
	pushes       *prometheus.CounterVec
	answers      *prometheus.CounterVec
	audited      *prometheus.CounterVec
	unaudited    *prometheus.CounterVec
	lost         *prometheus.CounterVec
	untold       *prometheus.CounterVec
}

// How long something may take, in seconds, as it is counted.
var (
	short = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20}
	long  = []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120}
)

// New returns Metrics of a gate of that version. The reasons are all that a refusal can have.
func New(version string, reasons []string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		reasons:  reasons,

		requests: counter("wayleave_requests_total",
			"Requests and tunnels about which the gate decided. When swapped ones stop while workers work, look at wayleave_refusals_total.", "outcome", "grant"),
		leased: counter("wayleave_fast_lane_requests_total",
			"Of the swapped requests, those that Envoy decided by what the gate had decided just before about the same connection; it tells of them when they have ended.", "grant"),
		refusals: counter("wayleave_refusals_total",
			"Requests and tunnels that were refused. docs/refusals.md says of each reason what to do.", "reason"),
		decisions: prometheus.NewHistogramVec(histogram("wayleave_decision_duration_seconds",
			"What the gate added to a request: from Envoy's question to its answer, the wait for a token included and that for an operator not. When it grows, look at wayleave_tokens_total and wayleave_vault_call_duration_seconds.", short), []string{"outcome"}),
		tokens: counter("wayleave_tokens_total",
			"Tokens given to requests: from memory at once, or after a wait for Vault or a refresh. Many that waited mean tokens that expire before they are refreshed: look at the states of grants.", "source"),
		refreshes: counter("wayleave_refreshes_total",
			"Refreshes of grants by this gate, by what they came to. On failed, look at the provider; on ended or given_up, connect the grant again: wayleave grant show NAME.", "grant", "outcome"),
		refreshTimes: prometheus.NewHistogram(histogram("wayleave_refresh_duration_seconds",
			"How long token endpoints took to answer a refresh. A minute is the longest that the gate waits; ask the provider.", long)),
		leaseWaits: prometheus.NewHistogram(histogram("wayleave_lease_wait_seconds",
			"How long this gate waited for another one that was refreshing a grant which was due. Many long ones mean that gates die while they refresh: look at their logs.", long)),
		vaultCalls: counter("wayleave_vault_calls_total",
			"Calls of Vault by what they came to. Conflicts and not_found are usual; on denied see docs/vault.md, on unavailable look at Vault.", "operation", "outcome"),
		vaultTimes: prometheus.NewHistogramVec(histogram("wayleave_vault_call_duration_seconds",
			"How long a call of Vault took, with what was tried again. Two seconds is the longest that a request waits; give Vault more, or put it nearer.", short), []string{"operation"}),
		leaves: counter("wayleave_leaf_mints_total",
			"Leaf certificates for names that workers asked for. Refused ones are names outside the configuration; many minted ones are names below a wildcard: docs/performance.md has what each costs.", "outcome"),
		pushes: counter("wayleave_xds_pushes_total",
			"Responses with configuration or certificates that Envoys were sent.", "type"),
		answers: counter("wayleave_xds_answers_total",
			"Answers of Envoys to what they were sent. On nack, see what they said: wayleave fleet show NODE.", "type", "outcome"),
		untold: counter("wayleave_telemetry_dropped_total",
			"Spans, figures and records that the OpenTelemetry collector did not get. The gate's log says why; no request waits for it. See docs/tracing.md.", "signal"),
	}
	m.audited = counter("wayleave_audit_records_total",
		"Lines of the audit. Of a request that takes long there are two: one that is open, and the final one.", "kind", "open")
	m.unaudited = counter("wayleave_audit_dropped_total",
		"Records that did not get into the audit's file, or to another place that gets them. The gate's log says why: mend the disk, or what the sink calls.", "sink")
	m.lost = counter("wayleave_audit_lost_total",
		"Decisions that only a gate knew that ended without writing them down, as the audit's file says too: docs/audit.md.", "cause")
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "wayleave_build_info", Help: "1; its labels say what runs. Compare it between gates after an update."}, []string{"version", "go_version"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	m.registry.MustRegister(m.requests, m.leased, m.refusals, m.decisions, m.tokens, m.refreshes, m.refreshTimes, m.leaseWaits, m.vaultCalls, m.vaultTimes, m.leaves, m.pushes, m.answers, m.audited, m.unaudited, m.lost, m.untold, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// So that the first of them is an increase too.
	for _, signal := range []string{"traces", "metrics", "logs"} {
		m.untold.WithLabelValues(signal)
	}
	for _, reason := range reasons {
		m.refusals.WithLabelValues(reason)
	}
	for _, outcome := range []string{minted, Refused} {
		m.leaves.WithLabelValues(outcome)
	}
	for _, sink := range []string{"all", "file", "stdout", "webhook", "otlp"} {
		m.unaudited.WithLabelValues(sink)
	}
	m.lost.WithLabelValues("killed")
	return m
}

// Decided counts a request, of the route with this grant, that came to outcome; reason is of a refusal. The id of its trace, if it has
// one, is kept as an example of how long it took.
func (m *Metrics) Decided(outcome, grant, reason, trace string, took time.Duration) {
	m.requests.WithLabelValues(outcome, grant).Inc()
	if times := m.decisions.WithLabelValues(outcome); trace == "" {
		times.Observe(took.Seconds())
	} else {
		times.(prometheus.ExemplarObserver).ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": trace})
	}
	if outcome != Refused {
		return
	}
	if !slices.Contains(m.reasons, reason) {
		reason = other
	}
	m.refusals.WithLabelValues(reason).Inc()
}

// Leased counts a request, of the route with this grant, that got its token in the fast lane: Envoy decided by what was decided just before.
func (m *Metrics) Leased(grant string) {
	m.requests.WithLabelValues(Swapped, grant).Inc()
	m.leased.WithLabelValues(grant).Inc()
}

// Token counts a token that a request got, and whether it had to wait.
func (m *Metrics) Token(waited bool) {
	source := "memory"
	if waited {
		source = "wait"
	}
	m.tokens.WithLabelValues(source).Inc()
}

// Refreshed counts a refresh. One that took no time was not sent.
func (m *Metrics) Refreshed(grant, outcome string, took time.Duration) {
	m.refreshes.WithLabelValues(grant, outcome).Inc()
	if took > 0 {
		m.refreshTimes.Observe(took.Seconds())
	}
}

// LeaseAwaited counts a wait for another gate's refresh.
func (m *Metrics) LeaseAwaited(took time.Duration) { m.leaseWaits.Observe(took.Seconds()) }

// VaultCalled counts a call of Vault.
func (m *Metrics) VaultCalled(operation, outcome string, took time.Duration) {
	m.vaultCalls.WithLabelValues(operation, outcome).Inc()
	m.vaultTimes.WithLabelValues(operation).Observe(took.Seconds())
}

// LeafMinted counts a leaf certificate, or a name for which there is none.
func (m *Metrics) LeafMinted(err error) {
	outcome := minted
	if err != nil {
		outcome = Refused
	}
	m.leaves.WithLabelValues(outcome).Inc()
}

// Pushed counts a response to an Envoy, with resources of a kind.
func (m *Metrics) Pushed(kind string) { m.pushes.WithLabelValues(kind).Inc() }

// PushAnswered counts what an Envoy said to one.
func (m *Metrics) PushAnswered(kind string, refused bool) {
	outcome := "ack"
	if refused {
		outcome = "nack"
	}
	m.answers.WithLabelValues(kind, outcome).Inc()
}

// AuditWritten counts a line of the audit.
func (m *Metrics) AuditWritten(kind string, open bool) {
	m.audited.WithLabelValues(kind, strconv.FormatBool(open)).Inc()
}

// AuditDropped counts records that a sink of the audit did not get.
func (m *Metrics) AuditDropped(sink string, n uint64) {
	m.unaudited.WithLabelValues(sink).Add(float64(n))
}

// AuditLost counts decisions that are in no line of the audit.
func (m *Metrics) AuditLost(cause string, n uint64) { m.lost.WithLabelValues(cause).Add(float64(n)) }

// Untold counts what an OpenTelemetry collector did not get of a signal.
func (m *Metrics) Untold(signal string, n int) { m.untold.WithLabelValues(signal).Add(float64(n)) }

// Gather returns all figures as they are now.
func (m *Metrics) Gather() ([]*dto.MetricFamily, error) { return m.registry.Gather() }
