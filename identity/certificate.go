package identity

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// ForwardedCertificate is the header in which Envoy says which client certificate it has verified. It removes any that a worker
// sent.
const ForwardedCertificate = "x-forwarded-client-cert"

const maxSPIFFEID = 2048 // bytes

// Certificate returns what the certificate proves that Envoy verified and describes in this header: an X.509-SVID (SPIFFE).
// Whether it is of the right authority Envoy has judged, when the connection began; the rest is judged here.
func Certificate(header string, now time.Time) (Proof, *Refusal) {
	refuse := func(reason Reason, format string, args ...any) (Proof, *Refusal) {
		return Proof{}, &Refusal{Reason: reason, Words: "its certificate " + fmt.Sprintf(format, args...)}
	}
	cert := forwarded(header)
	switch {
	case cert == nil:
		return refuse(Invalid, "cannot be read: present an X.509-SVID")
	case cert.IsCA:
		return refuse(Invalid, "is that of an authority: present the worker's own")
	case len(cert.URIs) != 1:
		return refuse(Invalid, "has %d URIs and not one SPIFFE ID: present an X.509-SVID", len(cert.URIs))
	}
	id := cert.URIs[0].String()
	if fault := SPIFFEFault(id); fault != "" {
		return refuse(Invalid, "is for %s, which %s: present an X.509-SVID", quote(id), fault)
	}
	switch {
	case now.After(cert.NotAfter.Add(skew)): // the connection may be older
		return refuse(Expired, "expired at %s: get a new one, and connect with it", utc(cert.NotAfter))
	case now.Before(cert.NotBefore.Add(-skew)):
		return refuse(NotYetValid, "is of a time to come, and the gate has %s: set both clocks right", utc(now))
	}
	return Proof{Subject: id, Claims: map[string]any{Subject: id}}, nil
}

// forwarded returns the one certificate that the header holds, nil if there is not exactly one. Its form is that of Envoy:
// key=value pairs separated by semicolons, in which Cert is PEM with percent escapes in quotes.
func forwarded(header string) *x509.Certificate {
	var found string
	for pair := range strings.SplitSeq(header, ";") {
		value, ok := strings.CutPrefix(pair, `Cert="`)
		if !ok {
			continue
		}
		if value, ok = strings.CutSuffix(value, `"`); !ok || found != "" || strings.ContainsAny(value, `",`) {
			return nil
		}
		found = value
	}
	text, err := url.PathUnescape(found) // a + is one
	if err != nil {
		return nil
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

// SPIFFEFault says why a text is not the SPIFFE ID of a workload (SPIFFE-ID section 2); empty when it is.
func SPIFFEFault(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, _ := strings.Cut(rest, "/")
	switch {
	case !ok:
		return "does not begin with spiffe://"
	case len(id) > maxSPIFFEID:
		return "is too long"
	case domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "":
		return "has no trust domain in lower case"
	case path == "":
		return "names a trust domain and no workload in it"
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.Trim(segment, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
			return "has an empty part, a dot segment, or another character than letters, digits, dots, dashes and underscores"
		}
	}
	return ""
}

// SPIFFEPatternFault says what is wrong with the pattern of SPIFFE IDs: one ID, or the beginning of some, up to a slash, and "*".
func SPIFFEPatternFault(pattern string) (what, fix string) {
	id := pattern
	if beginning, open := strings.CutSuffix(pattern, "/*"); open {
		id = beginning + "/any"
	}
	if fault := SPIFFEFault(id); fault != "" {
		return fmt.Sprintf("%+q %s", pattern, fault), "write one such as spiffe://example.org/ns/builds/sa/agent, or spiffe://example.org/ns/builds/*"
	}
	return "", ""
}

// TrustDomain is that of a SPIFFE ID or a pattern of some.
func TrustDomain(id string) string {
	domain, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	return domain
}
