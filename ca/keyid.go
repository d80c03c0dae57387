package ca

import (
	"crypto/ecdsa"
	"crypto/sha256"
)

// keyID is the subject key identifier of a key: the first 160 bits of the SHA-256 of its bits (RFC 7093 §2, method 1).
// crypto/x509 makes one for CAs only.
func keyID(public *ecdsa.PublicKey) ([]byte, error) {
	point, err := public.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(point)
	return sum[:20], nil
}
