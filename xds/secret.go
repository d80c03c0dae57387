package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// staticPrefix begins the names of our own secrets. No host name contains a slash, so no ClientHello asks for one.
const staticPrefix = "static/"

func isStatic(name string) bool { return strings.HasPrefix(name, staticPrefix) }

// caSecret holds certificates to verify a peer against.
func caSecret(name string, pem []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
		ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(pem)},
	}}
}

// upstreamCA is what upstreams are verified against. Its name says what it holds: of two revisions each has its own, and a
// cluster never has that of the other.
func upstreamCA(p plan) *tlsv3.Secret {
	sum := sha256.Sum256(p.upstreamCA)
	return caSecret(secretUpstreamCA+"/"+hex.EncodeToString(sum[:8]), p.upstreamCA)
}

// leafSecret holds a certificate, the chain above it, and its key.
func leafSecret(name string, certPEM, keyPEM []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{
		TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(certPEM), PrivateKey: inline(keyPEM)},
	}}
}

// secretSource refers to a secret that Envoy fetches over ADS.
func secretSource(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()}
}

// fileSecret is a certificate in PEM files that Envoy reads itself, and again when they are replaced.
func fileSecret(name, certFile, keyFile string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{
		TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: file(certFile), PrivateKey: file(keyFile)},
	}}
}

// fileCASecret holds certificates to verify a peer against, in a PEM file that Envoy reads itself, and again when it is replaced.
func fileCASecret(name, caFile string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
		ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: file(caFile)},
	}}
}
