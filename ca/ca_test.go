package ca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"wayleave/ca"
	"wayleave/vault/vaulttest"
)

var domains = []string{"api.example.com", "*.wild.example.com", "wild.example.com", "under_score.example.org", strings.Repeat("a", 63) + ".long.example"}

// signers runs a test over the signer in memory and over a real OpenBao with the gateway's policy.
func signers(t *testing.T, test func(*testing.T, ca.Signer)) {
	t.Run("memory", func(t *testing.T) { test(t, vaulttest.NewMemory()) })
	t.Run("openbao", func(t *testing.T) { test(t, vaulttest.Start(t).Gateway) })
}

func newAuthority(t *testing.T, s ca.Signer, cfg ca.Config) *ca.Authority {
	t.Helper()
	if cfg.Domains == nil {
		cfg.Domains = domains
	}
	a, err := ca.New(t.Context(), s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func certificates(t *testing.T, text []byte) (certs []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	return certs
}

// verify is what a worker written in Go does.
func verify(t *testing.T, a *ca.Authority, leaf ca.Leaf, host string, at time.Time) error {
	t.Helper()
	chain := certificates(t, leaf.CertificatePEM)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(a.RootPEM())
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: at})
	return err
}

func TestLeaf(t *testing.T) {
	signers(t, func(t *testing.T, s ca.Signer) {
		a := newAuthority(t, s, ca.Config{LeafTTL: time.Hour})
		for _, host := range []string{"api.example.com", "wild.example.com", "a.wild.example.com", "a.b.wild.example.com", "under_score.example.org", domains[4]} {
			leaf, err := a.Leaf(host, "")
			if err != nil {
				t.Errorf("%s: %v", host, err)
				continue
			}
			if err := verify(t, a, leaf, host, time.Now()); err != nil {
				t.Errorf("%s: %v", host, err)
			}
			if _, err := tls.X509KeyPair(leaf.CertificatePEM, leaf.KeyPEM); err != nil {
				t.Errorf("%s: %v", host, err)
			}
			chain := certificates(t, leaf.CertificatePEM)
			if len(chain) != 2 {
				t.Fatalf("%s: chain of %d, want leaf and intermediate", host, len(chain))
			}
			c, in := chain[0], chain[1]
			if diff := cmp.Diff([]string{host}, c.DNSNames); diff != "" {
				t.Errorf("%s: %s", host, diff)
			}
			critical := map[string]bool{}
			for _, e := range c.Extensions {
				critical[e.Id.String()] = e.Critical
			}
			const keyUsage, alternativeName, basicConstraints = "2.5.29.15", "2.5.29.17", "2.5.29.19"
			if c.IsCA || !c.BasicConstraintsValid || !critical[keyUsage] || !critical[alternativeName] || !critical[basicConstraints] ||
				len(c.SubjectKeyId) == 0 || !bytes.Equal(c.AuthorityKeyId, in.SubjectKeyId) || len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) > 0 {
				t.Errorf("%s: %+v", host, c)
			}
			if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, c.ExtKeyUsage); diff != "" {
				t.Errorf("%s: %s", host, diff)
			}
			if c.NotAfter.After(in.NotAfter) || !leaf.NotAfter.Truncate(time.Second).Equal(c.NotAfter) {
				t.Errorf("%s: valid %v to %v, said %v; the intermediate %v to %v", host, c.NotBefore, c.NotAfter, leaf.NotAfter, in.NotBefore, in.NotAfter)
			}
			for _, one := range chain { // the clock of a machine that goes on from a snapshot is days late
				if time.Since(one.NotBefore) < 6*24*time.Hour {
					t.Errorf("%s: valid from %v", host, one.NotBefore)
				}
			}
			if c.KeyUsage != x509.KeyUsageDigitalSignature || c.SerialNumber.Sign() <= 0 {
				t.Errorf("%s: key usage %v, serial %v", host, c.KeyUsage, c.SerialNumber)
			}
		}
		first, _ := a.Leaf("api.example.com", "")
		second, _ := a.Leaf("api.example.com", "")
		if bytes.Equal(first.KeyPEM, second.KeyPEM) || certificates(t, first.CertificatePEM)[0].SerialNumber.Cmp(certificates(t, second.CertificatePEM)[0].SerialNumber) == 0 {
			t.Error("two leaves share a key or a serial number")
		}
	})
}

