package config

import (
	"os"
	"strings"
	"testing"
)

// A file of certificates that Envoy could not read is refused, and any other is not.
func TestCheckCertificates(t *testing.T) {
	good, err := os.ReadFile("../xds/testdata/upstream_ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, says string }{
		"one":                                 {string(good), ""},
		"two, and comments":                   {"# the first\n" + string(good) + "\nsubject=x\n" + string(good), ""},
		"nothing":                             {"", "there is no certificate"},
		"a key":                               {"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "there is no certificate"},
		"DER":                                 {"\x30\x82\x01\x00", "there is no certificate"},
		"cut off":                             {string(good[:len(good)/2]), "1 of 1 certificates in it are not whole"},
		"the second cut off":                  {string(good) + string(good[:len(good)/2]), "1 of 2 certificates in it are not whole"},
		"no base64":                           {strings.Replace(string(good), "\nMII", "\n...", 1), "are not whole"},
		"something else":                      {string(good) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 2 of 2 in it is none"},
		"a key that says it is a certificate": {"-----BEGIN CERTIFICATE-----\nMAgCAQEwAwIBAQ==\n-----END CERTIFICATE-----\n", "certificate 1 of 1 in it is none"},
	} {
		got := ""
		if err := CheckCertificates([]byte(c.file)); err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.says) || (got == "") != (c.says == "") {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}
