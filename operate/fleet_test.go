package operate

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/fleet"
	"wayleave/rollout"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

const (
	oldRevision = "1111111111111111111111111111111111111111111111111111111111111111"
	newRevision = "2222222222222222222222222222222222222222222222222222222222222222"
)

// halfway is a rollout of which one of three Envoys is to have the new revision.
func halfway() rollout.State {
	return rollout.State{
		Stable: oldRevision,
		Current: &rollout.Rollout{
			ID: "r1", From: oldRevision, To: newRevision, Began: noon, Since: noon, Settled: noon.Add(5 * time.Second), Phase: rollout.Running,
			Chosen: []string{"a"}, Plan: rollout.Plan{
				Steps: []rollout.Step{{Share: 10, Dwell: time.Minute}, {Share: 100, Dwell: time.Minute}}, MinRequests: 200, TakeTime: 30 * time.Second,
			},
		},
	}
}

func reports() []fleet.Report {
	return []fleet.Report{
		{Gate: "g1", At: noon, Rollout: "r1", Envoys: []fleet.Envoy{
			{ID: "a", Gate: "g1", Group: "canary", Version: "1.40.0", Revision: newRevision, Has: newRevision, Listening: true},
			{ID: "b", Gate: "g1", Version: "1.40.0", Revision: oldRevision, Has: oldRevision, Listening: true},
		}, Traffic: []fleet.Traffic{
			{Envoy: "a", Revision: newRevision, Counts: rollout.Counts{Requests: 10_000, Errors: 12}},
			{Envoy: "a", Revision: oldRevision, Counts: rollout.Counts{Requests: 7}},
			{Envoy: "b", Revision: oldRevision, Counts: rollout.Counts{Requests: 1000, Errors: 10, Refusals: 20}},
		}},
		{Gate: "g2", At: noon, Rollout: "r0", Envoys: []fleet.Envoy{
			{ID: "c", Gate: "g2", Version: "1.40.0", Revision: oldRevision, Has: oldRevision, Refused: "no such cluster"},
		}, Traffic: []fleet.Traffic{{Envoy: "c", Revision: oldRevision, Counts: rollout.Counts{Requests: 5000}}}},
	}
}

