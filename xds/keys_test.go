package xds

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// curves are those that Go has.
var curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// Upstreams are reached whatever their certificates' keys are, and whichever way of agreeing on keys, or cipher of TLS 1.2 that is no known
// hazard, is the only one they have.
func TestKeysOfUpstreams(t *testing.T) {
	ec := func(c elliptic.Curve) func() (crypto.Signer, error) {
		return func() (crypto.Signer, error) { return ecdsa.GenerateKey(c, rand.Reader) }
	}
	rsaKey := func(bits int) func() (crypto.Signer, error) {
		return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, bits) }
	}
	kinds := map[string]func() (crypto.Signer, error){
		"rsa": rsaKey(2048), "rsa4096": rsaKey(4096), "p256": ec(elliptic.P256()), "p384": ec(elliptic.P384()), "p521": ec(elliptic.P521()),
		"ed25519": func() (crypto.Signer, error) { _, key, err := ed25519.GenerateKey(rand.Reader); return key, err },
	}
	type server struct {
		host string
		key  func() (crypto.Signer, error)
		tls  *tls.Config
		*httptest.Server
	}
	var servers []server
	for name, key := range kinds {
		servers = append(servers, server{host: name, key: key, tls: &tls.Config{}})
	}
	for i, c := range curves {
		servers = append(servers, server{host: fmt.Sprintf("curve%d", i), key: kinds["p256"], tls: &tls.Config{CurvePreferences: []tls.CurveID{c}}})
	}
	for _, suite := range tls.CipherSuites() {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			key := kinds["rsa"]
			if strings.Contains(suite.Name, "ECDSA") {
				key = kinds["p256"]
			}
			servers = append(servers, server{host: fmt.Sprintf("cipher%d", suite.ID), key: key, tls: &tls.Config{CipherSuites: []uint16{suite.ID}, MaxVersion: tls.VersionTLS12}})
		}
	}
	s := start(t, func(c *Config) {
		for i := range servers {
			sv := &servers[i]
			sv.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, sv.host) }))
			c.Routes = append(c.Routes, Route{Name: sv.host, Hosts: []string{sv.host + ".provider.test"}, ConnectTo: sv.Listener.Addr().String()})
		}
	}, nil)
	ann := s.worker("ann")
	for _, sv := range servers {
		key, err := sv.key()
		if err != nil {
			t.Fatal(err)
		}
		sv.tls.Certificates = []tls.Certificate{s.upstream.ca.certify(t, key, func(c *x509.Certificate) { c.DNSNames = []string{sv.host + ".provider.test"} })}
		sv.TLS, sv.EnableHTTP2 = sv.tls, sv.tls.MaxVersion == 0 // HTTP/2 takes few ciphers of TLS 1.2 (RFC 9113 appendix A)
		sv.StartTLS()
		t.Cleanup(sv.Close)
		if a := get(t, ann, "https://"+sv.host+".provider.test/"); a.status != http.StatusOK || a.body != sv.host {
			t.Errorf("%s, curves %v, ciphers %v: %d %.100q", sv.host, sv.tls.CurvePreferences, sv.tls.CipherSuites, a.status, a.body)
		}
	}
}

// Workers need no more than one way of agreeing on keys, whichever way they come.
func TestKeysOfWorkers(t *testing.T) {
	l := startLeaves(t, 0)
	for _, w := range l.ways() {
		for _, c := range curves {
			host := w.host()
			conn, err := w.dial(host)
			if err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: l.leaves.pool(), CurvePreferences: []tls.CurveID{c}}).HandshakeContext(t.Context()); err != nil {
				t.Errorf("%s, %v: %v", w.name, c, err)
			}
			_ = conn.Close()
		}
	}
}

// A certificate that is not right for the host is not taken, whatever is not right about it, and nothing is sent to who shows it.
func TestCertificatesOfUpstreams(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	names := func(list ...string) func(*x509.Certificate) { return func(c *x509.Certificate) { c.DNSNames = list } }
	right := func(change func(*x509.Certificate)) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = []string{apiHost}; change(c) }
	}
	s := start(t, nil, nil)
	ann := s.worker("ann")
	for _, c := range []struct {
		name   string
		change func(*x509.Certificate)
		works  bool
	}{
		{"its name", names(apiHost), true},
		{"its name among others", names("x.test", apiHost), true},
		{"its name in upper case", names("API.Provider.Test"), true},
		{"a wildcard", names("*.provider.test"), true},
		{"another name", names("other.provider.test"), false},
		{"the name above it", names("provider.test"), false},
		{"a wildcard two labels above", names("*.test"), false},
		{"a wildcard for everything", names("*"), false},
		{"a wildcard in a label", names("a*.provider.test"), true}, // Envoy still takes it (RFC 6125); public authorities issue none
		{"a wildcard that is not first", names("api.*.test"), false},
		{"a final dot", names(apiHost + "."), false},
		{"a NUL behind it", names(apiHost + "\x00.evil.test"), false},
		{"a NUL before it", names("evil.test\x00." + apiHost), false},
		{"a space behind it", names(apiHost + " "), false},
		{"no name but the subject's", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: apiHost} }, false},
		{"an address alone", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }, false},
		{"the name as mail", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@" + apiHost} }, false},
		{"the name as a URL", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: apiHost}} }, false},
		{"over", right(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), false},
		{"not begun", right(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), false},
		{"for clients", right(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), false},
		{"with what nobody knows and must", right(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), false},
	} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			if !c.works {
				t.Errorf("%s: a request arrived", c.name)
			}
		}))
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{s.upstream.ca.certify(t, key, c.change)}}
		server.StartTLS()
		s.config.Routes[0].ConnectTo = server.Listener.Addr().String()
		s.publish()
		s.await("the upstream of "+c.name, Node.Current)
		a := get(t, ann, "https://"+apiHost+"/")
		switch {
		case c.works && a.status != http.StatusOK:
			t.Errorf("%s: %d %q", c.name, a.status, a.body)
		case !c.works:
			replied(t, a, 503, "upstream_unreachable")
			if !strings.Contains(a.body, "certificate of this host") {
				t.Errorf("%s: %q", c.name, a.body)
			}
		}
		server.Close()
	}
}

// certify makes a certificate of this key.
func (a *authority) certify(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
