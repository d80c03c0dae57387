package main

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/secret"
	"wayleave/xds"
)

const lanedConfig = `
providers:
  acme: {authorize_url: "https://acme.example/authorize", token_url: "https://acme.example/token", client_id: x, scopes: [a]}
grants:
  claude: {provider: anthropic}
  acme: {provider: acme}
routes:
  - {hosts: [api.anthropic.com], grant: claude}
  - {name: several, hosts: [a.example, b.example], grant: acme}
  - {name: keyed, hosts: [keyed.example], grant: acme, header: {in: x-api-key, out: x-api-key}}
  - {name: slow, hosts: [slow.example], grant: acme, lane: ext_proc}
  - {name: turned, hosts: [turned.example], grant: acme, header: {in: x-api-key, out: authorization}}
  - {name: masked, hosts: [masked.example], grant: acme, response: {mask_body: true}}
  - {name: queried, hosts: [queried.example], grant: acme, header: {in_query: key}}
  - {name: basic, hosts: [basic.example], grant: acme, header: {out_scheme: Basic}}
  - {name: one, hosts: [two.example], grant: acme}
  - {name: two, hosts: [two.example], grant: claude}
profiles:
  default: {grants: [claude]}
  other: {grants: [acme]}
workers:
  w: {profile: default, token_sha256: 81cbc1eb23c22dc0b4952967d43bfa14d86d5aff475df9b94efd393f40277529}
`

// Only where all is decided by the header that it sets does Envoy get a credential to set.
func TestLanesOf(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte(lanedConfig))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]xds.Lane{
		"api.anthropic.com": {Credential: "claude Bearer", Header: "authorization"},
		"several":           {Credential: "acme Bearer", Header: "authorization"},
		"keyed":             {Credential: "acme ", Header: "x-api-key"},
	}
	if diff := cmp.Diff(want, lanesOf(cfg)); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, r := range laned(cfg) {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), names); diff != "" {
		t.Error(diff)
	}
	for name, leases := range map[string]time.Duration{config.AuditRefuse: 0, "": leaseLasts} {
		cfg.Audit.OnFailure = name
		if got := (gate{cfg: cfg}).leases(); got != leases {
			t.Errorf("with %q Envoy goes on by itself for %v, want %v", name, got, leases)
		}
	}
}

// laneClock is lanes of one grant, at a time that a test says.
type laneClock struct {
	*lanes
	time  time.Time
	token grant.Token
	ready bool
	sent  map[string]xds.Credential
}

func newLaneClock(settle time.Duration) *laneClock {
	c := &laneClock{time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	c.lanes = &lanes{
		current: func(string) (grant.Token, bool) { return c.token, c.ready },
		set:     func(all map[string]xds.Credential) { c.sent = all },
		settle:  settle, now: func() time.Time { return c.time }, held: map[string]heldToken{},
	}
	return c
}

// after is what Envoys are told of the header when so much time has gone by.
func (c *laneClock) after(d time.Duration) (version, value string) {
	c.time = c.time.Add(d)
	var bearer, key config.Route
	bearer.Grant, bearer.Header.OutScheme, key.Grant = "claude", "Bearer", "claude"
	c.tell([]config.Route{bearer, key})
	b, k := c.sent["claude Bearer"], c.sent["claude "]
	if b.Version != k.Version || b.Version != "" && b.Value.Reveal() != "Bearer "+k.Value.Reveal() {
		return "two headers of one grant differ", ""
	}
	return b.Version, b.Value.Reveal()
}

func (c *laneClock) has(version, value string) {
	c.token, c.ready = grant.Token{Version: version, Access: secret.New(value)}, true
}

// A token is leased once all Envoys have had it for a while, one that is not there any more is not, and is taken from Envoys when no lease can be
// left.
func TestTokensOfLanes(t *testing.T) {
	c := newLaneClock(settlesAlone)
	wants := func(after time.Duration, version, value string) {
		t.Helper()
		if v, text := c.after(after); v != version || text != value {
			t.Errorf("Envoys were told %q %q, want %q %q", v, text, version, value)
		}
	}
	settles := func(version string, want bool) {
		t.Helper()
		if got := c.settled("claude", version); got != want {
			t.Errorf("version %s is settled: %t, want %t", version, got, want)
		}
	}
	wants(0, "", "")
	settles("1", false)

	c.has("1", "first")
	wants(laneEvery, "1", "Bearer first")
	settles("1", false)
	settles("2", false)
	wants(settlesAlone-1, "1", "Bearer first")
	settles("1", false)
	wants(1, "1", "Bearer first")
	settles("1", true)

	c.has("2", "second")
	settles("2", false) // Envoys do not have it
	wants(laneEvery, "2", "Bearer second")
	settles("1", false)
	settles("2", false)
	wants(settlesAlone, "2", "Bearer second")
	settles("2", true)

	c.ready = false
	wants(laneEvery, "", "")
	settles("2", false)
	wants(2*leaseLasts, "", "")
	wants(1, noToken, "Bearer "+noToken)
	settles("2", false)

	c.ready = true // connected again
	wants(laneEvery, "2", "Bearer second")
	settles("2", false)
	wants(settlesAlone, "2", "Bearer second")
	settles("2", true)

	c.has("3", "no\ntoken") // cannot stand in a header
	wants(laneEvery, "", "")
	settles("2", false)
	settles("3", false)
	wants(2*leaseLasts, "", "")
	wants(1, noToken, "Bearer "+noToken)
}

// Where several gates serve, what was not used for a while is asked about again for some time: another gate may have told its Envoys of an
// older token.
func TestTokensOfLanesAmongGates(t *testing.T) {
	c := newLaneClock(settlesAmong)
	c.has("1", "first")
	c.after(0)
	for used := time.Duration(0); used < settlesAmong; used += time.Second {
		if c.settled("claude", "1") {
			t.Fatalf("settled after %v", used)
		}
		c.after(time.Second)
	}
	if !c.settled("claude", "1") {
		t.Error("never settled")
	}
	c.after(inUse)
	if !c.settled("claude", "1") {
		t.Error("not settled any more after a short pause")
	}
	c.after(inUse + 1)
	if c.settled("claude", "1") {
		t.Error("settled after a long pause")
	}
}