func TestProgress(t *testing.T) {
	got := RolloutsOf(fleet.View{State: halfway(), Reports: reports()}, noon.Add(25*time.Second)).Progress
	want := &Progress{
		Step: 1, Steps: 2, Where: "10 %", Wanted: 1, Taken: 1, Envoys: 3, Watching: true, LeftSeconds: 40, MinRequests: 200,
		With: rollout.Counts{Requests: 10_000, Errors: 12}, Without: rollout.Counts{Requests: 1000, Errors: 10, Refusals: 20},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if s := got.Sentence(rollout.Running); s != "step 1 of 2 (10 %): 1 of 1 Envoy, watched 40s more" {
		t.Errorf("%q", s)
	}
	if f := got.Figures(); !slices.Equal(f, []string{
		"errors 0.1 % (12 of 10,000) against 1.0 % (10 of 1,000) without", "refusals 0.0 % (0 of 10,000) against 2.0 % (20 of 1,000) without",
	}) {
		t.Errorf("%q", f)
	}

	s := halfway()
	s.Current.Step, s.Current.Away, s.Current.Settled = 1, map[string]time.Time{"z": noon}, time.Time{}
	s.Current.Before = rollout.Counts{Requests: 900, Errors: 9}
	got = RolloutsOf(fleet.View{State: s, Reports: reports()}, noon).Progress
	if got.Wanted != 3 || got.Taken != 1 || got.Watching || got.Without.Requests != 900 {
		t.Errorf("%+v", got)
	}
	if s := got.Sentence(rollout.Running); s != "step 2 of 2 (100 %): 1 of 3 Envoys, waits for z" {
		t.Errorf("%q", s)
	}
	if none := RolloutsOf(fleet.View{}, noon); none.Progress != nil || none.History == nil {
		t.Errorf("%+v", none)
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		k, n int
		want string
	}{
		{0, 0, "- (no requests)"}, {0, 12, "0.0 % (0 of 12)"}, {12, 10_000, "0.1 % (12 of 10,000)"}, {1, 1_000_000, "0.0001 % (1 of 1,000,000)"}, {5, 5, "100.0 % (5 of 5)"},
	} {
		if got := Share(c.k, c.n); got != c.want {
			t.Errorf("%d of %d: %q, want %q", c.k, c.n, got, c.want)
		}
	}
}

func TestEnvoyStates(t *testing.T) {
	s := rollout.State{Stable: oldRevision, Drained: []string{"d", "e"}}
	for _, c := range []struct {
		envoy fleet.Envoy
		want  EnvoyState
	}{
		{fleet.Envoy{ID: "a", Has: oldRevision, Listening: true}, EnvoyCurrent},
		{fleet.Envoy{ID: "a", Has: oldRevision}, EnvoyNotListens},
		{fleet.Envoy{ID: "a", Has: newRevision, Listening: true}, EnvoyTaking},
		{fleet.Envoy{ID: "a"}, EnvoyTaking},
		{fleet.Envoy{ID: "a", Has: oldRevision, Refused: "no"}, EnvoyRefusing},
		{fleet.Envoy{ID: "d", Has: oldRevision, Listening: true}, EnvoyDraining},
		{fleet.Envoy{ID: "e", Has: oldRevision, Drained: true}, EnvoyDrained},
	} {
		if got := stateOf(c.envoy, s); got != c.want || got.Words() == "" {
			t.Errorf("%+v: %s", c.envoy, got)
		}
	}
}

// underWay is a desk whose fleet is in the middle of a rollout.
func underWay(t *testing.T) Desk {
	t.Helper()
	docs := vaulttest.NewMemory()
	put := func(path string, doc any) {
		if _, err := docs.Put(t.Context(), path, vault.Packed{Value: doc}, 0); err != nil {
			t.Fatal(err)
		}
	}
	put("fleet/state", halfway())
	for _, r := range reports() {
		put("fleet/gates/"+r.Gate, r)
	}
	return Desk{Docs: docs, Now: func() time.Time { return noon.Add(time.Second) }}
}

func TestRolloutIsLed(t *testing.T) {
	d := underWay(t)
	if s, err := d.PauseRollout(t.Context(), "maria", "lunch"); err != nil || s.Current.Phase != rollout.Paused || s.Current.Reason != "by maria: lunch" {
		t.Fatalf("%+v %v", s.Current, err)
	}
	if _, err := d.PauseRollout(t.Context(), "maria", ""); kindOf(err) != NotNow {
		t.Errorf("paused twice: %v", err)
	}
	if s, err := d.ResumeRollout(t.Context(), "maria", ""); err != nil || s.Current.Phase != rollout.Running {
		t.Fatalf("%+v %v", s.Current, err)
	}
	if _, err := d.ResumeRollout(t.Context(), "maria", ""); kindOf(err) != NotNow {
		t.Errorf("resumed twice: %v", err)
	}
	if _, err := d.AbortRollout(t.Context(), "maria", "two\nlines"); kindOf(err) != Misused {
		t.Errorf("a note of two lines: %v", err)
	}
	s, err := d.AbortRollout(t.Context(), "maria", "")
	if err != nil || s.Current != nil || s.Stable != oldRevision || s.History[0].Reason != "by maria" {
		t.Fatalf("%+v %v", s, err)
	}
	if _, err := d.PromoteRollout(t.Context(), "maria", ""); kindOf(err) != NotNow || !strings.Contains(err.Error(), "no rollout is under way") {
		t.Errorf("nothing is under way: %v", err)
	}

	d = underWay(t)
	if s, err := d.PromoteRollout(t.Context(), "maria", ""); err != nil || s.Stable != newRevision || s.History[0].Phase != rollout.Succeeded {
		t.Errorf("%+v %v", s, err)
	}
}

func TestDrain(t *testing.T) {
	d := underWay(t)
	drain := func(id string, drained, force bool) ([]string, error) {
		s, err := d.Drain(t.Context(), DrainRequest{id, drained, force})
		return s.Drained, err
	}
	if got, err := drain("b", true, false); err != nil || !slices.Equal(got, []string{"b"}) {
		t.Fatalf("%v %v", got, err)
	}
	if got, err := drain("a", true, false); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("%v %v", got, err)
	}
	for _, c := range []struct {
		id      string
		drained bool
		kind    Kind
		says    string
	}{
		{"c", true, NotNow, "the last one"}, {"b", true, NotNow, "already"}, {"c", false, NotNow, "not drained"},
		{"x", true, NoSuch, "there are: a, b, c"}, {"x", false, NoSuch, "there are: a, b, c"},
	} {
		if _, err := drain(c.id, c.drained, false); kindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := drain("c", true, true); err != nil {
		t.Errorf("forced: %v", err)
	}
	if got, err := drain("a", false, false); err != nil || !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("%v %v", got, err)
	}
}

func TestRevisions(t *testing.T) {
	d := underWay(t)
	if err := fleet.StoreRevision(t.Context(), d.Docs, fleet.Revision{ID: oldRevision, Text: "grants: {}\n", Stored: noon}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{Stable, "111111", oldRevision} {
		if r, err := d.Revision(t.Context(), id); err != nil || r.Text != "grants: {}\n" {
			t.Errorf("%s: %+v %v", id, r, err)
		}
	}
	if _, err := d.Revision(t.Context(), "333333"); kindOf(err) != NoSuch {
		t.Errorf("%v", err)
	}
	if all, err := d.Revisions(t.Context()); err != nil || len(all) != 1 || all[0].Text != "" {
		t.Errorf("%+v %v", all, err)
	}
	d.Docs = vaulttest.NewMemory()
	if _, err := d.Revision(t.Context(), Stable); kindOf(err) != NoSuch {
		t.Errorf("%v", err)
	}
}

// kindOf is the kind of a refusal; -1: it is none.
func kindOf(err error) Kind {
	var r *Refusal
	if !errors.As(err, &r) {
		return -1
	}
	return r.Kind
}
