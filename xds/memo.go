package xds

import (
	"strings"
	"sync"
)

// memo makes once what all nodes are owed alike: a thousand nodes that are led from one set to another share one change.
type memo struct {
	mu      sync.Mutex
	live    []*revision
	ands    map[[2]*set]*set
	parts   map[part]*set
	changes map[[2]*set]*change
	held    map[string]*set // by version
}

type part struct {
	of    *set
	names string
}

// remembered is how much a memo holds; it begins anew then.
const remembered = 1000

// forget begins anew, with the revisions that there are now.
func (m *memo) forget(live []*revision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live = live
	m.clear()
}

// clear is called with mu held.
func (m *memo) clear() {
	m.ands, m.parts, m.changes, m.held = map[[2]*set]*set{}, map[part]*set{}, map[[2]*set]*change{}, map[string]*set{}
}

func (m *memo) and(a, b *set) *set {
	return once(m, func() map[[2]*set]*set { return m.ands }, [2]*set{a, b}, func() *set { return a.and(b) })
}

func (m *memo) only(s *set, names []string) *set {
	return once(m, func() map[part]*set { return m.parts }, part{s, strings.Join(names, "\n")}, func() *set { return s.only(names) })
}

func (m *memo) change(from, to *set) *change {
	return once(m, func() map[[2]*set]*change { return m.changes }, [2]*set{from, to}, func() *change { return from.changeTo(to) })
}

// same is one set for all equal ones, of those that nodes are known to have.
func (m *memo) same(s *set) *set {
	return once(m, func() map[string]*set { return m.held }, s.version, func() *set { return s })
}

// claimed is what an Envoy that comes back says it has, which mostly is a set that it was sent by a gate before.
func (m *memo) claimed(k kind, versions map[string]string) *set {
	if len(versions) == 0 {
		return nothing
	}
	m.mu.Lock()
	live := m.live
	m.mu.Unlock()
	for _, r := range live {
		if r.sets[k].is(versions) {
			return r.sets[k]
		}
	}
	return m.same(claimed(versions))
}

func (s *set) is(versions map[string]string) bool {
	if len(versions) != len(s.items) {
		return false
	}
	for name, version := range versions {
		if r := s.items[name]; r == nil || r.GetVersion() != version {
			return false
		}
	}
	return true
}

func once[K comparable, V any](m *memo, table func() map[K]V, key K, compute func() V) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := table()[key]; ok {
		return v
	}
	if len(table()) >= remembered {
		m.clear()
	}
	v := compute()
	table()[key] = v
	return v
}
