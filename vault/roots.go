package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The PKI mount alone says which roots there are: its default issuer signs, and every self-signed CA among its issuers is
// trusted by workers. So a root is replaced in three steps, and between them workers trust both: prepare makes the second,
// activate makes it sign, retire removes the first.

// issuer is one of the PKI mount's.
type issuer struct {
	id   string
	cert *x509.Certificate
}

// Roots returns the certificates that workers trust, the one that signs first. Whoever may connect may read them.
func (c *Client) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	issuers, err := c.issuers(ctx)
	return certificates(issuers), err
}

func certificates(issuers []issuer) (certs []*x509.Certificate) {
	for _, in := range issuers {
		certs = append(certs, in.cert)
	}
	return certs
}

// issuers returns the default issuer and after it the other roots, oldest first.
func (c *Client) issuers(ctx context.Context) ([]issuer, error) {
	type certificate struct {
		Data struct {
			Certificate string `json:"certificate"`
		} `json:"data"`
	}
	var signs certificate
	path := c.cfg.PKIMount + "/cert/ca"
	if err := c.read(ctx, path, &signs); err != nil {
		return nil, fmt.Errorf("reading the root CA: %w", err)
	}
	active, err := parseCertificate(signs.Data.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading the root CA: %s: %w (run `wayleave vault setup`)", path, err)
	}
	ids, err := c.issuerKeys(ctx)
	if err != nil {
		return nil, err
	}
	first, others := issuer{cert: active}, []issuer(nil)
	for id := range ids {
		var is certificate
		path := c.cfg.PKIMount + "/issuer/" + id + "/json"
		if err := c.read(ctx, path, &is); err != nil {
			return nil, fmt.Errorf("reading a root CA: %w", err)
		}
		cert, err := parseCertificate(is.Data.Certificate)
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading a root CA: %s: %w", path, err)
		case cert.Equal(active):
			first.id = id
		case isRoot(cert):
			others = append(others, issuer{id, cert})
		}
	}
	if first.id == "" {
		return nil, fmt.Errorf("%w: the root CAs were changed while they were read: try again", ErrUnavailable)
	}
	slices.SortFunc(others, func(a, b issuer) int {
		if d := SignedAt(a.cert).Compare(SignedAt(b.cert)); d != 0 {
			return d
		}
		return strings.Compare(a.id, b.id)
	})
	return append([]issuer{first}, others...), nil
}

