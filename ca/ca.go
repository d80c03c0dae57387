// Package ca owns the certificates workers see on intercepted connections: a short-lived intermediate CA whose key never
// leaves this process, and the leaves it signs, one exact host name each. The root's key stays with the Signer, who also
// decides what the intermediate may be; who asks for a leaf, and keeping those handed out current, is left to others.
//
//	root (Signer) ── signs, at start and at 2/3 of its life ──▶ intermediate (here, in memory) ── signs ──▶ leaf per host
//
// The intermediate is constrained to the configured domains (RFC 5280 §4.2.1.10) and cannot sign further CAs, so that
// even its key, stolen, fakes nothing else and not for long.
package ca

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"
)

// ErrNameNotAllowed says that the name is none of the configured domains, or no host name at all. Test with [errors.Is].
var ErrNameNotAllowed = errors.New("no certificate for this name")

// Signer holds the root's key: the vault package's Client.
type Signer interface {
	// SignIntermediate returns DER certificates: the one issued for the CSR's key, then its issuers up to the root.
	SignIntermediate(ctx context.Context, csrDER []byte, domains []string, ttl time.Duration) ([][]byte, error)
	// RootCA returns the certificate that workers trust, as PEM.
	RootCA(ctx context.Context) ([]byte, error)
}

// Config says what an Authority certifies and for how long.
type Config struct {
	// Domains are the names leaves are minted for: "api.example.com" for that name alone, "*.example.com" for every name
	// below it, at any depth, but not for itself. Lower case. At least one.
	Domains []string
	// IntermediateTTL is how long an intermediate lives; default 24 h. It is replaced at two thirds of that, which leaves
	// a third for the Signer to be away.
	IntermediateTTL time.Duration
	// LeafTTL is how long a leaf lives; default 24 h. A leaf ends with its intermediate at the latest.
	LeafTTL time.Duration
	// OnRotate is called after each replacement of the intermediate, from Run, so that leaves handed out earlier can be
	// minted again while the old ones are still good. May be nil.
	OnRotate func()
	Log      *slog.Logger     // nil: nothing
	Now      func() time.Time // nil: time.Now
}

// Authority mints leaves. Its methods are safe for concurrent use.
type Authority struct {
	signer  Signer
	cfg     Config
	allowed names
	rootPEM []byte
	current atomic.Pointer[intermediate]
}

// intermediate is one CA certificate with its key. It never changes.
type intermediate struct {
	cert     *x509.Certificate
	key      *ecdsa.PrivateKey
	chainPEM []byte    // the certificate and those between it and the root
	renewAt  time.Time // when to replace it
}

