package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/rollout"
	"wayleave/vault"
)

// Envoy is one Envoy, as the gate sees it that tells it its configuration.
type Envoy struct {
	ID      string    `json:"id"`
	Group   string    `json:"group,omitempty"`
	Version string    `json:"version"` // of Envoy, as 1.40.0
	Gate    string    `json:"gate"`
	Since   time.Time `json:"since"`
	// Revision is what it is told, Has what it has taken whole; empty: nothing yet.
	Revision string `json:"revision"`
	Has      string `json:"has,omitempty"`
	// Refused is what it said when it refused a part of Revision; empty: it did not.
	Refused string `json:"refused,omitempty"`
	// Listening says that it has taken its listeners; Drained that it is told to have none.
	Listening bool   `json:"listening"`
	Drained   bool   `json:"drained,omitempty"`
	Parts     []Part `json:"parts,omitempty"`
}

// Part is one kind of what an Envoy is told, by version.
type Part struct {
	Type    string `json:"type"` // Listener, RouteConfiguration, VirtualHost, Cluster, TypedExtensionConfig or Secret
	Sent    string `json:"sent"`
	Acked   string `json:"acked,omitempty"`
	Refused string `json:"refused,omitempty"` // the version that it refused last, and what it said
	Error   string `json:"error,omitempty"`
}

// Traffic is what an Envoy did under a revision.
type Traffic struct {
	Envoy    string `json:"envoy"`
	Revision string `json:"revision"`
	rollout.Counts
}

// Report is what one gate sees.
type Report struct {
	Gate   string  `json:"gate"`
	Envoys []Envoy `json:"envoys,omitempty"` // that are connected to it
	// Traffic is that of all requests that it decided about since Rollout began, or since the gate runs.
	Traffic []Traffic `json:"traffic,omitempty"`
	Rollout string    `json:"rollout,omitempty"` // id of the last one that it knows of
	// Past is the traffic under the revision that it began from, in the minutes before.
	Past []Traffic `json:"past,omitempty"`
	// Unable are the revisions that the gate cannot serve, and why.
	Unable map[string]string `json:"unable,omitempty"`
	// At is when it was written, by the gate's clock. It is written again every ReportEvery, if only to say that the gate is there.
	At time.Time `json:"at"`
}

// ReportEvery is how long a gate lets its report stand; one that is Gone old is of a gate that is not there any more.
const (
	ReportEvery = 10 * time.Second
	Gone        = time.Minute
)

// View is all that is known of the fleet.
type View struct {
	State   rollout.State `json:"state"`
	Reports []Report      `json:"gates"`
}

// Read returns what is known now. Reports of gates that are gone are left out.
func Read(ctx context.Context, docs Documents, now time.Time) (View, error) {
	var v View
	var err error
	if v.State, _, err = ReadState(ctx, docs); err != nil {
		return v, err
	}
	names, err := listGates(ctx, docs)
	if err != nil {
		return v, err
	}
	for _, name := range names {
		r, _, err := readReport(ctx, docs, name)
		if errors.Is(err, vault.ErrNotFound) {
			continue
		}
		if err != nil {
			return v, err
		}
		if now.Sub(r.At) < Gone {
			v.Reports = append(v.Reports, r)
		}
	}
	return v, nil
}

// listGates are the names of the gates that have a report.
func listGates(ctx context.Context, docs Documents) ([]string, error) {
	names, err := docs.List(ctx, gatesDir)
	if err != nil {
		return nil, fmt.Errorf("listing the gates: %w", err)
	}
	return names, nil
}

// readReport returns what a gate reports, and the version of that.
func readReport(ctx context.Context, docs Documents, gate string) (r Report, version int, err error) {
	if version, err = docs.Get(ctx, gatesDir+"/"+gate, &vault.Packed{Value: &r}); err != nil {
		return r, version, fmt.Errorf("reading what the gate %s reports: %w", gate, err)
	}
	return r, version, nil
}

// Envoys are those of all gates by id, each once: the gate that it came to last knows best.
func (v View) Envoys() []Envoy {
	latest := map[string]Envoy{}
	for _, r := range v.Reports {
		for _, e := range r.Envoys {
			if was, known := latest[e.ID]; !known || e.Since.After(was.Since) {
				latest[e.ID] = e
			}
		}
	}
	all := make([]Envoy, 0, len(latest))
	for _, e := range latest {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Envoy) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Compared is what Envoys did with the new revision of the rollout that is under way, and what that is compared with.
func (v View) Compared() (fresh, old rollout.Counts) {
	if v.State.Current == nil {
		return fresh, old
	}
	nodes, _ := v.fleet()
	return v.State.Current.Compared(nodes)
}

// fleet is what a rollout is judged by. What a gate said before it knew of this rollout is about the last one: it says which Envoys
// there are, and no more.
func (v View) fleet() (nodes []rollout.Node, unable []rollout.Unable) {
	current := v.State.Current
	knows := map[string]bool{}
	counts, past := map[traffic]rollout.Counts{}, map[string]rollout.Counts{}
	for _, r := range v.Reports {
		for _, revision := range slices.Sorted(maps.Keys(r.Unable)) {
			unable = append(unable, rollout.Unable{Gate: r.Gate, Revision: revision, Why: r.Unable[revision]})
		}
		if r.Rollout != current.ID {
			continue
		}
		knows[r.Gate] = true
		for _, t := range r.Traffic {
			k := traffic{t.Envoy, t.Revision}
			counts[k] = counts[k].Plus(t.Counts)
		}
		for _, t := range r.Past {
			past[t.Envoy] = past[t.Envoy].Plus(t.Counts)
		}
	}
	for _, e := range v.Envoys() {
		n := rollout.Node{ID: e.ID, Group: e.Group, Has: e.Has, Revision: e.Revision, Refused: e.Refused, Counts: counts[traffic{e.ID, e.Has}], Past: past[e.ID]}
		if !knows[e.Gate] {
			n.Refused = ""
			if n.Has == current.To {
				n.Has = ""
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, unable
}
