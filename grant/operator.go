package grant

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wayleave/oauth"
	"wayleave/vault"
)

// Connect stores a fresh consent, replacing whatever was there; running gateways see it within seconds. It needs no
// permission to read grants. A grant that got fewer scopes than requested is stored too: the summary says ScopeMissing.
// An error that comes with a summary means that only the status document could not be written.
func Connect(ctx context.Context, docs Documents, spec Spec, t oauth.Token, now time.Time) (Summary, error) {
	if t.Access.IsZero() && t.Refresh.IsZero() {
		return Summary{}, fmt.Errorf("connecting grant %q: the provider gave no access token", spec.Name)
	}
	r := newRecord(spec, t, rand.Text(), now).happened(Event{At: now, What: Connected})
	told, err := overwrite(ctx, docs, spec.Name, r)
	if err != nil {
		return Summary{}, fmt.Errorf("storing grant %q: %w", spec.Name, err)
	}
	defer tell(ctx, docs, spec.Name)
	s := summarize(r, spec, moment{day: now})
	if told {
		return s, nil
	}
	if err := putStatus(ctx, docs, s); err != nil {
		return s, fmt.Errorf("grant %q is connected, but its status document is not up to date, which a running gateway will mend: %w", spec.Name, err)
	}
	return s, nil
}

// StoreFor is how long [Connect] tries a store that does not answer: the consent is lost otherwise, and another node of it may be about to.
const StoreFor = 15 * time.Second

const storeAgain = time.Second

var errUnsure = errors.New("nor did it say whether it has it: look at `wayleave grant list`, and connect again if it is not there")

// overwrite writes r over any version. A gateway that is just refreshing may get in between a few times. A write without an answer may have been
// applied, and gateways may have the tokens by then and another refresh token: it is tried again over the same version only. told is that a
// gateway's status document has it by then.
func overwrite(ctx context.Context, docs Documents, name string, r record) (told bool, err error) {
	within, cancel := context.WithTimeout(ctx, StoreFor)
	defer cancel()
	var unsure error // of that write
	for version, conflicts := 0, 0; ; {
		err = nil
		if unsure == nil {
			version, err = docs.Version(ctx, grantPath(name))
		}
		if err == nil {
			if _, err = putRecord(ctx, docs, name, r, version); errors.Is(err, vault.ErrUnavailable) {
				unsure = err
			}
		}
		switch conflict := errors.Is(err, vault.ErrConflict); {
		case conflict && unsure != nil: // we wrote, or somebody else: a gateway soon says what it found
			if s, statusErr := getStatus(ctx, docs, name); statusErr == nil && s.Epoch == r.Epoch {
				return true, nil
			}
			tell(ctx, docs, name)
		case conflict && conflicts < writeTries-1:
			conflicts++
			continue
		case !errors.Is(err, vault.ErrUnavailable):
			return false, err
		}
		select {
		case <-time.After(storeAgain):
		case <-within.Done():
			if unsure != nil {
				err = fmt.Errorf("%w; %w", unsure, errUnsure)
			}
			return false, err
		}
	}
}

// Disconnect forgets a grant and its status. Running gateways stop using it within seconds. Tokens stay valid at the
// provider until they expire or are revoked there.
func Disconnect(ctx context.Context, docs Documents, name string) error {
	for _, path := range []string{grantPath(name), statusPath(name)} {
		if err := docs.Delete(ctx, path); err != nil && !errors.Is(err, vault.ErrNotFound) {
			return fmt.Errorf("disconnecting grant %q: deleting %s: %w", name, path, err)
		}
	}
	tell(ctx, docs, name)
	return nil
}

// List returns the summaries of the configured grants in their order, then of grants that are stored but not configured.
func List(ctx context.Context, docs Documents, specs []Spec) ([]Summary, error) {
	return list(ctx, docs, specs, time.Now())
}

func list(ctx context.Context, docs Documents, specs []Spec, now time.Time) ([]Summary, error) {
	var all []Summary
	for _, spec := range specs {
		s, err := getStatus(ctx, docs, spec.Name)
		if err != nil {
			return nil, err
		}
		if s.State == NeverConnected {
			s.Provider = spec.Provider
		}
		all = append(all, s.under(spec, now))
	}
	names, err := docs.List(ctx, "status")
	if err != nil && !errors.Is(err, vault.ErrNotFound) {
		return nil, fmt.Errorf("listing grants: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "/") || slices.ContainsFunc(specs, func(s Spec) bool { return s.Name == name }) {
			continue
		}
		s, err := getStatus(ctx, docs, name)
		if err != nil {
			return nil, err
		}
		if s.State == NeverConnected {
			continue
		}
		s.Next = fmt.Sprintf("not in the configuration: add it, or run `wayleave grant disconnect %s`", name)
		all = append(all, s)
	}
	return all, nil
}
