package vaulttest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"wayleave/vault"
)

// Fault is what a Memory does to one call. The zero value does nothing.
type Fault struct {
	Before error // fail with this; nothing is read or written
	After  error // do it, then fail with this: the answer that got lost
	Stale  bool  // reads see the version before the latest, as a lagging standby serves it
}

// Memory is a document store and root CAs in memory that behave as Vault's do: the same suite passes on both.
type Memory struct {
	mu     sync.Mutex
	docs   map[string]document         // guarded by mu
	inject func(op, path string) Fault // guarded by mu

	pki pki
}

type document struct {
	version  int
	data     []byte // nil: the latest version is deleted
	previous []byte // for Stale
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{docs: map[string]document{}} }

// Inject has f decide about each following call; op is "get", "put", "version", "list", "delete", "sign", "roots", "prepare",
// "activate", "retire" or "intermediates". f runs without any lock held, so it may block, count, or call the store. A nil f ends it.
func (m *Memory) Inject(f func(op, path string) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inject = f
}

// do runs one call under the lock, with its fault around it.
func (m *Memory) do(ctx context.Context, op, path string, call func(stale bool) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w: %w", op, path, vault.ErrUnavailable, err)
	}
	if err := vault.CheckPath(path); err != nil {
		return err
	}
	m.mu.Lock()
	inject := m.inject
	m.mu.Unlock()
	var fault Fault
	if inject != nil {
		fault = inject(op, path)
	}
	if fault.Before != nil {
		return fmt.Errorf("%s %s: %w", op, path, fault.Before)
	}
	m.mu.Lock()
	err := call(fault.Stale)
	m.mu.Unlock()
	if err := cmp.Or(err, fault.After); err != nil {
		return fmt.Errorf("%s %s: %w", op, path, err)
	}
	return nil
}

// Get is [vault.Client.Get].
func (m *Memory) Get(ctx context.Context, path string, into any) (version int, err error) {
	err = m.do(ctx, "get", path, func(stale bool) error {
		d := m.docs[path]
		if stale && d.version > 0 {
			d.version, d.data = d.version-1, d.previous
		}
		version = d.version
		if d.data == nil {
			return vault.ErrNotFound
		}
		return json.Unmarshal(d.data, into)
	})
	return version, err
}

// OpenBao refuses a request with more strings in it, names included (max_request_json_strings).
const mostStrings = 1000

// Put is [vault.Client.Put].
func (m *Memory) Put(ctx context.Context, path string, doc any, cas int) (version int, err error) {
	raw, err := vault.Encode(doc)
	if err != nil {
		return 0, fmt.Errorf("put %s: %w", path, err)
	}
	if n := vault.CountStrings(raw); n > mostStrings {
		return 0, fmt.Errorf("put %s: 413: %d strings are more than a server takes", path, n)
	}
	// The server keeps numbers as float64, so large integers come back changed.
	var kept map[string]any
	if err := json.Unmarshal(raw, &kept); err != nil {
		return 0, err
	}
	if raw, err = json.Marshal(kept); err != nil {
		return 0, err
	}
	err = m.do(ctx, "put", path, func(bool) error {
		d := m.docs[path]
		if d.version != cas {
			return vault.ErrConflict
		}
		version = cas + 1
		m.docs[path] = document{version: version, data: raw, previous: d.data}
		return nil
	})
	if err != nil {
		version = 0
	}
	return version, err
}

// Version is [vault.Client.Version].
func (m *Memory) Version(ctx context.Context, path string) (version int, err error) {
	err = m.do(ctx, "version", path, func(stale bool) error {
		version = m.docs[path].version
		if stale && version > 0 {
			version--
		}
		return nil
	})
	return version, err
}

// List is [vault.Client.List].
func (m *Memory) List(ctx context.Context, path string) (names []string, err error) {
	err = m.do(ctx, "list", path, func(bool) error {
		found := map[string]bool{}
		for p := range m.docs {
			if rest, ok := strings.CutPrefix(p, path+"/"); ok {
				name, _, folder := strings.Cut(rest, "/")
				if folder {
					name += "/"
				}
				found[name] = true
			}
		}
		names = slices.Sorted(maps.Keys(found))
		return nil
	})
	return names, err
}

// Delete is [vault.Client.Delete].
func (m *Memory) Delete(ctx context.Context, path string) error {
	return m.do(ctx, "delete", path, func(bool) error {
		delete(m.docs, path)
		return nil
	})
}

// SoftDelete deletes the latest version and keeps its number, as `vault kv delete` does.
func (m *Memory) SoftDelete(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.docs[path]; ok {
		m.docs[path] = document{version: d.version, previous: d.data}
	}
}
