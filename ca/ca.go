// Package ca owns the certificates workers see on intercepted connections: a short-lived intermediate CA whose key never
// leaves this process, and the leaves it signs, one exact host name each. The root's key stays with the Signer, who also
// decides what the intermediate may be; who asks for a leaf, and keeping those handed out current, is left to others.
//
//	root (Signer) ── signs, at start and at 2/3 of its life ──▶ intermediate (here, in memory) ── signs ──▶ leaf per host
//
// Which roots are trusted and which one signs is asked again every 15 seconds, so that a root is replaced without a restart:
// the new one is handed out first, signs when everybody has it, and the old one goes. In between both may sign, each for those
// who are to get its leaves: there is an intermediate for each.
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
	"maps"
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
	// SignIntermediate returns DER certificates: the one issued for the CSR's key by root, then its issuers up to that.
	SignIntermediate(ctx context.Context, root *x509.Certificate, csrDER []byte, domains []string, ttl time.Duration) ([][]byte, error)
	// Roots returns the certificates that workers trust, the one that signs first. There are two while one replaces the
	// other.
	Roots(ctx context.Context) ([]*x509.Certificate, error)
}

// Config says what an Authority certifies and for how long.
type Config struct {
	// Domains are the names leaves are minted for: "api.example.com" for that name alone, "*.example.com" for every name
	// below it, at any depth, but not for itself. Lower case. At least one. See Certify.
	Domains []string
	// Roots are those that sign, by name; see Name. None: the one that signs by itself. See Certify.
	Roots []string
	// IntermediateTTL is how long an intermediate lives; default 24 h. It is replaced at two thirds of that, which leaves
	// a third for the Signer to be away.
	IntermediateTTL time.Duration
	// LeafTTL is how long a leaf lives; default 24 h. A leaf ends with its intermediate at the latest.
	LeafTTL time.Duration
	// OnRotate is called after each replacement of an intermediate that was due, from Run, so that leaves handed out earlier can be
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
	current atomic.Pointer[map[string]*intermediate] // by the names of the roots that were wanted; never changed

	wanted []string // names of the roots that sign; of New, and then of Run
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
	now := cfg.Now
	if now == nil {
		now = time.Now
	}
	// The time of day, by which certificates are judged. The running clock stands still while a machine is suspended.
	cfg.Now = func() time.Time { return now().Round(0) }
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
	a := &Authority{signer: signer, cfg: cfg, changes: make(chan change), wanted: byItself(cfg.Roots)}
	a.allowed.Store(&allowed)
	a.current.Store(&map[string]*intermediate{})
	if err := a.lookAtRoots(ctx); err != nil {
		return nil, err
	}
	if _, err := a.renew(ctx, allowed, a.wanted); err != nil {
		return nil, err
	}
	return a, nil
}

// byItself are the names of the roots that sign; "" is the one that does if nothing else is said.
func byItself(roots []string) []string {
	if len(roots) == 0 {
		return []string{""}
	}
	return roots
}

// change asks Run for other names and roots.
type change struct {
	allowed names
	roots   []string
	done    chan error
}

// Certify changes the names that leaves are minted for, and the roots that sign, while Run runs. Where an intermediate is missing, or
// is not for all names, another is made first, and nothing changes if that fails. Leaves that were handed out stay good, and what
// signed until now can for a while: whoever asks may not know yet.
func (a *Authority) Certify(ctx context.Context, domains, roots []string) error {
	want, err := parseDomains(domains)
	if err != nil {
		return err
	}
	c := change{want, byItself(roots), make(chan error, 1)}
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
func (a *Authority) change(ctx context.Context, want names, wanted []string) error {
	known := a.roots.Load().certs
	if slices.ContainsFunc(wanted, func(root string) bool { return root != "" && named(known, root) == nil }) { // it may be new
		if err := a.lookAtRoots(ctx); err != nil {
			return err
		}
	}
	if _, err := a.renew(ctx, want, wanted); err != nil {
		return err
	}
	a.allowed.Store(&want)
	a.wanted = wanted
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
// Authority that reaches its Signer has seen a change of them and replaced the intermediate of the one that signs by itself.
const (
	lookEvery = 15 * time.Second
	LookTime  = 2 * lookEvery
)

// Run looks at the roots every 15 seconds and replaces the intermediates in time, and at once when another root signs, until ctx
// ends, and returns nil then. When the Signer fails it tries again 15 seconds later; the roots and the intermediates
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
			c.done <- a.change(ctx, c.allowed, c.roots)
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
			a.cfg.Log.Warn("the root CA was not looked at; what is known serves on", "err", err, "again_in", lookEvery, "intermediate_ends", a.ends())
		}
		if next := Due(a.roots.Load().certs, now); next != "" && now.Sub(warned) >= 24*time.Hour {
			warned = now
			a.cfg.Log.Warn("the root CA must be replaced", "ends", a.roots.Load().certs[0].NotAfter, "next", next)
		}
	}
}

// ends is when the first intermediate of those that sign does.
func (a *Authority) ends() (first time.Time) {
	for _, in := range *a.current.Load() {
		if first.IsZero() || in.cert.NotAfter.Before(first) {
			first = in.cert.NotAfter
		}
	}
	return first
}

