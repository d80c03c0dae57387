package xds

import (
	"net/http"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Every refusal leads to the page about its reason, whoever refuses, and nothing else does.
func TestRefusalsLeadToTheirPages(t *testing.T) {
	s := start(t, func(c *Config) {
		c.HelpURL = "https://docs.example.com/100%/{reason}/"
		c.Routes = append(c.Routes,
			Route{Name: "port", Hosts: []string{"any.provider.test:8443"}, ConnectTo: c.Routes[0].ConnectTo},
			Route{Name: "closed", Hosts: []string{"closed.provider.test"}, ConnectTo: freeAddress(t)})
	}, nil)
	ann := s.worker("ann")
	refused := &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
		Status:  &typev3.HttpStatus{Code: 403},
		Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{rawHeader("x-wayleave-reason", "scope_missing")}},
		Body:    []byte(`{"own":"words"}`),
	}}}
	tests := []struct {
		name   string
		decide func(request) *extprocv3.ProcessingResponse
		ask    func() testAnswer
		reason string
	}{
		{"the gate", func(request) *extprocv3.ProcessingResponse { return refused },
			func() testAnswer { return get(t, ann, "https://"+apiHost+"/") }, "scope_missing"},
		{"the barrier", func(request) *extprocv3.ProcessingResponse { return forward() },
			func() testAnswer { return get(t, ann, "https://"+apiHost+"/") }, "barrier"},
		{"no connection", func(r request) *extprocv3.ProcessingResponse { return swap(r.identity) },
			func() testAnswer { return get(t, ann, "https://closed.provider.test/") }, "upstream_unreachable"},
		{"another port", func(r request) *extprocv3.ProcessingResponse { return swap(r.identity) },
			func() testAnswer { return get(t, ann, "https://any.provider.test/") }, "misdirected"},
		{"the proxy", nil, func() testAnswer {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://plain.test/", nil)
			if err != nil {
				t.Fatal(err)
			}
			return do(t, ann, req)
		}, "use_connect"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.decide != nil {
				s.gate.decide = tt.decide
			}
			a := tt.ask()
			want := "<https://docs.example.com/100%/" + tt.reason + `/>; rel="help"`
			if got := a.header.Values("link"); len(got) != 1 || got[0] != want || a.header.Get("x-wayleave-reason") != tt.reason {
				t.Errorf("status %d, reason %q, link %q, want %q", a.status, a.header.Get("x-wayleave-reason"), got, want)
			}
		})
	}
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse { return swap(r.identity) }
	if a := get(t, ann, "https://"+apiHost+"/"); a.status != 200 || a.header.Get("link") != "" {
		t.Errorf("an answer of the provider: %d %v", a.status, a.header)
	}
}
