package worker

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
)

// rootFiles are where systems keep their root certificates as one PEM file.
var rootFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Alpine, Gentoo
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, older RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL, CentOS
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/ssl/cert.pem",                                 // macOS, BSD, Alpine
	"/usr/local/etc/ssl/cert.pem",                       // FreeBSD
}

// SystemRoots returns the root certificates that programs on this machine trust, in PEM, and where they were read:
// the file SSL_CERT_FILE or NIX_SSL_CERT_FILE names, which somebody chose and so must be readable, else the first usual
// place. Where none exists both results are empty: with our CA alone, programs reach intercepted hosts only.
//
// Nix sets both in its shells when nobody else has, to a file that is not there.
func SystemRoots(getenv func(string) string) (roots []byte, path string, err error) {
	for _, name := range []string{"SSL_CERT_FILE", "NIX_SSL_CERT_FILE"} {
		if path = getenv(name); path == "" || path == "/no-cert-file.crt" {
			continue
		}
		roots, err = os.ReadFile(path)
		if err == nil && len(certificates(roots)) == 0 {
			err = fmt.Errorf("%s holds no certificate", path)
		}
		if err != nil {
			return nil, "", fmt.Errorf("reading the root certificates that %s names: %w; name another file, or unset it", name, err)
		}
		return roots, path, nil
	}
	for _, path := range rootFiles {
		if roots, err := os.ReadFile(path); err == nil && len(certificates(roots)) > 0 {
			return roots, path, nil
		}
	}
	return nil, "", nil
}

// Bundle is roots followed by ca; roots that hold it already, as inside another worker, are left as they are.
func Bundle(roots, ca []byte) []byte {
	ca = bytes.TrimSpace(ca)
	if bytes.Contains(roots, ca) {
		return roots
	}
	out := bytes.TrimSpace(roots)
	if len(out) > 0 {
		out = append(bytes.Clone(out), '\n')
	}
	return append(append(out, ca...), '\n')
}

// withInherited adds to bundle, in PEM, the certificates of the files that variables name and that it lacks: somebody chose them, of their company's
// authority most often, and a program that finds ours in their place would refuse hosts that it knew before. A file that cannot be read helped nobody.
func withInherited(bundle []byte, getenv func(string) string, names ...string) []byte {
	var has []*x509.Certificate
	for _, name := range names {
		path := getenv(name)
		if path == "" {
			continue
		}
		file, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, c := range certificates(file) {
			if has == nil { // which is most often not needed
				has = certificates(bundle)
			}
			if !slices.ContainsFunc(has, c.Equal) {
				has = append(has, c)
				bundle = Bundle(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
			}
		}
	}
	return bundle
}
