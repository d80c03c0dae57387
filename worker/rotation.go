package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"wayleave/vault"
)

// Operators have no right to the session keys, with which they could make sessions of any worker. They ask for a rotation in
// one document, one of the gates makes it, and says so in another.
const (
	rotationPath  = "requests/sessions"
	keyStatusPath = "sessions/keys"
)

const (
	keysEvery    = 5 * time.Second  // a gate looks at the keys and at what is asked for
	rotationLife = 10 * time.Minute // a request that no gate has carried out by then is not carried out any more
	// rotationGap is the least time between two rotations: enough for every gate to learn of the next key before it issues.
	rotationGap = time.Minute
	mostKeys    = 250 // of 255 ids
)

// rotationRequest is what an operator asks for.
type rotationRequest struct {
	ID          string    `json:"id"`
	At          time.Time `json:"at"`
	EndSessions bool      `json:"end_sessions,omitempty"`
}

// KeyStatus is what people may know of the keys.
type KeyStatus struct {
	// Rotated is the id of the request that was carried out last.
	Rotated string `json:"rotated"`
	// At is when.
	At time.Time `json:"at"`
	// Current is the id of the key that issues, Accepted are those of the keys whose sessions are good.
	Current  string   `json:"current"`
	Accepted []string `json:"accepted"`
}

// AskRotation asks the running gates to rotate the session keys; one of them does within seconds, but not within a minute of the
// rotation before. It is done when the status has the returned id. Live sessions go on, unless endSessions: then nothing made
// with an earlier key is accepted any more, which is for keys that somebody else may know.
func AskRotation(ctx context.Context, docs Documents, endSessions bool, now time.Time) (id string, err error) {
	r := rotationRequest{ID: rand.Text(), At: now.UTC().Truncate(time.Second), EndSessions: endSessions}
	var old rotationRequest
	version, err := docs.Get(ctx, rotationPath, &old)
	if err == nil || errors.Is(err, vault.ErrNotFound) {
		_, err = docs.Put(ctx, rotationPath, r, version)
	}
	if err != nil {
		return "", fmt.Errorf("asking for a rotation of the session keys: %w", err)
	}
	return r.ID, nil
}

// ReadKeyStatus returns what is known of the last rotation; nothing when there was none.
func ReadKeyStatus(ctx context.Context, docs Documents) (KeyStatus, error) {
	var s KeyStatus
	if _, err := docs.Get(ctx, keyStatusPath, &s); err != nil && !errors.Is(err, vault.ErrNotFound) {
		return s, fmt.Errorf("reading the status of the session keys: %w", err)
	}
	return s, nil
}

// Tend reads the ring again, and rotates it if that is asked for. It reports whether it did.
func (k *Keyring) Tend(ctx context.Context, now time.Time) (rotated bool, err error) {
	version, err := k.load(ctx)
	if err != nil {
		return false, fmt.Errorf("session keys: %w", err)
	}
	var r rotationRequest
	if _, err := k.docs.Get(ctx, rotationPath, &r); errors.Is(err, vault.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("session keys: %w", err)
	}
	if now.Sub(r.At).Abs() > rotationLife {
		return false, nil
	}
	if was := k.keys.Load(); was.rotated != r.ID {
		if now.Sub(was.rotatedAt).Abs() < rotationGap && !r.EndSessions {
			return false, nil
		}
		next, err := was.rotate(r, now)
		if err != nil {
			return false, err
		}
		switch _, err = k.docs.Put(ctx, keyPath, next.document(), version); {
		case errors.Is(err, vault.ErrConflict): // another gate was faster
			return false, k.Reload(ctx)
		case err != nil:
			return false, fmt.Errorf("session keys: %w", err)
		}
		k.keys.Store(next)
		rotated = true
	}
	return rotated, k.putStatus(ctx)
}

// putStatus says what was done, whichever gate did it: that one may have ended since.
func (k *Keyring) putStatus(ctx context.Context) error {
	now := k.keys.Load()
	want := KeyStatus{Rotated: now.rotated, At: now.rotatedAt, Current: strconv.Itoa(int(now.current))}
	for _, id := range slices.Sorted(maps.Keys(now.byID)) {
		if id != now.next {
			want.Accepted = append(want.Accepted, strconv.Itoa(int(id)))
		}
	}
	var s KeyStatus
	version, err := k.docs.Get(ctx, keyStatusPath, &s)
	if err != nil && !errors.Is(err, vault.ErrNotFound) || err == nil && s.Rotated == want.Rotated {
		return err
	}
	if _, err = k.docs.Put(ctx, keyStatusPath, want, version); errors.Is(err, vault.ErrConflict) {
		err = nil // another gate said it
	}
	return err
}

// rotate is the ring after a rotation.
func (s *keys) rotate(r rotationRequest, now time.Time) (*keys, error) {
	now = now.UTC().Truncate(time.Second)
	out := &keys{byID: map[byte][]byte{}, retired: map[byte]time.Time{}, rotated: r.ID, rotatedAt: now}
	if r.EndSessions { // whoever knows a key of the ring knows the next one too
		out.current = s.free(s.next)
		out.next = s.free(out.current)
		out.byID[out.current], out.byID[out.next] = newKey(), newKey()
		return out, nil
	}
	for id, key := range s.byID {
		until, retired := s.retired[id]
		switch {
		case id == s.next:
		case !retired:
			out.retired[id], out.byID[id] = now.Add(LongestSession), key
		case until.After(now):
			out.retired[id], out.byID[id] = until, key
		}
	}
	out.current, out.byID[s.next] = s.next, s.byID[s.next]
	if len(out.byID) > mostKeys {
		return nil, errors.New("session keys: too many earlier ones are kept for sessions that may still live; rotate them later")
	}
	out.next = out.free(out.current)
	out.byID[out.next] = newKey()
	return out, nil
}

// free is the id after this one that no key has: 1 to 255, then 1 again. There always is one.
func (s *keys) free(id byte) byte {
	for {
		if id = id%255 + 1; s.byID[id] == nil {
			return id
		}
	}
}
