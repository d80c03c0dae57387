package vault_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// store is what both Vaults must do alike.
type store interface {
	Get(ctx context.Context, path string, into any) (int, error)
	Put(ctx context.Context, path string, doc any, cas int) (int, error)
	Version(ctx context.Context, path string) (int, error)
	List(ctx context.Context, path string) ([]string, error)
	Delete(ctx context.Context, path string) error
}

type doc struct {
	Name   string  `json:"name"`
	Big    int64   `json:"big"`
	Ratio  float64 `json:"ratio"`
	Nested any     `json:"nested"`
}

// The one suite of document behaviour. remove has what others do to a document's latest version, by what they call it.
func testDocuments(t *testing.T, s store, remove map[string]func(path string)) {
	ctx := t.Context()
	want := func(t *testing.T, what string, gotVersion, wantVersion int, err, wantErr error) {
		t.Helper()
		if gotVersion != wantVersion || !errors.Is(err, wantErr) {
			t.Errorf("%s: version %d, error %v; want %d, %v", what, gotVersion, err, wantVersion, wantErr)
		}
	}
	original := doc{"a", 1 << 53, 1.25, map[string]any{"k": []any{"v", nil, true}}}

	t.Run("life", func(t *testing.T) {
		var got doc
		v, err := s.Get(ctx, "grants/life", &got)
		want(t, "get before", v, 0, err, vault.ErrNotFound)
		v, err = s.Version(ctx, "grants/life")
		want(t, "version before", v, 0, err, nil)
		v, err = s.Put(ctx, "grants/life", original, 1)
		want(t, "update of nothing", v, 0, err, vault.ErrConflict)
		v, err = s.Put(ctx, "grants/life", original, 0)
		want(t, "create", v, 1, err, nil)
		v, err = s.Get(ctx, "grants/life", &got)
		want(t, "get", v, 1, err, nil)
		if diff := cmp.Diff(original, got); diff != "" {
			t.Error(diff)
		}
		v, err = s.Put(ctx, "grants/life", original, 0)
		want(t, "create again", v, 0, err, vault.ErrConflict)
		v, err = s.Put(ctx, "grants/life", doc{Name: "b"}, 1)
		want(t, "update", v, 2, err, nil)
		v, err = s.Put(ctx, "grants/life", doc{Name: "c"}, 1)
		want(t, "update from an old version", v, 0, err, vault.ErrConflict)
		v, err = s.Version(ctx, "grants/life")
		want(t, "version", v, 2, err, nil)
		got = doc{}
		v, err = s.Get(ctx, "grants/life", &got)
		want(t, "get the update", v, 2, err, nil)
		if got.Name != "b" {
			t.Errorf("a refused write was applied: %+v", got)
		}
		for range 2 {
			if err := s.Delete(ctx, "grants/life"); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		v, err = s.Get(ctx, "grants/life", &got)
		want(t, "get after delete", v, 0, err, vault.ErrNotFound)
		v, err = s.Put(ctx, "grants/life", original, 0)
		want(t, "create after delete", v, 1, err, nil)
	})
	t.Run("numbers beyond 2^53", func(t *testing.T) {
		if _, err := s.Put(ctx, "grants/big", doc{Big: 1<<53 + 1}, 0); err != nil {
			t.Fatal(err)
		}
		var got doc
		if _, err := s.Get(ctx, "grants/big", &got); err != nil || got.Big != 1<<53 {
			t.Errorf("%d, %v; the comment on Put says %d", got.Big, err, 1<<53)
		}
	})
	for how, remove := range remove {
		t.Run("latest version "+how, func(t *testing.T) {
			path := "grants/" + how
			for i := range 2 {
				if _, err := s.Put(ctx, path, original, i); err != nil {
					t.Fatal(err)
				}
			}
			remove(path)
			var got doc
			v, err := s.Get(ctx, path, &got)
			want(t, "get", v, 2, err, vault.ErrNotFound)
			v, err = s.Version(ctx, path)
			want(t, "version", v, 2, err, nil)
			_, err = s.Put(ctx, path, original, 0)
			want(t, "create", 0, 0, err, vault.ErrConflict)
			v, err = s.Put(ctx, path, original, 2)
			want(t, "write over it", v, 3, err, nil)
			if v, err = s.Get(ctx, path, &got); err != nil || v != 3 || got.Name != "a" {
				t.Errorf("get what was written over it: version %d, %+v, %v", v, got, err)
			}
			remove(path)
			if err := s.Delete(ctx, path); err != nil {
				t.Error(err)
			}
			v, err = s.Get(ctx, path, &got)
			want(t, "get after delete", v, 0, err, vault.ErrNotFound)
		})
	}
	t.Run("what was decoded into stays when there is nothing", func(t *testing.T) {
		got := doc{Name: "before"}
		if _, err := s.Get(ctx, "grants/nothing", &got); !errors.Is(err, vault.ErrNotFound) || got.Name != "before" {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("list", func(t *testing.T) {
		for _, p := range []string{"status/b", "status/a", "status/deep/er/x", "status/deep/y"} {
			if _, err := s.Put(ctx, p, doc{}, 0); err != nil {
				t.Fatal(err)
			}
		}
		for path, want := range map[string][]string{"status": {"a", "b", "deep/"}, "status/deep": {"er/", "y"}, "status/none": nil, "status/a": nil} {
			got, err := s.List(ctx, path)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("list %s: %v %s", path, err, diff)
			}
		}
	})
	t.Run("concurrent writers", func(t *testing.T) {
		const writers = 8
		errs := make(chan error, writers)
		for range writers {
			go func() { _, err := s.Put(ctx, "grants/race", doc{}, 0); errs <- err }()
		}
		won := 0
		for range writers {
			switch err := <-errs; {
			case err == nil:
				won++
			case !errors.Is(err, vault.ErrConflict):
				t.Errorf("loser: %v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d writers won, want 1", won)
		}
	})
	t.Run("many strings at times", func(t *testing.T) {
		version := 0
		for _, n := range []int{2, 3000, 2} { // the last as it is written by versions that knew no other form
			doc := map[string]string{}
			for i := range n {
				doc[fmt.Sprintf("name-%d", i)] = fmt.Sprint(i)
			}
			v, err := s.Put(ctx, "requests/many", vault.Fitting{Value: doc}, version)
			want(t, "put", v, version+1, err, nil)
			version = v
			var got, plain map[string]any
			if v, err := s.Get(ctx, "requests/many", &vault.Fitting{Value: &got}); err != nil || v != version || len(got) != n || got["name-1"] != "1" {
				t.Errorf("%d of %d, version %d, %v", len(got), n, v, err)
			}
			if _, err := s.Get(ctx, "requests/many", &plain); err != nil || (len(plain) == n) != (n == 2) {
				t.Errorf("to others %d of %d, %v", len(plain), n, err)
			}
		}
		odd := map[string]any{"packed": map[string]any{"id": "a grant's name may be anything"}}
		v, err := s.Put(ctx, "requests/many", vault.Fitting{Value: odd}, version)
		want(t, "put", v, version+1, err, nil)
		var got map[string]any
		if _, err := s.Get(ctx, "requests/many", &vault.Fitting{Value: &got}); err != nil || !cmp.Equal(got, odd) {
			t.Errorf("%v, %v", got, err)
		}
	})

	t.Run("refused documents", func(t *testing.T) {
		for name, d := range map[string]any{
			"a list":               []int{1},
			"null":                 nil,
			"an unrevealed secret": map[string]any{"token": secret.New("x")},
			"not JSON":             map[string]any{"f": func() {}},
		} {
			if _, err := s.Put(ctx, "grants/refused", d, 0); err == nil {
				t.Errorf("%s was stored", name)
			}
		}
	})
	t.Run("refused paths", func(t *testing.T) {
		for _, p := range []string{"", ".", "..", "/grants/a", "grants/", "grants//a", "grants/../keys/session", "./grants"} {
			if _, err := s.Get(ctx, p, &doc{}); err == nil || errors.Is(err, vault.ErrNotFound) {
				t.Errorf("path %q: %v", p, err)
			}
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := s.Get(ctx, "grants/a", &doc{}); !errors.Is(err, vault.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want %v and %v", err, vault.ErrUnavailable, context.Canceled)
		}
	})
}

// authority is the PKI mount, which both Vaults must have alike.
type authority interface {
	Roots(ctx context.Context) ([]*x509.Certificate, error)
	SignIntermediate(ctx context.Context, root *x509.Certificate, csrDER []byte, domains []string, ttl time.Duration) ([][]byte, error)
	PrepareRoot(ctx context.Context) (*x509.Certificate, error)
	ActivateRoot(ctx context.Context, root *x509.Certificate) error
	RetireRoot(ctx context.Context, root *x509.Certificate) error
	Intermediates(ctx context.Context) ([]*x509.Certificate, error)
}

func names(certs []*x509.Certificate) (all []string) {
	for _, c := range certs {
		all = append(all, c.Subject.CommonName)
	}
	return all
}

// A root is replaced, the change is taken back, and made again.
func testRoots(t *testing.T, a authority) {
	ctx := t.Context()
	want := func(when string, roots ...*x509.Certificate) {
		t.Helper()
		got, err := a.Roots(ctx)
		if !slices.EqualFunc(got, roots, (*x509.Certificate).Equal) || err != nil {
			t.Fatalf("%s: roots %q, %v; want %q", when, names(got), err, names(roots))
		}
		for _, root := range roots { // also one that does not sign by itself
			chain, err := a.SignIntermediate(ctx, root, csr(t), []string{"a.example"}, time.Hour)
			if err != nil || len(chain) != 2 || !bytes.Equal(chain[1], root.Raw) {
				t.Fatalf("%s: signed by another than %s, or not at all: %v", when, root.Subject, err)
			}
			in, err := x509.ParseCertificate(chain[0])
			if err == nil {
				err = in.CheckSignatureFrom(root)
			}
			signed, listErr := a.Intermediates(ctx)
			if err := errors.Join(err, listErr); err != nil || !slices.ContainsFunc(signed, in.Equal) {
				t.Errorf("%s: %v; what was signed is not among %d intermediates", when, err, len(signed))
			}
		}
	}
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before, err := a.Roots(ctx)
	step(err)
	first := before[0]
	want("at first", first)
	if err := a.RetireRoot(ctx, first); err == nil {
		t.Fatal("the root that signs was removed")
	}
	second, err := a.PrepareRoot(ctx)
	step(err)
	if second.Subject.CommonName != vault.RootName+" 2" || second.MaxPathLen != 1 || second.NotAfter.Before(time.Now().AddDate(9, 11, 0)) ||
		time.Since(second.NotBefore.Add(vault.Backdate)).Abs() > time.Minute || time.Since(vault.SignedAt(second)).Abs() > time.Minute {
		t.Errorf("the second root is %q, path length %d, from %v to %v", second.Subject.CommonName, second.MaxPathLen, second.NotBefore, second.NotAfter)
	}
	want("prepared", first, second)
	step(a.ActivateRoot(ctx, second))
	step(a.ActivateRoot(ctx, second))
	want("active", second, first)
	step(a.ActivateRoot(ctx, first))
	want("taken back", first, second)
	step(a.ActivateRoot(ctx, second))
	step(a.RetireRoot(ctx, first))
	want("retired", second)
	for what, err := range map[string]error{"retire": a.RetireRoot(ctx, first), "activate": a.ActivateRoot(ctx, first)} {
		if !errors.Is(err, vault.ErrNotFound) {
			t.Errorf("%s a root that is gone: %v", what, err)
		}
	}
	third, err := a.PrepareRoot(ctx)
	step(err)
	if got := third.Subject.CommonName; got != vault.RootName+" 3" {
		t.Errorf("the third root is %q", got)
	}
	step(a.RetireRoot(ctx, third))
	want("a change given up", second)
}

func TestMemory(t *testing.T) {
	t.Parallel()
	m := vaulttest.NewMemory()
	testDocuments(t, m, map[string]func(string){"deleted": m.SoftDelete, "destroyed": m.SoftDelete})
	t.Run("roots", func(t *testing.T) { testRoots(t, m) })
}

func TestOpenBao(t *testing.T) {
	t.Parallel()
	testServer(t, vaulttest.Start(t))
}

// HashiCorp's Vault speaks the same protocol; where there is one, it must pass too.
func TestVault(t *testing.T) {
	t.Parallel()
	binary, err := exec.LookPath("vault")
	if err != nil {
		t.Skip("no `vault` in PATH: put HashiCorp's binary there to run the suite over it too")
	}
	testServer(t, vaulttest.StartDev(t, binary))
}

func testServer(t *testing.T, s *vaulttest.Server) {
	testDocuments(t, s.Root, map[string]func(string){
		"deleted": func(path string) { s.Raw(t, http.MethodDelete, "wayleave/data/"+path, "") },
		"destroyed": func(path string) {
			v, err := s.Root.Version(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			s.Raw(t, http.MethodPut, "wayleave/destroy/"+path, fmt.Sprintf(`{"versions":[%d]}`, v))
		},
	})
	t.Run("roots", func(t *testing.T) {
		testRoots(t, s.Root)
		// The keys of roots that are gone are gone too.
		var keys struct {
			Data struct{ Keys []string }
		}
		if err := json.Unmarshal(s.Raw(t, "LIST", "wayleave-pki/keys", ""), &keys); err != nil || len(keys.Data.Keys) != 1 {
			t.Errorf("%d keys are left of one root: %v", len(keys.Data.Keys), err)
		}
	})
	t.Run("roots made elsewhere", func(t *testing.T) { testForeignRoots(t, s) })
}

// A mount that somebody else has used: it lets the newest root sign, and has issuers that are no roots.
func testForeignRoots(t *testing.T, s *vaulttest.Server) {
	ctx := t.Context()
	signs, err := s.Root.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var issuer struct {
		Data struct {
			ID  string `json:"issuer_id"`
			Key string `json:"key_id"`
		}
	}
	if err := json.Unmarshal(s.Raw(t, http.MethodGet, "wayleave-pki/issuer/default", ""), &issuer); err != nil {
		t.Fatal(err)
	}
	s.Raw(t, http.MethodPut, "wayleave-pki/config/issuers", fmt.Sprintf(`{"default":%q,"default_follows_latest_issuer":true}`, issuer.Data.ID))
	made, err := s.Root.PrepareRoot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Root.SignIntermediate(ctx, signs[0], csr(t), []string{"a.example"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := json.Marshal(map[string]string{"pem_bundle": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]}))})
	if err != nil {
		t.Fatal(err)
	}
	s.Raw(t, http.MethodPut, "wayleave-pki/issuers/import/cert", string(foreign))
	// One with the key of another, as a root that is renewed.
	s.Raw(t, http.MethodPut, "wayleave-pki/root/generate/existing", fmt.Sprintf(`{"key_ref":%q,"common_name":"renewed","ttl":"1000h"}`, issuer.Data.Key))
	roots, err := s.Root.Roots(ctx)
	if err != nil || len(roots) != 3 || !roots[0].Equal(signs[0]) || !slices.ContainsFunc(roots, made.Equal) {
		t.Fatalf("roots %q, %v; want the one that signs, the one made and the renewed one", names(roots), err)
	}
	for _, r := range roots[1:] {
		if err := s.Root.RetireRoot(ctx, r); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Root.SignIntermediate(ctx, roots[0], csr(t), []string{"a.example"}, time.Hour); err != nil {
		t.Errorf("the key of the root that signs went with the other root of that key: %v", err)
	}
}
