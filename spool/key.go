package spool

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"wayleave/vault"
)

// Key seals the entries. It is a secret: it has no textual form but the one in Vault.
type Key [32]byte

// String keeps the key out of logs.
func (Key) String() string { return "[redacted]" }

// GoString keeps the key out of logs.
func (Key) GoString() string { return "[redacted]" }

// MarshalText refuses: a key that is written anywhere but by LoadKey is a leak.
func (Key) MarshalText() ([]byte, error) {
	return nil, errors.New("a spool key is not to be written down")
}

// Documents is the part of a store that LoadKey uses; a [vault.Client] is one.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
}

const keyPath = "keys/spool"

// LoadKey reads the key that all gates share from the store, and makes it if there is none.
func LoadKey(ctx context.Context, docs Documents) (Key, error) {
	var (
		key Key
		doc struct {
			Key string `json:"key"`
		}
	)
	version, err := docs.Get(ctx, keyPath, &doc)
	if errors.Is(err, vault.ErrNotFound) {
		if _, err := rand.Read(key[:]); err != nil {
			return Key{}, err
		}
		doc.Key = base64.StdEncoding.EncodeToString(key[:])
		if _, err = docs.Put(ctx, keyPath, doc, version); err == nil {
			return key, nil
		}
		// Another gate may have been faster; and an answer may be lost.
		_, err = docs.Get(ctx, keyPath, &doc)
	}
	if err != nil {
		return Key{}, fmt.Errorf("loading the spool's key: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(doc.Key)
	if err != nil || copy(key[:], raw) != len(key) || len(raw) != len(key) {
		return Key{}, fmt.Errorf("%s in vault does not hold a key of %d bytes; delete it, and the next start makes a new one", keyPath, len(key))
	}
	return key, nil
}
