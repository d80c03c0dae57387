package vault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
)

// SharedKey is a key that all gates have. It has no textual form but the one in Vault.
type SharedKey [32]byte

// String keeps the key out of logs.
func (SharedKey) String() string { return "[redacted]" }

// GoString keeps the key out of logs.
func (SharedKey) GoString() string { return "[redacted]" }

// MarshalText refuses: a key that is written anywhere but by LoadKey is a leak.
func (SharedKey) MarshalText() ([]byte, error) {
	return nil, errors.New("a key is not to be written down")
}

// Documents is the part of a store that LoadKey uses; a [Client] is one.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
}

// LoadKey reads the key in a document, and makes it if there is none. Gates that start together get the same one.
func LoadKey(ctx context.Context, docs Documents, path string) (SharedKey, error) {
	var doc keyDocument
	version, err := docs.Get(ctx, path, &doc)
	if errors.Is(err, ErrNotFound) {
		var key SharedKey
		if _, err := rand.Read(key[:]); err != nil {
			return SharedKey{}, err
		}
		if _, err = docs.Put(ctx, path, keyDocument{base64.StdEncoding.EncodeToString(key[:])}, version); err == nil {
			return key, nil
		}
		// Another gate may have been faster; and an answer may be lost.
		_, err = docs.Get(ctx, path, &doc)
	}
	if err != nil {
		return SharedKey{}, err
	}
	return doc.key(path)
}

// ReadKey is LoadKey for whoever makes none.
func ReadKey(ctx context.Context, docs Documents, path string) (SharedKey, error) {
	var doc keyDocument
	if _, err := docs.Get(ctx, path, &doc); err != nil {
		return SharedKey{}, err
	}
	return doc.key(path)
}

type keyDocument struct {
	Key string `json:"key"`
}

func (d keyDocument) key(path string) (key SharedKey, err error) {
	raw, err := base64.StdEncoding.DecodeString(d.Key)
	if err != nil || len(raw) != len(key) {
		return SharedKey{}, fmt.Errorf("%s in vault does not hold a key of %d bytes; delete it, and the next start makes a new one", path, len(key))
	}
	copy(key[:], raw)
	return key, nil
}