// issuerKeys returns the ids of all issuers, each with that of its key.
func (c *Client) issuerKeys(ctx context.Context) (map[string]string, error) {
	var l struct {
		Data struct {
			Keys []string `json:"keys"`
			Info map[string]struct {
				Key string `json:"key_id"`
			} `json:"key_info"`
		} `json:"data"`
	}
	if err := c.list(ctx, c.cfg.PKIMount+"/issuers", &l); err != nil {
		return nil, fmt.Errorf("listing the root CAs: %w", err)
	}
	keys := map[string]string{}
	for _, id := range l.Data.Keys {
		keys[id] = l.Data.Info[id].Key
	}
	return keys, nil
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("it holds no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// isRoot says whether a certificate is a CA that nobody else vouches for.
func isRoot(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// SuccessorName is the common name of the root after those there are. Each has its own, so that programs and people that
// know roots by name tell them apart; Java's trust stores keep one of each name.
func SuccessorName(roots []*x509.Certificate) string {
	last := 1
	for _, r := range roots {
		if n, err := strconv.Atoi(strings.TrimPrefix(r.Subject.CommonName, RootName+" ")); err == nil {
			last = max(last, n)
		}
	}
	return RootName + " " + strconv.Itoa(last+1)
}

// PrepareRoot makes another root, which workers then trust and which signs nothing yet. It needs an administrator's client,
// as do the methods below.
func (c *Client) PrepareRoot(ctx context.Context) (*x509.Certificate, error) {
	issuers, err := c.issuers(ctx)
	if err != nil {
		return nil, err
	}
	// The mount may be set to let the newest root sign, which would be too early.
	if err := c.setDefault(ctx, issuers[0].id); err != nil {
		return nil, fmt.Errorf("keeping the root CA that signs: %w", err)
	}
	made, err := c.generateRoot(ctx, SuccessorName(certificates(issuers)))
	if err != nil {
		return nil, fmt.Errorf("making a root CA: %w", err)
	}
	return made, nil
}

func (c *Client) generateRoot(ctx context.Context, name string) (*x509.Certificate, error) {
	var made struct {
		Certificate string `json:"certificate"`
	}
	err := c.write(ctx, adminTimeout, c.cfg.PKIMount+"/root/generate/internal", map[string]any{
		"common_name": name,
		"key_type":    "ec", "key_bits": 256,
		"ttl":                 rootLife.String(),
		"not_before_duration": backdate,
		// Below the root there are our intermediates and below them only leaves.
		"max_path_length": 1,
	}, &made)
	if err != nil {
		return nil, err
	}
	return parseCertificate(made.Certificate)
}

func (c *Client) setDefault(ctx context.Context, id string) error {
	return c.write(ctx, adminTimeout, c.cfg.PKIMount+"/config/issuers", map[string]any{"default": id, "default_follows_latest_issuer": false}, nil)
}

// ActivateRoot makes a root sign from now on. Workers must trust it already.
func (c *Client) ActivateRoot(ctx context.Context, root *x509.Certificate) error {
	in, err := c.issuerOf(ctx, root)
	if err == nil {
		err = c.setDefault(ctx, in.id)
	}
	if err != nil {
		return fmt.Errorf("making a root CA sign: %w", err)
	}
	return nil
}

// RetireRoot removes a root that does not sign, and its key. It cannot be undone.
func (c *Client) RetireRoot(ctx context.Context, root *x509.Certificate) error {
	in, err := c.issuerOf(ctx, root)
	if err != nil {
		return fmt.Errorf("removing a root CA: %w", err)
	}
	issuers, err := c.issuers(ctx)
	if err != nil {
		return err
	}
	if issuers[0].id == in.id {
		return errors.New("removing a root CA: it signs, so let another sign first")
	}
	keys, err := c.issuerKeys(ctx)
	if err != nil {
		return err
	}
	if err := c.remove(ctx, adminTimeout, c.cfg.PKIMount+"/issuer/"+in.id); err != nil {
		return fmt.Errorf("removing a root CA: %w", err)
	}
	key := keys[in.id]
	delete(keys, in.id)
	for _, other := range keys {
		if other == key {
			return nil // a root renewed with the same key
		}
	}
	path := c.cfg.PKIMount + "/key/" + key
	if err := c.remove(ctx, adminTimeout, path); err != nil {
		return fmt.Errorf("the root CA is removed, but not its key; remove it with 'bao delete %s': %w", path, err)
	}
	return nil
}

func (c *Client) issuerOf(ctx context.Context, root *x509.Certificate) (issuer, error) {
	issuers, err := c.issuers(ctx)
	if err != nil {
		return issuer{}, err
	}
	for _, in := range issuers {
		if in.cert.Equal(root) {
			return in, nil
		}
	}
	return issuer{}, fmt.Errorf("%w: %s", ErrNotFound, root.Subject.CommonName)
}

// Intermediates returns the intermediates that have been signed and have not ended.
func (c *Client) Intermediates(ctx context.Context) ([]*x509.Certificate, error) {
	var l struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	if err := c.list(ctx, c.cfg.PKIMount+"/certs", &l); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("listing the intermediate CAs: %w", err)
	}
	var out []*x509.Certificate
	for _, serial := range l.Data.Keys {
		var found struct {
			Data struct {
				Certificate string `json:"certificate"`
			} `json:"data"`
		}
		path := c.cfg.PKIMount + "/cert/" + serial
		err := c.read(ctx, path, &found)
		if errors.Is(err, ErrNotFound) {
			continue // it has ended and was forgotten
		}
		if err != nil {
			return nil, fmt.Errorf("reading an intermediate CA: %w", err)
		}
		cert, err := parseCertificate(found.Data.Certificate)
		if err != nil {
			return nil, fmt.Errorf("reading an intermediate CA: %s: %w", path, err)
		}
		if cert.IsCA && !isRoot(cert) && time.Now().Before(cert.NotAfter) {
			out = append(out, cert)
		}
	}
	return out, nil
}
