package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"wayleave/freeport"
)

const metricsConfig = `
listen: {proxy: $PROXY}
metrics: {listen: "$METRICS"}
console: {listen: none}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
  spare: {provider: anthropic}
routes:
  - {hosts: [api.demo.test, "*.wild.demo.test"], grant: claude, connect_to: "$API", lane: ext_proc} # what is counted is counted at once
profiles:
  default: {grants: [claude]}
  other: {grants: [spare]}
workers:
  w: {profile: default}
  idle: {profile: other}
`

// What Prometheus reads of a gate that works: every figure counts, in the form that Prometheus wants, no worker makes a series, and
// nothing of a credential is in it.
func TestMetrics(t *testing.T) {
	t.Parallel()
	world := makeWorld(t)
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	world.env = append(world.env, "METRICS="+address)
	g := startIn(t, world, metricsConfig, "claude")
	ask := func(path string, accept ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Accept"] = accept
		a, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req)
		if err != nil {
			t.Fatal(err)
		}
		return a.status, a.body
	}
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	c := w.client(t, true)
	asks := func(url string, allowed bool) {
		t.Helper()
		if a, err := do(c, w.request(http.MethodGet, url, nil)); (err == nil) != allowed || allowed && a.status != http.StatusOK {
			t.Fatalf("%s: %v %v", url, a, err)
		}
	}
	some := func(i int) {
		asks(fmt.Sprintf("https://api.demo.test/echo?n=%d", i), true)
		asks(fmt.Sprintf("https://h%d.wild.demo.test/echo", i), true)
		asks(fmt.Sprintf("https://h%d.nowhere.test/", i), false)
	}
	some(0)
	series := func() map[string]bool {
		_, body := ask("/metrics")
		all := map[string]bool{}
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "wayleave_requests") || strings.HasPrefix(line, "wayleave_refusals") || strings.HasPrefix(line, "wayleave_decision") || strings.HasPrefix(line, "wayleave_leaf") {
				all[line[:strings.LastIndexByte(line, ' ')]] = true
			}
		}
		return all
	}
	before := series()
	for i := range 50 {
		some(i + 1)
	}
	for name := range series() {
		if !before[name] {
			t.Errorf("made by a worker: %s", name)
		}
	}

	status, body := ask("/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	for _, want := range []string{
		`wayleave_requests_total{grant="claude",outcome="swapped"} 102`,
		`wayleave_refusals_total{reason="host_not_allowed"} 51`,
		`wayleave_decision_duration_seconds_count{outcome="swapped"} 102`,
		`wayleave_tokens_total{source="memory"}`,
		`wayleave_vault_calls_total{operation="read",outcome="ok"}`,
		`wayleave_vault_call_duration_seconds_count{operation="update"}`,
		`wayleave_leaf_mints_total{outcome="minted"}`,
		`wayleave_xds_pushes_total{type="Listener"}`,
		`wayleave_xds_answers_total{outcome="ack",type="Cluster"}`,
		`wayleave_grant_state{grant="claude",state="healthy"} 1`,
		`wayleave_grant_state{grant="spare",state="never_connected"} 1`,
		`wayleave_grant_expires_in_seconds{grant="claude"}`,
		`wayleave_sessions 1`, `wayleave_envoys{state="refusing"} 0`, `wayleave_rollout_step 0`,
		`go_goroutines`, `process_start_time_seconds`,
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("%s is not there", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for what, found := range map[string]bool{
		"a token": issued.MatchString(body), "a placeholder": strings.Contains(body, placeholderMarker), "a host": strings.Contains(body, "demo.test"), "a path": strings.Contains(body, "/echo"),
	} {
		if found {
			t.Errorf("the figures hold %s", what)
		}
	}
	if t.Failed() {
		t.Log(body)
	}

	if status, body := ask("/livez"); status != http.StatusOK || body != "alive\n" {
		t.Errorf("/livez: %d %q", status, body)
	}
	if status, body := ask("/readyz"); status != http.StatusOK || body != "ready\n" {
		t.Errorf("/readyz: %d %q", status, body)
	}
	var ready struct {
		Ready   bool
		Reasons []struct{ Part, Why string }
	}
	if status, body := ask("/readyz", "application/json"); status != http.StatusOK || json.Unmarshal([]byte(body), &ready) != nil || !ready.Ready || len(ready.Reasons) != 0 {
		t.Errorf("/readyz as JSON: %d %s", status, body)
	}
}

// Each gate of a file says at its own port whether it is ready: not while it cannot read Vault, and not once it is told to stop.
func TestReadiness(t *testing.T) {
	t.Parallel()
	a, err := freeport.Address() // the next port is nobody's either
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port(a))
	if err != nil {
		t.Fatal(err)
	}
	b := fmt.Sprint("127.0.0.1:", n+1)
	s := newHouseOf(t, fleetConfig+"metrics: {listen: \""+a+"\"}\n", "a", "b")
	is := func(address string, status int, words string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		got, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req)
		if err == nil && (got.status != status || !strings.Contains(got.body, words)) {
			err = fmt.Errorf("%s says %d %s; want %d %s", address, got.status, got.body, status, words)
		}
		return err
	}
	both := func(status int, words string) {
		t.Helper()
		for _, address := range []string{a, b} {
			if err := eventually(func() error { return is(address, status, words) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	both(http.StatusOK, "ready\n")
	bao := s.bao.cmd.Process
	if err := bao.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bao.Signal(syscall.SIGCONT) })
	both(http.StatusServiceUnavailable, "not ready: vault: does not answer")
	if err := bao.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	both(http.StatusOK, "ready\n")

	if err := s.gates["a"].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := eventually(func() error { return is(a, http.StatusServiceUnavailable, "not ready: gate: has been told to stop") }); err != nil {
		t.Error(err)
	}
	if err := is(b, http.StatusOK, "ready\n"); err != nil {
		t.Error(err)
	}
}
