package oauth

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"wayleave/loopback"
)

// LongestCall is how long a token endpoint may take to answer: a slow answer may hold the only live refresh token, or what a spent code was for.
const LongestCall = time.Minute

const longestAsk = 30 * time.Second // of others, where nothing is lost

// NewHTTPClient returns an HTTP client fit for token endpoints: it ignores proxy variables (on a worker's machine they
// point at the gate itself), keeps no connection for a second request (a request on a connection that the other side
// is closing has an unknown outcome), follows no redirect, and gives up after 30 seconds. Nil roots are the system's.
func NewHTTPClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout:       longestAsk,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:    10 * time.Second,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

// endpointFault says why a secret may not be sent to rawURL; empty when it may.
func endpointFault(rawURL string, allowInsecure bool) string {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return "is not a full address such as https://host/path"
	case u.User != nil:
		return "must not carry a user name or password"
	case u.Fragment != "":
		return "must not have a fragment (RFC 6749 §3.2)"
	case u.Scheme == "https":
		return ""
	case u.Scheme != "http":
		return "must be https"
	case !loopback.Host(u.Hostname()):
		return "must be https: plain http is allowed on loopback only"
	case !allowInsecure:
		return "must be https: plain http on loopback needs allow_insecure: true"
	}
	return ""
}

// isHost reports whether s is a name or address that can be shown as it is.
func isHost(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_' && r != ':'
	})
}
