package console

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/rollout"
)

// summary is how something is, in a line.
type summary struct {
	Words string
	Tone  string // good, warn, bad or none
}

// Mark is a shape beside the colour.
func (s summary) Mark() string { return marks[s.Tone] }

var envoyTones = map[operate.EnvoyState]string{
	operate.EnvoyRefusing: "bad", operate.EnvoyTaking: "warn", operate.EnvoyNotListens: "warn", operate.EnvoyDraining: "warn", operate.EnvoyDrained: "none",
	operate.EnvoyCurrent: "good",
}

// worst are the states that somebody should hear of, in that order.
var worst = []operate.EnvoyState{operate.EnvoyRefusing, operate.EnvoyNotListens, operate.EnvoyTaking, operate.EnvoyDraining, operate.EnvoyDrained}

func fleetSummary(f operate.Fleet) summary {
	if len(f.Envoys) == 0 {
		return summary{"No Envoy is connected, so nothing can pass. Start it, or look at its log.", "bad"}
	}
	in := map[operate.EnvoyState]int{}
	for _, e := range f.Envoys {
		in[e.State]++
	}
	words, tone := plural(len(f.Envoys), "Envoy"), "good"
	if len(f.Gates) > 1 {
		words += " at " + plural(len(f.Gates), "gate")
	}
	var parts []string
	for _, st := range slices.Backward(worst) {
		if in[st] > 0 {
			parts = slices.Insert(parts, 0, fmt.Sprintf("%d %s", in[st], st.Words()))
			tone = envoyTones[st]
		}
	}
	switch {
	case len(parts) == 0 && len(f.Envoys) == 1:
		return summary{words + ", up to date.", tone}
	case len(parts) == 0:
		return summary{words + ", all up to date.", tone}
	}
	return summary{words + ": " + strings.Join(parts, ", ") + ".", tone}
}

