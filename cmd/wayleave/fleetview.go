package main

import (
	"fmt"
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

// traffic is what was counted of requests, as the fleet knows it.
func traffic(counts []extproc.Count) []fleet.Traffic {
	var all []fleet.Traffic
	for _, c := range counts {
		all = append(all, fleet.Traffic{Envoy: c.Node, Revision: c.Revision, Counts: rollout.Counts{Requests: c.Requests, Errors: c.Errors, Refusals: c.Refusals}})
	}
	return all
}
