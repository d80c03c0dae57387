package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/xds"
)

// twoRevisions are a set during a rollout from old to new.
func twoRevisions(chosen ...string) *set {
	one := func(id, host string, specs ...grant.Spec) *revision {
		return &revision{
			Revision: fleet.Revision{ID: id}, specs: specs,
			cfg: &config.Config{Routes: []config.Route{{Hosts: []string{host, "both.example.com"}}}},
		}
	}
	stable := one("old", "old.example.com", grant.Spec{Name: "a", Scopes: []string{"x"}}, grant.Spec{Name: "gone", Scopes: []string{"x"}})
	fresh := one("new", "new.example.com", grant.Spec{Name: "a", Scopes: []string{"x", "y"}}, grant.Spec{Name: "b"})
	state := rollout.State{Stable: "old", Drained: []string{"tired"}, Current: &rollout.Rollout{
		From: "old", To: "new", Chosen: chosen, Plan: rollout.Plan{Steps: []rollout.Step{{Share: 10}, {Share: 100}}},
	}}
	return &set{state: state, stable: stable, all: map[string]*revision{"old": stable, "new": fresh}}
}

// Each Envoy is told what the state says, and one whose revision this gate cannot serve what is stable.
func TestAssign(t *testing.T) {
	s := twoRevisions("canary", "tired")
	for id, want := range map[string]xds.Assignment{
		"canary": {Revision: "new"}, "other": {Revision: "old"}, "tired": {Revision: "new", Drained: true},
	} {
		if got := s.assign(xds.Node{ID: id}); got != want {
			t.Errorf("%s is told %+v, want %+v", id, got, want)
		}
	}
	delete(s.all, "new")
	if got := s.assign(xds.Node{ID: "canary"}); got.Revision != "old" {
		t.Errorf("without the new revision the canary is told %q", got.Revision)
	}
	if got := s.of("of another year"); got != s.stable {
		t.Errorf("an unknown revision is taken for %q", got.ID)
	}
}

// Two names of one configuration, each with a root CA, are the same but for the certificates.
func TestAssignRoot(t *testing.T) {
	s := twoRevisions("canary")
	s.state.Stable, s.state.Current.From, s.state.Current.To = "old", "old", "old+0123456789abcdef"
	delete(s.all, "new")
	s.stable.resources = &xds.Resources{}
	for id, want := range map[string]xds.Assignment{
		"canary": {Revision: "old+0123456789abcdef", Root: "0123456789abcdef"}, "other": {Revision: "old"},
	} {
		if got := s.assign(xds.Node{ID: id}); got != want {
			t.Errorf("%s is told %+v, want %+v", id, got, want)
		}
	}
	if diff := cmp.Diff([]string{"", "0123456789abcdef"}, s.roots()); diff != "" {
		t.Error(diff)
	}
	if r := s.resources(); len(r) != 2 || r["old"] != r["old+0123456789abcdef"] || len(s.policies()) != 1 {
		t.Errorf("%d resources, %d policies", len(r), len(s.policies()))
	}
}

// What was counted is put down to what the Envoy has; handshakes, of which no revision is known, too.
func TestTraffic(t *testing.T) {
	s := rollout.State{Stable: "a+1", Current: &rollout.Rollout{From: "a+1", To: "a+2", Chosen: []string{"elsewhere"}, Plan: rollout.Plan{Steps: []rollout.Step{{Share: 10}, {Share: 100}}}}}
	nodes := []xds.Node{{ID: "canary", Has: "a+1"}, {ID: "canary", Revision: "a+2", Has: "a+2"}, {ID: "main", Has: "a+1"}, {ID: "between", Revision: "a+2"}}
	for _, c := range []struct{ node, counted, want string }{
		{"canary", "a", "a+2"}, {"canary", "", "a+2"}, {"canary", "gone", "gone"},
		{"main", "a", "a+1"}, {"main", "", "a+1"}, {"between", "", "a+2"}, {"elsewhere", "", "a+2"}, {"unknown", "a", "a+1"},
	} {
		got := traffic([]extproc.Count{{Node: c.node, Revision: c.counted, Requests: 3, Errors: 2, Refusals: 1}}, nodes, s)
		want := []fleet.Traffic{{Envoy: c.node, Revision: c.want, Counts: rollout.Counts{Requests: 3, Errors: 2, Refusals: 1}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v: %s", c, diff)
		}
	}
	if got := traffic([]extproc.Count{{Node: "new", Revision: "b"}}, []xds.Node{{ID: "new", Has: "a+1"}}, rollout.State{Stable: "a+1", Current: &rollout.Rollout{To: "b+1", Plan: rollout.Plan{Steps: []rollout.Step{{Share: 100}}}}}); got[0].Revision != "b+1" {
		t.Errorf("a configuration's requests are put down to %q", got[0].Revision)
	}
}

// What requests of any revision need is kept: a grant of both as the stable one has it, with the scopes that are asked for.
func TestSetKeepsWhatAnyRevisionNeeds(t *testing.T) {
	s := twoRevisions()
	want := []grant.Spec{{Name: "a", Scopes: []string{"x"}}, {Name: "gone", Scopes: []string{"x"}}, {Name: "b"}}
	if diff := cmp.Diff(want, s.specs(nil), cmpopts.IgnoreUnexported(grant.Spec{})); diff != "" {
		t.Error(diff)
	}
	want[0].Scopes = []string{"x", "y"}
	if diff := cmp.Diff(want, s.specs(map[string][]string{"a": {"x", "y"}})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"x"}, s.stable.specs[0].Scopes); diff != "" {
		t.Errorf("asking for more has changed the revision: %s", diff)
	}
	if diff := cmp.Diff([]string{"both.example.com", "new.example.com", "old.example.com"}, s.domains()); diff != "" {
		t.Error(diff)
	}
}

// Operators are asked for scopes only if nothing else speaks against the file.
func TestLacking(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte(scopesConfig))
	if err != nil {
		t.Fatal(err)
	}
	reconnect := operate.Objection{Name: operate.NeedsReconnect}
	got := lacking(cfg, &operate.Objections{All: []operate.Objection{reconnect}})
	if diff := cmp.Diff(map[string][]string{"claude": {"user:inference", "user:sessions:claude_code"}}, got); diff != "" {
		t.Error(diff)
	}
	if got := lacking(cfg, &operate.Objections{All: []operate.Objection{reconnect, {Name: operate.DropsWorker}}}); got != nil {
		t.Errorf("asked for %v although a worker would be lost", got)
	}
}

const scopesConfig = `
grants:
  claude: {provider: anthropic, scopes: [user:inference, user:sessions:claude_code]}
routes:
  - {hosts: [api.anthropic.com], grant: claude}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
`
