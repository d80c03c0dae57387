package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave/ca"
)

// madeCA is a certificate in PEM.
func madeCA(t *testing.T, name string, isCA bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestOnlyNamedCAsAreInstalled(t *testing.T) {
	one, two, leaf := madeCA(t, "one", true), madeCA(t, "two", true), madeCA(t, "leaf", false)
	all, err := pinned(append(one, two...), nil)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d, %v", len(all), err)
	}
	colons := strings.ToUpper(ca.Fingerprint(all[1]))
	for i := len(colons) - 2; i > 0; i -= 2 {
		colons = colons[:i] + ":" + colons[i:]
	}
	if got, err := pinned(append(one, two...), []string{colons}); err != nil || len(got) != 1 || got[0].Subject.CommonName != "two" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := pinned(one, []string{ca.Fingerprint(all[1])}); err == nil || !strings.Contains(err.Error(), ca.Fingerprint(all[0])) {
		t.Errorf("another fingerprint: %v", err)
	}
	if _, err := pinned(append(one, leaf...), nil); err == nil {
		t.Error("a certificate that is no CA was taken")
	}
	if _, err := pinned([]byte("text"), nil); err == nil {
		t.Error("text was taken")
	}
}

func TestCAsAreReplacedInTheTrustStore(t *testing.T) {
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	store, err := systemStore([]trustStore{
		{filepath.Join(dir, "absent"), ".crt", []string{"sh"}},
		{dir, ".crt", []string{"no-such-program"}},
		{dir, ".crt", []string{"sh", "-c", "ls " + dir + " | tr '\n' ' ' >> " + log + "; echo >> " + log}},
	})
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "company.crt")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	certs, err := pinned(append(madeCA(t, "one", true), madeCA(t, "two", true)...), nil)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, step := range [][]*x509.Certificate{certs[:1], certs, certs[1:], nil} {
		if err := store.replace(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		names := []string{"company.crt"}
		for _, c := range step {
			names = append(names, installedName+ca.Fingerprint(c)[:16]+".crt")
		}
		if len(names) == 3 && names[1] > names[2] {
			names[1], names[2] = names[2], names[1]
		}
		want = append(want, strings.Join(names, " ")+" \n")
	}
	got, err := os.ReadFile(log)
	if err != nil || string(got) != strings.Join(want, "") {
		t.Errorf("the store had\n%s, want\n%s", got, strings.Join(want, ""))
	}
	store.update = []string{"sh", "-c", "echo broken >&2; exit 3"}
	if err := store.replace(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a failed update: %v", err)
	}
	if _, err := systemStore(nil); err == nil {
		t.Error("a system without a store has one")
	}
}

func TestCAOverHTTPMustBeNamed(t *testing.T) {
	_, err := givenCA(t.Context(), "", "http://gate.internal:3128", "", false, state{dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "--fingerprint") {
		t.Error(err)
	}
	_, err = givenCA(t.Context(), "", "", "", false, state{dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "--file") {
		t.Error(err)
	}
}
