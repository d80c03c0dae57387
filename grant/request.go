package grant

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"wayleave/vault"
)

// Request is what an operator, who may not read tokens, asks a gateway to do with a grant.
type Request string

// What can be asked for.
const (
	AskRefresh Request = "refresh" // now, whatever the token's life and earlier failures
	AskRevoke  Request = "revoke"  // at the provider, and forget the tokens
)

// requestsPath is one document for all grants: gateways read it as often as a grant.
const requestsPath = "requests/grants"

// changesPath is one document that names the grant that an operator changed last, so that gateways can read one that nobody asks
// for less often. Its version says whether there were others since.
const changesPath = "requests/changes"

type change struct {
	Grant string `json:"grant"`
}

// tell has running gateways look at a grant. Where it fails they do so with the next request, or within a minute.
func tell(ctx context.Context, docs Documents, name string) {
	for try := 1; ; try++ {
		version, err := docs.Version(ctx, changesPath)
		if err != nil {
			return
		}
		if _, err = docs.Put(ctx, changesPath, change{name}, version); !errors.Is(err, vault.ErrConflict) || try == writeTries {
			return
		}
	}
}

// requestLife is how long a request stands. A gateway that starts later does not carry it out.
const requestLife = 10 * time.Minute

const askTries = 20 // against other operators

// request is one, as stored under the grant's name.
type request struct {
	ID    string    `json:"id"`
	Do    Request   `json:"do"`
	Epoch string    `json:"epoch"` // of the grant that is meant: never one connected later
	At    time.Time `json:"at"`
}

// Ask asks the running gateways to refresh or revoke the tokens of a grant; one of them does within seconds. It is done
// when the grant's Summary has the returned id as its Request. Asking needs no permission to read grants.
func Ask(ctx context.Context, docs Documents, name string, what Request, now time.Time) (id string, err error) {
	s, err := getStatus(ctx, docs, name)
	if err != nil {
		return "", err
	}
	if s.Epoch == "" {
		return "", &Unusable{Grant: name, State: NeverConnected}
	}
	r := request{ID: rand.Text(), Do: what, Epoch: s.Epoch, At: wall(now)}
	for try := 1; ; try++ {
		all, version, err := getRequests(ctx, docs)
		if err != nil {
			return "", fmt.Errorf("asking for a %s of grant %q: %w", what, name, err)
		}
		for other, r := range all {
			if now.Sub(r.At) > requestLife {
				delete(all, other)
			}
		}
		all[name] = r
		switch _, err = docs.Put(ctx, requestsPath, vault.Fitting{Value: all}, version); {
		case err == nil:
			return r.ID, nil
		case !errors.Is(err, vault.ErrConflict) || try == askTries:
			return "", fmt.Errorf("asking for a %s of grant %q: %w; ask again", what, name, err)
		}
		// All grants share the document, and a script may ask for all of them at once.
		select {
		case <-time.After(mathrand.N(time.Duration(try) * conflictPause)):
		case <-ctx.Done():
			return "", fmt.Errorf("asking for a %s of grant %q: %w", what, name, ctx.Err())
		}
	}
}

func getRequests(ctx context.Context, docs Documents) (map[string]request, int, error) {
	all := map[string]request{}
	version, err := docs.Get(ctx, requestsPath, &vault.Fitting{Value: &all})
	if errors.Is(err, vault.ErrNotFound) {
		err = nil
	}
	return all, version, err
}

// handled is r after the request was carried out.
func (r record) handled(id string) record {
	if r.Handled != "" {
		r.Done = append([]string{r.Handled}, r.Done[:min(len(r.Done), requestsDone-1)]...)
	}
	r.Handled = id
	return r
}

// requestsDone is how many requests before the last are remembered. Gates read each within seconds.
const requestsDone = 8

// open reports whether q asks for something that is still to be done to r.
func (q *request) open(r record, now moment) bool {
	return q != nil && q.ID != r.Handled && !slices.Contains(r.Done, q.ID) && q.Epoch == r.Epoch && r.connected() && now.day.Sub(q.At).Abs() <= requestLife
}