func rolloutSummary(r operate.Rollouts, now time.Time) summary {
	switch c := r.Current; {
	case c != nil && c.Phase == rollout.Paused:
		return summary{fmt.Sprintf("The rollout of revision %s is paused: %s.", short(c.To), r.Progress.Sentence(c.Phase)), "warn"}
	case c != nil:
		return summary{fmt.Sprintf("Revision %s is rolled out: %s.", short(c.To), r.Progress.Sentence(c.Phase)), "warn"}
	case len(r.History) == 0:
		return summary{"Nothing has been rolled out yet.", "none"}
	}
	h := r.History[0]
	ago := span(now.Sub(h.Ended)) + " ago"
	switch h.Phase {
	case rollout.RolledBack:
		return summary{sentence(fmt.Sprintf("revision %s was rolled back %s: %s", short(h.To), ago, h.Reason)), "bad"}
	case rollout.Aborted:
		return summary{sentence(fmt.Sprintf("the rollout of revision %s was aborted %s, %s", short(h.To), ago, h.Reason)), "none"}
	default:
		return summary{fmt.Sprintf("Every Envoy has revision %s, since %s.", short(h.To), span(now.Sub(h.Ended))), "good"}
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Fleet.

type fleetView struct {
	Envoys  []envoyRow
	More    int // that are not shown
	Gates   []gateRow
	Warning string
	May     bool
	Summary summary
}

type envoyRow struct {
	operate.EnvoyStatus
	Is       summary
	Errors   string
	Refusals string
	Told     string // the revision that it is told, short
	Drained  bool   // or is to be
}

type gateRow struct {
	operate.Gate
	Troubles []string
}

// shownEnvoys is how many fit a page; those in trouble are in front.
const shownEnvoys = 200

func (s *Server) fleetPage(r *http.Request, who actor) (string, string, any, error) {
	known, warning, err := s.view(r.Context())
	if err != nil {
		return "", "", nil, err
	}
	f := operate.FleetOf(known)
	v := fleetView{Warning: warning, May: who.Role.may(Operator), Summary: fleetSummary(f), More: max(0, len(f.Envoys)-shownEnvoys)}
	slices.SortStableFunc(f.Envoys, func(a, b operate.EnvoyStatus) int { return cmp.Compare(trouble(a.State), trouble(b.State)) })
	for _, e := range f.Envoys[:min(len(f.Envoys), shownEnvoys)] {
		v.Envoys = append(v.Envoys, envoyRow{
			EnvoyStatus: e, Is: summary{e.State.Words(), envoyTones[e.State]}, Told: short(known.State.Revision(e.ID)), Drained: slices.Contains(f.Drained, e.ID),
			Errors: operate.Share(e.Traffic.Errors, e.Traffic.Requests), Refusals: operate.Share(e.Traffic.Refusals, e.Traffic.Requests),
		})
	}
	for _, g := range f.Gates {
		row := gateRow{Gate: g}
		for _, id := range slices.Sorted(maps.Keys(g.Unable)) {
			row.Troubles = append(row.Troubles, fmt.Sprintf("cannot serve %s: %s", short(id), g.Unable[id]))
		}
		v.Gates = append(v.Gates, row)
	}
	return "Fleet", "fleet", v, nil
}

func trouble(st operate.EnvoyState) int {
	if i := slices.Index(worst, st); i >= 0 {
		return i
	}
	return len(worst)
}

func (s *Server) drainForm(r *http.Request, _ actor) (string, notice, error) {
	_, err := s.drain(r, true, r.PostFormValue("force") != "")
	return "/fleet", notice{Text: "The Envoy " + r.PathValue("envoy") + " closes its listeners. What is under way there ends by itself."}, err
}

func (s *Server) undrainForm(r *http.Request, _ actor) (string, notice, error) {
	_, err := s.drain(r, false, false)
	return "/fleet", notice{Text: "The Envoy " + r.PathValue("envoy") + " opens its listeners again."}, err
}

// Rollouts.

type rolloutsView struct {
	operate.Rollouts
	Warning    string
	May        bool // operate
	MayPromote bool
	Is         summary // of the current one
	Steps      stepsChart
	Checks     []check
	Past       []pastRow
}

// check is one thing that is looked at during a rollout.
type check struct {
	What, With, Without string
	Note                string
}

type pastRow struct {
	rollout.Rollout
	Is  summary
	Why string
}

func (s *Server) rolloutsPage(r *http.Request, who actor) (string, string, any, error) {
	known, warning, err := s.view(r.Context())
	if err != nil {
		return "", "", nil, err
	}
	now := operate.RolloutsOf(known, s.now())
	v := rolloutsView{Rollouts: now, Warning: warning, May: who.Role.may(Operator), MayPromote: who.Role.may(Admin)}
	if c := now.Current; c != nil {
		v.Is = summary{map[bool]string{true: "paused", false: "under way"}[c.Phase == rollout.Paused], "warn"}
		v.Steps = chartSteps(*c, *now.Progress)
		v.Checks = checks(known, *now.Progress)
	}
	for _, h := range now.History {
		row := pastRow{h, summary{"completed", "good"}, h.Reason}
		switch h.Phase {
		case rollout.RolledBack:
			row.Is = summary{"rolled back", "bad"}
		case rollout.Aborted:
			row.Is = summary{"aborted", "none"}
		default:
		}
		v.Past = append(v.Past, row)
	}
	return "Rollouts", "rollouts", v, nil
}

// checks are what decides whether the rollout goes on, with figures.
func checks(v fleet.View, p operate.Progress) []check {
	refusing, waited := 0, p.Wanted-p.Taken
	for _, e := range operate.FleetOf(v).Envoys {
		if e.State == operate.EnvoyRefusing && v.State.Revision(e.ID) == v.State.Current.To {
			refusing++
		}
	}
	few := ""
	if p.With.Requests < p.MinRequests || p.Without.Requests < p.MinRequests {
		few = fmt.Sprintf("compared when both have %d requests", p.MinRequests)
	}
	return []check{
		{"Envoys that have not taken it", fmt.Sprintf("%d of %d", waited, p.Wanted), "–", ""},
		{"Envoys that refuse it", fmt.Sprintf("%d of %d", refusing, p.Wanted), "–", ""},
		{"Envoys that went away", fmt.Sprint(len(p.Away)), "–", strings.Join(p.Away[:min(len(p.Away), 5)], ", ")},
		{"Requests that failed", operate.Share(p.With.Errors, p.With.Requests), operate.Share(p.Without.Errors, p.Without.Requests), few},
		{"Requests that were refused", operate.Share(p.With.Refusals, p.With.Requests), operate.Share(p.Without.Refusals, p.Without.Requests), few},
	}
}

func (s *Server) leadForm(do leading, done string) func(*http.Request, actor) (string, notice, error) {
	return func(r *http.Request, who actor) (string, notice, error) {
		desk := s.Desk()
		desk.Rollout = r.PostFormValue("rollout") // whose page it is, which may have waited for its operator
		_, err := do(desk, r.Context(), who.Name, r.PostFormValue("note"))
		return "/rollouts", notice{Text: done}, err
	}
}

// The difference of two revisions.

type differenceView struct {
	From, To fleet.Revision
	Changes  []config.Change
	Fault    string // why they cannot be compared by what they mean
	Lines    []diffLine
}

func (s *Server) differencePage(r *http.Request, _ actor) (string, string, any, error) {
	var v differenceView
	var err error
	if v.From, err = s.Desk().Revision(r.Context(), r.PathValue("from")); err != nil {
		return "", "", nil, err
	}
	if v.To, err = s.Desk().Revision(r.Context(), r.PathValue("to")); err != nil {
		return "", "", nil, err
	}
	v.Lines = diffLines(textDiff(v.From.Text, v.To.Text))
	if v.Changes, err = operate.Compare(v.From, v.To); err != nil {
		v.Fault = err.Error()
	}
	return fmt.Sprintf("From %s to %s", short(v.From.ID), short(v.To.ID)), "rollouts", v, nil
}
