package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rolloutConfig is that of a fleet whose gates share all but what the variables say.
const rolloutConfig = fleetConfig + `
envoy: {name: $NODE, group: $GROUP}
rollout: {steps: [{group: canary, dwell: 2s}, {share: 60, dwell: 2s}, {share: 100, dwell: 2s}], min_requests: 50, take_time: 20s}
`

// edges are gates of one fleet, each with an Envoy of its own, and what workers send through each.
type edges struct {
	*fleet
	flows []*steady // of each replica, so that each failure is some Envoy's
}

// edgeGroups are the groups of the Envoys, which are called edge-0 and so on.
var edgeGroups = []string{"canary", "canary", "main", "main", "main"}

const edgeRate = 20 // requests per second through each Envoy

func newEdges(t *testing.T, config string) *edges {
	t.Helper()
	e := &edges{fleet: newFleet(t)}
	e.config = config
	for i, group := range edgeGroups {
		e.replica(t, fmt.Sprint("NODE=edge-", i), "GROUP="+group)
	}
	e.connect(t, time.Hour)
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
		s := startSteadyOver(w, []*http.Client{w.client(t, false), w.client(t, true)}, edgeRate)
		e.flows = append(e.flows, s)
		t.Cleanup(s.stop)
	}
}

// A fleet of several Envoys, before anything is rolled out: one revision everywhere, though each machine's part is its own.
func TestEdges(t *testing.T) {
	t.Parallel()
	e := newEdges(t, rolloutConfig)
	e.flow(t)
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
}
