package vaulttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"wayleave/vault"
)

// root is a root CA in memory, as Setup generates one.
type root struct {
	once sync.Once
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	err  error
}

func (r *root) get() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	r.once.Do(func() {
		if r.key, r.err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); r.err != nil {
			return
		}
		template := caTemplate(vault.RootName, 1, 10*365*24*time.Hour)
		r.cert, r.err = sign(template, template, &r.key.PublicKey, r.key)
	})
	return r.cert, r.key, r.err
}

func caTemplate(name string, pathLength int, ttl time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(ttl),
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

// SignIntermediate is [vault.Client.SignIntermediate], with a root CA that lives as long as m. [Memory.Inject] sees it as
// "sign".
func (m *Memory) SignIntermediate(ctx context.Context, csrDER []byte, domains []string, ttl time.Duration) (chain [][]byte, err error) {
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
	ca, key, err := m.root.get()
	if err != nil {
		return nil, err
	}
	err = m.do(ctx, "sign", "root/sign-intermediate", func(bool) error {
		template := caTemplate(vault.IntermediateName, 0, ttl)
		template.PermittedDNSDomains, template.PermittedDNSDomainsCritical = domains, true
		issued, err := sign(template, ca, csr.PublicKey, key)
		if err == nil {
			chain = [][]byte{issued.Raw, ca.Raw}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// RootCA is [vault.Client.RootCA]. [Memory.Inject] sees it as "root".
func (m *Memory) RootCA(ctx context.Context) ([]byte, error) {
	ca, _, err := m.root.get()
	if err != nil {
		return nil, err
	}
	if err := m.do(ctx, "root", "cert/ca", func(bool) error { return nil }); err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), nil
}
