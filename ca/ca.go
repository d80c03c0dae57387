// Package ca owns the certificates workers see on intercepted connections: a short-lived intermediate CA whose key never
// leaves this process, and the leaves it signs, one exact host name each. The root's key stays with the Signer, who also
// decides what the intermediate may be; who asks for a leaf, and keeping those handed out current, is left to others.
//
//	root (Signer) ── signs, at start and at 2/3 of its life ──▶ intermediate (here, in memory) ── signs ──▶ leaf per host
//
// Which roots are trusted and which one signs is asked again every 15 seconds, so that a root is replaced without a restart:
// the new one is handed out first, signs when everybody has it, and the old one goes.
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
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// ErrNameNotAllowed says that the name is none of the configured domains, or no host name at all. Test with [errors.Is].
var ErrNameNotAllowed = errors.New("no certificate for this name")

// Signer holds the root's key: the vault package's Client.
type Signer interface {
	// SignIntermediate returns DER certificates: the one issued for the CSR's key, then its issuers up to the root.
	SignIntermediate(ctx context.Context, csrDER []byte, domains []string, ttl time.Duration) ([][]byte, error)
	// Roots returns the certificates that workers trust, the one that signs first. There are two while one replaces the
	// other.
	Roots(ctx context.Context) ([]*x509.Certificate, error)
}

// Config says what an Authority certifies and for how long.
type Config struct {
	// Domains are the names leaves are minted for: "api.example.com" for that name alone, "*.example.com" for every name
	// below it, at any depth, but not for itself. Lower case. At least one. See Certify.
	Domains []string
	// IntermediateTTL is how long an intermediate lives; default 24 h. It is replaced at two thirds of that, which leaves
	// a third for the Signer to be away.
	IntermediateTTL time.Duration
	// LeafTTL is how long a leaf lives; default 24 h. A leaf ends with its intermediate at the latest.
	LeafTTL time.Duration
	// OnRotate is called after each replacement of the intermediate, from Run, so that leaves handed out earlier can be
	// minted again while the old ones are still good. May be nil.
	OnRotate func()
	// OnRoots is called when other roots than before are trusted, from Run, before anything is signed by a new one, with
	// what RootPEM returns from then on. May be nil.
	OnRoots func(rootPEM []byte)
	Log     *slog.Logger     // nil: nothing
	Now     func() time.Time // nil: time.Now
}

// Authority mints leaves. Its methods are safe for concurrent use.
type Authority struct {
	signer  Signer
	cfg     Config
	changes chan change
	allowed atomic.Pointer[names]
	roots   atomic.Pointer[roots]
	current atomic.Pointer[intermediate]
}

// roots are the certificates that workers trust. They never change.
type roots struct {
	certs []*x509.Certificate // the one that signs first
	pem   []byte
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
	if cfg.OnRoots == nil {
		cfg.OnRoots = func([]byte) {}
	}
	allowed, err := parseDomains(cfg.Domains)
	if err != nil {
		return nil, err
	}
	a := &Authority{signer: signer, cfg: cfg, changes: make(chan change)}
	a.allowed.Store(&allowed)
	if _, err := a.lookAtRoots(ctx); err != nil {
		return nil, err
	}
	if err := a.rotate(ctx, allowed); err != nil {
		return nil, err
	}
	return a, nil
}

// change asks Run for other names.
type change struct {
	allowed names
	done    chan error
}