// The name is what somebody sent as SNI.
func TestNamesNotAllowed(t *testing.T) {
	a := newAuthority(t, vaulttest.NewMemory(), ca.Config{})
	for _, host := range []string{
		"", ".", "example.com", "b.api.example.com", "xapi.example.com", "api.example.com.", ".api.example.com", "api..example.com",
		"API.example.com", "*.wild.example.com", "*.example.com", "a.*.wild.example.com", "xwild.example.com", ".wild.example.com",
		"-a.wild.example.com", "a-.wild.example.com", "a/b.wild.example.com", "a\x00.wild.example.com", "a b.wild.example.com",
		"a\n.wild.example.com", "ä.wild.example.com", "a:443.wild.example.com", "api.example.com:443", "api.example.com/x", "api.example.com\x00.evil.example",
		"127.0.0.1", "::1", "[::1]", "1.2.3.4.wild.example.com.5", "com", strings.Repeat("a", 64) + ".wild.example.com", strings.Repeat("a.", 120) + "wild.example.com",
	} {
		if _, err := a.Leaf(host, ""); !errors.Is(err, ca.ErrNameNotAllowed) {
			t.Errorf("%q: %v, want %v", host, err, ca.ErrNameNotAllowed)
		} else if strings.ContainsAny(err.Error(), "\x00\n") || len(err.Error()) > 2000 {
			t.Errorf("%q: the error carries it raw: %q", host, err)
		}
	}
}

func FuzzLeaf(f *testing.F) {
	a, err := ca.New(context.Background(), vaulttest.NewMemory(), ca.Config{Domains: domains})
	if err != nil {
		f.Fatal(err)
	}
	for _, d := range append(domains, "a.wild.example.com", "*.wild.example.com", "A.wild.example.com", "a\x00.wild.example.com", "a..wild.example.com") {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, host string) {
		leaf, err := a.Leaf(host, "")
		if err != nil {
			if !errors.Is(err, ca.ErrNameNotAllowed) {
				t.Errorf("%q: %v", host, err)
			}
			return
		}
		// Whatever gets a leaf is a name a client can verify, and nothing but it.
		if err := verify(t, a, leaf, host, time.Now()); err != nil {
			t.Errorf("%q: %v", host, err)
		}
		if host != strings.ToLower(host) || strings.ContainsAny(host, "*/: \x00") {
			t.Errorf("%q got a leaf", host)
		}
	})
}

