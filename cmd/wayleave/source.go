package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/rollout"
)

// source is this machine's file. What all gates share of it is rolled out when it is new.
type source struct {
	gate gate
	docs grant.Documents
	live *revisions
	wake func() // makes this gate look at how far the rollout is; nil: it does not serve yet

	// What follows is of enter, and then of follow.

	text    []byte         // of the file, as it is now
	cfg     *config.Config // what it means on this machine; nil: it has faults
	id      string         // the revision that cfg is
	changed bool           // since the gate runs, and no rollout has begun for it since
	begun   string         // id of the rollout that was begun here last; empty: this gate has taken notice of it
	alone   bool           // no other gate is there to serve what the fleet has
	told    string         // what was logged last
	against *objected      // nil: nothing speaks against it
	asked   error          // what Envoy said of it, if it was asked
	askedOf string         // its revision
}

// objected is when something spoke against the file, and how the grants were then.
type objected struct {
	at     time.Time
	grants []grant.Summary
}

func newSource(g gate, docs grant.Documents, live *revisions) *source {
	return &source{gate: g, docs: docs, live: live, text: g.cfg.Text(), cfg: g.cfg, id: g.cfg.Hash()}
}

// enter begins with what the fleet has, and a file that is new is rolled out. The first gate of a fleet brings its file. So does
// one that starts alone: nobody is served meanwhile, and whoever starts it means what the file says.
func (s *source) enter(ctx context.Context, self string) (rollout.State, error) {
	view, err := fleet.Read(ctx, s.docs, time.Now())
	if err != nil {
		return view.State, err
	}
	if s.alone = !slices.ContainsFunc(view.Reports, func(r fleet.Report) bool { return r.Gate != self }); s.alone {
		if err := s.ready(); err != nil {
			return view.State, err
		}
	}
	begun, err := s.consider(ctx, view.State, s.gate.desk(s.docs))
	s.alone = false
	switch {
	case err != nil && view.State.Stable == "":
		// Of gates that start at once for the first time, one begins; the others serve what it has.
		if state, _, err := fleet.ReadState(ctx, s.docs); err == nil && state.Stable != "" {
			return state, nil
		}
		return view.State, err // there is nothing to serve
	case err != nil:
		s.say(slog.LevelWarn, "could not be rolled out; it is tried again", "err", err.Error())
		fallthrough
	case !begun:
		return view.State, nil
	}
	state, _, err := fleet.ReadState(ctx, s.docs)
	return state, err
}

// ready makes what is needed to serve the file, which is used if it is what the fleet has.
func (s *source) ready() error {
	text, err := config.Shared(s.gate.file, s.text)
	if err != nil {
		return err
	}
	own, err := s.live.make(fleet.Revision{ID: s.id, Text: string(text)}, s.cfg)
	if err == nil {
		s.live.loaded = map[string]*revision{own.ID: own}
	}
	return err
}

// A file that waits for something is considered again this often, and one that something speaks against when a grant has become
// another, or after the longer time.
const (
	considerEvery = time.Second
	objectEvery   = 15 * time.Second
)

// follow rolls the file out when it changes, until ctx ends.
func (s *source) follow(ctx context.Context) {
	news := make(chan []byte)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	defer func() { stop(); <-ended }()
	go func() {
		defer close(ended)
		watchConfig(watching, s.gate.file, s.gate.cfg, s.gate.log, func(text []byte) {
			select {
			case news <- text:
			case <-watching.Done():
			}
		})
	}()
	tick := time.NewTicker(considerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-news:
			s.changed, s.against, s.begun = true, nil, ""
			s.read(text)
		case now := <-tick.C:
			if a := s.against; a != nil && now.Sub(a.at) < objectEvery && slices.EqualFunc(a.grants, s.live.summaries(), sameGrant) {
				continue
			}
		}
		desk := s.live.desk(s.docs)
		desk.Validate = s.validate(desk.Validate)
		if _, err := s.consider(ctx, s.live.now.Load().state, desk); err != nil && ctx.Err() == nil {
			s.say(slog.LevelWarn, "could not be rolled out; it is tried again", "err", err.Error())
		}
	}
}

