package metrics

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the table of docs/metrics.md")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fed has been told one thing of each kind, so that every series is there.
func fed() *Metrics {
	m := New("1.2.3", []string{"host_not_allowed", "scope_missing"})
	for _, outcome := range []string{Swapped, Passed, Answered} {
		m.Decided(outcome, "claude", "", "", time.Millisecond)
	}
	m.Decided(Refused, "claude", "scope_missing", "", 2*time.Millisecond)
	m.Token(false)
	m.Token(false)
	m.Token(true)
	m.Refreshed("claude", "refreshed", time.Second)
	m.Refreshed("claude", "given_up", 0)
	m.LeaseAwaited(2 * time.Second)
	m.VaultCalled("read", "ok", time.Millisecond)
	m.VaultCalled("update", "conflict", time.Millisecond)
	m.LeafMinted(nil)
	m.LeafMinted(errors.New("no"))
	m.Pushed("Cluster")
	m.PushAnswered("Cluster", false)
	m.PushAnswered("Listener", true)
	m.Health(new(Health))
	m.AuditWritten("request", false)
	m.AuditDropped("webhook", 3)
	m.AuditLost("killed", 2)
	m.Untold("traces", 2)
	m.Look([]string{"healthy", "needs_reconnect"}, []string{"refreshed", "failed"}, func() time.Time { return now }, func() Figures {
		return Figures{
			Grants: []Grant{
				{Name: "claude", State: "healthy", Expires: now.Add(time.Hour), ConsentEnds: now.Add(24 * time.Hour)},
				{Name: "key", State: "needs_reconnect"},
			},
			Sessions: 3, Envoys: Envoys{Current: 2, Behind: 1, Refusing: 1}, Rollout: Rollout{Step: 1, Steps: 3, Paused: true},
		}
	})
	return m
}

func get(t *testing.T, m *Metrics, h *Health, path, accept string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	Handler(m, h).ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	status, text := get(t, m, &Health{}, "/metrics", "")
	if status != http.StatusOK {
		t.Fatalf("a scrape: %d\n%s", status, text)
	}
	return text
}

