package fleet

import (
	"cmp"
	"slices"
	"strings"

	"wayleave/rollout"
)

// What was counted of requests, by Envoy and revision, since a rollout began and in the minutes before.

type traffic struct{ envoy, revision string }

// count adds what was counted since the last call.
func (m *Member) count() {
	for _, t := range m.o.Counted() {
		k := traffic{t.Envoy, t.Revision}
		m.traffic[k] = m.traffic[k].Plus(t.Counts)
		m.recent[0][k] = m.recent[0][k].Plus(t.Counts)
	}
	if m.clock-m.turned >= pastEvery {
		m.recent, m.turned = [2]map[traffic]rollout.Counts{{}, m.recent[0]}, m.clock
	}
}

// before is the traffic that the rollout is compared with, if nothing else is there.
func (m *Member) before(r *rollout.Rollout) (past []Traffic) {
	if r == nil {
		return nil
	}
	sum := map[traffic]rollout.Counts{}
	for _, counts := range m.recent {
		for k, c := range counts {
			if k.revision == r.From {
				sum[k] = sum[k].Plus(c)
			}
		}
	}
	return sorted(sum)
}

// sorted is the traffic, always in the same order.
func sorted(counts map[traffic]rollout.Counts) (all []Traffic) {
	for k, c := range counts {
		all = append(all, Traffic{Envoy: k.envoy, Revision: k.revision, Counts: c})
	}
	slices.SortFunc(all, func(a, b Traffic) int {
		return cmp.Or(strings.Compare(a.Envoy, b.Envoy), strings.Compare(a.Revision, b.Revision))
	})
	return all
}
