package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

// written is a file with the office's configuration, and more.
func (o *office) written(more string) string {
	o.t.Helper()
	file := filepath.Join(o.t.TempDir(), "wayleave.yaml")
	if err := os.WriteFile(file, []byte(deskConfig+more), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return file
}

// envoys has a gate report some.
func (o *office) envoys(all ...fleet.Envoy) {
	o.t.Helper()
	r := fleet.Report{Gate: "g1", At: time.Now(), Envoys: all, Traffic: []fleet.Traffic{{Envoy: "envoy-1", Counts: rollout.Counts{Requests: 2000, Errors: 3}}}}
	if _, err := o.docs.Put(o.t.Context(), "fleet/gates/g1", vault.Packed{Value: r}, 0); err != nil {
		o.t.Fatal(err)
	}
}

func TestRolloutAtEveryDesk(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		ctx := t.Context()
		start := func(more string, q operate.RolloutRequest, watch bool) error {
			q.File = o.written(more)
			return d.startRollout(ctx, q, watch)
		}
		status := func() error {
			r, err := d.Rollouts(ctx)
			if err != nil {
				return err
			}
			return printRollout(d.out, r, d.now())
		}
		o.wants(status(), 0, "nothing has been rolled out yet")
		o.wants(start("", operate.RolloutRequest{}, false), 0, "is the first one")
		o.wants(start("", operate.RolloutRequest{}, false), exitRefused, "every Envoy has that revision already")
		o.wants(start("nonsense: 1\n", operate.RolloutRequest{}, false), 1, "nonsense")
		o.wants(start("tunnel: [a.example]\n", operate.RolloutRequest{Force: []string{"all"}}, false), 2, "drops_worker")
		o.wants(start("tunnel: [a.example]\n", operate.RolloutRequest{Note: "ticket \x1b7"}, false), 2, "the note is not one line")
		o.wants(start("tunnel: [a.example]\n", operate.RolloutRequest{Note: "ticket 7"}, false), 0, "has begun, in 1 step")
		o.wants(start("tunnel: [b.example]\n", operate.RolloutRequest{}, false), exitRefused, "another rollout is under way")
		o.wants(status(), 0, "step 1 of 1 (100 %): 0 of 0 Envoys", "ticket 7", "no requests yet")

		_, err := d.PauseRollout(ctx, "maria", "lunch")
		o.wants(err, 0)
		o.wants(status(), 0, "paused by ", ": lunch")
		_, err = d.ResumeRollout(ctx, "maria", "")
		o.wants(err, 0)
		_, err = d.AbortRollout(ctx, "maria", "wrong")
		o.wants(err, 0)
		o.wants(status(), 0, "was aborted: by ", ": wrong")
		_, err = d.AbortRollout(ctx, "maria", "")
		o.wants(err, exitRefused, "no rollout is under way")

		o.wants(start("tunnel: [c.example]\n", operate.RolloutRequest{}, false), 0, "has begun")
		_, err = d.PromoteRollout(ctx, "maria", "")
		o.wants(err, 0)
		r, err := d.Rollouts(ctx)
		o.wants(err, 0)
		o.wants(printRollouts(d.out, r), 0, "completed", "aborted", "note: ticket 7", "why: by ")
		if len(r.History) != 3 {
			t.Errorf("%+v", r.History)
		}
		if stored, err := d.Revision(ctx, r.Stable[:12]); err != nil || !strings.Contains(stored.Text, "c.example") {
			t.Errorf("%+v %v", stored, err)
		}
		d.json = true
		o.wants(start("tunnel: [d.example]\n", operate.RolloutRequest{}, false), 0, `"phase": "running"`)
	})
}

// A rollout is shown until its end, and its end is the exit code.
func TestRolloutWatched(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		o.wants(d.startRollout(t.Context(), operate.RolloutRequest{File: o.written("")}, false), 0)
		done := make(chan error, 1)
		began := func() error {
			_, err := fleet.Change(t.Context(), o.docs, func(s rollout.State) (rollout.State, error) {
				if s.Current == nil {
					return s, rollout.ErrNone
				}
				h := *s.Current
				h.Phase, h.Reason, h.Ended = rollout.RolledBack, "the Envoy envoy-1 refuses it: no", time.Now()
				s.Current, s.History = nil, append([]rollout.Rollout{h}, s.History...)
				return s, nil
			})
			return err
		}
		go func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for began() != nil && t.Context().Err() == nil {
				<-tick.C
			}
			done <- nil
		}()
		err := d.startRollout(t.Context(), operate.RolloutRequest{File: o.written("tunnel: [a.example]\n")}, true)
		<-done
		o.wants(err, exitHalted, "was rolled back: the Envoy envoy-1 refuses it: no")
		r, err := d.Rollouts(t.Context())
		o.wants(err, 0)
		o.wants(outcomeCode(r), exitHalted)
		o.wants(d.watchRollout(t.Context(), ""), exitHalted)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.watchRollout(over, ""); err == nil {
			t.Error("watched on")
		}
	})
}

