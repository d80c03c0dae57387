package console

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"wayleave/api"
	"wayleave/fleet"
	"wayleave/rollout"
)

// halfway is a fleet of four in the middle of a rollout, one of which refuses what it is told.
func (w *world) halfway(to string) {
	w.t.Helper()
	now := time.Now()
	stable := w.cfg.Hash()
	plan := rollout.Plan{Steps: []rollout.Step{{Group: "canary", Dwell: time.Minute}, {Share: 50, Dwell: time.Minute}, {Share: 100, Dwell: time.Minute}}, MinRequests: 200, TakeTime: 30 * time.Second}
	if _, err := fleet.Change(w.t.Context(), w.docs, func(s rollout.State) (rollout.State, error) {
		s.Stable = stable
		s.Current = &rollout.Rollout{
			ID: "r2", From: stable, To: to, Plan: plan, Began: now.Add(-3 * time.Minute), Since: now.Add(-time.Minute), Settled: now.Add(-20 * time.Second),
			Phase: rollout.Running, Step: 1, Chosen: []string{"envoy-1", "envoy-2"}, Author: "maria", Note: "<b>ticket 7</b>",
		}
		s.History = []rollout.Rollout{{ID: "r1", From: stable, To: strings.Repeat("c", 64), Plan: plan, Phase: rollout.RolledBack, Reason: "the Envoy envoy-1 refuses it: <i>no</i>", Author: "ann", Ended: now.Add(-time.Hour)}}
		s.Drained = []string{"envoy-4"}
		return s, nil
	}); err != nil {
		w.t.Fatal(err)
	}
	r := fleet.Report{Gate: "gate-1", Rollout: "r2", At: now, Unable: map[string]string{strings.Repeat("d", 64): "it has no <route>"}}
	for i := range 4 {
		has, told := stable, stable
		if i < 2 {
			has, told = to, to
		}
		e := fleet.Envoy{ID: fmt.Sprintf("envoy-%d", i+1), Version: "1.40.0", Gate: "gate-1", Since: now.Add(-time.Hour), Revision: told, Has: has, Listening: i != 3, Drained: i == 3}
		if i == 0 {
			e.Group = "canary"
		}
		if i == 2 {
			e.Refused = "Cluster: <script>unknown</script>"
		}
		r.Envoys = append(r.Envoys, e)
		r.Traffic = append(r.Traffic, fleet.Traffic{Envoy: e.ID, Revision: has, Counts: rollout.Counts{Requests: 5000, Errors: 6 * i, Refusals: i}})
	}
	w.reports = []fleet.Report{r}
}

func TestRolloutsPage(t *testing.T) {
	w := newWorld(t, nil)
	admin := w.as(Admin)
	for _, body := range []string{w.startRequest("", ""), w.startRequest("pypi.org", "pypi.example")} { // so that there are two revisions
		if status := admin.call("POST", "/rollout", body, nil); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	var now api.Rollouts
	admin.call("POST", "/rollout/abort", "", &now)
	to := now.History[0].To
	w.halfway(to)
	b := w.loggedIn()

	b.wants("rollouts", b.get("/rollouts"), http.StatusOK,
		short(to), "under way", "by maria", "&lt;b&gt;ticket 7", "Step 2 of 3 (50 %): 2 of 2 Envoys, watched", `aria-current="step"`, "group canary, watched for 1m0s",
		"0.06 % (6 of 10,000)", "rolled back", "refuses it: &lt;i&gt;no", `formaction="/rollouts/promote"`, `data-confirm="Have every Envoy go back`,
		`href="/rollouts/`+w.cfg.Hash()+"/"+to+`"`)
	b.wants("the difference", b.get("/rollouts/"+w.cfg.Hash()+"/"+to), http.StatusOK, "pypi.example", "What changes", "tunnel", "by admin-script", "ticket 7")
	b.wants("no such revision", b.get("/rollouts/stable/eeeeeeee"), http.StatusNotFound, "No such revision")
	b.wants("overview", b.get("/"), http.StatusOK, "is rolled out: step 2 of 3", "4 Envoys: 1 refuses what it is told, 1 drained.", "The Envoy envoy-3 refuses its configuration")

	b.get("/rollouts")
	b.wants("pause", b.post("/rollouts/pause", "note", "lunch"), http.StatusSeeOther)
	b.wants("paused", b.get("/rollouts"), http.StatusOK, "The rollout is paused.", "Paused by local operator: lunch.", "paused</span>", `action="/rollouts/resume"`)
	b.wants("pause again", b.post("/rollouts/pause"), http.StatusSeeOther)
	b.wants("paused already", b.get("/rollouts"), http.StatusOK, "That did not work.", "paused already")
	for _, what := range []string{"promote", "abort", "resume", "pause"} { // from a page of before, which waited while a note was written
		b.wants(what+" another", b.post("/rollouts/"+what, "note", "wrong host", "rollout", "r1"), http.StatusSeeOther)
		b.wants("nothing is done to another", b.get("/rollouts"), http.StatusOK, "That did not work.", "the rollout r1 is over, and nothing was done", `name="rollout" value="r2"`, "paused</span>")
	}
	b.wants("abort", b.post("/rollouts/abort", "note", "wrong host", "rollout", "r2"), http.StatusSeeOther)
	b.wants("aborted", b.get("/rollouts"), http.StatusOK, "Nothing is being rolled out", "aborted", "by local operator: wrong host")
	if said := w.events(); !strings.Contains(said, "rollout.pause  by local operator via link") || !strings.Contains(said, "rollout.abort") || !strings.Contains(said, "rollout.start") {
		t.Errorf("the audit says:\n%s", said)
	}
	w.breakStore()
	b.wants("rollouts without a store", b.get("/rollouts"), http.StatusOK, "Vault does not answer")
}

func TestFleetPage(t *testing.T) {
	w := newWorld(t, nil)
	w.halfway(strings.Repeat("b", 64))
	b := w.loggedIn()
	page := b.get("/fleet")
	b.wants("fleet", page, http.StatusOK, "envoy-3", "Cluster: &lt;script&gt;", "bbbbbbbbbbbb", "canary", "gate-1", "cannot serve dddddddddddd: it has no &lt;route&gt;", "0.1 % (6 of 5,000)", `action="/fleet/envoy-4/undrain"`)
	if strings.Index(page.body, "envoy-3") > strings.Index(page.body, "envoy-1 ") {
		t.Error("the Envoy in trouble is not in front")
	}
	b.wants("undrain", b.post("/fleet/envoy-4/undrain"), http.StatusSeeOther)
	b.wants("undrained", b.get("/fleet"), http.StatusOK, "The Envoy envoy-4 opens its listeners again.")
	b.wants("drain the last", b.post("/fleet/envoy-1/drain"), http.StatusSeeOther)
	b.wants("not drained", b.get("/fleet"), http.StatusOK, "That did not work.", "the last one that is not drained")
	if said := w.events(); !strings.Contains(said, "fleet.undrain envoy-4 by local operator") {
		t.Errorf("the audit says:\n%s", said)
	}
}

// Pages hear of what changes in the fleet, and not of gates that are only still there.
func TestFleetIsLive(t *testing.T) {
	w := newWorld(t, nil)
	before := w.console.fleetNow()
	w.reports = []fleet.Report{w.reports[0]}
	w.reports[0].At = time.Now().Add(time.Minute)
	if w.console.fleetNow() != before {
		t.Error("a gate that is still there is news")
	}
	w.reports[0].Envoys = nil
	if w.console.fleetNow() == before {
		t.Error("an Envoy that left is no news")
	}
}
