package extproc

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"wayleave/approval"
	rules "wayleave/policy"
	"wayleave/worker"
)

// board answers at once.
type board struct {
	result approval.Result
	held   []approval.Request
	before func() // what happens while the request waits
}

func (b *board) Hold(_ context.Context, r approval.Request, patience time.Duration) approval.Result {
	b.held = append(b.held, r)
	if b.before != nil {
		b.before()
	}
	return b.result
}

func holding(name, when string) rules.Rule {
	return rules.Rule{Name: name, When: when, Action: rules.Hold, Words: "deletes want a second pair of eyes", For: time.Minute}
}

func TestHeldRequest(t *testing.T) {
	f := newFixture(t)
	allowed := approval.Result{ID: "abc", State: approval.Allowed}
	for name, c := range map[string]struct {
		result approval.Result
		before func(*Server)
		status int
		reason string
		words  string
	}{
		"allowed":              {allowed, nil, 0, "", ""},
		"denied":               {approval.Result{ID: "abc", State: approval.Denied}, nil, 403, approvalDenied, "approval abc: deletes want"},
		"denied with a note":   {approval.Result{ID: "abc", State: approval.Denied, Decision: approval.Decision{Note: "not to\nday"}}, nil, 403, approvalDenied, "approval abc: not to?day"},
		"nobody decided":       {approval.Result{ID: "abc", State: approval.TimedOut}, nil, 403, approvalTimedOut, "was approval abc (deletes want"},
		"nobody can be asked":  {approval.Result{ID: "abc", Err: errors.New("the gate's vault fails")}, nil, 503, approvalUnavailable, "nobody can be asked: the gate's vault fails; try again"},
		"the gate stops":       {approval.Result{ID: "abc", State: approval.Stopped, Err: errors.New("this gate is being stopped")}, nil, 503, approvalUnavailable, "being stopped"},
		"a state nobody knows": {approval.Result{ID: "abc", State: "new"}, nil, 503, approvalUnavailable, "cannot say"},
		"the session ends meanwhile": {allowed, func(s *Server) {
			s.sessions = over{s.sessions}
		}, 403, sessionRevoked, "ended the session"},
		"the rules change meanwhile": {allowed, func(s *Server) {
			s.only(ruled(false, rules.Deny))
		}, 400, policyDenied, "no rule of profile"},
		"another rule holds it then": {allowed, func(s *Server) {
			s.only(ruled(false, rules.Allow, holding("other", "")))
		}, 503, approvalUnavailable, "rule other holds it now"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &board{result: c.result}
			v := &vault{}
			s := New(ruled(false, rules.Allow, holding("eyes", `method == "DELETE"`)), f.sessions, v, Options{Now: func() time.Time { return now }, Approvals: b})
			if c.before != nil {
				b.before = func() { c.before(s) }
			}
			var sent []*extprocv3.ProcessingResponse
			p := &phases{send: func(m *extprocv3.ProcessingResponse) error { sent = append(sent, m); return nil }}
			in := message(f.anthropic("DELETE", "/v1/files/1?secret=yes", "authorization", "Bearer "+f.claude(), "x-request-id", "request-1"))
			out, err := s.processMessage(t.Context(), in, p)
			if err != nil {
				t.Fatal(err)
			}
			if len(sent) != 1 || sent[0].GetOverrideMessageTimeout().AsDuration() != time.Minute+Headroom {
				t.Errorf("Envoy was told %v", sent)
			}
			want := approval.Request{
				Worker: "ci", Profile: "default", Session: f.session.ID, Source: "10.0.0.9", Rule: "eyes", Words: "deletes want a second pair of eyes",
				Method: "DELETE", Host: "api.anthropic.com:443", Path: "/v1/files/1", Credential: "claude", RequestID: "request-1",
			}
			if len(b.held) != 1 || b.held[0] != want {
				t.Errorf("operators see %+v\nwant %+v", b.held, want)
			}
			got := out.GetImmediateResponse()
			if int(got.GetStatus().GetCode()) != c.status || !strings.Contains(string(got.GetBody()), c.words) || c.reason != "" && got.GetDetails() != "wayleave_"+c.reason {
				t.Errorf("%v", out)
			}
			if tokens := len(v.asked); (tokens == 1) != (c.status == 0) {
				t.Errorf("%d tokens were taken", tokens)
			}
		})
	}
}

// over are sessions of which all were revoked.
type over struct{ Sessions }

func (over) Check(worker.Session, time.Time) error { return worker.ErrRevoked }

// What cannot wait is refused, and what is tried out goes on.
func TestNotHeld(t *testing.T) {
	f := newFixture(t)
	ask := func(s *Server) *extprocv3.ProcessingResponse {
		out, err := s.processMessage(t.Context(), message(f.anthropic("DELETE", "/v1/files/1", "authorization", "Bearer "+f.claude())), new(phases))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	b := &board{result: approval.Result{State: approval.Allowed}}
	opts := Options{Now: func() time.Time { return now }, Approvals: b}
	if out := ask(New(ruled(false, rules.Allow, holding("eyes", "")), f.sessions, &vault{}, Options{Now: opts.Now})); out.GetImmediateResponse().GetDetails() != "wayleave_"+approvalNeeded {
		t.Errorf("without anywhere to wait: %v", out)
	}
	if out := ask(New(ruled(true, rules.Allow, holding("eyes", "")), f.sessions, &vault{}, opts)); out.GetRequestHeaders() == nil {
		t.Errorf("in a dry run: %v", out)
	}
	cfg := ruled(false, rules.Allow, holding("eyes", ""))
	s := New(cfg, f.sessions, &vault{}, opts)
	for _, r := range []*authv3.AttributeContext_HttpRequest{
		{Method: http.MethodConnect, Host: "pypi.org:443"},
		{Method: http.MethodGet, Host: "plain.example.org", Scheme: "http", Path: "/"},
	} {
		r.Headers = map[string]string{"proxy-authorization": basicAuth(f.session.ID, f.token.Reveal())}
		out, err := s.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}})
		if err != nil || !strings.Contains(out.GetDeniedResponse().GetBody(), "cannot wait for one on this way") {
			t.Errorf("%s: %v, %v", r.GetMethod(), out, err)
		}
	}
	if len(b.held) != 0 {
		t.Errorf("held: %v", b.held)
	}
}

// The time that a gate took is not that of an operator who was asked.
func TestTookWithoutTheOperator(t *testing.T) {
	f := newFixture(t)
	clock := now
	b := &board{result: approval.Result{ID: "abc", State: approval.Allowed}, before: func() { clock = clock.Add(time.Minute) }}
	var told []Decided
	s := New(ruled(false, rules.Allow, holding("eyes", `method == "DELETE"`)), f.sessions, &vault{}, Options{
		Now: func() time.Time { clock = clock.Add(time.Millisecond); return clock }, Approvals: b, Decided: func(d Decided) error { told = append(told, d); return nil },
	})
	for _, method := range []string{"GET", "DELETE"} {
		if _, err := s.processMessage(t.Context(), message(f.anthropic(method, "/v1/files/1", "authorization", "Bearer "+f.claude())), &phases{send: func(*extprocv3.ProcessingResponse) error { return nil }}); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 2 || len(b.held) != 1 {
		t.Fatalf("told of %d, held %d", len(told), len(b.held))
	}
	for _, d := range told {
		if d.Took <= 0 || d.Took > time.Second || d.Reason != "" {
			t.Errorf("%s took %v, %q", d.Method, d.Took, d.Reason)
		}
	}
}
