// Package fleet owns what all gates know together of their Envoys, and of what these are told: the revisions of the
// configuration, which Envoys there are at which gate, and how far a rollout is. All of it is documents in Vault.
//
//	fleet/state            the rollout.State: written by whoever takes the next step, with check-and-set
//	fleet/revisions/<id>   a configuration, as it was written
//	fleet/gates/<gate>     what one gate sees of its Envoys: written by that gate alone
//
// Which step is next is decided by package rollout; what a configuration means, and what Envoys are told, is left to others.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"wayleave/rollout"
	"wayleave/vault"
)

// Documents is where all of it is kept, with check-and-set: a *vault.Client.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
	List(ctx context.Context, path string) ([]string, error)
	Delete(ctx context.Context, path string) error
}

const (
	statePath    = "fleet/state"
	revisionsDir = "fleet/revisions"
	gatesDir     = "fleet/gates"
)

// Writers of one document that are in each other's way try again this often, with a pause of up to this before.
const (
	tries = 20
	pause = 50 * time.Millisecond
)

// What an Envoy is told is named by its configuration and, where one was chosen, by the root CA whose certificates it gets: as
// <id of a Revision>+<name of a root>. Without one it is the root that Vault lets sign by itself.

// Named is that name; root may be empty.
func Named(configuration, root string) string {
	if root == "" {
		return configuration
	}
	return configuration + "+" + root
}

// Configuration is the id of the Revision in such a name.
func Configuration(name string) string {
	id, _, _ := strings.Cut(name, "+")
	return id
}

// Root is the name of the root CA in such a name; empty: none was chosen.
func Root(name string) string {
	_, root, _ := strings.Cut(name, "+")
	return root
}

// Revision is a configuration that some Envoy has, had or is to have.
type Revision struct {
	// ID is the hash of what it means.
	ID string `json:"id"`
	// Text is the part of the file that all gates share, as it was written. Empty in lists.
	Text string `json:"text,omitempty"`
	// Files are those that the text names and that are part of what it means, by the name it has there.
	Files  map[string][]byte `json:"files,omitempty"`
	Author string            `json:"author,omitempty"`
	Note   string            `json:"note,omitempty"`
	Stored time.Time         `json:"stored"`
}

// ErrNoRevision says that there is none, or more than one, of that name.
var ErrNoRevision = errors.New("no such revision; see which there are with: wayleave rollout history")

var revisionID = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

// StoreRevision keeps r for every gate. One that is there already stays as it is: its text means the same.
func StoreRevision(ctx context.Context, docs Documents, r Revision) error {
	if !revisionID.MatchString(r.ID) {
		return fmt.Errorf("%q is not the name of a revision", r.ID)
	}
	_, err := docs.Put(ctx, revisionsDir+"/"+r.ID, vault.Packed{Value: r}, 0)
	if errors.Is(err, vault.ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("storing the revision %.12s: %w", r.ID, err)
	}
	return nil
}

// LoadRevision returns the revision whose id begins with id, which is at least 6 digits, or that is named so. The error is
// ErrNoRevision when there is none.
func LoadRevision(ctx context.Context, docs Documents, id string) (Revision, error) {
	var r Revision
	id = Configuration(id)
	if !revisionID.MatchString(id) || len(id) < 64 {
		all, err := docs.List(ctx, revisionsDir)
		if err != nil {
			return r, fmt.Errorf("looking for the revision %s: %w", id, err)
		}
		all = slices.DeleteFunc(all, func(name string) bool { return len(id) < 6 || !strings.HasPrefix(name, id) })
		if len(all) != 1 {
			return r, fmt.Errorf("%w (%q)", ErrNoRevision, id)
		}
		id = all[0]
	}
	_, err := docs.Get(ctx, revisionsDir+"/"+id, &vault.Packed{Value: &r})
	if errors.Is(err, vault.ErrNotFound) {
		return r, fmt.Errorf("%w (%.12s)", ErrNoRevision, id)
	}
	if err != nil {
		return r, fmt.Errorf("loading the revision %.12s: %w", id, err)
	}
	return r, nil
}

// Revisions are all that are kept, the latest first, without their texts.
func Revisions(ctx context.Context, docs Documents) ([]Revision, error) {
	names, err := docs.List(ctx, revisionsDir)
	if err != nil {
		return nil, fmt.Errorf("listing the revisions: %w", err)
	}
	all := make([]Revision, 0, len(names))
	for _, name := range names {
		r, err := LoadRevision(ctx, docs, name)
		if errors.Is(err, ErrNoRevision) {
			continue // forgotten meanwhile
		}
		if err != nil {
			return nil, err
		}
		r.Text, r.Files = "", nil
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Revision) int { return b.Stored.Compare(a.Stored) })
	return all, nil
}

// Forget removes the revisions that nothing refers to any more: no Envoy has them, and the last rollouts were not of them. Young ones
// stay, since one is stored before its rollout starts.
func Forget(ctx context.Context, docs Documents, s rollout.State, now time.Time) error {
	names, err := docs.List(ctx, revisionsDir)
	if err != nil {
		return fmt.Errorf("listing the revisions: %w", err)
	}
	keep := s.Revisions()
	for _, r := range s.History[:min(len(s.History), kept)] {
		keep = append(keep, r.From, r.To)
	}
	for _, name := range names {
		if slices.ContainsFunc(keep, func(k string) bool { return Configuration(k) == name }) {
			continue
		}
		r, err := LoadRevision(ctx, docs, name)
		if errors.Is(err, ErrNoRevision) || err == nil && now.Sub(r.Stored) < freshTime {
			continue
		}
		if err == nil {
			err = docs.Delete(ctx, revisionsDir+"/"+name)
		}
		if err != nil {
			return fmt.Errorf("removing the old revision %.12s: %w", name, err)
		}
	}
	return nil
}

// ReadState returns how far the rollout is; version is for a later write. A fleet without one has the zero State.
func ReadState(ctx context.Context, docs Documents) (s rollout.State, version int, err error) {
	version, err = docs.Get(ctx, statePath, &vault.Packed{Value: &s})
	if errors.Is(err, vault.ErrNotFound) {
		return rollout.State{}, version, nil
	}
	if err != nil {
		return s, version, fmt.Errorf("reading how far the rollout is: %w", err)
	}
	return s, version, nil
}

// Change writes what f makes of the state, and returns it. Others may write meanwhile: f is then called again. Its error is
// returned as it is.
func Change(ctx context.Context, docs Documents, f func(rollout.State) (rollout.State, error)) (rollout.State, error) {
	for range tries {
		now, version, err := ReadState(ctx, docs)
		if err != nil {
			return now, err
		}
		next, err := f(now)
		if err != nil {
			return now, err
		}
		_, err = docs.Put(ctx, statePath, vault.Packed{Value: next}, version)
		if err == nil {
			return next, nil
		}
		if !errors.Is(err, vault.ErrConflict) {
			return now, fmt.Errorf("writing how far the rollout is: %w", err)
		}
		select {
		case <-time.After(rand.N(pause)):
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
	return rollout.State{}, fmt.Errorf("writing how far the rollout is: others wrote each time; try again: %w", vault.ErrConflict)
}