func TestBadDomains(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"*"}, {"*."}, {"*.*.example.com"}, {"a.*.example.com"}, {"Example.com"}, {"example.com."}, {"example.com:443"}, {"10.0.0.1"}, {"ok.example", "a b"}} {
		if _, err := ca.New(t.Context(), vaulttest.NewMemory(), ca.Config{Domains: bad}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// The constraints cover the domains and nothing that need not be: a name under one already there adds none.
func TestNameConstraints(t *testing.T) {
	signers(t, func(t *testing.T, s ca.Signer) {
		a := newAuthority(t, s, ca.Config{Domains: []string{"*.b.example", "b.example", "x.b.example", "*.y.b.example", "a.example", "ab.example"}})
		leaf, err := a.Leaf("x.b.example", "")
		if err != nil {
			t.Fatal(err)
		}
		in := certificates(t, leaf.CertificatePEM)[1]
		if diff := cmp.Diff([]string{"a.example", "ab.example", "b.example"}, in.PermittedDNSDomains); diff != "" {
			t.Error(diff)
		}
		if !in.PermittedDNSDomainsCritical || !in.MaxPathLenZero {
			t.Errorf("critical %v, path length %d", in.PermittedDNSDomainsCritical, in.MaxPathLen)
		}
	})
}

// OpenSSL in its strict mode, which Python 3.13 uses by default, accepts the chain.
// The names may change while the authority is at work: leaves are minted for the new ones at once and for the old ones no
// more, under an intermediate that is replaced only if it has to be, and never for nothing.
func TestCertify(t *testing.T) {
	signers(t, func(t *testing.T, s ca.Signer) {
		a := newAuthority(t, s, ca.Config{Domains: []string{"api.example.com", "*.wild.example.com"}})
		go func() { _ = a.Run(t.Context()) }()
		before, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		intermediate := func() *x509.Certificate {
			leaf, err := a.Leaf("a.wild.example.com", "")
			if err != nil {
				t.Fatal(err)
			}
			return certificates(t, leaf.CertificatePEM)[1]
		}
		first := intermediate()
		if err := a.Certify(t.Context(), []string{"b.wild.example.com", "a.wild.example.com"}, nil); err != nil {
			t.Fatal(err)
		}
		if !intermediate().Equal(first) {
			t.Error("the intermediate was replaced although it is for all names")
		}
		if _, err := a.Leaf("api.example.com", ""); !errors.Is(err, ca.ErrNameNotAllowed) {
			t.Errorf("a name that is gone: %v", err)
		}
		if err := a.Certify(t.Context(), []string{"new.example.org", "a.wild.example.com"}, nil); err != nil {
			t.Fatal(err)
		}
		leaf, err := a.Leaf("new.example.org", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(t, a, leaf, "new.example.org", time.Now()); err != nil {
			t.Errorf("a name that is new: %v", err)
		}
		if err := verify(t, a, before, "api.example.com", time.Now()); err != nil {
			t.Errorf("a leaf from before: %v", err)
		}
		if err := a.Certify(t.Context(), []string{"Not a name"}, nil); err == nil {
			t.Error("no error for what is no name")
		}
		if _, err := a.Leaf("new.example.org", ""); err != nil {
			t.Errorf("after a failure: %v", err)
		}
	})
}

func TestStrictOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl on PATH")
	}
	signers(t, func(t *testing.T, s ca.Signer) {
		a := newAuthority(t, s, ca.Config{})
		dir := t.TempDir()
		write := func(name string, text []byte) string {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		root := write("root.pem", a.RootPEM())
		for _, host := range []string{"api.example.com", "a.b.wild.example.com", domains[4]} {
			leaf, err := a.Leaf(host, "")
			if err != nil {
				t.Fatal(err)
			}
			chain := write("chain.pem", leaf.CertificatePEM)
			out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile", root, "-untrusted", chain, chain).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v\n%s", host, err, out)
			}
		}
	})
}

// A handshake with a strict Python client.
func TestStrictPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	const script = `
import socket, ssl, sys
root, port, host = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(("127.0.0.1", int(port))) as s, context.wrap_socket(s, server_hostname=host) as tls:
    assert tls.recv(5) == b"hello"
`
	signers(t, func(t *testing.T, s ca.Signer) {
		a := newAuthority(t, s, ca.Config{})
		root := filepath.Join(t.TempDir(), "root.pem")
		if err := os.WriteFile(root, a.RootPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			leaf, err := a.Leaf(hello.ServerName, "")
			if err != nil {
				return nil, err
			}
			pair, err := tls.X509KeyPair(leaf.CertificatePEM, leaf.KeyPEM)
			return &pair, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "hello")
				conn.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		for host, ok := range map[string]bool{"api.example.com": true, "deep.er.wild.example.com": true, "other.example.com": false} {
			out, err := exec.Command(python, "-c", script, root, port, host).CombinedOutput()
			if (err == nil) != ok {
				t.Errorf("%s: %v, want it to work: %v\n%s", host, err, ok, out)
			}
		}
	})
}

