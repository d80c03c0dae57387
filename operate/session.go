package operate

import (
	"context"
	"slices"
	"strings"
	"time"

	"wayleave/worker"
)

// SessionsToEnd says which sessions an operator ends: those with the ids, those of the workers, or all.
type SessionsToEnd struct {
	Sessions  []string  `json:"sessions,omitempty"`
	Workers   []string  `json:"workers,omitempty"`
	All       bool      `json:"all,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"` // of workers and all: only sessions issued before this; now if not said
}

// Target is what an audit says that was ended.
func (q SessionsToEnd) Target() string {
	target := strings.Join(append(slices.Clone(q.Workers), q.Sessions...), " ")
	if q.All {
		target = "all"
	}
	if len(target) > longestTarget {
		target = target[:longestTarget] + "…"
	}
	return target
}

const longestTarget = 500

// SessionsEnded is what came of it.
type SessionsEnded struct {
	Ended        []string  `json:"ended"` // of those that were listed
	NotBefore    time.Time `json:"not_before,omitzero"`
	Unlisted     []string  `json:"unlisted,omitempty"`     // ids of no session that is listed; they end all the same
	Unconfigured []string  `json:"unconfigured,omitempty"` // workers that the configuration does not have; sessions of such names end all the same
}

// Sessions are those that live.
func (d Desk) Sessions(ctx context.Context) ([]worker.Live, error) {
	return worker.ListSessions(ctx, d.Docs, d.Now())
}

// check refuses what would end nothing, or what nobody means.
func (q SessionsToEnd) check(now time.Time) error {
	many := q.All || len(q.Workers) > 0
	switch {
	case len(q.Sessions) == 0 && !many:
		return refuse(Misused, "say which sessions: ids, workers, or all")
	case len(q.Sessions) > 0 && many, q.All && len(q.Workers) > 0:
		return refuse(Misused, "ids, workers and all exclude one another; revoke them one after the other")
	case !q.NotBefore.IsZero() && !many:
		return refuse(Misused, "a time before which sessions end goes with workers or all")
	case q.NotBefore.After(now.Add(time.Second)):
		return refuse(Misused, "%s is to come: sessions issued until then would be over at once", q.NotBefore.Format(time.RFC3339))
	}
	for _, id := range q.Sessions {
		if !worker.ValidSessionID(id, now) {
			return refuse(Misused, "%q is not the id of a session; 'wayleave session list' shows them", id)
		}
	}
	for _, name := range q.Workers {
		if !worker.ValidName(name) {
			return refuse(Misused, "%q is not the name of a worker", name)
		}
	}
	return nil
}

// EndSessions ends sessions before their time, at every gate that reaches Vault within five seconds.
func (d Desk) EndSessions(ctx context.Context, q SessionsToEnd) (SessionsEnded, error) {
	now := d.Now()
	out := SessionsEnded{Ended: []string{}}
	if err := q.check(now); err != nil {
		return out, err
	}
	live, err := d.Sessions(ctx)
	if err != nil {
		return out, err
	}
	r := worker.Revocation{Sessions: q.Sessions, Workers: q.Workers, All: q.All, NotBefore: q.NotBefore}
	if r.NotBefore.IsZero() {
		r.NotBefore = now.Truncate(time.Second).Add(time.Second) // seconds are whole
	}
	for _, s := range live {
		if !slices.Contains(q.Sessions, s.ID) && !q.All && !slices.Contains(q.Workers, s.Worker) || !q.NotBefore.IsZero() && !s.Issued.Before(q.NotBefore) {
			continue
		}
		out.Ended = append(out.Ended, s.ID)
		// The clock of a gate may be ahead of ours.
		if next := s.Issued.Add(time.Second); q.NotBefore.IsZero() && next.After(r.NotBefore) {
			r.NotBefore = next
		}
	}
	if q.All || len(q.Workers) > 0 {
		out.NotBefore = r.NotBefore.UTC()
	}
	for _, id := range q.Sessions {
		if !slices.Contains(out.Ended, id) {
			out.Unlisted = append(out.Unlisted, id)
		}
	}
	for _, name := range q.Workers {
		if _, configured := d.Config.Workers[name]; !configured {
			out.Unconfigured = append(out.Unconfigured, name)
		}
	}
	return out, worker.Revoke(ctx, d.Docs, r, now)
}
