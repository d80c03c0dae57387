package extproc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"wayleave/approval"
	"wayleave/grant"
	"wayleave/limit"
	rules "wayleave/policy"
)

// limited is a server with limits, for each worker and for the credential claude.
func limited(t *testing.T, each, claude limit.Limit, more ...func(*Config)) *serverFixture {
	f := newServer(t)
	cfg := ruled(false, "")
	p := cfg.Profiles["default"]
	p.Limit = each
	cfg.Profiles["default"] = p
	cfg.Limits = map[string]limit.Limit{"claude": claude}
	for _, m := range more {
		m(&cfg)
	}
	f.server.only(cfg)
	return f
}

func dryRun(c *Config) {
	p := c.Profiles["default"]
	p.DryRun = true
	c.Profiles["default"] = p
}

func (f *serverFixture) swapped() request {
	return f.anthropic("POST", "/v1/messages", "authorization", "Bearer "+f.claude())
}

// refusalOf is the status, the reason, the words and Retry-After of an answer; all empty when it is none.
func refusalOf(t *testing.T, out *extprocv3.ProcessingResponse) (status int, reason, words, after string) {
	t.Helper()
	i := out.GetImmediateResponse()
	if i == nil {
		return 0, "", "", ""
	}
	h := headersOf(t, i.GetHeaders().GetSetHeaders())
	var body struct {
		Error struct{ Type, Message string }
	}
	_ = json.Unmarshal(i.GetBody(), &body)
	return int(i.GetStatus().GetCode()), h["x-wayleave-reason"], body.Error.Type + ": " + body.Error.Message, h["retry-after"]
}

func TestRateIsLimited(t *testing.T) {
	for _, c := range []struct {
		name         string
		each, claude limit.Limit
		words, after string
	}{
		{"of a worker", limit.Limit{PerMinute: 20, Burst: 2}, limit.Limit{},
			"rate_limit_error: wayleave: worker ci may send 20 requests a minute, and has; try again in 3 s, or ask an operator to raise profiles.default.limits.requests_per_minute (more: wayleave explain rate_limited)", "3"},
		{"of a credential", limit.Limit{PerMinute: 2000, Burst: 2000}, limit.Limit{PerMinute: 120, Burst: 2},
			"rate_limit_error: wayleave: all workers together, with the credential for claude, may send 120 requests a minute, and have; try again in 1 s, or ask an operator to raise grants.claude.limits.requests_per_minute (more: wayleave explain rate_limited)", "1"},
		{"of two gates", limit.Limit{PerMinute: 20, Burst: 4, Gates: 2}, limit.Limit{},
			"rate_limit_error: wayleave: worker ci may send 20 requests a minute, an equal part of them at each of 2 gates, and has; try again in 6 s, or ask an operator to raise profiles.default.limits.requests_per_minute (more: wayleave explain rate_limited)", "6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := limited(t, c.each, c.claude)
			client, _ := f.serve(t)
			for range 2 {
				if out := exchange(t, client, message(f.swapped())); verdictOf(out) != verdictSwap || out.GetModeOverride() != nil {
					t.Fatalf("%v", out)
				}
			}
			status, reason, words, after := refusalOf(t, exchange(t, client, message(f.swapped())))
			if status != 429 || reason != rateLimited || words != c.words || after != c.after {
				t.Errorf("%d %s %q %s", status, reason, words, after)
			}
			if !strings.Contains(f.log.String(), "reason=rate_limited worker=ci") {
				t.Errorf("log: %s", f.log)
			}
			// What gets no credential is the worker's, not the credential's.
			passing := f.anthropic("GET", "/v1/models")
			if _, reason, _, _ := refusalOf(t, exchange(t, client, message(passing))); (reason == rateLimited) != (c.claude == limit.Limit{}) {
				t.Errorf("a request without the credential: %q", reason)
			}
		})
	}
}

