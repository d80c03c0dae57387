package extproc

import (
	"testing"
	"time"

	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// Two teams with an account each at one host: the profile of the session says whose credential is meant, and neither can
// use the other's placeholder.
func TestRoutesThatShareAHost(t *testing.T) {
	k, err := worker.OpenSessions(t.Context(), vaulttest.NewMemory(), worker.LedgerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPolicy(Config{
		Routes: []Route{
			{Name: "blue", Hosts: []string{"api.example.com"}, Credential: "blue"},
			{Name: "red", Hosts: []string{"api.example.com"}, Credential: "red", Absent: Refuse},
		},
		Profiles: map[string]Profile{"blue": {Grants: []string{"blue"}}, "red": {Grants: []string{"red"}}, "none": {}},
	})
	for _, c := range []struct {
		profile, placeholder string // of whose credential
		route, swaps, reason string
	}{
		{"blue", "blue", "blue", "blue", ""},
		{"red", "red", "red", "red", ""},
		{"blue", "red", "blue", "", notYourPlaceholder},
		{"red", "blue", "red", "", notYourPlaceholder},
		{"red", "", "red", "", policyDenied},
		{"blue", "", "blue", "", ""},
		{"none", "blue", "blue", "", policyDenied},
	} {
		session, token, err := k.Issue("w", c.profile, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		r := request{
			method: "GET", authority: "api.example.com", path: "/", serverName: "api.example.com", connectAuthority: "api.example.com:443",
			identity: session.Identity(),
		}
		if c.placeholder != "" {
			r.headers = []header{{"authorization", "Bearer " + k.Placeholder(session, c.placeholder, "")}}
		}
		d := decide(p, k, &r, now)
		var swaps, reason string
		if d.swap != nil {
			swaps = d.swap.grant
		}
		if d.refusal != nil {
			reason = d.refusal.reason
		}
		if d.route.Name != c.route || swaps != c.swaps || reason != c.reason {
			t.Errorf("profile %s with the placeholder for %q: route %s, swaps %q, reason %q; want %s, %q, %q", c.profile, c.placeholder, d.route.Name, swaps, reason, c.route, c.swaps, c.reason)
		}
		// At CONNECT, whoever has one of the credentials may come.
		u := arrive(p, k, &request{method: "CONNECT", authority: "api.example.com:443", headers: []header{{"proxy-authorization", basicAuth(session.ID, token.Reveal())}}}, now)
		if refused := u.refusal != nil; refused != (c.profile == "none") {
			t.Errorf("profile %s at CONNECT: refused %v", c.profile, refused)
		}
	}
}
