package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/freeport"
	"wayleave/grant"
	"wayleave/metrics"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
	"wayleave/xds"
)

func askedFor(t *testing.T, m *measured, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	metrics.Handler(m.Metrics, &m.health).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// series are the names and labels of our own figures.
func series(t *testing.T, m *measured) map[string]bool {
	t.Helper()
	_, body := askedFor(t, m, "/metrics")
	all := map[string]bool{}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "wayleave_") {
			name, _, _ := strings.Cut(line, "} ")
			all[name] = true
		}
	}
	return all
}

// oneRequest is a stream of Envoy's with one request.
type oneRequest struct {
	grpc.ServerStream
	ctx context.Context
	in  *extprocv3.ProcessingRequest
}

func (s *oneRequest) Context() context.Context { return s.ctx }

func (s *oneRequest) RecvMsg(m any) error {
	in := s.in
	if s.in = nil; in == nil {
		return io.EOF
	}
	raw, err := proto.Marshal(in)
	if err != nil {
		return err
	}
	return proto.Unmarshal(raw, m.(proto.Message))
}

func (s *oneRequest) Recv() (*extprocv3.ProcessingRequest, error) { return nil, io.EOF }

func (s *oneRequest) SendMsg(any) error { return nil }

func (s *oneRequest) Send(*extprocv3.ProcessingResponse) error { return nil }

// None of the names that a worker makes up makes a series: not hosts, paths, methods, tokens, or names of workers and sessions.
func TestNoSeriesByWorkers(t *testing.T) {
	sessions, err := worker.OpenSessions(t.Context(), vaulttest.NewMemory(), worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	session, token, err := sessions.Issue("w", "default", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := newMeasured()
	server := extproc.New(extproc.Config{
		Routes:   []extproc.Route{{Name: "r", Hosts: []string{"*.example.com"}, Credential: "g", Absent: extproc.Pass}},
		Tunnel:   []string{"*.example.org"},
		Profiles: map[string]extproc.Profile{"default": {Grants: []string{"g"}}},
		Workers:  map[string]string{"w": "default"},
	}, sessions, nil, extproc.Options{Decided: func(d extproc.Decided) error { m.decided(d); return nil }})
	connect := func(host, user string, password secret.Text) {
		proof := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password.Reveal()))
		r := &authv3.AttributeContext_HttpRequest{Method: http.MethodConnect, Host: host, Headers: map[string]string{"proxy-authorization": proof}}
		if _, err := server.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}}); err != nil {
			t.Fatal(err)
		}
	}
	request := func(i int) {
		var headers []*corev3.HeaderValue
		for name, value := range map[string]string{
			":method": fmt.Sprint("M", i), ":authority": fmt.Sprint("h", i, ".example.com"), ":path": fmt.Sprint("/made-up/", i, "?made-up=", i), "authorization": fmt.Sprint("Bearer made-up", i),
		} {
			headers = append(headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
		}
		in := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: headers}}}}
		if err := server.Process(&oneRequest{ctx: t.Context(), in: in}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	all := func(i int) {
		connect(fmt.Sprint("h", i, ".example.org:443"), session.ID, token)         // a tunnel
		connect(fmt.Sprint("h", i, ".nowhere.example:443"), session.ID, token)     // refused
		connect(fmt.Sprint("h", i, ".example.org:443"), fmt.Sprint("s", i), token) // no session
		request(i)
	}
	all(0)
	before := series(t, m)
	for i := range 10_000 {
		all(i + 1)
	}
	after := series(t, m)
	for name := range after {
		if !before[name] {
			t.Errorf("made by a worker: %s", name)
		}
	}
	_, body := askedFor(t, m, "/metrics")
	if !strings.Contains(body, `wayleave_requests_total{grant="",outcome="passed"} 10001`) || !strings.Contains(body, `wayleave_refusals_total{reason="host_not_allowed"} 10001`) {
		t.Error("the requests were not counted: the test is not looking")
	}
	for _, told := range []string{"made-up", "nowhere", "example", session.ID, token.Reveal()} {
		if strings.Contains(body, told) {
			t.Errorf("the figures hold %q", told)
		}
	}
}