// The intermediate is replaced at two thirds of its life; a leaf of the old one stays good, and each new leaf fits in the
// life of its intermediate.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rotations atomic.Int32
		a := newAuthority(t, vaulttest.NewMemory(), ca.Config{IntermediateTTL: 24 * time.Hour, LeafTTL: 48 * time.Hour, OnRotate: func() { rotations.Add(1) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()

		old, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		before := certificates(t, old.CertificatePEM)[1]
		if !old.NotAfter.Equal(before.NotAfter) {
			t.Errorf("a leaf of 48 h ends at %v, its intermediate at %v", old.NotAfter, before.NotAfter)
		}
		time.Sleep(14 * time.Hour)
		if rotations.Load() != 0 {
			t.Error("replaced before 14 of 24 hours")
		}
		time.Sleep(2*time.Hour + time.Minute)
		if rotations.Load() != 1 {
			t.Errorf("%d rotations after two thirds, want 1", rotations.Load())
		}
		fresh, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		if certificates(t, fresh.CertificatePEM)[1].Equal(before) {
			t.Error("the new leaf is of the old intermediate")
		}
		for name, leaf := range map[string]ca.Leaf{"old": old, "new": fresh} {
			if err := verify(t, a, leaf, "api.example.com", time.Now()); err != nil {
				t.Errorf("%s leaf: %v", name, err)
			}
		}
		time.Sleep(5 * 24 * time.Hour)
		if n := rotations.Load(); n < 8 || n > 10 {
			t.Errorf("%d rotations in 136 hours of 14.4 to 16 each", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// asleep is t on a machine that was suspended for d: the time of day went on, and the running clock did not.
func asleep(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(d/time.Second) << 30 // where a time that has both readings keeps its seconds
	return t
}

// A machine that was suspended has another intermediate when it next looks, though its running clock knows nothing of that time.
func TestSuspendedMachine(t *testing.T) {
	var slept atomic.Int64
	now := func() time.Time { return asleep(time.Now(), time.Duration(slept.Load())) }
	a := newAuthority(t, vaulttest.NewMemory(), ca.Config{Now: now})
	go a.Run(t.Context())
	signs := func() *x509.Certificate {
		t.Helper()
		if err := a.Certify(t.Context(), domains, nil); err != nil { // which looks at once
			t.Fatal(err)
		}
		leaf, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		return certificates(t, leaf.CertificatePEM)[1]
	}
	first, awake := signs(), now()
	if !signs().Equal(first) {
		t.Error("replaced at once")
	}
	slept.Store(int64(20 * time.Hour))
	if by := now().Sub(awake); by > time.Hour || now().Round(0).Sub(awake.Round(0)) < 20*time.Hour {
		t.Fatalf("this is no suspended machine: %v and %v went by", by, now().Round(0).Sub(awake.Round(0)))
	}
	if signs().Equal(first) {
		t.Error("not replaced after 20 of 24 hours")
	}
}

// While the signer is away leaves are minted as long as the intermediate lasts, then not; when it is back, they are again.
func TestSignerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := vaulttest.NewMemory()
		a := newAuthority(t, m, ca.Config{IntermediateTTL: 24 * time.Hour})
		var attempts atomic.Int32
		m.Inject(func(string, string) vaulttest.Fault {
			attempts.Add(1)
			return vaulttest.Fault{Before: errors.New("away")}
		})
		root := a.RootPEM()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		time.Sleep(23*time.Hour + 59*time.Minute)
		leaf, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(t, a, leaf, "api.example.com", time.Now()); err != nil {
			t.Error(err)
		}
		if n := attempts.Load(); n < 24*60*4-2 || n > 24*60*4*4/3 {
			t.Errorf("%d attempts in a day, want four a minute", n)
		}
		if !bytes.Equal(a.RootPEM(), root) {
			t.Error("other roots are trusted")
		}
		time.Sleep(time.Minute)
		if _, err := a.Leaf("api.example.com", ""); err == nil || errors.Is(err, ca.ErrNameNotAllowed) {
			t.Errorf("after its end: %v", err)
		}
		m.Inject(nil)
		time.Sleep(time.Minute)
		if _, err := a.Leaf("api.example.com", ""); err != nil {
			t.Errorf("the signer is back: %v", err)
		}
		cancel()
		<-done
	})
}

// journal keeps lines until they are taken.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(line))
	return len(line), nil
}

func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

// start runs an authority until the test's bubble ends.
func start(t *testing.T, s ca.Signer, cfg ca.Config) *ca.Authority {
	t.Helper()
	a := newAuthority(t, s, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

// A root is replaced while the authority runs: both are trusted before the new one signs anything, and until the old one is
// gone. Each step is seen within a minute.
func TestRootReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, m := t.Context(), vaulttest.NewMemory()
		var events journal
		var handedOut atomic.Pointer[[]byte]
		a := start(t, m, ca.Config{
			OnRoots:  func(pem []byte) { handedOut.Store(&pem); fmt.Fprint(&events, "roots") },
			OnRotate: func() { fmt.Fprint(&events, "intermediate") },
		})
		roots, err := m.Roots(ctx)
		if err != nil {
			t.Fatal(err)
		}
		first := roots[0]
		look := func(when string, want []string, signs *x509.Certificate, trusted ...*x509.Certificate) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if diff := cmp.Diff(want, events.take()); diff != "" {
				t.Errorf("%s: what was called (-want +got):\n%s", when, diff)
			}
			last := handedOut.Load()
			if want := ca.PEM(trusted); !bytes.Equal(a.RootPEM(), want) || last != nil && !bytes.Equal(*last, want) {
				t.Errorf("%s: %d roots are trusted, want %d", when, len(certificates(t, a.RootPEM())), len(trusted))
			}
			leaf, err := a.Leaf("api.example.com", "")
			if err != nil {
				t.Fatal(err)
			}
			chain, pool := certificates(t, leaf.CertificatePEM), x509.NewCertPool()
			pool.AddCert(signs)
			between := x509.NewCertPool()
			between.AddCert(chain[1])
			if _, err := chain[0].Verify(x509.VerifyOptions{DNSName: "api.example.com", Roots: pool, Intermediates: between}); err != nil || len(chain) != 2 {
				t.Errorf("%s: a chain of %d does not lead to %s: %v", when, len(chain), signs.Subject.CommonName, err)
			}
		}
		look("at first", nil, first, first)
		second, err := m.PrepareRoot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		look("prepared", []string{"roots"}, first, first, second)

		m.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: errors.New("away")} })
		look("nobody answers", nil, first, first, second)
		m.Inject(nil)

		if err := m.ActivateRoot(ctx, second); err != nil {
			t.Fatal(err)
		}
		m.Inject(func(op, _ string) vaulttest.Fault {
			if op == "sign" {
				return vaulttest.Fault{Before: errors.New("busy")}
			}
			return vaulttest.Fault{}
		})
		look("active and nothing signed", []string{"roots"}, first, second, first)
		m.Inject(nil)
		look("active", []string{"intermediate"}, second, second, first)
		if err := m.ActivateRoot(ctx, first); err != nil {
			t.Fatal(err)
		}
		look("taken back", []string{"roots", "intermediate"}, first, first, second)
		if err := m.ActivateRoot(ctx, second); err != nil {
			t.Fatal(err)
		}
		look("active again", []string{"roots", "intermediate"}, second, second, first)
		if err := m.RetireRoot(ctx, first); err != nil {
			t.Fatal(err)
		}
		look("retired", []string{"roots"}, second, second)
		time.Sleep(24 * time.Hour)
		look("a day later", []string{"intermediate"}, second, second)
	})
}

