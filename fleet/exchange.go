package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/vault"
)

// What gates tell each other: each writes what it sees, and reads what the others do.

// other is another gate's report.
type other struct {
	Report
	version int
	changed time.Duration // by clock
	alive   bool          // it has been seen to change
}

// there reports whether the gate is there: its report changes, or was written a moment ago when it was first seen.
func (o *other) there(clock time.Duration, now time.Time) bool {
	return clock-o.changed < silent && (o.alive || now.Sub(o.At) < Gone)
}

// readOthers reads what other gates report, when that is due.
func (m *Member) readOthers(ctx context.Context, now time.Duration) error {
	every := othersEvery
	if m.state.Current != nil {
		every = othersSoon
	}
	if now-m.othersAt < every {
		return nil
	}
	names, err := listGates(ctx, m.o.Docs)
	if err != nil {
		return err
	}
	maps.DeleteFunc(m.others, func(name string, _ *other) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		if name == m.o.Gate {
			continue
		}
		r, version, err := readReport(ctx, m.o.Docs, name)
		was := m.others[name]
		switch {
		case errors.Is(err, vault.ErrNotFound):
			delete(m.others, name)
		case err != nil:
			return err
		case was == nil:
			m.others[name] = &other{Report: r, version: version, changed: m.clock}
		case was.version != version:
			m.others[name] = &other{Report: r, version: version, changed: m.clock, alive: true}
		case m.clock-was.changed > swept:
			if err := m.o.Docs.Delete(ctx, gatesDir+"/"+name); err != nil {
				return fmt.Errorf("removing what the gate %s reported, which is gone: %w", name, err)
			}
			delete(m.others, name)
		}
	}
	m.othersAt = now
	return nil
}

// own is this gate's report.
func (m *Member) own() Report {
	r := Report{Gate: m.o.Gate, Envoys: slices.Clone(m.envoys), Rollout: m.rollout, At: wall(m.o.Now())}
	for i := range r.Envoys {
		e := &r.Envoys[i]
		e.Gate, e.Refused, e.Parts = m.o.Gate, brief(e.Refused), slices.Clone(e.Parts)
		for j := range e.Parts {
			e.Parts[j].Error = brief(e.Parts[j].Error)
		}
	}
	slices.SortFunc(r.Envoys, func(a, b Envoy) int { return strings.Compare(a.ID, b.ID) })
	r.Traffic = sorted(m.traffic)
	if m.state.Current != nil {
		r.Past = m.past
	}
	for revision, err := range m.unable {
		if errors.Is(err, vault.ErrUnavailable) { // it can when Vault is there again
			continue
		}
		if r.Unable == nil {
			r.Unable = map[string]string{}
		}
		r.Unable[revision] = brief(err.Error())
	}
	return r
}

// report writes this gate's report when it is due.
func (m *Member) report(ctx context.Context) error {
	since := m.o.Running() - m.reportedAt
	if m.reported != nil && since < stepEvery {
		m.reportIsDue = true // perhaps
		return nil
	}
	r := m.own()
	what := r
	what.At = time.Time{}
	if m.state.Current == nil {
		what.Traffic = nil // not worth a write by itself
	}
	said, err := json.Marshal(what)
	if err != nil {
		return err
	}
	m.reportIsDue = false
	if m.reported != nil && since < ReportEvery && bytes.Equal(said, m.reported) {
		return nil
	}
	path := gatesDir + "/" + m.o.Gate
	if m.reportOf < 0 {
		if m.reportOf, err = m.o.Docs.Get(ctx, path, &vault.Packed{Value: new(Report)}); err != nil && !errors.Is(err, vault.ErrNotFound) {
			m.reportOf = -1
			return fmt.Errorf("reading what this gate reported: %w", err)
		}
	}
	version, err := m.o.Docs.Put(ctx, path, vault.Packed{Value: r}, m.reportOf)
	if err != nil { // written or not, or by who took us for gone
		m.reportOf = -1
		if errors.Is(err, vault.ErrConflict) {
			m.again = true
			return nil
		}
		return fmt.Errorf("reporting what this gate sees: %w", err)
	}
	m.reportOf, m.reported, m.reportedAt = version, said, m.o.Running()
	return nil
}

// brief is a text that Envoy or an error made, as far as it is kept.
func brief(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), reasonSize)], "")
}