// Objections refuse, and are overruled by name.
func TestRolloutObjections(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		const served = `
routes: [{hosts: [api.acme.example], grant: acme}]
profiles: {default: {grants: [acme]}}
`
		o.wants(d.startRollout(t.Context(), operate.RolloutRequest{File: o.written(served + "workers: {ci: {profile: default}}\n")}, false), 0)
		o.gateWith("ci")
		q := operate.RolloutRequest{File: o.written(served + "workers: {other: {profile: default}}\n")}
		o.wants(d.startRollout(t.Context(), q, false), exitRefused, "drops_worker: worker ci", "--force drops_worker")
		q.Force = []string{"drops_worker"}
		o.wants(d.startRollout(t.Context(), q, false), 0, "overruled: drops_worker", "has begun")
	})
}

func TestFleetAtEveryDesk(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		list := func() error {
			f, err := d.Envoys(t.Context())
			if err != nil {
				return err
			}
			return d.printFleet(f)
		}
		o.wants(list(), 0, "No Envoy is connected")
		stable := strings.Repeat("1", 64)
		if _, err := fleet.Change(t.Context(), o.docs, func(s rollout.State) (rollout.State, error) { s.Stable = stable; return s, nil }); err != nil {
			t.Fatal(err)
		}
		o.envoys(
			fleet.Envoy{ID: "envoy-1", Version: "1.40.0", Gate: "g1", Since: time.Now(), Revision: stable, Has: stable, Listening: true, Parts: []fleet.Part{{Type: "Cluster", Sent: "v1", Acked: "v1"}}},
			fleet.Envoy{ID: "envoy-2", Group: "canary", Version: "1.40.0", Gate: "g1", Since: time.Now(), Revision: stable, Has: stable, Listening: true, Refused: "no \x1b cluster"},
		)
		o.wants(list(), 0, "111111111111", "up to date", "0.1 % (3 of 2,000)", "canary", "says: no ? cluster")
		_, err := d.Drain(t.Context(), operate.DrainRequest{Envoy: "envoy-1", Drained: true})
		o.wants(err, 0)
		o.wants(list(), 0, "is being drained")
		_, err = d.Drain(t.Context(), operate.DrainRequest{Envoy: "envoy-2", Drained: true})
		o.wants(err, exitRefused, "the last one")
		_, err = d.Drain(t.Context(), operate.DrainRequest{Envoy: "none", Drained: true})
		o.wants(err, 2, "there are: envoy-1, envoy-2")
		_, err = d.Drain(t.Context(), operate.DrainRequest{Envoy: "envoy-1"})
		o.wants(err, 0)
		e, err := d.Envoy(t.Context(), "envoy-1")
		o.wants(err, 0)
		o.wants(d.printEnvoy(e), 0, "up to date", "Cluster", "last seen")
		_, err = d.Envoy(t.Context(), "none")
		o.wants(err, 2)
		text, _ := json.Marshal(e)
		if !strings.Contains(string(text), `"state":"current"`) {
			t.Errorf("%s", text)
		}
	})
}

// Revisions are compared as files are, beside whose shared part they are.
func TestRevisionsAreCompared(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		d := o.desk("")
		o.wants(d.startRollout(t.Context(), operate.RolloutRequest{File: o.written("")}, false), 0)
		file := o.written("tunnel: [a.example]\nlisten: {proxy: '127.0.0.1:4711'}\n")
		both, err := d.compared(t.Context(), []string{operate.Stable, file})
		o.wants(err, 0)
		changes := config.Compare(both[0], both[1])
		if len(changes) != 1 || !strings.Contains(changes[0].String(), "a.example") {
			t.Errorf("%v", changes)
		}
		_, err = d.compared(t.Context(), []string{"abcdef", file})
		o.wants(err, 2, "no such revision")
		_, err = d.compared(t.Context(), []string{operate.Stable, "./nowhere.yaml"})
		o.wants(err, 1, "nowhere.yaml")
	})
}
