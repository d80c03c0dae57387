package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"time"
)

// PEM is certificates as they are handed out, one after the other.
func PEM(certs []*x509.Certificate) (text []byte) {
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// Fingerprint is the SHA-256 of a certificate, in hexadecimal.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// nameLength is how many digits of its fingerprint name a root among those there are.
const nameLength = 16

// Name is how a root is called among those there are: the first digits of its fingerprint.
func Name(root *x509.Certificate) string { return Fingerprint(root)[:nameLength] }

// named is the root of a name; nil: there is none.
func named(roots []*x509.Certificate, name string) *x509.Certificate {
	if i := slices.IndexFunc(roots, func(r *x509.Certificate) bool { return Name(r) == name }); i >= 0 {
		return roots[i]
	}
	return nil
}

// Signs is the root that a name means: the first one, which signs by itself, if there is none of it.
func Signs(roots []*x509.Certificate, name string) *x509.Certificate {
	if root := named(roots, name); root != nil {
		return root
	}
	return roots[0]
}

// Notice is how long before the end of the root that signs its replacement is asked for: longer than any session, with
// time for machines that are told by hand.
const Notice = 90 * 24 * time.Hour

// Due says what to do next so that the root that signs, the first one, does not end before another has taken its place. It
// is empty while there is time.
func Due(roots []*x509.Certificate, now time.Time) string {
	signs := roots[0]
	if now.Before(signs.NotAfter.Add(-Notice)) {
		return ""
	}
	for _, r := range roots[1:] {
		if r.NotAfter.After(signs.NotAfter) {
			return fmt.Sprintf("let %s sign: wayleave ca activate", commonName(r))
		}
	}
	if len(roots) > 1 {
		return "remove the root that does not sign, and make its successor: wayleave ca retire"
	}
	return "make its successor: wayleave ca prepare"
}

func commonName(c *x509.Certificate) string { return c.Subject.CommonName }

func commonNames(certs []*x509.Certificate) (all []string) {
	for _, c := range certs {
		all = append(all, commonName(c))
	}
	return all
}

// SignedBy says whether root is what vouches for a certificate.
func SignedBy(c, root *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, root.RawSubject) && c.CheckSignatureFrom(root) == nil
}
