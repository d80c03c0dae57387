package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wayleave/config"
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
