package grant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"wayleave/vault"
)

// Documents is a store of JSON documents with check-and-set, as [vault.Client] is. Its errors wrap [vault.ErrNotFound],
// [vault.ErrConflict] and the like; each call ends by itself within seconds.
type Documents interface {
	// Get decodes the document into what into points to. The version that comes with ErrNotFound is the one to give Put.
	Get(ctx context.Context, path string, into any) (version int, err error)
	// Put writes if the current version is cas (0: none); ErrConflict says that it is not.
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
	// Version is for writers that may not read; 0 when there is nothing.
	Version(ctx context.Context, path string) (int, error)
	List(ctx context.Context, path string) ([]string, error)
	// Delete removes all versions; nothing there is no error.
	Delete(ctx context.Context, path string) error
}

const writeTries = 5 // of a write that competes with other writers

func grantPath(name string) string  { return "grants/" + name }
func statusPath(name string) string { return "status/" + name }

// stored is a record with its tokens in clear: the one form in which they leave memory, other than to the provider and
// upstream.
type stored struct {
	details
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token,omitempty"`
}

func putRecord(ctx context.Context, docs Documents, name string, r record, cas int) (int, error) {
	return docs.Put(ctx, grantPath(name), store(r), cas)
}

// getRecord reads a grant. A document that is no grant comes back as a dead record that says so: only a connect mends it.
func getRecord(ctx context.Context, docs Documents, name string) (record, int, error) {
	var raw json.RawMessage
	version, err := docs.Get(ctx, grantPath(name), &raw)
	if err != nil {
		return record{}, version, err
	}
	r, err := decode(raw)
	if err != nil {
		r = record{details: details{Epoch: "unreadable", Dead: true, LastError: fmt.Sprintf("%s: %v", grantPath(name), err)}}
	}
	return r, version, nil
}

// decode reads a stored record. Its errors never quote the document.
func decode(raw []byte) (record, error) {
	var s stored
	if err := json.Unmarshal(raw, &s); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
			return record{}, fmt.Errorf("not a grant document: field %s has the wrong type", strings.TrimPrefix(e.Field, "details."))
		}
		return record{}, errors.New("not a grant document")
	}
	switch {
	case s.Epoch == "" || s.Provider == "":
		return record{}, errors.New("not a grant document: epoch or provider is missing")
	case s.AccessToken == "" && s.RefreshToken == "" && s.Kind != Machine && !s.Revoked:
		return record{}, errors.New("the grant document holds no token")
	case s.Generation < 0 || s.Unanswered < 0 || s.Failures < 0 || s.Lease != nil && (s.Lease.ID == "" || s.Lease.Attempt < 1):
		return record{}, errors.New("the grant document contradicts itself")
	}
	return s.record(), nil
}

// putStatus makes status/<name> say s. Several replicas come to the same summary, so it looks before it writes. No status
// says that a grant was never connected, so only one that says otherwise, left over from a disconnect, is replaced by that.
func putStatus(ctx context.Context, docs Documents, s Summary) error {
	last := s.History
	for try := 1; ; try++ {
		var raw json.RawMessage
		version, err := docs.Get(ctx, statusPath(s.Name), &raw)
		if err != nil && !errors.Is(err, vault.ErrNotFound) {
			return err
		}
		old, was := normal(raw)
		s.History = followed(old.History, last)
		want, encodeErr := json.Marshal(s)
		if encodeErr != nil {
			return encodeErr
		}
		if err == nil && bytes.Equal(was, want) || err != nil && s.State == NeverConnected {
			return nil
		}
		if _, err := docs.Put(ctx, statusPath(s.Name), s, version); !errors.Is(err, vault.ErrConflict) || try == writeTries {
			return err
		}
	}
}

// normal is a stored summary and its JSON as we would have written it, or nil: stores may reorder keys.
func normal(raw []byte) (s Summary, encoded []byte) {
	if json.Unmarshal(raw, &s) != nil {
		return Summary{}, nil
	}
	encoded, _ = json.Marshal(s)
	return s, encoded
}

// getStatus reads a summary; what cannot be read counts as never connected, with the reason.
func getStatus(ctx context.Context, docs Documents, name string) (Summary, error) {
	var raw json.RawMessage
	none := Summary{Name: name}.in(NeverConnected)
	_, err := docs.Get(ctx, statusPath(name), &raw)
	if errors.Is(err, vault.ErrNotFound) {
		return none, nil
	}
	if err != nil {
		return Summary{}, fmt.Errorf("reading %s: %w", statusPath(name), err)
	}
	s := Summary{}
	if json.Unmarshal(raw, &s) != nil || !s.State.known() {
		none.LastError = statusPath(name) + " is not a status document"
		return none, nil
	}
	return s, nil
}
