package config

import (
	"fmt"
	"strconv"
	"time"

	"wayleave/rollout"
)

// Rollout says how a change of the shared part of the configuration reaches the Envoys. The file that brings the change decides.
// docs/rollouts.md explains it.
type Rollout struct {
	// Whether a gate that sees its file change begins to roll it out by itself. With false, `wayleave rollout start` does.
	Automatic bool `yaml:"automatic" jsonschema:"default=true"`

	// Parts of the fleet that get a change one after the other. The last step is for all of it: share: 100.
	// Default: one step, all Envoys at once, which all go back when something is wrong within ten seconds.
	Steps []RolloutStep `yaml:"steps"`

	// How many requests there must have been, with the change and without it, before their errors are compared. A step does not wait
	// for them. From 20 to 1000000.
	MinRequests int `yaml:"min_requests" jsonschema:"minimum=20,maximum=1000000,default=200"`

	// How long an Envoy may need to take a change, and how long one that has it may be away, before all go back. From 5s to 10m.
	TakeTime time.Duration `yaml:"take_time" jsonschema:"default=30s"`
}

// A RolloutStep is a part of the fleet: a share of all Envoys, or those of a group.
type RolloutStep struct {
	// Percent of the Envoys that have the change then, from 1 to 100.
	Share int `yaml:"share" jsonschema:"minimum=1,maximum=100"`

	// Group whose Envoys get it, instead of share: those that have its name in envoy.group.
	Group string `yaml:"group" jsonschema:"pattern=^[a-z0-9][a-z0-9._-]{0\\,62}$"`

	// How long the change is watched there before the next step, up to 24h.
	Dwell time.Duration `yaml:"dwell" jsonschema:"default=10s"`
}

const defaultDwell = 10 * time.Second

// Plan is in which steps a change of the shared part reaches the Envoys.
func (c *Config) Plan() rollout.Plan {
	p := rollout.Plan{MinRequests: c.Rollout.MinRequests, TakeTime: c.Rollout.TakeTime}
	for _, s := range c.Rollout.Steps {
		p.Steps = append(p.Steps, rollout.Step{Share: s.Share, Group: s.Group, Dwell: s.Dwell})
	}
	return p
}

func (r *Rollout) applyDefaults(given func(string) bool) {
	if !given("rollout.automatic") {
		r.Automatic = true
	}
	if !given("rollout.min_requests") {
		r.MinRequests = 200
	}
	if !given("rollout.take_time") {
		r.TakeTime = 30 * time.Second
	}
	if !given("rollout.steps") {
		r.Steps = []RolloutStep{{Share: 100, Dwell: defaultDwell}}
	}
	for i := range r.Steps {
		if !given(item("rollout.steps", i) + ".dwell") {
			r.Steps[i].Dwell = defaultDwell
		}
	}
}

func (k *checker) rollout() {
	r := k.Rollout
	if r.MinRequests < 20 || r.MinRequests > 1_000_000 {
		k.fault("rollout.min_requests", strconv.Itoa(r.MinRequests)+" is out of range", "write a number from 20 to 1000000")
	}
	k.within("rollout.take_time", r.TakeTime, 5*time.Second, 10*time.Minute)
	k.notEmpty("rollout.steps", len(r.Steps))
	share, groups := 0, map[string]bool{}
	for i, s := range r.Steps {
		path := item("rollout.steps", i)
		k.within(path+".dwell", s.Dwell, 0, 24*time.Hour)
		hasShare := s.Share != 0 || k.doc.given(path+".share")
		switch {
		case k.doc.isBroken(path) || k.doc.isBrokenWithin(path):
		case hasShare && s.Group != "":
			k.fault(path+".group", "written beside share", "keep one of the two")
		case s.Group != "":
			k.name(path+".group", s.Group)
			if groups[s.Group] {
				k.fault(path+".group", "group "+quote(s.Group)+" is in an earlier step", "remove one")
			}
			groups[s.Group] = true
		case !hasShare:
			k.fault(path, "is for no Envoy", "write share: 10 for a tenth of them, or group: with the name of a group")
		case s.Share < 1 || s.Share > 100:
			k.fault(path+".share", strconv.Itoa(s.Share)+" is out of range", "write percent, from 1 to 100")
		case s.Share <= share:
			k.fault(path+".share", fmt.Sprintf("%d is not more than the %d of an earlier step", s.Share, share), "write shares that rise, or remove the step")
		}
		share = max(share, s.Share)
	}
	last := len(r.Steps) - 1
	if at := item("rollout.steps", last); last >= 0 && r.Steps[last].Share != 100 && !k.doc.isBrokenWithin(at) {
		k.fault(at, "is the last step and not for every Envoy", "end with: share: 100")
	}
}
