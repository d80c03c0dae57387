package vaulttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Who vouches for a gate that logs in without a secret of its own: an issuer of JSON web tokens, Kubernetes, and a
// certificate authority. The server's side of it is the real one.

// Issuer signs JSON web tokens with ES256 (RFC 7518 section 3.4).
type Issuer struct {
	URL  string      // where its keys are (RFC 7517)
	Down atomic.Bool // they cannot be had

	key *ecdsa.PrivateKey
}

// NewIssuer makes an issuer with a key of its own, whose keys are served until the end of the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{key: newKey(t)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if i.Down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		point, err := i.key.PublicKey.Bytes()
		if err != nil {
			t.Error(err)
			return
		}
		b64 := base64.RawURLEncoding.EncodeToString
		key := map[string]string{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": b64(point[1:33]), "y": b64(point[33:])}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{key}})
	}))
	t.Cleanup(s.Close)
	i.URL = s.URL
	return i
}

// PublicPEM is the public key.
func (i *Issuer) PublicPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// Token is a token with the claims, which is valid from an hour before until life after now.
func (i *Issuer) Token(t testing.TB, life time.Duration, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	all := map[string]any{"iat": now.Add(min(0, life) - time.Hour).Unix(), "nbf": now.Add(min(0, life) - time.Hour).Unix(), "exp": now.Add(life).Unix()}
	maps.Copy(all, claims)
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	text := part(map[string]string{"alg": "ES256", "typ": "JWT", "kid": "1"}) + "." + part(all)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// Kubernetes stands in for the part of Kubernetes that judges service-account tokens: TokenReview of the API
// authentication.k8s.io/v1.
type Kubernetes struct {
	URL  string
	CA   string      // PEM
	Down atomic.Bool // it answers nothing

	*Issuer
}

// NewKubernetes runs one until the end of the test.
func NewKubernetes(t testing.TB) *Kubernetes {
	t.Helper()
	k := &Kubernetes{Issuer: NewIssuer(t)}
	s := httptest.NewUnstartedServer(http.HandlerFunc(k.review))
	s.StartTLS()
	t.Cleanup(s.Close)
	k.URL = s.URL
	k.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return k
}

// ServiceAccount is a token for the account of that name in the namespace "fleet".
func (k *Kubernetes) ServiceAccount(t testing.TB, name, audience string, life time.Duration) string {
	t.Helper()
	return k.Token(t, life, map[string]any{
		"iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:fleet:" + name, "aud": []string{audience},
		"kubernetes.io": map[string]any{"namespace": "fleet", "serviceaccount": map[string]string{"name": name, "uid": name + "-uid"}},
	})
}

func (k *Kubernetes) review(w http.ResponseWriter, r *http.Request) {
	var review struct {
		Spec struct {
			Token     string   `json:"token"`
			Audiences []string `json:"audiences"`
		} `json:"spec"`
	}
	var claims struct {
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
		Expires  int64    `json:"exp"`
	}
	if k.Down.Load() || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || json.NewDecoder(r.Body).Decode(&review) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_, text, _ := strings.Cut(review.Spec.Token, ".")
	text, _, _ = strings.Cut(text, ".")
	status := map[string]any{"authenticated": false, "error": "token is not valid"}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil && json.Unmarshal(raw, &claims) == nil && time.Now().Unix() < claims.Expires &&
		(len(review.Spec.Audiences) == 0 || review.Spec.Audiences[0] == claims.Audience[0]) {
		name := claims.Subject[strings.LastIndex(claims.Subject, ":")+1:]
		status = map[string]any{"authenticated": true, "audiences": claims.Audience, "user": map[string]any{
			"username": claims.Subject, "uid": name + "-uid", "groups": []string{"system:serviceaccounts", "system:serviceaccounts:fleet"},
		}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status})
}

// Authority issues client certificates.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewAuthority makes one with that common name.
func NewAuthority(t testing.TB, name string) Authority {
	t.Helper()
	a := Authority{key: newKey(t)}
	template := caTemplate(name, 0, 24*time.Hour)
	template.NotBefore = time.Now().Add(-24 * time.Hour)
	var err error
	if a.cert, err = sign(template, template, a.key.Public(), a.key); err != nil {
		t.Fatal(err)
	}
	return a
}

// PEM is the authority's certificate.
func (a Authority) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// Client is a certificate with that common name and its key, in one text.
func (a Authority) Client(t testing.TB, name string, life time.Duration) string {
	t.Helper()
	return a.client(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}}, life)
}

// SVID is a certificate with these URIs, of which a workload of SPIFFE has one, and its key, in one text.
func (a Authority) SVID(t testing.TB, life time.Duration, ids ...string) string {
	t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{Organization: []string{"SPIRE"}}}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return a.client(t, template, life)
}

func (a Authority) client(t testing.TB, template *x509.Certificate, life time.Duration) string {
	t.Helper()
	key := newKey(t)
	cert, err := sign(&x509.Certificate{
		Subject: template.Subject, URIs: template.URIs, NotBefore: time.Now().Add(min(0, life) - time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