// What is refused anyway, and what the gate answers by itself, counts for nothing.
func TestRefusedIsNotCounted(t *testing.T) {
	f := limited(t, limit.Limit{PerMinute: 1, Burst: 1, Concurrent: 1}, limit.Limit{})
	client, _ := f.serve(t)
	for range 3 {
		if _, reason, _, _ := refusalOf(t, exchange(t, client, message(f.anthropic("GET", "/", "authorization", "Bearer "+f.claude()+"x")))); reason != notYourPlaceholder {
			t.Fatal(reason)
		}
	}
	if out := exchange(t, client, message(f.swapped())); verdictOf(out) != verdictSwap {
		t.Errorf("%v", out)
	}
}

// A request of which there is no token ends its count with its refusal.
func TestWithoutTokenNothingIsUnderWay(t *testing.T) {
	f := limited(t, limit.Limit{Concurrent: 1}, limit.Limit{Concurrent: 1})
	f.vault.errs = map[string]error{"claude": &grant.Unusable{Grant: "claude", State: grant.NeedsReconnect}}
	client, _ := f.serve(t)
	for range 3 {
		if _, reason, _, _ := refusalOf(t, exchange(t, client, message(f.swapped()))); reason != needsReconnect {
			t.Fatal(reason)
		}
	}
}

// told is a message with the modes that Envoy says it is in.
func told(in *extprocv3.ProcessingRequest, body procv3.ProcessingMode_BodySendMode) *extprocv3.ProcessingRequest {
	in.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: body}
	return in
}

func TestUnderWay(t *testing.T) {
	f := limited(t, limit.Limit{Concurrent: 2}, limit.Limit{})
	client, _ := f.serve(t)
	open := func() extprocv3.ExternalProcessor_ProcessClient {
		t.Helper()
		stream, err := client.Process(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(told(message(f.swapped()), procv3.ProcessingMode_NONE)); err != nil {
			t.Fatal(err)
		}
		out, err := stream.Recv()
		if err != nil || verdictOf(out) != verdictSwap || out.GetModeOverride().GetResponseTrailerMode() != procv3.ProcessingMode_SEND {
			t.Fatalf("%v, %v", out, err)
		}
		return stream
	}
	first, second := open(), open()
	third, err := client.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Send(told(message(f.swapped()), procv3.ProcessingMode_NONE)); err != nil {
		t.Fatal(err)
	}
	out, err := third.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if status, reason, words, after := refusalOf(t, out); status != 429 || reason != rateLimited || after != "1" ||
		words != "rate_limit_error: wayleave: worker ci may have 2 requests under way at once, and has; try again when one has ended, or ask an operator to raise profiles.default.limits.concurrent (more: wayleave explain rate_limited)" {
		t.Errorf("%d %s %q %s", status, reason, words, after)
	}

	// Envoy half-closes, or cancels; trailers are answered first.
	if err := first.Send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}}); err != nil {
		t.Fatal(err)
	}
	if out, err := first.Recv(); err != nil || out.GetResponseTrailers() == nil {
		t.Errorf("%v, %v", out, err)
	}
	if err := first.CloseSend(); err != nil {
		t.Fatal(err)
	}
	third = open()
	f.server.Leave()
	for i, s := range []extprocv3.ExternalProcessor_ProcessClient{second, third} {
		if _, err := s.Recv(); err == nil || !strings.Contains(err.Error(), "EOF") {
			t.Errorf("stream %d of a gate that leaves: %v", i, err)
		}
	}
}

func TestLimitsTriedOut(t *testing.T) {
	f := limited(t, limit.Limit{PerMinute: 1, Burst: 1}, limit.Limit{PerMinute: 3, Burst: 3}, dryRun)
	client, _ := f.serve(t)
	for i := range 3 {
		if out := exchange(t, client, message(f.swapped())); verdictOf(out) != verdictSwap {
			t.Errorf("request %d: %v", i, out)
		}
		if n := strings.Count(f.log.String(), `"dry run: request would be refused" reason=rate_limited`); n != i {
			t.Errorf("after request %d: %d lines", i, n)
		}
	}
	if _, reason, words, _ := refusalOf(t, exchange(t, client, message(f.swapped()))); reason != rateLimited || !strings.Contains(words, "grants.claude.limits") {
		t.Errorf("a credential's limit is no profile's to try out: %s %s", reason, words)
	}
}

