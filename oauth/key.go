package oauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// minRSA is the shortest RSA key, in bits (RFC 7518 §3.3).
const minRSA = 2048

const hintKey = "make one with `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`"

// ParseKey reads the first private key of a PEM file: PKCS #8, PKCS #1 or SEC 1, unencrypted. It is an RSA key of at least
// 2048 bits, an EC key on P-256, P-384 or P-521, or an Ed25519 key. Errors never quote the file.
func ParseKey(data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("there is no private key in PEM form in it: " + hintKey)
		}
		var (
			key any
			err error
		)
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: decrypt it with `openssl pkey`, and keep the file readable by the gate only")
		default: // certificates, EC PARAMETERS
			data = rest
			continue
		}
		if err != nil || block.Headers["DEK-Info"] != "" {
			return nil, fmt.Errorf("the %s in it cannot be read: write it anew with `openssl pkey`, unencrypted", block.Type)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("the private key in it cannot sign: use RSA, EC or Ed25519")
		}
		if _, err := algorithm(signer); err != nil {
			return nil, err
		}
		return signer, nil
	}
}

// algorithm returns the one JWS algorithm that is used with a key (RFC 7518 §3.1, RFC 8037 §3.1).
func algorithm(key crypto.Signer) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < minRSA {
			return "", fmt.Errorf("the RSA key has %d bits, too few: %s", k.N.BitLen(), hintKey)
		}
		return jose.RS256, nil
	case *ecdsa.PrivateKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
		return "", errors.New("the EC key is on a curve that JSON Web Signatures do not know: use P-256")
	case ed25519.PrivateKey:
		return jose.EdDSA, nil
	}
	return "", errors.New("the private key is of a kind that is not used to sign: use RSA, EC or Ed25519")
}
