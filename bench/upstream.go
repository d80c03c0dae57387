package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"time"
)

const (
	apiHost    = "api.bench.test"
	apiHostH2  = "h2.bench.test" // of an upstream that speaks HTTP/2
	streamPath = "/v1/stream"    // of an answer that comes as events, each by itself
	events     = 50
	event      = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n"
)

// upstream is an API. Most speak HTTP/1.1, which costs Envoy least, so that what is added to it shows most.
type upstream struct {
	*httptest.Server
	address string
	ca      []byte // PEM
	roots   *x509.CertPool
}

// statusUnswapped is what it answers to a request without the real token.
const statusUnswapped = http.StatusAccepted

// answerHeaders are about those of a language model's API: what searches the headers of answers has them to search.
var answerHeaders = map[string]string{
	"Content-Type": "application/json", "Cache-Control": "no-cache", "Request-Id": "req_011CWd8ZtFbXyJm7Qw3sRkLp",
	"Anthropic-Organization-Id": "00000000-0000-4000-8000-000000000000", "Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload",
	"Anthropic-Ratelimit-Requests-Limit": "4000", "Anthropic-Ratelimit-Requests-Remaining": "3999", "Anthropic-Ratelimit-Requests-Reset": "2026-01-01T00:00:00Z",
	"Anthropic-Ratelimit-Tokens-Limit": "400000", "Anthropic-Ratelimit-Tokens-Remaining": "399000", "Anthropic-Ratelimit-Tokens-Reset": "2026-01-01T00:00:00Z",
	"Via": "1.1 google", "Cf-Cache-Status": "DYNAMIC", "X-Robots-Tag": "none", "Vary": "Accept-Encoding",
}

func startUpstream() (*upstream, error) { return newUpstream(false) }

// newUpstream starts one that speaks HTTP/1.1, or one that offers HTTP/2 and wants it.
func newUpstream(h2 bool) (*upstream, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// Of one certificate, which is its own authority.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: fmt.Sprintf("bench upstream, HTTP/2: %t", h2)}, DNSNames: []string{"*.bench.test", "*.fresh.bench.test", "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	u := &upstream{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), roots: x509.NewCertPool()}
	u.roots.AppendCertsFromPEM(u.ca)
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range answerHeaders {
			w.Header().Set(name, value)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == streamPath {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		if h2 && r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
			return
		}
		if r.Header.Get("Authorization") != "Bearer "+realToken {
			w.WriteHeader(statusUnswapped)
		}
		if r.URL.Path != streamPath {
			_, _ = io.WriteString(w, `{"ok":true}`) // whoever asked may have gone
			return
		}
		for range events {
			_, _ = io.WriteString(w, event)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	u.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // connections that end after their handshake
	u.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	u.EnableHTTP2 = h2
	u.StartTLS()
	u.address = u.Listener.Addr().String()
	return u, nil
}

// tunnelled is it as the host of a tunnel that nobody looks into.
func (u *upstream) tunnelled() string { return u.named("localhost") }

// named is it as a host of that name, which leads to this machine.
func (u *upstream) named(host string) string {
	_, port, err := net.SplitHostPort(u.address)
	if err != nil {
		panic(fmt.Sprintf("a listener's address without a port: %v", err))
	}
	return host + ":" + port
}
