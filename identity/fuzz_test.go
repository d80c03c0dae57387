package identity

import (
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"wayleave/secret"
)

// Nothing but a token of the issuer proves anything, and nothing makes the verifier panic.
func FuzzVerify(f *testing.F) {
	s, key := newIssuer(f), newSigner(f, "k1", jose.ES256)
	s.publish(key)
	forger := newSigner(f, "k1", jose.ES256)
	v := s.verifier(nil)
	if _, err := v.Verify(f.Context(), key.sign(s.URL, nil)); err != nil {
		f.Fatal(err)
	}
	f.Add(forger.sign(s.URL, nil).Reveal())
	f.Add(forger.sign(s.URL, map[string]any{"exp": start.Add(-time.Hour).Unix()}).Reveal())
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("ey..")
	f.Fuzz(func(t *testing.T, token string) {
		if proof, err := v.Verify(t.Context(), secret.New(token)); err == nil || proof.Subject != "" {
			t.Errorf("accepted %q", token)
		}
	})
}
