package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"wayleave/approval"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

type overviewView struct {
	Needs    []need
	More     []rest
	Warning  string
	Grants   []grantRow
	Known    int    // how many grants there are
	Found    int    // how many of them are looked for
	Find     string // what their names have in them
	Many     bool   // more than are shown
	Healthy  int
	Refusals []Refusals
	Minutes  minutesChart
	Fleet    summary
	Rollout  summary
	May      bool // connect and such
}

type grantRow struct {
	grant.Summary
	Stray bool // the configuration does not have it any more
}

const (
	refusalsFor = time.Hour
	// shownGrants is how many fit the overview, those that need somebody in front.
	shownGrants = 100
)

// overviewPage is made of what this gate knows by itself, and of what the store was asked for all who look.
func (s *Server) overviewPage(r *http.Request, who actor) (string, string, any, error) {
	now, known, there := s.now(), s.Fleet(), s.storeSays(r.Context(), isLive(r))
	v := overviewView{
		Warning: there.warning(), Find: r.URL.Query().Get("grant"), May: who.Role.may(Operator), Refusals: s.Decisions.refusals(now.Add(-refusalsFor)),
		Fleet: fleetSummary(operate.FleetOf(known)), Rollout: rolloutSummary(operate.RolloutsOf(known, now), now),
		Minutes: chartMinutes(s.Decisions.perMinute(now, countedMinutes)),
	}
	v.Needs, v.More = s.needs(there.held)
	for _, spec := range s.Desk().Specs {
		g := s.Grants.Summary(spec.Name)
		if g.State == grant.Healthy || g.State == grant.Refreshing {
			v.Healthy++
		}
		v.Grants = append(v.Grants, grantRow{g, false})
	}
	for _, g := range there.strays {
		v.Grants = append(v.Grants, grantRow{g, true})
	}
	v.Known = len(v.Grants)
	v.Grants = slices.DeleteFunc(v.Grants, func(g grantRow) bool { return !strings.Contains(g.Name, v.Find) })
	v.Found, v.Many = len(v.Grants), v.Known > shownGrants
	slices.SortStableFunc(v.Grants, func(a, b grantRow) int { return cmp.Compare(urgency(b.State), urgency(a.State)) })
	v.Grants = v.Grants[:min(len(v.Grants), shownGrants)]
	return "Overview", "overview", v, nil
}

// urgency orders grants: first what fails.
func urgency(st grant.State) int {
	return slices.Index([]grant.State{
		grant.Degraded, grant.Ambiguous, grant.NeverConnected, grant.ScopeMissing, grant.RefreshUnavailable, grant.VaultUnavailable, grant.NeedsReconnect,
	}, st)
}

// stored is what the store says that this gate does not know by itself.
type stored struct {
	at     time.Time
	held   approval.Held   // by all gates
	strays []grant.Summary // grants that the configuration does not have any more
	err    error           // what it said last of held
	other  error           // of strays
}

// storeSays asks the store, once for all who want to know at the same time. A page that is brought up to date by itself makes do with
// what watch was told a moment ago, so that the store is asked as often for many pages as for one.
func (s *Server) storeSays(ctx context.Context, live bool) *stored {
	if last := s.last.Load(); live && last != nil && s.now().Sub(last.at) < 2*askEvery {
		return last
	}
	v, _, _ := s.asking.Do("", func() (any, error) {
		v := s.askHeld(context.WithoutCancel(ctx))
		if v.err != nil {
			return v, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askEvery)
		defer cancel()
		strays, err := s.Desk().Strays(ctx)
		return s.said(func(v *stored) {
			if v.other = err; err == nil {
				v.strays = strays
			}
		}), nil
	})
	return v.(*stored)
}

// said changes what the store has said.
func (s *Server) said(change func(*stored)) *stored {
	s.saying.Lock()
	defer s.saying.Unlock()
	var v stored
	if last := s.last.Load(); last != nil {
		v = *last
	}
	change(&v)
	s.last.Store(&v)
	return &v
}

// askHeld asks the store for the requests that wait. What it does not say is as it has said.
func (s *Server) askHeld(ctx context.Context) *stored {
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	held, err := s.Desk().Approvals(ctx)
	return s.said(func(v *stored) {
		if v.err = err; err == nil {
			v.held = held
		}
		v.at = s.now()
	})
}

// warning says that some of what is shown may be old.
func (v *stored) warning() string {
	switch err := cmp.Or(v.err, v.other); {
	case err == nil:
		return ""
	case errors.Is(err, vault.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("Vault does not answer; this is what this gate remembers: %v", err)
	default:
		return fmt.Sprintf("Vault could not be asked; this is what this gate knows by itself: %v", err)
	}
}
