package grant

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// A record comes back from the store as it went in, tokens included.
func TestRecordRoundTrip(t *testing.T) {
	docs := vaulttest.NewMemory()
	in := hour(func(r *record) {
		r.Account, r.Failures, r.Unanswered, r.NotBefore, r.LastError = "pat@example.com", 2, 1, t0.Add(time.Minute), "status 429"
		r.Lease = &lease{ID: "x", Holder: "h", Deadline: t0, Attempt: 2}
	})
	if _, err := putRecord(t.Context(), docs, "claude", in, 0); err != nil {
		t.Fatal(err)
	}
	out, version, err := getRecord(t.Context(), docs, "claude")
	if err != nil || version != 1 {
		t.Fatalf("version %d, %v", version, err)
	}
	if diff := cmp.Diff(in.details, out.details); diff != "" {
		t.Errorf("(-in +out):\n%s", diff)
	}
	if !out.Access.Equal(in.Access) || !out.Refresh.Equal(in.Refresh) {
		t.Error("tokens changed")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for doc, want := range map[string]string{
		`[]`:   "not a grant document",
		`null`: "epoch or provider",
		`{"epoch":"e","provider":"p","access_token":"a","issued_at":"hunter2"}`:             "not a grant document",
		`{"epoch":"e","provider":"p","access_token":["hunter2"]}`:                           "field access_token",
		`{"epoch":"e","provider":"p"}`:                                                      "no token",
		`{"epoch":"e","provider":"p","access_token":"a","generation":-1}`:                   "contradicts",
		`{"epoch":"e","provider":"p","access_token":"a","lease":{"id":"x","attempt":0}}`:    "contradicts",
		`{"provider":"p","access_token":"hunter2"}`:                                         "epoch or provider",
		`{"epoch":"e","provider":"p","access_token":"hunter2","generation":"not a number"}`: "field generation",
	} {
		_, err := decode([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", doc, err, want)
		}
	}
}

// Whatever is stored, decoding it neither panics nor quotes it, and what it accepts survives being written again and can
// be judged.
func FuzzDecode(f *testing.F) {
	for _, r := range []record{hour(nil), hour(left("a", t0, 1))} {
		b, err := json.Marshal(store(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"epoch":"e","provider":"p","access_token":"a","expires_at":"9999-12-31T23:59:59Z","failures":9223372036854775807}`))
	f.Add([]byte(`{"epoch":1}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		r, err := decode(doc)
		if err != nil {
			if len(doc) > 60 && strings.Contains(err.Error(), string(doc)) {
				t.Fatal("the error quotes the document")
			}
			return
		}
		b, err := json.Marshal(store(r))
		if err != nil {
			t.Skip("a time outside of what JSON can hold")
		}
		again, err := decode(b)
		if err != nil {
			t.Fatalf("not accepted again: %v", err)
		}
		if !again.Access.Equal(r.Access) || !again.Refresh.Equal(r.Refresh) || again.Epoch != r.Epoch || again.Generation != r.Generation {
			t.Fatal("changed by being written again")
		}
		for _, spec := range []Spec{spec, {Name: "bot", Kind: Machine}, {Name: "key", Kind: Static}} {
			spec.Provider = r.Provider
			if s := stateOf(r, spec, on(t0)); !s.known() || r.Access.IsZero() && r.Refresh.IsZero() && s == Healthy {
				t.Fatalf("state %q", s)
			}
			pol.plan(r, spec, on(t0), wish{jitter: 0.5})
			pol.plan(r.noted(record{}, on(t0)), spec, on(t0), wish{asked: &request{ID: "q", Do: AskRevoke, Epoch: r.Epoch, At: t0}})
		}
		r.leased(lease{ID: "x"}, "").failed(errors.New("?"), "op", t0, 0.5)
	})
}

// Refusals and errors of a provider that quotes tokens are stripped of them.
func TestScrub(t *testing.T) {
	r := hour(func(r *record) { r.Access, r.Refresh = secret.New("hunter2"), secret.New("hunter3") })
	if got := r.scrub("hunter2 and hunter3"); got != "[removed] and [removed]" {
		t.Error("a token was left")
	}
}
