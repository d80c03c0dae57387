package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"wayleave/secret"
)

// Encode returns doc as the JSON object that Put stores. It refuses a secret.Text left unrevealed: its redacted form
// would silently replace a token.
func Encode(doc any) (json.RawMessage, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(raw, []byte("{")) {
		return nil, errors.New("a document must be a JSON object")
	}
	redacted, err := json.Marshal(secret.Text{})
	if err != nil {
		return nil, err
	}
	if bytes.Contains(raw, redacted) {
		return nil, errors.New("the document holds a secret that was not revealed, so only its redacted form would be stored")
	}
	return raw, nil
}

// CheckPath refuses what is not the path of a document: slash-separated, without empty, "." or ".." elements, which the
// way to the server would resolve to a path the policy did not mean.
func CheckPath(path string) error {
	if !fs.ValidPath(path) || path == "." {
		return fmt.Errorf("%q is not the path of a document", path)
	}
	return nil
}

// versioned is what KV version 2 answers to a read; Data is null when the latest version is deleted.
type versioned struct {
	Data struct {
		Data     json.RawMessage `json:"data"`
		Metadata stored          `json:"metadata"`
	} `json:"data"`
}

// stored is what the server says of a version, read or written.
type stored struct {
	Version int    `json:"version"`
	Deleted string `json:"deletion_time"` // of one that is there: when the server will delete it by itself; empty: never
}

// noteDeletion keeps that the mount deletes what is not written for a while: keys and imported values are written once.
func (c *Client) noteDeletion(path string, s stored) {
	if s.Deleted != "" && c.deletes.Swap(&s.Deleted) == nil {
		c.log.Warn("vault will delete documents by itself, and with them keys and grants: set delete_version_after of the mount to 0s, or run `wayleave vault setup`", "mount", c.cfg.Mount, "path", path, "at", s.Deleted)
	}
}

// Deletes is when the server deletes the document that was read or written last, by itself, if answers said that it will.
func (c *Client) Deletes() (at string, will bool) {
	if found := c.deletes.Load(); found != nil {
		return *found, true
	}
	return "", false
}

var errNoDocument = errors.New("the answer names no version: it is not the server's own, but of something on the way to it")

// Get reads the document at path into the value into points to, as encoding/json does, and returns its version.
// The version that comes with [ErrNotFound] is the one to give Put: 0, or that of a deleted latest version.
func (c *Client) Get(ctx context.Context, path string, into any) (version int, err error) {
	if err := CheckPath(path); err != nil {
		return 0, err
	}
	var v versioned
	err = c.read(ctx, c.cfg.Mount+"/data/"+path, &v)
	version = v.Data.Metadata.Version
	if err == nil && version == 0 { // not to be taken for a document that is not there
		err = fmt.Errorf("%w: %w", ErrUnavailable, errNoDocument)
	}
	if err == nil && (len(v.Data.Data) == 0 || string(v.Data.Data) == "null") {
		err = ErrNotFound
	}
	if err == nil {
		c.noteDeletion(path, v.Data.Metadata)
		err = json.Unmarshal(v.Data.Data, into)
	}
	if err != nil {
		return version, fmt.Errorf("reading %s: %w", path, err)
	}
	return version, nil
}

// Put writes doc, which must encode as a JSON object, if the latest version is cas (0: there is none), and returns the
// new version. [ErrConflict] means it is not. The server keeps numbers as float64: an integer beyond 2^53, such as
// nanoseconds since 1970, comes back changed.
func (c *Client) Put(ctx context.Context, path string, doc any, cas int) (version int, err error) {
	if err := CheckPath(path); err != nil {
		return 0, err
	}
	raw, err := Encode(doc)
	if err != nil {
		return 0, fmt.Errorf("encoding %s: %w", path, err)
	}
	body := map[string]any{"options": map[string]int{"cas": cas}, "data": raw}
	var written stored
	if err := c.write(ctx, callTimeout, c.cfg.Mount+"/data/"+path, body, &written); err != nil {
		return 0, fmt.Errorf("writing %s: %w", path, err)
	}
	if written.Version == 0 {
		return 0, fmt.Errorf("writing %s: %w: %w", path, ErrUnavailable, errNoDocument)
	}
	c.noteDeletion(path, written)
	return written.Version, nil
}

// Version returns the latest version of the document without reading it, 0 when there is none: the cas for a writer
// that may not read.
func (c *Client) Version(ctx context.Context, path string) (int, error) {
	if err := CheckPath(path); err != nil {
		return 0, err
	}
	var m struct {
		Data struct {
			CurrentVersion int `json:"current_version"`
		} `json:"data"`
	}
	err := c.read(ctx, c.cfg.Mount+"/metadata/"+path, &m)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the version of %s: %w", path, err)
	}
	return m.Data.CurrentVersion, nil
}

// List returns the names under path, sorted; those that have names under them end with a slash. A path without any is
// no error.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	var l struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	err := c.list(ctx, c.cfg.Mount+"/metadata/"+path, &l)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("listing %s: %w", path, err)
	}
	slices.Sort(l.Data.Keys)
	return l.Data.Keys, nil
}

// Delete removes every version of the document and its metadata. Deleting what is not there is no error.
func (c *Client) Delete(ctx context.Context, path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if err := c.remove(ctx, callTimeout, c.cfg.Mount+"/metadata/"+path); err != nil {
		return fmt.Errorf("deleting %s: %w", path, err)
	}
	return nil
}