// A root that begins to sign between the look at the roots and the signature is not used before workers trust it.
func TestNewRootNotUsedUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, m := t.Context(), vaulttest.NewMemory()
		a := start(t, m, ca.Config{IntermediateTTL: 3 * time.Hour})
		before := a.RootPEM()
		surprise := sync.OnceFunc(func() {
			second, err := m.PrepareRoot(ctx)
			if err == nil {
				err = m.ActivateRoot(ctx, second)
			}
			if err != nil {
				t.Error(err)
			}
		})
		m.Inject(func(op, _ string) vaulttest.Fault {
			if op == "sign" {
				surprise()
			}
			return vaulttest.Fault{}
		})
		for bytes.Equal(a.RootPEM(), before) {
			leaf, err := a.Leaf("api.example.com", "")
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(t, a, leaf, "api.example.com", time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Second)
		}
		synctest.Wait()
		if leaf, err := a.Leaf("api.example.com", ""); err != nil || verify(t, a, leaf, "api.example.com", time.Now()) != nil {
			t.Errorf("after both were seen: %v", err)
		}
	})
}

// The end of the root is said once a day while there is time to replace it, with the command that is due.
func TestRootEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, m := t.Context(), vaulttest.NewMemory()
		roots, err := m.Roots(ctx)
		if err != nil {
			t.Fatal(err)
		}
		root := roots[0]
		time.Sleep(time.Until(root.NotAfter.AddDate(0, 0, -92)))
		var log journal
		a := start(t, m, ca.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		said := func(days int, text string) (n int) {
			t.Helper()
			log.take()
			time.Sleep(time.Until(time.Now().AddDate(0, 0, days)))
			synctest.Wait()
			for _, line := range log.take() {
				if strings.Contains(line, "level=WARN") {
					n++
					if text == "" || !strings.Contains(line, text) {
						t.Errorf("the log says %q; want %q", line, text)
					}
				}
			}
			return n
		}
		if n := said(1, ""); n != 0 {
			t.Error("said before it is due")
		}
		if n := said(5, "wayleave ca prepare"); n < 3 || n > 5 {
			t.Errorf("said %d times in four days", n)
		}
		second, err := m.PrepareRoot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if said(2, "wayleave ca activate") == 0 {
			t.Error("not said with a second root")
		}
		if err := m.ActivateRoot(ctx, second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := said(2, ""); n != 0 {
			t.Error("said of a root that does not sign")
		}
		if len(certificates(t, a.RootPEM())) != 2 {
			t.Error("a root went by itself")
		}
	})
}

