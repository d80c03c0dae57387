package main

import (
	"crypto/x509"
	"net/http"
	"sync/atomic"

	"wayleave/oauth"
)

// trusting asks who has a certificate of the authorities that a file has at the time: a company's authority is replaced while a gate runs, and Kubernetes replaces
// that of a pod by itself. While the file cannot be read, those of before count.
type trusting struct {
	roots func() (*x509.CertPool, error) // nil: the system's
	last  atomic.Pointer[x509.CertPool]
}

// trustingClient is oauth.NewHTTPClient with roots that are read at each request. The error is that of reading them now.
func trustingClient(roots func() (*x509.CertPool, error)) (*http.Client, error) {
	first, err := roots()
	if err != nil {
		return nil, err
	}
	t := &trusting{roots: roots}
	t.last.Store(first)
	client := oauth.NewHTTPClient(nil)
	client.Transport = t
	return client, nil
}

// trustingFile is trustingClient with the system's roots and those in a file; empty: there is none.
func trustingFile(path string) (*http.Client, error) {
	return trustingClient(func() (*x509.CertPool, error) { return rootsAnd(path) })
}

// RoundTrip implements http.RoundTripper.
func (t *trusting) RoundTrip(req *http.Request) (*http.Response, error) {
	if roots, err := t.roots(); err == nil {
		t.last.Store(roots)
	}
	return oauth.NewHTTPClient(t.last.Load()).Transport.RoundTrip(req) // which keeps no connection
}