// Certify changes the names that leaves are minted for, while Run runs. When the intermediate is not for all of them it is
// replaced first, and nothing changes if that fails. Leaves that were handed out stay good.
func (a *Authority) Certify(ctx context.Context, domains []string) error {
	want, err := parseDomains(domains)
	if err != nil {
		return err
	}
	c := change{want, make(chan error, 1)}
	select {
	case a.changes <- c:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change is Certify, in Run.
func (a *Authority) change(ctx context.Context, want names) error {
	if !a.current.Load().covers(want) {
		if err := a.rotate(ctx, want); err != nil {
			return err
		}
	}
	a.allowed.Store(&want)
	return nil
}

// covers reports whether the intermediate may sign for all of n.
func (in *intermediate) covers(n names) bool {
	for _, d := range n.constraints() {
		for parent := d; !slices.Contains(in.cert.PermittedDNSDomains, parent); {
			_, above, more := strings.Cut(parent, ".")
			if !more {
				return false
			}
			parent = above
		}
	}
	return true
}

// Roots are the certificates that workers trust, the one that signs first; not to be changed.
func (a *Authority) Roots() []*x509.Certificate { return a.roots.Load().certs }

// RootPEM is Roots as they are handed out.
func (a *Authority) RootPEM() []byte { return a.roots.Load().pem }

// lookEvery is how often the Signer is asked for its roots, at least. LookTime is how long it may take until each
// Authority that reaches its Signer has seen a change of them and replaced its intermediate.
const (
	lookEvery = 15 * time.Second
	LookTime  = 2 * lookEvery
)

// Run looks at the roots every 15 seconds and replaces the intermediate in time, and at once when another root signs, until ctx
// ends, and returns nil then. When the Signer fails it tries again 15 seconds later; the roots and the intermediate
// there are serve on.
func (a *Authority) Run(ctx context.Context) error {
	var complained, warned time.Time // when it was last said that the Signer fails, and that the root ends
	for {
		// Replicas started together spread out.
		timer := time.NewTimer(lookEvery - mathrand.N(lookEvery/4))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case c := <-a.changes:
			timer.Stop()
			c.done <- a.change(ctx, c.allowed)
			continue
		case <-timer.C:
		}
		err := a.look(ctx)
		now := a.cfg.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			complained = time.Time{}
		case complained.IsZero(), now.Sub(complained) >= time.Hour:
			complained = now
			a.cfg.Log.Warn("the root CA was not looked at; what is known serves on", "err", err, "again_in", lookEvery, "intermediate_ends", a.current.Load().cert.NotAfter)
		}
		if next := Due(a.roots.Load().certs, now); next != "" && now.Sub(warned) >= 24*time.Hour {
			warned = now
			a.cfg.Log.Warn("the root CA must be replaced", "ends", a.roots.Load().certs[0].NotAfter, "next", next)
		}
	}
}

// look asks for the roots and replaces the intermediate when it is time, or when another root signs now.
func (a *Authority) look(ctx context.Context) error {
	changed, err := a.lookAtRoots(ctx)
	if err != nil {
		return err
	}
	roots := a.roots.Load()
	if changed {
		a.cfg.Log.Info("the root CAs have changed", "signs", commonName(roots.certs[0]), "others", commonNames(roots.certs[1:]))
		a.cfg.OnRoots(roots.pem)
	}
	in := a.current.Load()
	if SignedBy(in.cert, roots.certs[0]) && a.cfg.Now().Before(in.renewAt) {
		return nil
	}
	if err := a.rotate(ctx, *a.allowed.Load()); err != nil {
		return err
	}
	a.cfg.Log.Info("replaced the intermediate CA", "ends", a.current.Load().cert.NotAfter, "root", commonName(roots.certs[0]))
	a.cfg.OnRotate()
	return nil
}

// lookAtRoots asks the Signer for the roots. It reports whether they are not those that were known.
func (a *Authority) lookAtRoots(ctx context.Context) (changed bool, err error) {
	certs, err := a.signer.Roots(ctx)
	if err == nil && len(certs) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return false, fmt.Errorf("fetching the root CA: %w", err)
	}
	if before := a.roots.Load(); before != nil && slices.EqualFunc(before.certs, certs, (*x509.Certificate).Equal) {
		return false, nil
	}
	a.roots.Store(&roots{certs, PEM(certs)})
	return true, nil
}

// rotate makes a key, has it certified for the names, and puts it in the place of the current one.
func (a *Authority) rotate(ctx context.Context, allowed names) error {
	root := a.roots.Load().certs[0]
	// An intermediate that outlives its root would be good for nothing at its end.
	left := root.NotAfter.Sub(a.cfg.Now()).Truncate(time.Second)
	if left <= 0 {
		return fmt.Errorf("the root CA %s ended at %v: %s", commonName(root), root.NotAfter, Due(a.roots.Load().certs, a.cfg.Now()))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the intermediate CA's key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("making the intermediate CA's request: %w", err)
	}
	chain, err := a.signer.SignIntermediate(ctx, csr, allowed.constraints(), min(a.cfg.IntermediateTTL, left))
	if err != nil {
		return fmt.Errorf("having an intermediate CA signed: %w", err)
	}
	next, err := accept(chain, key)
	if err != nil {
		return fmt.Errorf("the intermediate CA that was signed is of no use: %w", err)
	}
	if !slices.ContainsFunc(a.roots.Load().certs, func(r *x509.Certificate) bool { return SignedBy(next.cert, r) }) {
		return errors.New("the intermediate CA that was signed is of a root that workers do not trust yet")
	}
	// Two thirds of what is left of its life, less up to a tenth so that replicas started together spread out.
	now := a.cfg.Now()
	if left = next.cert.NotAfter.Sub(now); left <= 0 {
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
	if !a.allowed.Load().allow(host) {
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