// Nothing that is signed outlives the root, and with the root it is over.
func TestEndOfRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := vaulttest.NewMemory()
		roots, err := m.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end := roots[0].NotAfter
		time.Sleep(time.Until(end.Add(-12 * time.Hour)))
		a := newAuthority(t, m, ca.Config{IntermediateTTL: 24 * time.Hour})
		leaf, err := a.Leaf("api.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		if in := certificates(t, leaf.CertificatePEM)[1]; in.NotAfter.After(end) || end.Sub(in.NotAfter) > time.Minute || leaf.NotAfter.After(end) {
			t.Errorf("the intermediate ends at %v, the leaf at %v, the root at %v", in.NotAfter, leaf.NotAfter, end)
		}
		time.Sleep(12 * time.Hour)
		if _, err := ca.New(t.Context(), m, ca.Config{Domains: domains}); err == nil || !strings.Contains(err.Error(), "wayleave ca prepare") {
			t.Errorf("with a root that has ended: %v", err)
		}
	})
}

// oddSigner answers with chains that must not be used.
type oddSigner struct {
	*vaulttest.Memory
	change func([][]byte) [][]byte
}

func (s oddSigner) SignIntermediate(ctx context.Context, root *x509.Certificate, csr []byte, domains []string, ttl time.Duration) ([][]byte, error) {
	chain, err := s.Memory.SignIntermediate(ctx, root, csr, domains, ttl)
	return s.change(chain), err
}

