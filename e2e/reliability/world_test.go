package reliability

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"wayleave/grant"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// world is one OpenBao and two providers: one that revokes at once, one that has patience with what it sees twice.
type world struct {
	*testing.T
	*shared
}

// shared is what the parts of a test have in common.
type shared struct {
	bao           *vaulttest.Server
	login         login
	strict, grace *authority
	spools        string // directory of all spools

	asking      sync.Mutex
	mu          sync.Mutex
	transcripts []*transcript
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := &shared{bao: vaulttest.Start(t), strict: newAuthority(t, "strict", 0), grace: newAuthority(t, "grace", time.Minute), spools: t.TempDir()}
	auth := s.bao.GatewayConfig.Auth
	s.login = login{s.bao.Address, auth.RoleID, auth.SecretID.Reveal()}
	return &world{t, s}
}

// in is the same world for a part of the test.
func (w *world) in(t *testing.T) *world { return &world{t, w.shared} }

// authority is the provider of a grant.
func (w *world) authority(g minded) *authority {
	if g.Provider == w.grace.name {
		return w.grace
	}
	return w.strict
}

// transcript is to be searched for tokens in the end.
func (w *world) transcript() *transcript {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.transcripts = append(w.transcripts, &transcript{})
	return w.transcripts[len(w.transcripts)-1]
}

// spool is the directory of a new one.
func (w *world) spool() string {
	w.Helper()
	dir, err := os.MkdirTemp(w.spools, "")
	if err != nil {
		w.Fatal(err)
	}
	return dir
}

// connect is the operator's part. The first token lives as long as said.
func (w *world) connect(a *authority, name string, life time.Duration) minded {
	w.Helper()
	spec := grant.Spec{Name: name, Provider: a.name}
	if _, err := grant.Connect(w.Context(), w.bao.Operator, spec, a.consent(name, life), time.Now()); err != nil {
		w.Fatal(err)
	}
	return minded{name, a.name, a.tokenURL(), a.clientSecret}
}

// status is what an operator sees.
func (w *world) status(g minded) grant.Summary {
	w.Helper()
	var all []grant.Summary
	eventually(w.T, "the store answers", func() (ok bool) { // a busy machine may take longer than a gate waits
		var err error
		all, err = grant.List(w.Context(), w.bao.Viewer, []grant.Spec{{Name: g.Name, Provider: g.Provider}})
		if err != nil && !errors.Is(err, vault.ErrUnavailable) {
			w.Fatal(err)
		}
		return err == nil
	})
	return all[0]
}

var tokenish = regexp.MustCompile(`wl(?:at|rt|cs|ac|cv)[A-Z2-7]{20,}`)

// searched looks for every token and secret that the providers know in all that processes printed, in the documents that
// people may read, and in spools.
func (w *world) searched() {
	w.Helper()
	bytes := 0
	search := func(where string, b []byte) {
		bytes += len(b)
		if hit := tokenish.Find(b); hit != nil {
			w.Errorf("%s holds a token (%.8s…)", where, hit)
		}
	}
	for _, o := range w.transcripts {
		search("what a process printed", o.bytes())
	}
	if err := filepath.WalkDir(w.spools, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		search(path, b)
		return err
	}); err != nil {
		w.Error(err)
	}
	ctx := w.Context()
	names, err := w.bao.Root.List(ctx, "status")
	if err != nil {
		w.Fatal(err)
	}
	for _, name := range names {
		var status, tokens json.RawMessage
		if _, err := w.bao.Root.Get(ctx, "status/"+name, &status); err != nil {
			w.Error(err)
		}
		search("status/"+name, status)
		if _, err := w.bao.Root.Get(ctx, "grants/"+name, &tokens); err != nil || !tokenish.Match(tokens) {
			w.Errorf("no token in grants/%s, where it belongs: the search is blind (%v)", name, err)
		}
	}
	if len(names) == 0 || bytes < 1000 {
		w.Errorf("only %d bytes and %d grants to look at: the search is not looking", bytes, len(names))
	}
}
