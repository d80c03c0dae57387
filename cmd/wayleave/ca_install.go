package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/ca"
	"wayleave/durable"
)

// A trustStore is where a system takes up authorities of its administrator's.
type trustStore struct {
	dir    string   // of one file for each certificate
	suffix string   // of their names
	update []string // the command that takes them up
}

// trustStores are those of the systems we know; a machine has the first whose directory and command it has.
var trustStores = []trustStore{
	{"/usr/local/share/ca-certificates", ".crt", []string{"update-ca-certificates"}},           // Debian, Ubuntu, Alpine
	{"/etc/pki/ca-trust/source/anchors", ".pem", []string{"update-ca-trust", "extract"}},       // Fedora, RHEL
	{"/etc/pki/trust/anchors", ".pem", []string{"update-ca-certificates"}},                     // SUSE
	{"/etc/ca-certificates/trust-source/anchors", ".crt", []string{"trust", "extract-compat"}}, // Arch
}

// installedName begins the names of our files there; the fingerprint follows.
const installedName = "wayleave-"

func newCAInstall() *cobra.Command {
	var file, gate, gateCA string
	var fingerprints []string
	var remove bool
	c := &cobra.Command{
		Use:   "install",
		Short: "Have this machine trust the gate's CA, for programs that read no variable",
		Long: `Install puts the CA that the gate's certificates come from into this machine's trust store, in place of those it had put
there before; --remove takes them out. 'wayleave run' needs none of this: it has its command trust the CA and nobody else.

The CA comes from --file, from the gate (--gate), or from a 'wayleave up' on this machine. From a gate over http it must be named by
its fingerprint, since anybody on the way could answer with another; 'wayleave ca show' says it.`,
		Example: `  sudo wayleave ca install --file ca.pem
  sudo wayleave ca install --gate https://gate.example.com:3129
  sudo wayleave ca install --gate http://gate.internal:3128 --fingerprint 3f9a…
  sudo wayleave ca install --remove`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	c.Flags().StringVar(&file, "file", "", "PEM file of the CA")
	c.Flags().StringVar(&gate, "gate", "", "URL of the gate's proxy, to ask for the CA")
	c.Flags().StringVar(&gateCA, "gate-ca", "", "PEM file of the authority of an https gate's certificate (default the system's)")
	c.Flags().StringSliceVar(&fingerprints, "fingerprint", nil, "SHA-256 of the CA's certificate in hexadecimal; others are not installed")
	c.Flags().BoolVar(&remove, "remove", false, "take the gate's CA out of the trust store")
	c.MarkFlagsMutuallyExclusive("file", "gate", "remove")
	c.RunE = func(c *cobra.Command, _ []string) error {
		store, err := systemStore(trustStores)
		if err != nil {
			return err
		}
		var certs []*x509.Certificate
		if !remove {
			text, err := givenCA(c.Context(), file, gate, gateCA, len(fingerprints) > 0, *st)
			if err != nil {
				return err
			}
			if certs, err = pinned(text, fingerprints); err != nil {
				return err
			}
		}
		if err := store.replace(c.Context(), certs); err != nil {
			return err
		}
		for _, cert := range certs {
			fmt.Fprintf(c.OutOrStdout(), "installed %s (%s), until %s\n", cert.Subject.CommonName, ca.Fingerprint(cert), cert.NotAfter.Format(time.DateOnly))
		}
		if remove {
			fmt.Fprintln(c.OutOrStdout(), "the gate's CA is no longer trusted by this machine")
		}
		return nil
	}
	return c
}

// givenCA is the CA in PEM, from where the flags say.
func givenCA(ctx context.Context, file, gate, gateCA string, named bool, st state) ([]byte, error) {
	switch {
	case file != "":
		return os.ReadFile(file)
	case gate == "":
		text, err := os.ReadFile(st.path("ca.pem"))
		if errors.Is(err, os.ErrNotExist) {
			return nil, usageError{fmt.Errorf("no CA to install: name it with --file or the gate with --gate (%s does not exist)", st.path("ca.pem"))}
		}
		return text, err
	}
	u, err := gateAddress(gate, st)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "http" && !named {
		return nil, usageError{fmt.Errorf("%s is not protected on its way, so the CA must be named: --fingerprint SHA256, as 'wayleave ca show' says it", u)}
	}
	roots, err := gateRoots(gateCA)
	if err != nil {
		return nil, err
	}
	return askForCA(ctx, u, roots)
}

func askForCA(ctx context.Context, gate *url.URL, roots authority) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, gate.JoinPath("/.wayleave/v1/ca.pem").String(), nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots.pool}}, // the gate is no matter for a proxy
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the gate for its CA: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answers %s: is %s a gate?", resp.Status, gate)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the gate for its CA: %w", err)
	}
	return text, nil
}

// pinned are the certificates of text that are CAs and have one of the fingerprints; without fingerprints all.
func pinned(text []byte, fingerprints []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	var seen []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of the CA is no certificate: %s", block.Type)
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("%q is no CA: nothing was installed", cert.Subject)
		}
		seen = append(seen, ca.Fingerprint(cert))
		if len(fingerprints) == 0 || slices.ContainsFunc(fingerprints, func(f string) bool { return normalized(f) == ca.Fingerprint(cert) }) {
			out = append(out, cert)
		}
	}
	if len(out) == 0 && len(seen) > 0 {
		return nil, fmt.Errorf("the CA has the fingerprint %s, which is none of those given: compare it with 'wayleave ca show', and do not install it if they differ", strings.Join(seen, " and "))
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in what should be the CA")
	}
	return out, nil
}

// normalized takes the forms in which tools write fingerprints: AA:BB, upper case.
func normalized(f string) string { return strings.ToLower(strings.ReplaceAll(f, ":", "")) }

func systemStore(known []trustStore) (trustStore, error) {
	for _, s := range known {
		if info, err := os.Stat(s.dir); err != nil || !info.IsDir() {
			continue
		}
		if _, err := exec.LookPath(s.update[0]); err == nil {
			return s, nil
		}
	}
	return trustStore{}, errors.New("no trust store is known for this system: on macOS run 'sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.pem'; " +
		"elsewhere install ca-certificates, or use 'wayleave run', which needs none")
}

// replace makes certs the gate's CAs in the store, in place of earlier ones. What is there stays until what is new is.
func (s trustStore) replace(ctx context.Context, certs []*x509.Certificate) error {
	old, err := filepath.Glob(filepath.Join(s.dir, installedName+"*"+s.suffix))
	if err != nil {
		return err
	}
	for _, cert := range certs {
		path := filepath.Join(s.dir, installedName+ca.Fingerprint(cert)[:16]+s.suffix)
		err := durable.Replace(path, ca.PEM([]*x509.Certificate{cert}))
		if err == nil {
			err = os.Chmod(path, 0o644) //nolint:gosec // it is public
		}
		if err != nil {
			return fmt.Errorf("writing to the trust store (as root?): %w", err)
		}
		old = slices.DeleteFunc(old, func(o string) bool { return o == path })
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("removing an earlier CA (as root?): %w", err)
		}
	}
	out, err := exec.CommandContext(ctx, s.update[0], s.update[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(s.update, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
