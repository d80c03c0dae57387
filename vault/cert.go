package vault

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// cert is the proof of method cert: the TLS handshake itself. The server names the role that fits when we name none.
func (a Auth) cert() (proof, error) {
	if a.CertFile == "" || a.KeyFile == "" {
		return proof{}, errors.New("method cert needs a client certificate and its key: write vault.auth.cert_file and key_file")
	}
	pair, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
	if err != nil {
		return proof{}, fmt.Errorf("reading the client certificate and its key: %w", err)
	}
	body := map[string]any{}
	if a.Role != "" {
		body["name"] = a.Role
	}
	expired := max(0, time.Since(pair.Leaf.NotAfter).Round(time.Second))
	return proof{
		what: "client certificate", body: body, certificate: &pair, expired: expired,
		advice: func(string) string {
			if expired > 0 {
				return fmt.Sprintf("it expired %v ago: see that whatever replaces %s still runs", expired, a.CertFile)
			}
			return fmt.Sprintf("compare its name %s and its issuer %s with the certificate roles of auth/%s", short(pair.Leaf.Subject.String()), short(pair.Leaf.Issuer.String()), a.Mount)
		},
	}, nil
}

// withCertificate is an HTTP client that shows the certificate. The log-in keeps it: the server renews a token only for
// the certificate that it was made for.
func (c *Client) withCertificate(pair *tls.Certificate) (*http.Client, error) {
	t, ok := c.transport.(*http.Transport)
	if !ok || !c.https() {
		return nil, errors.New("method cert needs TLS: write an https:// address in vault.address")
	}
	t = t.Clone()
	t.TLSClientConfig.Certificates = []tls.Certificate{*pair}
	if err := trust(t, c.cfg.CAFile); err != nil {
		return nil, err
	}
	return httpClient(t, c.state, c.nodes), nil
}