// read takes over what the file says now. One with faults changes nothing.
func (s *source) read(text []byte) {
	s.text = text
	cfg, err := config.Parse(s.gate.file, text)
	if err == nil {
		_, err = cfg.Files()
	}
	if err != nil {
		s.cfg = nil
		s.say(slog.LevelError, "has faults; nothing was changed", "err", counted(err).Error())
		return
	}
	s.cfg, s.id = cfg, cfg.Hash()
	if s.gate.levels != nil {
		configureLevels(s.gate.levels, cfg, os.Getenv)
	}
	if local := s.gate.cfg.LocalChanges(cfg); len(local) > 0 {
		s.gate.log.Warn("the configuration file has changed in what is this machine's own; restart the gate for that", "sections", local)
	}
}

// validate asks Envoy once about each revision.
func (s *source) validate(ask func(context.Context, *config.Config) error) func(context.Context, *config.Config) error {
	return func(ctx context.Context, cfg *config.Config) error {
		if id := cfg.Hash(); s.askedOf != id {
			err := ask(ctx, cfg)
			if ctx.Err() != nil {
				return err
			}
			s.asked, s.askedOf = err, id
		}
		return s.asked
	}
}

// sameGrant reports whether a grant can do the same.
func sameGrant(a, b grant.Summary) bool {
	return a.Name == b.Name && a.State == b.State && slices.Equal(a.Granted, b.Granted)
}

// say logs about the file what has not been said just before.
func (s *source) say(level slog.Level, what string, args ...any) {
	if now := fmt.Sprint(what, args); now != s.told {
		s.told = now
		s.gate.log.Log(context.Background(), level, "the configuration file", append([]any{"what", what}, args...)...)
	}
}

// consider does about the file what is to be done now.
func (s *source) consider(ctx context.Context, state rollout.State, desk operate.Desk) (begun bool, err error) {
	if s.cfg == nil || s.begun != "" && !mentions(state, s.begun) {
		return false, nil
	}
	s.begun = ""
	if isRolledOut(state, s.id) {
		s.changed = false
	}
	do, words := automatic(state, ownFile{path: s.gate.file, revision: s.id, changed: s.changed || s.alone, automatic: s.cfg.Rollout.Automatic})
	if do != begin {
		if words != "" {
			s.say(slog.LevelWarn, "is not what Envoys have", "because", words)
		}
		return false, s.live.want(ctx, nil)
	}
	q := operate.RolloutRequest{File: s.gate.file, Text: s.text, Author: "file on " + gateName(s.gate.replica), Automatic: true}
	if s.alone {
		desk.Validate, q.Force = nil, operate.ObjectionNames()
	}
	s.against = nil
	started, err := desk.StartRollout(ctx, q)
	objections, are := errors.AsType[*operate.Objections](err)
	switch {
	case errors.Is(err, rollout.ErrUnderWay), errors.Is(err, rollout.ErrSame): // another gate was faster
		return true, nil
	case are:
		s.say(slog.LevelError, "is not rolled out", "revision", rollout.Short(s.id), "err", objections.Error(), "next", "wayleave rollout start -c "+s.gate.file)
		if s.live.now.Load() != nil {
			s.against = &objected{time.Now(), s.live.summaries()}
		}
		return false, s.live.want(ctx, lacking(s.cfg, objections))
	case err != nil:
		return false, err
	}
	s.changed = false
	if s.wake != nil {
		s.begun = started.Rollout.ID
		s.wake()
	}
	return true, s.live.want(ctx, nil)
}

// lacking are the scopes that operators are asked for, by grant, where a configuration waits for nothing else.
func lacking(cfg *config.Config, objections *operate.Objections) map[string][]string {
	if slices.ContainsFunc(objections.All, func(o operate.Objection) bool { return o.Name != operate.NeedsReconnect }) {
		return nil
	}
	asked := map[string][]string{}
	for name := range maps.Keys(cfg.Grants) {
		asked[name] = cfg.RequestedScopes(name)
	}
	return asked
}

// desk is where a gate works by its own file, before it serves.
func (g gate) desk(docs grant.Documents) operate.Desk {
	return operate.Desk{
		Config: g.cfg, Specs: operate.Specs(g.cfg), Docs: docs, Now: time.Now, Every: deskEvery,
		Validate: validator(g.sockets, g.log),
	}
}

// join is the configuration of a revision on this machine.
func (g gate) join(r fleet.Revision) (*config.Config, error) {
	cfg, err := operate.Parsed(g.cfg, r)
	if err != nil {
		return nil, err
	}
	cfg.Listen = g.cfg.Listen // which may not be what the file says
	if err := cfg.LoadSecrets(os.Getenv); err != nil {
		return nil, err
	}
	return cfg, nil
}

const deskEvery = 500 * time.Millisecond
