package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"wayleave/vault"
)

// keyPath is the document that holds the session keys.
const keyPath = "keys/session"

const keyLength = 32

// Documents is the part of the document store a Keyring needs: vault.Client, or a fake with its behaviour.
// Put writes only when the stored version is still cas, else it fails with vault.ErrConflict.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
}

// Keyring holds the keys under which sessions and placeholders are made and recognised. Any replica with the same ring
// verifies what another issued, without a look-up. It is safe for concurrent use.
//
// The ring has up to three keys by id: the previous one, still accepted; the current one, which issues; and the next
// one, already known to every replica before the first session made with it can arrive. Rotate moves one step on.
type Keyring struct {
	docs Documents
	keys atomic.Pointer[keys]
}

// keys is one immutable state of the ring. Ids are 1 to 255: one byte in a placeholder, a decimal string in the store.
type keys struct {
	current byte
	byID    map[byte][]byte
}

// keyDocument is the stored form. Key material is base64, as encoding/json writes bytes.
type keyDocument struct {
	Current string            `json:"current"`
	Keys    map[string][]byte `json:"keys"`
}

// LoadKeyring reads the ring, and creates it when it is absent. Replicas that start at the same time agree on one ring:
// creation is a check-and-set, and whoever loses reads the winner's.
func LoadKeyring(ctx context.Context, docs Documents) (*Keyring, error) {
	k := &Keyring{docs: docs}
	version, err := k.load(ctx)
	if errors.Is(err, vault.ErrNotFound) {
		created := &keys{current: 1, byID: map[byte][]byte{1: newKey(), 2: newKey()}}
		_, err = docs.Put(ctx, keyPath, created.document(), version)
		if errors.Is(err, vault.ErrConflict) {
			_, err = k.load(ctx)
		} else if err == nil {
			k.keys.Store(created)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("session keys: %w", err)
	}
	return k, nil
}

// Reload reads the ring again. A replica must do so at least once between two rotations; on an error it keeps what it has.
func (k *Keyring) Reload(ctx context.Context) error {
	if _, err := k.load(ctx); err != nil {
		return fmt.Errorf("session keys: %w", err)
	}
	return nil
}

// Rotate moves the ring one step: the next key becomes current, the current becomes previous, the previous is forgotten,
// which ends the sessions made with it, and a new next key is made. Rotating twice ends every session of today.
// When another replica rotates at the same moment, one step is made and both replicas have it.
func (k *Keyring) Rotate(ctx context.Context) error {
	version, err := k.load(ctx)
	if err != nil {
		return fmt.Errorf("session keys: %w", err)
	}
	next := k.keys.Load().rotated()
	switch _, err = k.docs.Put(ctx, keyPath, next.document(), version); {
	case errors.Is(err, vault.ErrConflict):
		return k.Reload(ctx)
	case err != nil:
		return fmt.Errorf("session keys: %w", err)
	}
	k.keys.Store(next)
	return nil
}

// load reads the document into the ring. The version is meaningful with vault.ErrNotFound too.
func (k *Keyring) load(ctx context.Context) (version int, err error) {
	var doc keyDocument
	if version, err = k.docs.Get(ctx, keyPath, &doc); err != nil {
		return version, err
	}
	got, err := doc.parse()
	if err != nil {
		return version, err
	}
	k.keys.Store(got)
	return version, nil
}

func (d keyDocument) parse() (*keys, error) {
	current, err := strconv.ParseUint(d.Current, 10, 8)
	if err != nil {
		return nil, fmt.Errorf("%s names no current key by a number from 1 to 255", keyPath)
	}
	out := &keys{current: byte(current), byID: map[byte][]byte{}}
	for id, key := range d.Keys {
		n, err := strconv.ParseUint(id, 10, 8)
		if err != nil || n == 0 || len(key) != keyLength {
			return nil, fmt.Errorf("key %q in %s is not %d bytes under a number from 1 to 255", id, keyPath, keyLength)
		}
		out.byID[byte(n)] = key
	}
	if out.byID[out.current] == nil {
		return nil, fmt.Errorf("%s lacks its current key %d", keyPath, out.current)
	}
	return out, nil
}

func (s *keys) document() keyDocument {
	doc := keyDocument{Current: strconv.Itoa(int(s.current)), Keys: map[string][]byte{}}
	for id, key := range s.byID {
		doc.Keys[strconv.Itoa(int(id))] = key
	}
	return doc
}

func (s *keys) rotated() *keys {
	next := after(s.current)
	key := s.byID[next]
	if key == nil { // a ring written by hand
		key = newKey()
	}
	return &keys{current: next, byID: map[byte][]byte{
		s.current:   s.byID[s.current],
		next:        key,
		after(next): newKey(),
	}}
}

// after is the id that follows: 1 to 255, then 1 again.
func after(id byte) byte { return id%255 + 1 }

func newKey() []byte {
	key := make([]byte, keyLength)
	rand.Read(key) // never fails: crypto/rand ends the process instead
	return key
}
