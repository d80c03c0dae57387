package console

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"wayleave/approval"
	"wayleave/grant"
	"wayleave/notify"
)

// need is something that needs an operator, as the overview shows it.
type need struct {
	Key    string // which tells it from the others
	Tone   string
	Title  string
	Text   string
	Next   string // what to do; empty: Text says it
	URL    string // the page where it is done
	Label  string // of the link there
	Grant  string // which it is about; empty: it is about none
	State  grant.State
	Advice advice // what can be done about the grant here
}

// rest are needs that are not shown.
type rest struct {
	Words string
	URL   string
}

// shownNeeds is how many fit the overview, the worst in front.
const shownNeeds = 30

// places are what is needed of each kind: where it is looked at, and what several are called.
var places = map[notify.Kind]struct{ url, label, each string }{
	notify.Grant:         {"/#grants", "Look at it", "grant"},
	notify.Vault:         {"/#grants", "See what it concerns", "thing"},
	notify.CA:            {"/rollouts", "See the rollouts of roots", "authority"},
	notify.Envoy:         {"/fleet", "Look at the fleet", "Envoy"},
	notify.Rollout:       {"/rollouts", "Look at it", "rollout"},
	notify.Configuration: {"/routes", "Look at the routes", "host"},
}

// needs are what operators are told of, with what can be done about it here. Requests that wait are one, whichever gates hold them.
func (s *Server) needs(held approval.Held) (shown []need, more []rest) {
	waiting := map[string]bool{}
	for _, a := range held.Approvals {
		waiting[notify.OfApproval(a, nil).Key] = waits(a)
	}
	var all []notify.Alert
	for _, a := range s.Needs() {
		if a.Kind != notify.Approval {
			all = append(all, a)
		} else if _, known := waiting[a.Key]; !known {
			waiting[a.Key] = true
		}
	}
	maps.DeleteFunc(waiting, func(_ string, waits bool) bool { return !waits })
	var waits []need // shown whatever else there is: somebody waits for the answer
	switch n := len(waiting); n {
	case 0:
	case 1:
		waits = append(waits, need{Key: "approvals", Tone: "warn", Title: "A request waits for an operator", Text: "Whoever sent it waits for the answer.", URL: "/approvals", Label: "Decide"})
	default:
		waits = append(waits, need{Key: "approvals", Tone: "warn", Title: fmt.Sprintf("%d requests wait for an operator", n), Text: "Whoever sent them waits for the answers.", URL: "/approvals", Label: "Decide"})
	}
	slices.SortStableFunc(all, func(a, b notify.Alert) int { return cmp.Compare(a.Severity, b.Severity) }) // critical before warning
	hidden := map[notify.Kind]int{}
	for i, a := range all {
		if a.Severity != notify.Critical {
			shown, waits = append(shown, waits...), nil
		}
		if i < shownNeeds {
			shown = append(shown, s.need(a))
		} else {
			hidden[a.Kind]++
		}
	}
	shown = append(shown, waits...)
	for _, kind := range slices.Sorted(maps.Keys(hidden)) {
		more = append(more, rest{plural(hidden[kind], places[kind].each), places[kind].url})
	}
	return shown, more
}

func (s *Server) need(a notify.Alert) need {
	place := places[a.Kind]
	n := need{
		Key: a.Key, Tone: map[notify.Severity]string{notify.Critical: "bad", notify.Warning: "warn"}[a.Severity], Title: a.Title, Text: a.Text, Next: a.Next,
		URL: a.URL, Label: place.label,
	}
	if n.URL == "" || n.URL == "/" { // which is where it is shown
		n.URL = place.url
	}
	if !strings.HasPrefix(n.Title, a.Subject) { // a name is written as it is
		n.Title = strings.TrimSuffix(sentence(n.Title), ".")
	}
	if a.Kind != notify.Grant {
		return n
	}
	g := s.Grants.Summary(a.Subject)
	n.Grant, n.State, n.Advice = g.Name, g.State, s.advise(g)
	if n.Advice.Text != "" {
		n.Text, n.Next = n.Advice.Text, ""
	}
	return n
}
