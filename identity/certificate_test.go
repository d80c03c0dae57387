package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"wayleave/secret"
)

const agentID = "spiffe://example.org/ns/builds/sa/agent"

// forwardedFor is the header that Envoy makes of a certificate with these URIs.
func forwardedFor(t testing.TB, change func(*x509.Certificate), ids ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour)}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	escaped := strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D").Replace(text)
	return `Hash=` + strings.Repeat("a", 64) + `;Cert="` + escaped + `"`
}

func TestCertificate(t *testing.T) {
	good := forwardedFor(t, nil, agentID)
	for _, header := range []string{good, "By=spiffe://example.org/gate;" + good, good + `;Subject="O=SPIRE";URI=spiffe://example.org/other`} {
		proof, refusal := Certificate(header, start)
		if refusal != nil || proof.Issuer != "" || proof.Subject != agentID || proof.Claims[Subject] != agentID {
			t.Errorf("%+v %v", proof, refusal)
		}
	}
	for _, c := range []struct {
		name, header string
		reason       Reason // empty: accepted
		says         string
	}{
		{"no header", "", Invalid, "cannot be read"},
		{"no certificate", "Hash=aa;URI=" + agentID, Invalid, "cannot be read"},
		{"two certificates", good + ";" + good, Invalid, "cannot be read"},
		{"two elements", good + "," + good, Invalid, "cannot be read"},
		{"no PEM", `Cert="abc"`, Invalid, "cannot be read"},
		{"bad escape", `Cert="%zz"`, Invalid, "cannot be read"},
		{"no end", strings.TrimSuffix(good, `"`), Invalid, "cannot be read"},
		{"more than a certificate", strings.TrimSuffix(good, `"`) + `x"`, Invalid, "cannot be read"},
		{"no ID", forwardedFor(t, nil), Invalid, "has 0 URIs"},
		{"two IDs", forwardedFor(t, nil, agentID, agentID+"/b"), Invalid, "has 2 URIs"},
		{"another URI", forwardedFor(t, nil, "https://example.org/agent"), Invalid, "spiffe://"},
		{"an authority", forwardedFor(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, agentID), Invalid, "authority"},
		{"expired", forwardedFor(t, func(c *x509.Certificate) { c.NotAfter = start.Add(-2 * time.Minute) }, agentID), Expired, "expired at 2026-03-01 11:58:00 UTC"},
		{"expired within the skew", forwardedFor(t, func(c *x509.Certificate) { c.NotAfter = start.Add(-50 * time.Second) }, agentID), "", ""},
		{"not yet valid", forwardedFor(t, func(c *x509.Certificate) { c.NotBefore = start.Add(2 * time.Minute) }, agentID), NotYetValid, "clocks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proof, refusal := Certificate(c.header, start)
			if c.reason == "" {
				if refusal != nil {
					t.Error(refusal)
				}
				return
			}
			if proof.Subject != "" || refusal == nil {
				t.Fatalf("accepted as %q", proof.Subject)
			}
			refusedWith(t, refusal, secret.New("-----BEGIN"), c.reason, c.says)
		})
	}
}

func TestSPIFFEIDs(t *testing.T) {
	for id, good := range map[string]bool{
		agentID: true, "spiffe://example.org/a": true, "spiffe://e_x-1.org/A.b-c_d": true,
		"": false, "spiffe://": false, "spiffe:///a": false, "spiffe://example.org": false, "spiffe://example.org/": false, "SPIFFE://example.org/a": false,
		"spiffe://Example.org/a": false, "spiffe://example.org:8443/a": false, "spiffe://u@example.org/a": false, "spiffe://example.org/a/": false,
		"spiffe://example.org//a": false, "spiffe://example.org/./a": false, "spiffe://example.org/../a": false, "spiffe://example.org/a%62": false,
		"spiffe://example.org/a?b": false, "spiffe://example.org/a#b": false, "spiffe://example.org/é": false, "https://example.org/a": false,
		"spiffe://example.org/" + strings.Repeat("a", 2048): false,
	} {
		if got := SPIFFEFault(id) == ""; got != good {
			t.Errorf("%q: %v", id, got)
		}
	}
	for pattern, good := range map[string]bool{
		agentID: true, "spiffe://example.org/*": true, "spiffe://example.org/ns/*": true,
		"spiffe://*": false, "spiffe://example.org*": false, "spiffe://example.org/ns*": false, "spiffe://example.org/*/sa": false, "*": false, "": false,
	} {
		if what, fix := SPIFFEPatternFault(pattern); (what == "") != good || (fix == "") != good {
			t.Errorf("%q: %q, %q", pattern, what, fix)
		}
	}
	if d := TrustDomain("spiffe://example.org/ns/*"); d != "example.org" {
		t.Error(d)
	}
}

// A pattern reaches no further than its trust domain and its slash.
func TestSPIFFEPatternsEndAtASlash(t *testing.T) {
	m := Match{Claims: map[string]string{Subject: "spiffe://example.org/ns/*"}}
	for id, fits := range map[string]bool{
		"spiffe://example.org/ns/a": true, "spiffe://example.org/ns": false, "spiffe://example.org/nsa": false, "spiffe://example.org.evil/ns/a": false,
	} {
		if got := m.Accepts(Proof{Subject: id}); got != fits {
			t.Errorf("%s: %v", id, got)
		}
		if m.Accepts(Proof{Issuer: "ci", Subject: id}) {
			t.Errorf("%s of a token is taken for a certificate's", id)
		}
	}
}

func FuzzCertificate(f *testing.F) {
	f.Add(`Hash=aa;Cert="-----BEGIN%20CERTIFICATE-----"`)
	f.Add(`Cert="`)
	f.Fuzz(func(t *testing.T, header string) {
		if proof, refusal := Certificate(header, start); refusal == nil && SPIFFEFault(proof.Subject) != "" {
			t.Errorf("accepted %q", header)
		}
	})
}