// A tunnel and a request without TLS are one request each; a CONNECT to a routed host is none.
func TestArrivalsAreCounted(t *testing.T) {
	f := limited(t, limit.Limit{PerMinute: 2, Burst: 2, Concurrent: 1}, limit.Limit{})
	_, authz := f.serve(t)
	asks := func(method, authority string) (reason, after string) {
		t.Helper()
		in := checkRequest(method, authority, basicAuth(f.session.ID, f.token.Reveal()))
		in.GetAttributes().GetRequest().GetHttp().Scheme = "http"
		out, err := authz.Check(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range out.GetDeniedResponse().GetHeaders() {
			switch h.GetHeader().GetKey() {
			case "x-wayleave-reason":
				reason = h.GetHeader().GetValue()
			case "retry-after":
				after = h.GetHeader().GetValue()
			}
		}
		return reason, after
	}
	for range 5 {
		if reason, _ := asks("CONNECT", "api.anthropic.com:443"); reason != "" {
			t.Fatal(reason)
		}
	}
	for _, c := range [][2]string{{"CONNECT", "pypi.org:443"}, {"GET", "plain.example.org"}} {
		if reason, _ := asks(c[0], c[1]); reason != "" {
			t.Fatalf("%v: %s", c, reason)
		}
	}
	for _, c := range [][2]string{{"CONNECT", "pypi.org:443"}, {"GET", "plain.example.org"}} {
		if reason, after := asks(c[0], c[1]); reason != rateLimited || after != "30" {
			t.Errorf("%v: %q, %q", c, reason, after)
		}
	}
	f.server.now = func() time.Time { return now.Add(30 * time.Second) }
	if reason, _ := asks("CONNECT", "pypi.org:443"); reason != "" {
		t.Error(reason)
	}
}

// A request that waits for an operator takes no place meanwhile, and has one when it goes on, by the limits that there are then.
func TestHeldRequestTakesNoPlace(t *testing.T) {
	f := limited(t, limit.Limit{Concurrent: 1}, limit.Limit{})
	cfg := ruled(false, rules.Allow, holding("eyes", `method == "DELETE"`))
	p := cfg.Profiles["default"]
	p.Limit = limit.Limit{Concurrent: 1}
	cfg.Profiles["default"] = p
	f.server.only(cfg)
	deleting := f.anthropic("DELETE", "/v1/files/1", "authorization", "Bearer "+f.claude())
	other := new(phases)
	b := &board{result: approval.Result{ID: "abc", State: approval.Allowed}}
	f.server.approvals = b
	ask := func(r request, p *phases) *extprocv3.ProcessingResponse {
		t.Helper()
		p.send = func(*extprocv3.ProcessingResponse) error { return nil }
		out, err := f.server.processMessage(t.Context(), message(r), p)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	b.before = func() {
		if out := ask(f.swapped(), other); verdictOf(out) != verdictSwap {
			t.Errorf("while one waits: %v", out)
		}
		other.release()
	}
	held := new(phases)
	if out := ask(deleting, held); verdictOf(out) != verdictSwap || held.release == nil {
		t.Fatalf("allowed: %v", out)
	}
	b.before = nil
	if _, reason, _, _ := refusalOf(t, ask(f.swapped(), new(phases))); reason != rateLimited {
		t.Errorf("beside one that was allowed: %q", reason)
	}
	held.release()

	// The operator of the gate may take the limit away while one waits.
	b.before = func() { f.server.only(ruled(false, rules.Allow, holding("eyes", `method == "DELETE"`))) }
	if out := ask(deleting, held); verdictOf(out) != verdictSwap || held.release != nil {
		t.Errorf("without a limit any more: %v", out)
	}
}
