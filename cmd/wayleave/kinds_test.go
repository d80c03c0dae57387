package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/operate"
)

// What the configuration says of a provider decides how its grants are kept.
func TestKindsOfGrants(t *testing.T) {
	cfg, err := config.Load("../../config/testdata/good-kinds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]grant.Kind{
		"gh": grant.Consent, "machine": grant.Machine, "robot": grant.Machine, "claude-key": grant.Static, "pat": grant.Static,
		"weather": grant.Static, "billing": grant.Static,
	}
	got := map[string]grant.Kind{}
	for _, s := range operate.Specs(cfg) {
		got[s.Name] = s.Kind
		if (s.OAuth == nil) != (s.Kind == grant.Static) {
			t.Errorf("%s has the wrong issuer: %v", s.Name, s.OAuth)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	rules := map[string]grant.Exchange{"machine": {Audience: "reports", Scopes: []string{"read"}, Actor: true}}
	if diff := cmp.Diff(rules, exchanges(cfg, operate.Specs(cfg)), cmpopts.IgnoreFields(grant.Exchange{}, "OAuth")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	header := map[string]string{}
	for _, r := range swapConfig(cfg, nil).Routes {
		header[r.Name] = r.HeaderIn + " " + r.SchemeIn + " > " + r.HeaderOut + " " + r.SchemeOut
	}
	for route, want := range map[string]string{
		"api.anthropic.com": "x-api-key  > x-api-key ", "github.com": "authorization Basic > authorization Basic",
		"weather.example": "x-weather-key  > x-weather-key ", "weather2.example": "x-weather-key  > authorization Bearer",
		"billing.example": "authorization Basic > authorization Basic",
	} {
		if header[route] != want {
			t.Errorf("route %s: %q, want %q", route, header[route], want)
		}
	}
}
