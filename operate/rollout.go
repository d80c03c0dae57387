package operate

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/rollout"
)

// RolloutRequest is a configuration to roll out.
type RolloutRequest struct {
	File   string // what it is called in messages
	Text   []byte // of the whole file; its local part does not count
	Author string
	Note   string
	Force  []string // names of objections that are overruled
	// Automatic says that nobody asked for it but a file that changed.
	Automatic bool
}

// Started is a rollout that has begun.
type Started struct {
	Rollout rollout.Rollout `json:"rollout"`
	// Forced are the objections that were overruled.
	Forced []Objection `json:"forced,omitempty"`
}

// StartRollout begins to roll out a configuration, unless there is an objection to it: the error is then *Objections. It may also be
// config.Faults, rollout.ErrUnderWay or rollout.ErrSame.
func (d Desk) StartRollout(ctx context.Context, q RolloutRequest) (Started, error) {
	for _, name := range q.Force {
		if !slices.Contains(objectionNames, name) {
			return Started{}, refuse(Misused, "%q is no objection; those that can be overruled are: %s", name, strings.Join(objectionNames, ", "))
		}
	}
	q.File = cmp.Or(q.File, "the configuration")
	after, err := d.Config.With(q.File, q.Text, nil)
	if err != nil {
		return Started{}, err
	}
	files, err := after.Files()
	if err != nil {
		return Started{}, err
	}
	text, err := config.Shared(q.File, q.Text)
	if err != nil {
		return Started{}, err
	}
	state, _, err := fleet.ReadState(ctx, d.Docs)
	if err != nil {
		return Started{}, err
	}
	now := d.Now()
	begin := rollout.Rollout{ID: RolloutID(now), To: fleet.Named(after.Hash(), fleet.Root(state.Stable)), Plan: after.Plan(), Author: q.Author, Note: q.Note}
	if _, err := state.Start(begin, now); err != nil {
		return Started{}, err // before anything is asked that takes its time
	}

	all, err := d.objections(ctx, state, after)
	if err != nil {
		return Started{}, err
	}
	if h := state.History; q.Automatic && len(h) > 0 && fleet.Configuration(h[0].To) == after.Hash() && h[0].Phase != rollout.Succeeded {
		all = append(all, Objection{RolledBack, "the last rollout of it was " + h[0].Outcome()})
	}
	var open, forced []Objection
	for _, o := range all {
		if slices.Contains(q.Force, o.Name) {
			forced = append(forced, o)
		} else {
			open = append(open, o)
		}
	}
	if len(open) > 0 {
		return Started{}, &Objections{open}
	}

	if err := fleet.StoreRevision(ctx, d.Docs, fleet.Revision{ID: after.Hash(), Text: string(text), Files: files, Author: q.Author, Note: q.Note, Stored: now}); err != nil {
		return Started{}, err
	}
	from := state.Stable
	state, err = fleet.Change(ctx, d.Docs, func(s rollout.State) (rollout.State, error) {
		if s.Stable != from {
			return s, refuse(NotNow, "another rollout has ended meanwhile, and what was checked is not so any more; start it again")
		}
		return s.Start(begin, now)
	})
	if err != nil {
		return Started{}, err
	}
	begun := state.Current
	if begun == nil { // the first one has ended already
		begun = &state.History[0]
	}
	return Started{*begun, forced}, nil
}

// objections are what speaks against the step from what is stable.
func (d Desk) objections(ctx context.Context, state rollout.State, after *config.Config) (all []Objection, err error) {
	if state.Stable != "" {
		before, err := d.revision(ctx, state.Stable)
		switch {
		case errors.Is(err, fleet.ErrNoRevision), isFaults(err):
			all = append(all, Objection{NothingKnown, fmt.Sprintf("the revision that Envoys have now cannot be read, so that nobody can say what they would lose: %v", err)})
		case err != nil:
			return nil, err
		default:
			grants, err := grant.List(ctx, d.Docs, Specs(before))
			if err != nil {
				return nil, err
			}
			live, err := d.Sessions(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, Vet(before, after, grants, live)...)
		}
	}
	if d.Validate == nil {
		return all, nil
	}
	err = d.Validate(ctx, after)
	if o, are := errors.AsType[*Objections](err); are {
		return append(all, o.All...), nil
	}
	return all, err
}

// revision is a configuration that is kept, as it is on this machine.
func (d Desk) revision(ctx context.Context, id string) (*config.Config, error) {
	r, err := fleet.LoadRevision(ctx, d.Docs, id)
	if err != nil {
		return nil, err
	}
	return Parsed(d.Config, r)
}

func isFaults(err error) bool {
	_, are := errors.AsType[config.Faults](err)
	return are
}

// RolloutID is a name that sorts by time.
func RolloutID(now time.Time) string {
	var random [2]byte
	_, _ = rand.Read(random[:])
	return now.UTC().Format("20060102-150405-") + hex.EncodeToString(random[:])
}
