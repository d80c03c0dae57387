package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/demo"
	shared "wayleave/fleet"
	"wayleave/rollout"
	"wayleave/secret"
	"wayleave/vault"
)

// rolloutConfig is that of a fleet whose gates share all but what the variables say.
const rolloutConfig = fleetConfig + `
envoy: {name: $NODE, group: $GROUP}
rollout: {steps: [{group: canary, dwell: 1s}, {share: 60, dwell: 1s}, {share: 100, dwell: 1s}], min_requests: 50, take_time: 20s}
`

// edges are gates of one fleet, each with an Envoy of its own, and what workers send through each.
type edges struct {
	*fleet
	whole   *testing.T    // all of the stories, whose gates end with it
	store   *vault.Client // as an operator
	workers []worker      // one of each replica
	flows   []*steady     // of each replica, so that each failure is some Envoy's
}

// edgeGroups are the groups of the Envoys, which are called edge-0 and so on.
var edgeGroups = []string{"canary", "canary", "main", "main", "main"}

const edgeRate = 20 // requests per second through each Envoy

func newEdges(t *testing.T, config string) *edges {
	t.Helper()
	e := &edges{fleet: newFleet(t), whole: t}
	e.config = config
	for i, group := range edgeGroups {
		e.replica(t, fmt.Sprint("NODE=edge-", i), "GROUP="+group)
	}
	e.connect(t, time.Hour)
	var err error
	e.store, err = vault.Open(t.Context(), vault.Config{Address: e.getenv("VAULT_ADDR"), Auth: vault.Auth{Method: "token", Token: secret.New("administrator")}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.store.Close)
	return e
}

// push gives each gate another file.
func (e *edges) push(t *testing.T, config string) {
	t.Helper()
	for _, r := range e.replicas {
		if err := r.configure(config); err != nil {
			t.Fatal(err)
		}
	}
}

// flow begins to send requests through each Envoy.
func (e *edges) flow(t *testing.T) {
	t.Helper()
	for _, r := range e.replicas {
		w := r.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
		e.workers = append(e.workers, w)
		s := startSteadyOver(w, []*http.Client{w.client(t, false), w.client(t, true)}, edgeRate)
		e.flows = append(e.flows, s)
		t.Cleanup(s.stop)
	}
}

// seen is what gates say of their fleet now.
func (e *edges) seen(t *testing.T) shared.View {
	t.Helper()
	v, err := shared.Read(t.Context(), e.store, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// until waits until what gates say of their fleet is as it should be. Vault may be away meanwhile.
func (e *edges) until(t *testing.T, is func(shared.View) error) {
	t.Helper()
	if err := eventually(func() error {
		v, err := shared.Read(t.Context(), e.store, time.Now())
		if err != nil {
			return err
		}
		return is(v)
	}); err != nil {
		t.Fatal(err)
	}
}

// has waits until an Envoy has what is rolled out.
func (e *edges) has(t *testing.T, id string) {
	t.Helper()
	e.until(t, func(v shared.View) error {
		for _, n := range v.Envoys() {
			if c := v.State.Current; c != nil && n.ID == id && n.Has == c.To {
				return nil
			}
		}
		return fmt.Errorf("%s does not have it: %+v", id, v.State.Current)
	})
}

// again starts the gate of a replica that has been killed.
func (e *edges) again(t *testing.T, i int) {
	t.Helper()
	r := e.replicas[i]
	r.gate = e.start(e.whole, r.world, fmt.Sprintf("replica%d.log", i), "wayleave", "serve", "--run-dir", r.dir)
	if err := r.waitOutput("msg=serving"); err != nil {
		t.Fatal(err)
	}
}

// over are the rollouts that have ended.
func (e *edges) over(t *testing.T) int { return len(e.seen(t).State.History) }

// ended waits until a rollout has ended after so many, and all Envoys have what they are to have since.
func (e *edges) ended(t *testing.T, before int) rollout.Rollout {
	t.Helper()
	var last rollout.Rollout
	e.until(t, func(v shared.View) error {
		if len(v.State.History) == before {
			fresh, old := v.Compared()
			return fmt.Errorf("it goes on, with %+v against %+v: %+v", fresh, old, v.State.Current)
		}
		last = v.State.History[0]
		return nil
	})
	e.until(t, func(v shared.View) error { return settled(v) })
	t.Logf("rollout of %.12s: %s, %v after its begin; %v later all Envoys had what they were to have",
		last.To, last.Outcome(), last.Ended.Sub(last.Began).Round(time.Millisecond), time.Since(last.Ended).Round(time.Millisecond))
	return last
}

// settled reports whether all Envoys are there and have what the state says.
func settled(v shared.View) error {
	envoys := v.Envoys()
	for _, n := range envoys {
		if want := v.State.Revision(n.ID); n.Has != want {
			return fmt.Errorf("%s has %.12s, and is told %.12s; want %.12s", n.ID, n.Has, n.Revision, want)
		}
	}
	if len(envoys) != len(edgeGroups) {
		return fmt.Errorf("there are %d Envoys", len(envoys))
	}
	return nil
}

// force begins a rollout whatever speaks against it.
func (e *edges) force(t *testing.T, text string) {
	t.Helper()
	r := e.replicas[0]
	text = os.Expand(text, r.getenv)
	cfg, err := config.Parse(r.getenv("WAYLEAVE_CONFIG"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	files, err := cfg.Files()
	if err != nil {
		t.Fatal(err)
	}
	part, err := config.Shared("forced", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.StoreRevision(t.Context(), e.store, shared.Revision{ID: cfg.Hash(), Text: string(part), Files: files, Stored: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.Change(t.Context(), e.store, func(s rollout.State) (rollout.State, error) {
		return s.Start(rollout.Rollout{ID: rand.Text(), To: cfg.Hash(), Plan: cfg.Plan()}, time.Now())
	}); err != nil {
		t.Fatal(err)
	}
}

// canaries are the Envoys that get a change first.
var canaries = []int{0, 1}

// blameless sees that no request has failed since the last look but through some of the Envoys, and says how many there.
func (e *edges) blameless(t *testing.T, but ...int) (failed int) {
	t.Helper()
	for i, s := range e.flows {
		s.more(t, edgeRate)
		most := 0
		if slices.Contains(but, i) {
			most = math.MaxInt
		}
		failed += s.report(t, fmt.Sprint("edge-", i), most)
	}
	return failed
}

// watched is a configuration that is watched for so long at the canaries.
func watched(config, dwell string) string {
	return strings.Replace(config, "{group: canary, dwell: 1s}", "{group: canary, dwell: "+dwell+"}", 1)
}

// patient is one that is watched there for longer than it takes to see what is wrong with it.
func patient(config string) string { return watched(config, "1m") }

// rewrite is a text with one thing changed.
func rewrite(t *testing.T, text, old, new string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is %d times in the configuration", old, strings.Count(text, old))
	}
	return strings.Replace(text, old, new, 1)
}

// Changes of the configuration, good ones and bad ones, over real Envoys. What one does to the fleet is what the next begins with.
//
// It runs while no other test does, as all with so many Envoys: on few processors nothing would be in time any more.
func TestRollouts(t *testing.T) {
	e := newEdges(t, rolloutConfig)
	e.flow(t)
	e.until(t, settled)
	now := rolloutConfig // what the fleet has

	// Before anything is rolled out: one revision everywhere, though each machine's part is its own.
	t.Run("one revision", func(t *testing.T) {
		e.push(t, "# a remark makes no other revision\n"+rolloutConfig)
		revisions := map[string]bool{}
		for i, r := range e.replicas {
			var info struct {
				Node struct {
					ID       string
					Metadata struct{ Group string }
				}
			}
			if err := json.Unmarshal([]byte(askAdmin(t, r.dir, "/server_info")), &info); err != nil {
				t.Fatal(err)
			}
			if info.Node.ID != fmt.Sprint("edge-", i) || info.Node.Metadata.Group != edgeGroups[i] {
				t.Errorf("Envoy %d is %+v", i, info.Node)
			}
			out, err := r.command("wayleave", "config", "check").Output()
			_, revision, said := strings.Cut(string(out), "revision ")
			if err != nil || !said {
				t.Fatalf("%s%v", out, err)
			}
			revision, _, _ = strings.Cut(revision, ",")
			revisions[revision] = true
		}
		if len(revisions) != 1 {
			t.Errorf("the revisions are %v", revisions)
		}
		for i, s := range e.flows {
			s.more(t, 2*edgeRate)
			s.report(t, fmt.Sprint("edge-", i), 0)
		}
	})

	t.Run("good", func(t *testing.T) {
		var held []*hold
		for _, w := range e.workers {
			held = append(held, holdOpen(t, w))
		}
		before := e.over(t)
		now = rewrite(t, now, "[api.demo.test]", "[api.demo.test, other.demo.test]")
		e.push(t, now)
		for _, w := range e.workers {
			w.reaches(t, "other.demo.test", "200")
		}
		if r := e.ended(t, before); r.Phase != rollout.Succeeded {
			t.Errorf("%+v", r)
		}
		e.blameless(t)
		for i, h := range held {
			h.check(t)
			for line := range strings.Lines(askAdmin(t, e.replicas[i].dir, "/stats?filter=listener_manager.(listener_removed|total_listeners_draining|total_filter_chains_draining)")) {
				if !strings.HasSuffix(strings.TrimSpace(line), ": 0") {
					t.Errorf("edge-%d: %s", i, line)
				}
			}
		}
	})

	t.Run("refused by Envoy", func(t *testing.T) {
		// One of the outer form of a certificate, at which the gate looks, with nothing in it.
		broken := append([]byte("-----BEGIN CERTIFICATE-----\nMAcwADAAAwEA\n-----END CERTIFICATE-----\n"), e.CA.PEM()...)
		if err := os.WriteFile(e.saved("broken-ca.pem"), broken, 0o600); err != nil {
			t.Fatal(err)
		}
		before := e.over(t)
		e.force(t, patient(rewrite(t, now, "[api-ca.pem]", "[api-ca.pem, broken-ca.pem]")))
		r := e.ended(t, before)
		if r.Phase != rollout.RolledBack || r.Step != 0 || !strings.Contains(r.Reason, "refuses it") || !strings.Contains(r.Reason, "edge-") {
			t.Errorf("%+v", r)
		}
		e.blameless(t, canaries...)
	})

	t.Run("wrong upstream", func(t *testing.T) {
		cert, err := e.CA.Issue("elsewhere.demo.test")
		if err != nil {
			t.Fatal(err)
		}
		wrong := httptest.NewUnstartedServer(http.NotFoundHandler())
		wrong.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		wrong.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		wrong.StartTLS()
		t.Cleanup(wrong.Close)
		before := e.over(t)
		e.force(t, patient(rewrite(t, now, "$API", wrong.Listener.Addr().String())))
		r := e.ended(t, before)
		if r.Phase != rollout.RolledBack || r.Step != 0 || !strings.Contains(r.Reason, "failed with it") {
			t.Errorf("%+v", r)
		}
		if n := e.blameless(t, canaries...); n == 0 {
			t.Error("no request failed behind the canaries, which have the wrong server")
		}
	})

	// What a grant must hold is checked before anything is changed, and a file that waits for a consent begins when it is there.
	t.Run("required scope", func(t *testing.T) {
		e.Provider.AllowScopes(demo.ScopeInference)
		e.forget()
		e.connect(t, time.Hour)
		e.waitAll(t, "state=scope_missing")
		e.Provider.AllowScopes()
		next := rewrite(t, now, `connect_to: "$API"`, `connect_to: "$API", required_scopes: [user:sessions:claude_code]`)
		before := e.over(t)
		e.force(t, patient(next))
		r := e.ended(t, before)
		if r.Phase != rollout.RolledBack || r.Step != 0 || !strings.Contains(r.Reason, "were refused with it") {
			t.Errorf("forced: %+v", r)
		}
		if n := e.blameless(t, canaries...); n == 0 {
			t.Error("nothing was refused behind the canaries, whose routes need another scope")
		}

		next = rewrite(t, next, "[api.demo.test", "[more.demo.test, api.demo.test") // what was rolled back does not begin again by itself
		e.forget()
		e.push(t, next)
		e.waitAll(t, `err="not rolled out:\n  needs_reconnect: `)
		e.blameless(t)
		before = e.over(t)
		e.must(t, "wayleave", "grant", "connect", "claude")
		if r := e.ended(t, before); r.Phase != rollout.Succeeded {
			t.Errorf("connected: %+v", r)
		}
		e.blameless(t)
		now = next
	})

	t.Run("worker removed", func(t *testing.T) {
		before := e.over(t)
		e.forget()
		e.push(t, rewrite(t, now, "  w: {profile", "  x: {profile"))
		e.waitAll(t, "drops_worker")
		e.push(t, now)
		e.blameless(t)
		if n := e.over(t); n != before || e.seen(t).State.Current != nil {
			t.Errorf("%+v", e.seen(t).State)
		}
	})

}

// A gate is killed at the worst moments of a rollout, and comes back or does not. The others go on or go back without it, and all Envoys
// have the same at the end. While Vault is away nothing moves.
func TestRolloutsWithoutGates(t *testing.T) {
	e := newEdges(t, rolloutConfig)
	e.flow(t)
	e.until(t, settled)
	now := rolloutConfig // what the fleet has
	adding := func(t *testing.T, host string) string { return rewrite(t, now, "{hosts: [", "{hosts: ["+host+", ") }
	for i, c := range []struct {
		name   string
		moment func(t *testing.T)
	}{
		{"killed as it begins", func(t *testing.T) {
			e.until(t, func(v shared.View) error {
				if v.State.Current == nil {
					return errors.New("no rollout has begun")
				}
				return nil
			})
		}},
		{"killed in the dwell", func(t *testing.T) { e.has(t, "edge-0") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, next := e.over(t), adding(t, fmt.Sprintf("killed-%d.wild.demo.test", i))
			e.force(t, watched(next, "3s"))
			c.moment(t)
			e.replicas[0].kill()
			e.again(t, 0)
			if r := e.ended(t, before); r.Phase == rollout.Succeeded {
				now = next
			}
			e.blameless(t, 0)
		})
	}
	t.Run("killed while they go back", func(t *testing.T) {
		before := e.over(t)
		e.force(t, patient(adding(t, "back.wild.demo.test")))
		e.has(t, "edge-0")
		if _, err := shared.Change(t.Context(), e.store, func(s rollout.State) (rollout.State, error) { return s.Abort("for the story", time.Now()) }); err != nil {
			t.Fatal(err)
		}
		e.replicas[0].kill()
		e.again(t, 0)
		if r := e.ended(t, before); r.Phase != rollout.Aborted {
			t.Errorf("%+v", r)
		}
		e.blameless(t, 0)
	})
	t.Run("killed for good", func(t *testing.T) {
		before := e.over(t)
		e.force(t, strings.Replace(patient(adding(t, "gone.wild.demo.test")), "take_time: 20s", "take_time: 5s", 1))
		e.replicas[0].kill()
		e.until(t, func(v shared.View) error {
			if len(v.State.History) == before {
				return fmt.Errorf("it goes on: %+v", v.State.Current)
			}
			return nil
		})
		e.again(t, 0)
		if r := e.ended(t, before); r.Phase != rollout.RolledBack || !strings.Contains(r.Reason, "edge-0") {
			t.Errorf("%+v", r)
		}
		e.blameless(t, 0)
	})

	// While Vault is sealed nothing moves, and workers are served, each by what its Envoy has.
	t.Run("sealed", func(t *testing.T) {
		before := e.over(t)
		e.force(t, watched(adding(t, "sealed.wild.demo.test"), "8s"))
		e.has(t, "edge-0")
		e.has(t, "edge-1")
		e.forget()
		e.must(t, "bao", "operator", "seal")
		e.waitAll(t, "cannot be read or written")
		e.blameless(t)
		e.workers[0].reaches(t, "sealed.wild.demo.test", "200")
		e.workers[4].reaches(t, "sealed.wild.demo.test", "Forbidden")
		e.must(t, "bao", "operator", "unseal", e.unseal)
		if r := e.ended(t, before); r.Phase != rollout.Succeeded {
			t.Errorf("%+v", r)
		}
		e.blameless(t)
	})
}
