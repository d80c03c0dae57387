package config

import (
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// CheckCertificates says what Envoy could not read of a file of certificates. For one that it cannot read it refuses all there are, and then it reaches no
// upstream.
func CheckCertificates(file []byte) error {
	written, read := len(beginCertificate.FindAll(file, -1)), 0
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "CERTIFICATE") {
			continue
		}
		read++
		var certificate struct { // its shape; what is in it is for Envoy to judge
			Signed, Algorithm asn1.RawValue
			Signature         asn1.BitString
		}
		if _, err := asn1.Unmarshal(block.Bytes, &certificate); err != nil {
			return fmt.Errorf("certificate %d of %d in it is none", read, written)
		}
	}
	switch {
	case written == 0:
		return errors.New("there is no certificate in it")
	case read < written:
		return fmt.Errorf("%d of %d certificates in it are not whole", written-read, written)
	}
	return nil
}

var beginCertificate = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*CERTIFICATE-----`)
