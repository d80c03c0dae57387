package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

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
// The ring has keys by id: the current one, which issues; the next one, already known to every replica before the first session
// made with it can arrive; and those that issued before, accepted for as long as a session of theirs may last.
type Keyring struct {
	docs Documents
	keys atomic.Pointer[keys]
}

// keys is one immutable state of the ring. Ids are 1 to 255: one byte in a placeholder, a decimal string in the store.
type keys struct {
	current, next byte
	byID          map[byte][]byte
	retired       map[byte]time.Time // until when they are kept
	rotated       string             // id of the request that was carried out last
	rotatedAt     time.Time
}

// keyDocument is the stored form. Key material is base64, as encoding/json writes bytes.
type keyDocument struct {
	Current   string               `json:"current"`
	Next      string               `json:"next"`
	Keys      map[string][]byte    `json:"keys"`
	Retired   map[string]time.Time `json:"retired,omitempty"`
	Rotated   string               `json:"rotated,omitempty"`
	RotatedAt time.Time            `json:"rotated_at,omitzero"`
}

// LoadKeyring reads the ring, and creates it when it is absent. Replicas that start at the same time agree on one ring:
// creation is a check-and-set, and whoever loses reads the winner's.
func LoadKeyring(ctx context.Context, docs Documents) (*Keyring, error) {
	k := &Keyring{docs: docs}
	version, err := k.load(ctx)
	if errors.Is(err, vault.ErrNotFound) {
		created := &keys{current: 1, next: 2, byID: map[byte][]byte{1: newKey(), 2: newKey()}}
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
	out := &keys{byID: map[byte][]byte{}, retired: map[byte]time.Time{}, rotated: d.Rotated, rotatedAt: d.RotatedAt}
	for id, key := range d.Keys {
		n, err := keyID(id)
		if err != nil || len(key) != keyLength {
			return nil, fmt.Errorf("key %q in %s is not %d bytes under a number from 1 to 255", id, keyPath, keyLength)
		}
		out.byID[n] = key
	}
	var err error
	if out.current, err = keyID(d.Current); err != nil || out.byID[out.current] == nil {
		return nil, fmt.Errorf("%s lacks the current key that it names, %q", keyPath, d.Current)
	}
	if d.Next == "" { // as rings were written before they kept more than three keys
		d.Next = strconv.Itoa(int(out.current)%255 + 1)
	}
	if out.next, err = keyID(d.Next); err != nil || out.byID[out.next] == nil || out.next == out.current {
		return nil, fmt.Errorf("%s lacks the next key that it names, %q", keyPath, d.Next)
	}
	for id, until := range d.Retired {
		if n, err := keyID(id); err == nil {
			out.retired[n] = until
		}
	}
	return out, nil
}

func keyID(s string) (byte, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return byte(n), err
}

func (s *keys) document() keyDocument {
	doc := keyDocument{
		Current: strconv.Itoa(int(s.current)), Next: strconv.Itoa(int(s.next)), Keys: map[string][]byte{}, Retired: map[string]time.Time{},
		Rotated: s.rotated, RotatedAt: s.rotatedAt,
	}
	for id, key := range s.byID {
		doc.Keys[strconv.Itoa(int(id))] = key
	}
	for id, until := range s.retired {
		doc.Retired[strconv.Itoa(int(id))] = until
	}
	return doc
}

func newKey() []byte {
	key := make([]byte, keyLength)
	rand.Read(key) // never fails: crypto/rand ends the process instead
	return key
}
