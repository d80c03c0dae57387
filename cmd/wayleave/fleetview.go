package main

import (
	"fmt"
	"slices"
	"strings"

	"wayleave/extproc"
	"wayleave/fleet"
	"wayleave/rollout"
	"wayleave/xds"
)

// connected are the Envoys that a gate tells its configuration, as its fleet knows them.
func connected(envoys *xds.Server, gate string) []fleet.Envoy {
	var all []fleet.Envoy
	for _, n := range envoys.Nodes() {
		e := fleet.Envoy{
			ID: n.ID, Group: n.Group, Version: n.Version, Gate: gate, Since: n.Since,
			Revision: n.Revision, Has: n.Has, Listening: n.Listening, Drained: n.Drained,
		}
		for _, t := range n.Types {
			e.Parts = append(e.Parts, fleet.Part{Type: t.Type, Sent: t.Sent, Acked: t.Acked, Refused: t.Refused, Error: t.Error})
			if t.Error != "" {
				e.Refused = fmt.Sprintf("%s: %s", t.Type, strings.TrimSpace(t.Error))
			}
		}
		all = append(all, e)
	}
	return all
}

// traffic is what was counted of requests and handshakes, as the fleet knows it: by what the Envoy was told. Requests are counted by
// their configuration, and handshakes by none. Which root CA an Envoy's certificates are of, and which of the configurations it had,
// is taken to be as it is now.
func traffic(counts []extproc.Count, nodes []xds.Node, s rollout.State) []fleet.Traffic {
	known := map[string]xds.Node{}
	for _, n := range nodes {
		known[n.ID] = n // of two streams, the later one's
	}
	name := func(c extproc.Count) string {
		var of []string
		for _, name := range s.Revisions() {
			if c.Revision == "" || c.Revision == fleet.Configuration(name) {
				of = append(of, name)
			}
		}
		n := known[c.Node]
		switch {
		case slices.Contains(of, n.Has):
			return n.Has
		case slices.Contains(of, n.Revision):
			return n.Revision
		case slices.Contains(of, s.Revision(c.Node)): // it is connected to another gate
			return s.Revision(c.Node)
		case len(of) > 0:
			return of[0]
		}
		return c.Revision
	}
	var all []fleet.Traffic
	for _, c := range counts {
		all = append(all, fleet.Traffic{Envoy: c.Node, Revision: name(c), Counts: rollout.Counts{Requests: c.Requests, Errors: c.Errors, Refusals: c.Refusals}})
	}
	return all
}