func TestDecidedIsCounted(t *testing.T) {
	m := newMeasured()
	for _, d := range []extproc.Decided{
		{Swapped: true, Grant: "g", Took: time.Second}, {Answered: true, Grant: "g"}, {Grant: "g"}, {Reason: "scope_missing", Grant: "g"},
	} {
		m.decided(d)
	}
	_, body := askedFor(t, m, "/metrics")
	for _, want := range []string{
		`wayleave_requests_total{grant="g",outcome="swapped"} 1`, `wayleave_requests_total{grant="g",outcome="answered"} 1`,
		`wayleave_requests_total{grant="g",outcome="passed"} 1`, `wayleave_requests_total{grant="g",outcome="refused"} 1`,
		`wayleave_refusals_total{reason="scope_missing"} 1`, `wayleave_decision_duration_seconds_sum{outcome="swapped"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("%s is not there", want)
		}
	}
}

// Of what happens to a grant, refreshes are counted.
func TestRefreshesAreCounted(t *testing.T) {
	m := newMeasured()
	for _, what := range []grant.What{grant.Connected, grant.Refreshed, grant.Failed, grant.Ended, grant.GivenUp, grant.Revoked, grant.RevokeFails, grant.Declined} {
		m.grants().Happened("g", grant.Event{What: what})
	}
	_, body := askedFor(t, m, "/metrics")
	if n := strings.Count(body, "\nwayleave_refreshes_total{"); n != 5 {
		t.Errorf("%d outcomes:\n%s", n, body)
	}
}

func TestReadyByVault(t *testing.T) {
	m := newMeasured()
	m.health.Set(readyProcess, "")
	for _, step := range []struct {
		operation string
		err       error
		outcome   string
		status    int
	}{
		{"read", nil, "ok", 200},
		{"update", vault.ErrUnavailable, "unavailable", 200}, // reads say it
		{"read", fmt.Errorf("x: %w", vault.ErrUnavailable), "unavailable", 503},
		{"read", fmt.Errorf("%w: %w", vault.ErrUnavailable, context.Canceled), "canceled", 503}, // which says nothing
		{"read", vault.ErrNotFound, "not_found", 200},
		{"read", vault.ErrDenied, "denied", 503},
		{"update", vault.ErrConflict, "conflict", 503},
		{"read", errors.New("x"), "error", 503},
		{"read", nil, "ok", 200},
	} {
		m.vaultCalled(vault.Call{Operation: step.operation, Err: step.err})
		if status, body := askedFor(t, m, "/readyz"); status != step.status || vaultOutcome(step.err) != step.outcome {
			t.Errorf("after %s, %v: %d %q, outcome %s", step.operation, step.err, status, body, vaultOutcome(step.err))
		}
	}
}

func TestEnvoyFigures(t *testing.T) {
	state := func(sent, acked, failed string) xds.Node {
		return xds.Node{Types: []xds.TypeState{{Sent: "1", Acked: "1"}, {Sent: sent, Acked: acked, Error: failed}}}
	}
	got := envoyFigures([]xds.Node{state("1", "1", ""), state("2", "1", ""), state("2", "1", "no"), {}})
	if want := (metrics.Envoys{Current: 1, Behind: 2, Refusing: 1}); got != want {
		t.Errorf("%+v", got)
	}
}

// A gate whose address another program has waits for it, unless it is to fail.
func TestMetricsAddress(t *testing.T) {
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g := gate{cfg: &config.Config{Metrics: config.Metrics{Listen: address}}, log: slog.New(slog.DiscardHandler), metricsStrict: true}
	if _, err := g.openMetrics(t.Context(), newMeasured()); err == nil || !strings.Contains(err.Error(), "write another metrics.listen") {
		t.Errorf("a strict one: %v", err)
	}
	g.metricsStrict = false
	shown, err := g.openMetrics(t.Context(), newMeasured())
	if err != nil {
		t.Fatal(err)
	}
	taken.Close()
	for deadline, again := time.After(time.Minute), time.NewTicker(50*time.Millisecond); ; {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := new(http.Transport).RoundTrip(req); err == nil {
			resp.Body.Close()
			break
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("it has not taken the address")
		}
	}
	if err := shown.stop(); err != nil {
		t.Error(err)
	}
	if shown, err := (gate{cfg: &config.Config{}}).openMetrics(t.Context(), newMeasured()); err != nil || shown.stop() != nil {
		t.Errorf("without an address: %v", err)
	}
}

// The gates of one file have an address each.
func TestMetricsAddresses(t *testing.T) {
	cfg := &config.Config{Metrics: config.Metrics{Listen: "127.0.0.1:9180"}}
	if got := cfg.MetricsAddress(""); got != "127.0.0.1:9180" {
		t.Error(got)
	}
	cfg.Listen.Replicas = []string{"b", "a"}
	if b, a := cfg.MetricsAddress("b"), cfg.MetricsAddress("a"); b != "127.0.0.1:9180" || a != "127.0.0.1:9181" {
		t.Error(b, a)
	}
	if got := new(config.Config).MetricsAddress(""); got != "" {
		t.Error(got)
	}
}
