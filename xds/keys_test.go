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
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// curves are those that Go has.
var curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// Upstreams are reached whatever their certificates' keys are, and whichever way of agreeing on keys is the only one they have.
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
		sv.tls.Certificates = []tls.Certificate{s.upstream.ca.certify(t, key, sv.host+".provider.test")}
		sv.TLS, sv.EnableHTTP2 = sv.tls, true
		sv.StartTLS()
		t.Cleanup(sv.Close)
		if a := get(t, ann, "https://"+sv.host+".provider.test/"); a.status != http.StatusOK || a.body != sv.host {
			t.Errorf("%s, curves %v: %d %.100q", sv.host, sv.tls.CurvePreferences, a.status, a.body)
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

// certify makes a certificate of this key.
func (a *authority) certify(t *testing.T, key crypto.Signer, name string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