// New has the first intermediate signed. The error is the Signer's, or says which domain is none.
func New(ctx context.Context, signer Signer, cfg Config) (*Authority, error) {
	cfg.IntermediateTTL = cmp.Or(cfg.IntermediateTTL, 24*time.Hour)
	cfg.LeafTTL = cmp.Or(cfg.LeafTTL, 24*time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnRotate == nil {
		cfg.OnRotate = func() {}
	}
	allowed, err := parseDomains(cfg.Domains)
	if err != nil {
		return nil, err
	}
	a := &Authority{signer: signer, cfg: cfg, allowed: allowed}
	if a.rootPEM, err = signer.RootCA(ctx); err != nil {
		return nil, fmt.Errorf("fetching the root CA: %w", err)
	}
	if err := a.rotate(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// RootPEM returns the certificate that workers trust.
func (a *Authority) RootPEM() []byte { return a.rootPEM }

// Run replaces the intermediate in time until ctx ends, and returns nil then. When the Signer fails it tries again; the
// intermediate there is serves until its end.
func (a *Authority) Run(ctx context.Context) error {
	for retry := time.Duration(0); ; {
		wait := retry
		if retry == 0 {
			wait = a.current.Load().renewAt.Sub(a.cfg.Now())
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := a.rotate(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			const first, most = time.Second, 5 * time.Minute
			retry = min(max(2*retry, first), most)
			a.cfg.Log.Warn("replacing the intermediate CA failed", "err", err, "again_in", retry, "ends", a.current.Load().cert.NotAfter)
			continue
		}
		retry = 0
		a.cfg.Log.Info("replaced the intermediate CA", "ends", a.current.Load().cert.NotAfter)
		a.cfg.OnRotate()
	}
}

// rotate makes a key, has it certified, and puts it in the place of the current one.
func (a *Authority) rotate(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the intermediate CA's key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("making the intermediate CA's request: %w", err)
	}
	chain, err := a.signer.SignIntermediate(ctx, csr, a.allowed.constraints(), a.cfg.IntermediateTTL)
	if err != nil {
		return fmt.Errorf("having an intermediate CA signed: %w", err)
	}
	next, err := accept(chain, key)
	if err != nil {
		return fmt.Errorf("the intermediate CA that was signed is of no use: %w", err)
	}
	// Two thirds of what is left of its life, less up to a tenth so that replicas started together spread out.
	now := a.cfg.Now()
	left := next.cert.NotAfter.Sub(now)
	if left <= 0 {
		return fmt.Errorf("the intermediate CA that was signed ended at %v: is a clock wrong?", next.cert.NotAfter)
	}
	next.renewAt = now.Add(left*2/3 - mathrand.N(left/15+1))
	a.current.Store(next)
	return nil
}

// accept checks what the signer returned. What it parses is what leaves are signed with: signing with the template one
// asked for would leave out the authority key identifier, which strict verifiers demand.
func accept(chain [][]byte, key *ecdsa.PrivateKey) (*intermediate, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate came back")
	}
	in := &intermediate{key: key}
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			in.cert = cert
		}
		// Verifiers have the root; sending it only makes handshakes longer.
		if i == 0 || cert.CheckSignatureFrom(cert) != nil {
			in.chainPEM = append(in.chainPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	switch public, ok := in.cert.PublicKey.(*ecdsa.PublicKey); {
	case !ok || !public.Equal(key.Public()):
		return nil, errors.New("it is for another key")
	case !in.cert.IsCA || in.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("it may not sign certificates")
	case len(in.cert.SubjectKeyId) == 0:
		return nil, errors.New("it has no subject key identifier")
	}
	return in, nil
}

// Leaf is a certificate for one host name, as a TLS server needs it.
type Leaf struct {
	CertificatePEM []byte // the leaf, then the intermediate
	KeyPEM         []byte // PKCS #8
	NotAfter       time.Time
}

// backdate lets workers whose clock runs late accept a new leaf.
const backdate = 5 * time.Minute

// Leaf mints a certificate for host, which must be a lower-case DNS name under the configured domains; anything else is
// [ErrNameNotAllowed]. host may be untrusted: it is what a client sent as SNI.
//
// Each leaf has a key of its own. Making one costs about as much as the signature, and a key that leaks from wherever the
// leaf is held then speaks for one host only.
func (a *Authority) Leaf(host string) (Leaf, error) {
	if !a.allowed.allow(host) {
		return Leaf{}, fmt.Errorf("%w: %.300q", ErrNameNotAllowed, host)
	}
	ca, now := a.current.Load(), a.cfg.Now()
	if !now.Before(ca.cert.NotAfter) {
		return Leaf{}, fmt.Errorf("the intermediate CA ended at %v and could not be replaced yet", ca.cert.NotAfter)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Leaf{}, fmt.Errorf("making the key for %s: %w", host, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // at most 20 octets, RFC 5280 §4.1.2.2
	if err != nil {
		return Leaf{}, fmt.Errorf("making a serial number: %w", err)
	}
	leaf := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // never zero
		// No subject: a common name holds 64 characters, a host name 253, and verifiers read the alternative name alone.
		// crypto/x509 then marks that critical, as RFC 5280 §4.2.1.6 wants.
		DNSNames:              []string{host},
		NotBefore:             latest(now.Add(-backdate), ca.cert.NotBefore),
		NotAfter:              earliest(now.Add(a.cfg.LeafTTL), ca.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature, // always critical in crypto/x509
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if leaf.SubjectKeyId, err = keyID(&key.PublicKey); err != nil {
		return Leaf{}, fmt.Errorf("making the certificate for %s: %w", host, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return Leaf{}, fmt.Errorf("signing the certificate for %s: %w", host, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Leaf{}, fmt.Errorf("encoding the key for %s: %w", host, err)
	}
	return Leaf{
		CertificatePEM: append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), ca.chainPEM...),
		KeyPEM:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		NotAfter:       leaf.NotAfter,
	}, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
