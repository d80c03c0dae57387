package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// IntermediateName is the common name of every intermediate; RootName that of the root Setup generates, and with a number
// that of each one after it. Workers see the second in their trust stores.
const (
	IntermediateName = "Wayleave gateway"
	RootName         = "Wayleave egress CA"
)

// Backdate is how far before its signature a certificate is valid already: the clock of a worker's machine that goes on from a snapshot may be
// days late, and a provider's own certificate is older. BackdateBefore is the same of what earlier releases had signed.
const (
	Backdate       = 7 * 24 * time.Hour
	BackdateBefore = 5 * time.Minute
)

// Both as the gateway's policy wants them written.
const (
	backdate       = "168h"
	backdateBefore = "5m"
)

// SignedAt is when a certificate of ours was signed. A root that somebody imported seems to be as one of an earlier release.
func SignedAt(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	early := life > Backdate
	if isRoot(c) {
		early = (life - rootLife - Backdate).Abs() < BackdateBefore
	}
	if early {
		return c.NotBefore.Add(Backdate)
	}
	return c.NotBefore.Add(BackdateBefore)
}

// SignIntermediate has the CSR signed by root as a CA that may sign leaves only (path length 0), for domains and their
// subdomains only (name constraints, RFC 5280 §4.2.1.10). The chain is DER: the issued certificate, then its issuers.
func (c *Client) SignIntermediate(ctx context.Context, root *x509.Certificate, csrDER []byte, domains []string, ttl time.Duration) (chain [][]byte, err error) {
	if len(domains) == 0 {
		return nil, errors.New("signing an intermediate CA: no domains given, and without any it could speak for the whole internet")
	}
	in, err := c.issuerOf(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("signing an intermediate CA: %w", err)
	}
	// Numbers and durations travel as strings because the gateway's policy allows exact values, and those compare as
	// strings.
	body := map[string]any{
		"csr":                   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csrDER})),
		"common_name":           IntermediateName,
		"permitted_dns_domains": strings.Join(domains, ","), // one string: OpenBao takes a thousand
		"max_path_length":       "0",
		"not_before_duration":   backdate,
		"ttl":                   ttl.Round(time.Second).String(),
		"exclude_cn_from_sans":  "true",
	}
	var signed struct {
		Certificate string   `json:"certificate"`
		IssuingCA   string   `json:"issuing_ca"`
		CAChain     []string `json:"ca_chain"`
	}
	ask := func() error {
		return c.write(ctx, callTimeout, c.cfg.PKIMount+"/issuer/"+in.id+"/sign-intermediate", body, &signed)
	}
	err = ask()
	if errors.Is(err, ErrDenied) { // a policy of an earlier release allows no more than this
		c.log.Warn("certificates begin five minutes before they are made and not a week, as the policy is of an earlier release", "next", "run `wayleave vault setup`")
		body["not_before_duration"] = backdateBefore
		err = ask()
	}
	if err != nil {
		return nil, fmt.Errorf("signing an intermediate CA: %w", err)
	}
	// The chain may or may not start with what was just issued, and is empty on older servers.
	for _, text := range append([]string{signed.Certificate}, append(signed.CAChain, signed.IssuingCA)...) {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			continue
		}
		known := false
		for _, have := range chain {
			known = known || bytes.Equal(have, block.Bytes)
		}
		if !known {
			chain = append(chain, block.Bytes)
		}
	}
	if len(chain) < 2 {
		return nil, errors.New("signing an intermediate CA: the answer holds no chain of certificates")
	}
	return chain, nil
}
