package main

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAuthoritiesAreReplacedWhileAGateRuns(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	now, failure := x509.NewCertPool(), error(nil)
	client, err := trustingClient(func() (*x509.CertPool, error) { return now, failure })
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		resp, err := client.Get(s.URL)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](ask()); !unknown {
		t.Error("who is of no authority was asked")
	}
	now = x509.NewCertPool()
	now.AddCert(s.Certificate())
	if err := ask(); err != nil {
		t.Errorf("the authority was replaced: %v", err)
	}
	now, failure = nil, errors.New("the file is being replaced")
	if err := ask(); err != nil {
		t.Errorf("while it cannot be read: %v", err)
	}
	if _, err := trustingClient(func() (*x509.CertPool, error) { return nil, failure }); !errors.Is(err, failure) {
		t.Errorf("at the start: %v", err)
	}
}
