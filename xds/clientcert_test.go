package xds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	forwardedCert = "x-forwarded-client-cert"
	agentID       = "spiffe://example.test/ns/builds/sa/agent"
)

// svid is a certificate for a workload of that SPIFFE ID.
func (a *authority) svid(t testing.TB, id string, notAfter time.Time) tls.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"SPIRE"}}, URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-30 * time.Minute), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The gate hears of a worker's certificate from Envoy, which has verified it, and from nobody else.
func TestClientCertificates(t *testing.T) {
	workers, strangers := newAuthority(t), newAuthority(t)
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(bundle, workers.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(c *Config) {
		c.ProxyTLS = &ProxyTLS{Address: freeAddress(t), Names: []string{gateName}, ClientCAFile: bundle}
	}, nil)
	heard := make(chan []string, 1)
	s.serveAPI(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { heard <- r.Header.Values(forwardedCert) }))
	later := time.Now().Add(time.Hour)
	mine := workers.svid(t, agentID, later)

	// ask makes a request to the worker API and returns what the API hears of a certificate.
	ask := func(t *testing.T, address string, config *tls.Config, headers ...string) ([]string, error) {
		t.Helper()
		scheme := "http"
		if config != nil {
			scheme, config.RootCAs, config.ServerName = "https", s.leaves.pool(), gateName
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, scheme+"://"+address+apiPrefix+"v1/sessions", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			req.Header.Add(forwardedCert, h)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %v", resp.StatusCode, err)
		}
		return <-heard, nil
	}
	forged := `Hash=aa;Cert="forged";URI=` + agentID
	overTLS := s.config.ProxyTLS.Address

	for name, c := range map[string]struct {
		address string
		config  *tls.Config
		headers []string
		mine    bool // the API hears of the certificate, and of nothing else
	}{
		"a certificate":                      {overTLS, &tls.Config{Certificates: []tls.Certificate{mine}}, nil, true},
		"a certificate, and a forged header": {overTLS, &tls.Config{Certificates: []tls.Certificate{mine}}, []string{forged, forged}, true},
		"none over TLS":                      {overTLS, &tls.Config{}, nil, false},
		"none over TLS, and a forged header": {overTLS, &tls.Config{}, []string{forged}, false},
		"in the clear":                       {s.config.ProxyAddress, nil, nil, false},
		"in the clear, and a forged header":  {s.config.ProxyAddress, nil, []string{forged}, false},
		"in the clear, and forged headers":   {s.config.ProxyAddress, nil, []string{forged, forged}, false},
		"a certificate over TLS 1.2":         {overTLS, &tls.Config{Certificates: []tls.Certificate{mine}, MaxVersion: tls.VersionTLS12}, []string{forged}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, c.address, c.config, c.headers...)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(got, ",")
			if strings.Contains(all, "forged") || (len(got) == 1) != c.mine || strings.Contains(all, `Cert="-----BEGIN%20CERTIFICATE-----`) != c.mine {
				t.Errorf("the API hears %q", got)
			}
		})
	}
	for name, cert := range map[string]tls.Certificate{
		"of another authority": strangers.svid(t, agentID, later),
		"expired":              workers.svid(t, agentID, time.Now().Add(-time.Minute)),
	} {
		t.Run(name, func(t *testing.T) {
			// The client must show it although the server names other authorities.
			config := &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
			// It has an alert for an answer, or a write that meets the end of the connection before the alert is read (TLS 1.3).
			got, err := ask(t, overTLS, config)
			if err == nil || !strings.Contains(err.Error(), "remote error: tls: ") && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v %v", got, err)
			}
		})
	}
	t.Run("the proxy needs none", func(t *testing.T) {
		if a := get(t, s.workerOverTLS("ann"), "https://"+apiHost+"/"); a.status != 200 || a.body != "Bearer real-ann" {
			t.Errorf("got %d %q", a.status, a.body)
		}
	})
	t.Run("a replaced bundle", func(t *testing.T) {
		next := bundle + ".next"
		if err := os.WriteFile(next, append(append([]byte{}, workers.pem...), strangers.pem...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, bundle); err != nil {
			t.Fatal(err)
		}
		cert := strangers.svid(t, agentID, later)
		patience := time.After(time.Minute)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			got, err := ask(t, overTLS, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
			if err == nil && len(got) == 1 {
				return
			}
			select {
			case <-tick.C:
			case <-patience:
				t.Fatalf("the new authority is not known: %v", err)
			}
		}
	})
}

// Whoever ends TLS with a certificate of their own verifies clients too.
func TestClientCertificatesWithOwnCertificate(t *testing.T) {
	for _, c := range []ProxyTLS{
		{Address: "127.0.0.1:1", Names: []string{gateName}, ClientCAFile: "bundle.pem"},
		{Address: "127.0.0.1:1", CertFile: "/c.pem", KeyFile: "/k.pem", ClientCAFile: "bundle.pem"},
	} {
		if _, err := c.plan(); err == nil {
			t.Errorf("%+v: a relative file name is accepted", c)
		}
	}
	p, err := ProxyTLS{Address: "127.0.0.1:1", CertFile: "/c.pem", KeyFile: "/k.pem", ClientCAFile: "/bundle.pem"}.plan()
	if err != nil {
		t.Fatal(err)
	}
	if context := p.context(); context.GetCommonTlsContext().GetValidationContextSdsSecretConfig().GetName() != secretClientCA || !context.GetDisableStatefulSessionResumption() || !context.GetDisableStatelessSessionResumption() {
		t.Errorf("clients are not verified at each connection: %v", context)
	}
}