func TestUselessIntermediates(t *testing.T) {
	m := vaulttest.NewMemory()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([][]byte) [][]byte{
		"nothing": func([][]byte) [][]byte { return nil },
		"no DER":  func([][]byte) [][]byte { return [][]byte{[]byte("x")} },
		"another key": func([][]byte) [][]byte {
			roots, _ := m.Roots(t.Context())
			c, _ := m.SignIntermediate(t.Context(), roots[0], foreign, domains, time.Hour)
			return c
		},
		"the root": func(c [][]byte) [][]byte { return c[1:] },
	} {
		if _, err := ca.New(t.Context(), oddSigner{m, change}, ca.Config{Domains: domains}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ca.New(t.Context(), m, ca.Config{Domains: domains, IntermediateTTL: -time.Hour}); err == nil {
		t.Error("an intermediate that has ended was accepted")
	}
	m.Inject(func(op, _ string) vaulttest.Fault { return vaulttest.Fault{Before: context.DeadlineExceeded} })
	if _, err := ca.New(t.Context(), m, ca.Config{Domains: domains}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("signer's error: %v", err)
	}
}

func BenchmarkLeaf(b *testing.B) {
	a, err := ca.New(b.Context(), vaulttest.NewMemory(), ca.Config{Domains: domains})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.Leaf("api.example.com", ""); err != nil {
			b.Fatal(err)
		}
	}
}

// Several roots sign, each for those who are to get its leaves. One that workers do not trust signs nothing, and what is not wanted
// any more serves on until it would be replaced.
func TestSeveralRootsSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, m := t.Context(), vaulttest.NewMemory()
		var rotations atomic.Int32
		a := start(t, m, ca.Config{IntermediateTTL: 24 * time.Hour, OnRotate: func() { rotations.Add(1) }})
		first := a.Roots()[0]
		signs := func(name string) *x509.Certificate {
			t.Helper()
			leaf, err := a.Leaf("api.example.com", name)
			if err != nil {
				return nil
			}
			if err := verify(t, a, leaf, "api.example.com", time.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, r := range a.Roots() {
				if ca.SignedBy(certificates(t, leaf.CertificatePEM)[1], r) {
					return r
				}
			}
			return nil
		}
		certify := func(roots ...string) {
			t.Helper()
			if err := a.Certify(ctx, domains, roots); err != nil {
				t.Fatal(err)
			}
		}
		second, err := m.PrepareRoot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		two := ca.Name(second)
		if signs("") != first || signs(two) != nil {
			t.Error("a root signs that was not asked to")
		}
		certify("", two) // before it was looked at
		if len(a.Roots()) != 2 || !bytes.Equal(a.RootPEM(), ca.PEM(a.Roots())) {
			t.Error("a root signs that workers are not given")
		}
		if !second.Equal(signs(two)) || !first.Equal(signs("")) {
			t.Error("two roots, and not each signs")
		}
		if err := a.Certify(ctx, append([]string{"new.example.org"}, domains...), []string{"", two}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", two} {
			if leaf, err := a.Leaf("new.example.org", name); err != nil || verify(t, a, leaf, "new.example.org", time.Now()) != nil {
				t.Errorf("a new host by %q: %v", name, err)
			}
		}
		certify(two)
		if !second.Equal(signs(two)) || !first.Equal(signs("")) {
			t.Error("what signed until now is gone at once")
		}
		if rotations.Load() != 0 {
			t.Error("leaves were replaced for a root that others get")
		}
		time.Sleep(17 * time.Hour)
		if rotations.Load() != 1 || !second.Equal(signs(two)) || signs("") != nil {
			t.Errorf("%d rotations; what is not wanted signs: %t", rotations.Load(), signs("") != nil)
		}
		// A root that has gone, or never was, is not what anybody gets.
		certify(two, "0123456789abcdef")
		if !second.Equal(signs(two)) || !first.Equal(signs("0123456789abcdef")) {
			t.Error("an unknown root does not mean the one that signs by itself")
		}
		if err := m.RetireRoot(ctx, second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ca.LookTime)
		if !first.Equal(signs(two)) || rotations.Load() != 2 {
			t.Error("a root that was removed signs")
		}
		m.Inject(func(op, _ string) vaulttest.Fault { return vaulttest.Fault{Before: errors.New("away")} })
		if err := a.Certify(ctx, domains, []string{"fedcba9876543210"}); err == nil || !first.Equal(signs(two)) {
			t.Errorf("with a signer that is away: %v", err)
		}
	})
}
