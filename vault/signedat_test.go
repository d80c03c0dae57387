package vault_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"wayleave/vault"
)

// When a root was made is known of those that this release makes, and those that earlier ones made.
func TestSignedAt(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made := time.Now().UTC().Truncate(time.Second)
	for name, c := range map[string]struct{ before, life time.Duration }{
		"of this release":     {vault.Backdate, 10 * 365 * 24 * time.Hour},
		"of an earlier one":   {vault.BackdateBefore, 10 * 365 * 24 * time.Hour},
		"somebody's own":      {vault.BackdateBefore, 365 * 24 * time.Hour},
		"somebody's, for all": {vault.BackdateBefore, 50 * 365 * 24 * time.Hour},
	} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: made.Add(-c.before), NotAfter: made.Add(c.life),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		root, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if got := vault.SignedAt(root); !got.Equal(made) {
			t.Errorf("%s: %v, want %v", name, got, made)
		}
	}
}