func TestFigures(t *testing.T) {
	m := fed()
	scrape(t, m)
	lines := strings.Split(scrape(t, m), "\n")
	for _, want := range []string{
		`wayleave_requests_total{grant="claude",outcome="swapped"} 1`,
		`wayleave_requests_total{grant="claude",outcome="refused"} 1`,
		`wayleave_refusals_total{reason="scope_missing"} 1`,
		`wayleave_refusals_total{reason="host_not_allowed"} 0`, // there before the first
		`wayleave_decision_duration_seconds_bucket{outcome="refused",le="0.001"} 0`,
		`wayleave_decision_duration_seconds_bucket{outcome="refused",le="0.0025"} 1`,
		`wayleave_tokens_total{source="memory"} 2`,
		`wayleave_tokens_total{source="wait"} 1`,
		`wayleave_refreshes_total{grant="claude",outcome="given_up"} 1`,
		`wayleave_refreshes_total{grant="claude",outcome="failed"} 0`,
		`wayleave_refresh_duration_seconds_count 1`, // what was not sent took no time
		`wayleave_lease_wait_seconds_sum 2`,
		`wayleave_vault_calls_total{operation="update",outcome="conflict"} 1`,
		`wayleave_vault_call_duration_seconds_count{operation="read"} 1`,
		`wayleave_leaf_mints_total{outcome="minted"} 1`,
		`wayleave_leaf_mints_total{outcome="refused"} 1`,
		`wayleave_xds_pushes_total{type="Cluster"} 1`,
		`wayleave_xds_answers_total{outcome="ack",type="Cluster"} 1`,
		`wayleave_xds_answers_total{outcome="nack",type="Listener"} 1`,
		`wayleave_telemetry_dropped_total{signal="traces"} 2`,
		`wayleave_telemetry_dropped_total{signal="logs"} 0`,
		`wayleave_grant_state{grant="claude",state="healthy"} 1`,
		`wayleave_grant_state{grant="claude",state="needs_reconnect"} 0`,
		`wayleave_grant_state{grant="key",state="needs_reconnect"} 1`,
		`wayleave_grant_expires_in_seconds{grant="claude"} 3600`,
		`wayleave_grant_consent_ends_in_seconds{grant="claude"} 86400`,
		`wayleave_sessions 3`,
		`wayleave_envoys{state="current"} 2`,
		`wayleave_envoys{state="behind"} 1`,
		`wayleave_envoys{state="refusing"} 1`,
		`wayleave_ready 1`, `wayleave_rollout_step 1`, `wayleave_rollout_steps 3`, `wayleave_rollout_paused 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%s is not there", want)
		}
	}
	if text := strings.Join(lines, "\n"); strings.Contains(text, `expires_in_seconds{grant="key"`) || strings.Contains(text, `ends_in_seconds{grant="key"`) {
		t.Error("a grant of which no end is known has one")
	}
}

// A reason that is not in the list makes no series of its own.
func TestUnknownReason(t *testing.T) {
	m := New("", []string{"scope_missing"})
	for i := range 1000 {
		m.Decided(Refused, "", fmt.Sprint("made-up-", i), "", 0)
	}
	if text := scrape(t, m); strings.Contains(text, "made-up") || !strings.Contains(text, `wayleave_refusals_total{reason="other"} 1000`) {
		t.Error(text)
	}
}

// Names, types and units are as Prometheus wants them, and each metric says what to do.
func TestNames(t *testing.T) {
	m := fed()
	problems, err := promlint.New(strings.NewReader(scrape(t, m))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "wayleave_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// The page has every metric, as it is.
func TestPage(t *testing.T) {
	const page, from, to = "../docs/metrics.md", "<!-- figures -->\n", "<!-- /figures -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), from)
	_, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	want := before + from + table(t, fed()) + to + after
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("docs/metrics.md is not what the code says; run 'go test ./metrics -update'")
	}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(before+after, -1) {
		if err := yaml.Unmarshal([]byte(block[1]), new(any)); err != nil {
			t.Errorf("%v in\n%s", err, block[1])
		}
	}
	for _, name := range regexp.MustCompile(`\bwayleave_[a-z_]+`).FindAllString(before+after, -1) {
		if !strings.Contains(want, "| `"+name+"` |") {
			t.Errorf("the page tells of %s, which is none", name)
		}
	}
}

func table(t *testing.T, m *Metrics) string {
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | what it is, and what to do |\n|---|---|---|---|\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "wayleave_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	return b.String()
}

func TestHealth(t *testing.T) {
	m, h := New("", nil), &Health{}
	m.Health(h)
	h.Set("vault", "does not answer")
	h.Set("gate", "is being started")
	type state struct {
		Ready   *bool
		Reasons []Reason
	}
	for _, step := range []struct {
		do     func()
		status int
		text   string
		why    []Reason
	}{
		{func() {}, 503, "not ready: gate: is being started\nnot ready: vault: does not answer\n", []Reason{{"gate", "is being started"}, {"vault", "does not answer"}}},
		{func() { h.Set("gate", "") }, 503, "not ready: vault: does not answer\n", []Reason{{"vault", "does not answer"}}},
		{func() { h.Set("vault", "") }, 200, "ready\n", []Reason{}},
		{func() { h.Set("gate", "has been told to stop") }, 503, "not ready: gate: has been told to stop\n", []Reason{{"gate", "has been told to stop"}}},
	} {
		step.do()
		if status, text := get(t, m, h, "/readyz", "*/*"); status != step.status || text != step.text {
			t.Errorf("/readyz: %d %q, not %d %q", status, text, step.status, step.text)
		}
		if text, want := scrape(t, m), fmt.Sprintf("\nwayleave_ready %d\n", map[int]int{503: 0, 200: 1}[step.status]); !strings.Contains(text, want) {
			t.Errorf("a scrape has no %q", want)
		}
		status, text := get(t, m, h, "/readyz", "application/json")
		var s state
		if err := json.Unmarshal([]byte(text), &s); err != nil || status != step.status || s.Ready == nil || *s.Ready != (step.status == 200) || !slices.Equal(s.Reasons, step.why) {
			t.Errorf("/readyz as JSON: %d %s (%v)", status, text, err)
		}
		if status, text := get(t, m, h, "/livez", "*/*"); status != http.StatusOK || text != "alive\n" {
			t.Errorf("/livez: %d %q", status, text)
		}
	}
	for path, want := range map[string]int{"/": 404, "/debug/pprof/": 404, "/metrics/x": 404} {
		if status, _ := get(t, m, h, path, ""); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
	w := httptest.NewRecorder()
	Handler(m, h).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/readyz", io.NopCloser(strings.NewReader("x"))))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %d", w.Code)
	}
}

func BenchmarkDecided(b *testing.B) {
	m := New("", []string{"scope_missing"})
	b.ReportAllocs()
	for b.Loop() {
		m.Decided(Swapped, "claude", "", "", time.Millisecond)
	}
}

// A decision that was traced leads to its trace, for who asks in the way that has a place for that.
func TestExemplar(t *testing.T) {
	const trace = "0af7651916cd43dd8448eb211c80319c"
	m := New("1.2.3", nil)
	m.Decided(Swapped, "claude", "", trace, time.Millisecond)
	_, open := get(t, m, &Health{}, "/metrics", "application/openmetrics-text; version=1.0.0")
	if !strings.Contains(open, `# {trace_id="`+trace+`"} 0.001`) || !strings.HasSuffix(open, "# EOF\n") {
		t.Errorf("OpenMetrics:\n%s", open)
	}
	if strings.Contains(scrape(t, m), trace) {
		t.Error("an older scraper gets what it does not understand")
	}
}