// look asks for the roots and replaces the intermediates whose time it is, or whose root does not sign any more.
func (a *Authority) look(ctx context.Context) error {
	if err := a.lookAtRoots(ctx); err != nil {
		return err
	}
	renewed, err := a.renew(ctx, *a.allowed.Load(), a.wanted)
	if renewed {
		a.cfg.OnRotate()
	}
	return err
}

// lookAtRoots asks the Signer for the roots.
func (a *Authority) lookAtRoots(ctx context.Context) error {
	certs, err := a.signer.Roots(ctx)
	if err == nil && len(certs) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return fmt.Errorf("fetching the root CA: %w", err)
	}
	before := a.roots.Load()
	if before != nil && slices.EqualFunc(before.certs, certs, (*x509.Certificate).Equal) {
		return nil
	}
	now := &roots{certs, PEM(certs)}
	a.roots.Store(now)
	if before != nil {
		a.cfg.Log.Info("the root CAs have changed", "signs", commonName(certs[0]), "others", commonNames(certs[1:]))
		a.cfg.OnRoots(now.pem)
	}
	return nil
}

// renew makes the intermediates of the wanted roots that are missing, or not for all names, or due. It reports whether one took the
// place of another that is due, whose leaves are to be replaced too. Those that are not wanted any more stay until they would be
// replaced. What could be made is used, also if something could not.
func (a *Authority) renew(ctx context.Context, allowed names, wanted []string) (renewed bool, err error) {
	now, trusted := a.cfg.Now(), a.roots.Load().certs
	next := maps.Clone(*a.current.Load())
	good := func(in *intermediate, root *x509.Certificate) bool {
		return in != nil && SignedBy(in.cert, root) && now.Before(in.renewAt)
	}
	maps.DeleteFunc(next, func(name string, in *intermediate) bool {
		return !slices.Contains(wanted, name) && !good(in, Signs(trusted, name))
	})
	for _, name := range wanted {
		root, was := Signs(trusted, name), next[name]
		if good(was, root) && was.covers(allowed) {
			continue
		}
		var in *intermediate
		for _, other := range next { // two names may mean the same
			if good(other, root) && other.covers(allowed) {
				in = other
			}
		}
		if in == nil {
			var failed error
			if in, failed = a.sign(ctx, root, allowed); failed != nil {
				err = errors.Join(err, failed)
				continue
			}
			if was != nil {
				a.cfg.Log.Info("replaced the intermediate CA", "ends", in.cert.NotAfter, "root", commonName(root))
			}
		}
		renewed = renewed || was != nil && !good(was, root)
		next[name] = in
	}
	a.current.Store(&next)
	return renewed, err
}

// sign makes a key and has it certified by root for the names.
func (a *Authority) sign(ctx context.Context, root *x509.Certificate, allowed names) (*intermediate, error) {
	// An intermediate that outlives its root would be good for nothing at its end.
	left := root.NotAfter.Sub(a.cfg.Now()).Truncate(time.Second)
	if left <= 0 {
		return nil, fmt.Errorf("the root CA %s ended at %v: %s", commonName(root), root.NotAfter, Due(a.roots.Load().certs, a.cfg.Now()))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the intermediate CA's key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making the intermediate CA's request: %w", err)
	}
	chain, err := a.signer.SignIntermediate(ctx, root, csr, allowed.constraints(), min(a.cfg.IntermediateTTL, left))
	if err != nil {
		return nil, fmt.Errorf("having an intermediate CA signed: %w", err)
	}
	in, err := accept(chain, key)
	if err != nil {
		return nil, fmt.Errorf("the intermediate CA that was signed is of no use: %w", err)
	}
	if !SignedBy(in.cert, root) {
		return nil, fmt.Errorf("the intermediate CA that was signed is not of the root CA %s", commonName(root))
	}
	// Two thirds of what is left of its life, less up to a tenth so that replicas started together spread out.
	now := a.cfg.Now()
	if left = in.cert.NotAfter.Sub(now); left <= 0 {
		return nil, fmt.Errorf("the intermediate CA that was signed ended at %v: is a clock wrong?", in.cert.NotAfter)
	}
	in.renewAt = now.Add(left*2/3 - mathrand.N(left/15+1))
	return in, nil
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

// Leaf mints a certificate for host by the root of that name, which is one of those that sign. host must be a lower-case DNS name under
// the configured domains; anything else is [ErrNameNotAllowed]. It may be untrusted: it is what a client sent as SNI.
//
// Each leaf has a key of its own. Making one costs about as much as the signature, and a key that leaks from wherever the
// leaf is held then speaks for one host only.
func (a *Authority) Leaf(host, root string) (Leaf, error) {
	if !a.allowed.Load().allow(host) {
		return Leaf{}, fmt.Errorf("%w: %.300q", ErrNameNotAllowed, host)
	}
	ca, now := (*a.current.Load())[root], a.cfg.Now()
	if ca == nil {
		return Leaf{}, fmt.Errorf("the root CA %q is none that signs", root)
	}
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
		NotBefore:             ca.cert.NotBefore, // workers' clocks run late, some by days
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

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
