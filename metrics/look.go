package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Figures are what is kept elsewhere, as it is at a scrape.
type Figures struct {
	Grants   []Grant
	Sessions int
	Envoys   Envoys
	Rollout  Rollout
}

// Grant is how a grant is. Times that are not known are zero.
type Grant struct {
	Name, State          string
	Expires, ConsentEnds time.Time
}

// Envoys are how many are connected to this gate, each counted once.
type Envoys struct{ Current, Behind, Refusing int }

// Rollout is how far one is; Steps are 0 when none is under way.
type Rollout struct {
	Step, Steps int // Step counts from 1
	Paused      bool
}

// looker collects Figures.
type looker struct {
	look   func() Figures
	now    func() time.Time
	states []string

	outcomes  []string
	refreshes *prometheus.CounterVec

	state, expires, consent, sessions, envoys, step, steps, paused *prometheus.Desc
}

// Look makes look's figures part of every scrape. The states are all that a grant can have, and the outcomes all that its refreshes can
// come to: each is counted from 0 on, so that the first of them is an increase too.
func (m *Metrics) Look(states, outcomes []string, now func() time.Time, look func() Figures) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	m.registry.MustRegister(&looker{
		look: look, now: now, states: states, outcomes: outcomes, refreshes: m.refreshes,
		state: desc("wayleave_grant_state",
			"1 for the state that a grant is in, 0 for the others. On needs_reconnect, scope_missing or never_connected: wayleave grant connect NAME; see docs/grants.md for the rest.", "grant", "state"),
		expires: desc("wayleave_grant_expires_in_seconds",
			"How long the grant's access token is still good; below 0 it has expired. Not there for one that never expires, or when there is none. One that nears 0 is not being refreshed: wayleave grant show NAME.", "grant"),
		consent: desc("wayleave_grant_consent_ends_in_seconds",
			"How long the operator's consent is still good, whatever is refreshed. Without a refresh token that is until the token ends. Not there where it is not known. Before it is 0: wayleave grant connect NAME.", "grant"),
		sessions: desc("wayleave_sessions",
			"Sessions of workers that are under way, of all gates. See whose they are: wayleave session list."),
		envoys: desc("wayleave_envoys",
			"Envoys that are connected to this gate: current, behind with what they were sent, or refusing a part of it. On refusing: wayleave fleet list.", "state"),
		step: desc("wayleave_rollout_step",
			"Which step of a rollout is under way, from 1; 0: none is. See what it waits for: wayleave rollout status."),
		steps: desc("wayleave_rollout_steps",
			"How many steps the rollout under way has; 0: none is."),
		paused: desc("wayleave_rollout_paused",
			"1 while the rollout under way is paused: wayleave rollout resume, or abort."),
	})
}

// Describe is part of prometheus.Collector.
func (l *looker) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.state, l.expires, l.consent, l.sessions, l.envoys, l.step, l.steps, l.paused} {
		to <- d
	}
}

// Collect is part of prometheus.Collector.
func (l *looker) Collect(to chan<- prometheus.Metric) {
	f, now := l.look(), l.now()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, g := range f.Grants {
		for _, o := range l.outcomes {
			l.refreshes.WithLabelValues(g.Name, o) // is there from the next scrape on
		}
		for _, s := range l.states {
			gauge(l.state, binary(s == g.State), g.Name, s)
		}
		if !g.Expires.IsZero() {
			gauge(l.expires, g.Expires.Sub(now).Seconds(), g.Name)
		}
		if !g.ConsentEnds.IsZero() {
			gauge(l.consent, g.ConsentEnds.Sub(now).Seconds(), g.Name)
		}
	}
	gauge(l.sessions, float64(f.Sessions))
	gauge(l.envoys, float64(f.Envoys.Current), "current")
	gauge(l.envoys, float64(f.Envoys.Behind), "behind")
	gauge(l.envoys, float64(f.Envoys.Refusing), "refusing")
	gauge(l.step, float64(f.Rollout.Step))
	gauge(l.steps, float64(f.Rollout.Steps))
	gauge(l.paused, binary(f.Rollout.Paused))
}

func binary(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
