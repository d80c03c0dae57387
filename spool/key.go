package spool

import (
	"context"
	"fmt"

	"wayleave/vault"
)

// Key seals the entries.
type Key = vault.SharedKey

// Documents is the part of a store that LoadKey uses; a [vault.Client] is one.
type Documents = vault.Documents

const keyPath = "keys/spool"

// LoadKey reads the key that all gates share from the store, and makes it if there is none.
func LoadKey(ctx context.Context, docs Documents) (Key, error) {
	key, err := vault.LoadKey(ctx, docs, keyPath)
	if err != nil {
		return Key{}, fmt.Errorf("loading the spool's key: %w", err)
	}
	return key, nil
}
