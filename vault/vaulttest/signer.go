package vaulttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"wayleave/vault"
)

// pki is a PKI mount in memory, as Setup leaves it and the steps of a change of roots make it.
// Memory's lock guards it.
type pki struct {
	roots  []root // the one that signs first
	signed []*x509.Certificate
}

type root struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newRoot(name string) (r root, err error) {
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return root{}, err
	}
	template := caTemplate(name, 1, 10*365*24*time.Hour)
	r.cert, err = sign(template, template, &r.key.PublicKey, r.key)
	return r, err
}

// do runs one call, with the first root made.
func (p *pki) do(call func() error) error {
	if len(p.roots) == 0 {
		first, err := newRoot(vault.RootName)
		if err != nil {
			return err
		}
		p.roots = []root{first}
	}
	return call()
}

// index is where a root is, or an error.
func (p *pki) index(cert *x509.Certificate) (int, error) {
	i := slices.IndexFunc(p.roots, func(r root) bool { return r.cert.Equal(cert) })
	if i < 0 {
		return 0, fmt.Errorf("%w: %s", vault.ErrNotFound, cert.Subject.CommonName)
	}
	return i, nil
}

func (p *pki) certificates() (certs []*x509.Certificate) {
	for _, r := range p.roots {
		certs = append(certs, r.cert)
	}
	return certs
}

func caTemplate(name string, pathLength int, ttl time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-vault.Backdate), NotAfter: now.Add(ttl),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLength, MaxPathLenZero: pathLength == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// SignIntermediate is [vault.Client.SignIntermediate], with root CAs that live as long as m. [Memory.Inject] sees it as
// "sign".
func (m *Memory) SignIntermediate(ctx context.Context, by *x509.Certificate, csrDER []byte, domains []string, ttl time.Duration) (chain [][]byte, err error) {
	if len(domains) == 0 {
		return nil, errors.New("signing an intermediate CA: no domains given")
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("signing an intermediate CA: %w", err)
	}
	err = m.do(ctx, "sign", "issuer/sign-intermediate", func(bool) error {
		return m.pki.do(func() error {
			template := caTemplate(vault.IntermediateName, 0, ttl)
			template.PermittedDNSDomains, template.PermittedDNSDomainsCritical = domains, true
			i, err := m.pki.index(by)
			if err != nil {
				return err
			}
			signs := m.pki.roots[i]
			issued, err := sign(template, signs.cert, csr.PublicKey, signs.key)
			if err == nil {
				chain = [][]byte{issued.Raw, signs.cert.Raw}
				m.pki.signed = append(m.pki.signed, issued)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// Roots is [vault.Client.Roots]. [Memory.Inject] sees it as "roots".
func (m *Memory) Roots(ctx context.Context) (roots []*x509.Certificate, err error) {
	err = m.do(ctx, "roots", "issuers", func(bool) error {
		return m.pki.do(func() error { roots = m.pki.certificates(); return nil })
	})
	return roots, err
}

// PrepareRoot is [vault.Client.PrepareRoot].
func (m *Memory) PrepareRoot(ctx context.Context) (made *x509.Certificate, err error) {
	err = m.do(ctx, "prepare", "root/generate/internal", func(bool) error {
		return m.pki.do(func() error {
			next, err := newRoot(vault.SuccessorName(m.pki.certificates()))
			if err == nil {
				made = next.cert
				m.pki.roots = append(m.pki.roots, next)
			}
			return err
		})
	})
	return made, err
}

// ActivateRoot is [vault.Client.ActivateRoot].
func (m *Memory) ActivateRoot(ctx context.Context, cert *x509.Certificate) error {
	return m.do(ctx, "activate", "config/issuers", func(bool) error {
		return m.pki.do(func() error {
			i, err := m.pki.index(cert)
			if err != nil {
				return err
			}
			signs := m.pki.roots[i]
			others := slices.Delete(slices.Clone(m.pki.roots), i, i+1)
			slices.SortStableFunc(others, func(a, b root) int { return vault.SignedAt(a.cert).Compare(vault.SignedAt(b.cert)) })
			m.pki.roots = append([]root{signs}, others...)
			return nil
		})
	})
}

// RetireRoot is [vault.Client.RetireRoot].
func (m *Memory) RetireRoot(ctx context.Context, cert *x509.Certificate) error {
	return m.do(ctx, "retire", "issuer", func(bool) error {
		return m.pki.do(func() error {
			i, err := m.pki.index(cert)
			switch {
			case err != nil:
				return err
			case i == 0:
				return errors.New("removing a root CA: it signs, so let another sign first")
			}
			m.pki.roots = slices.Delete(slices.Clone(m.pki.roots), i, i+1)
			return nil
		})
	})
}

// Intermediates is [vault.Client.Intermediates].
func (m *Memory) Intermediates(ctx context.Context) (signed []*x509.Certificate, err error) {
	err = m.do(ctx, "intermediates", "certs", func(bool) error {
		return m.pki.do(func() error {
			for _, c := range m.pki.signed {
				if time.Now().Before(c.NotAfter) {
					signed = append(signed, c)
				}
			}
			return nil
		})
	})
	return signed, err
}
