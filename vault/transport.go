package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"
)

// dialer returns the base URL and the transport for an address, and the time that each of so many nodes has to be reached. The
// transport knows no proxy: the environment's proxy variables may well point at the gateway we are.
func dialer(address, caFile string, nodes int) (string, *http.Transport, error) {
	u, err := url.Parse(address)
	if err != nil || address == "" {
		return "", nil, fmt.Errorf("vault address %q is not a URL: use https://host:port or unix:///path", address)
	}
	if strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), "/v1") {
		return "", nil, fmt.Errorf("vault address %q ends with the path of the API: write it without /v1", address)
	}
	reach := callTimeout
	if nodes > 1 {
		reach /= time.Duration(nodes + 1) // one that is silent leaves time for the others
	}
	d := net.Dialer{Timeout: reach}
	t := &http.Transport{
		DialContext:         d.DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: reach,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     time.Minute,
		ForceAttemptHTTP2:   true,
		// All calls share one connection then, which would be waited for until TCP gives it up: for a quarter of an hour, when its packets are dropped.
		HTTP2: &http.HTTP2Config{SendPingTimeout: callTimeout / 2, PingTimeout: callTimeout / 4},
	}
	switch u.Scheme {
	case "http", "https":
	case "unix":
		if nodes > 1 {
			return "", nil, fmt.Errorf("vault address %q is a socket, which has no further nodes: name one server", address)
		}
		address = "http://localhost"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", u.Path)
		}
	default:
		return "", nil, fmt.Errorf("vault address %q: the scheme must be https, http or unix", address)
	}
	if err := trust(t, caFile); err != nil {
		return "", nil, err
	}
	return address, t, nil
}

// trust makes t trust the authorities of a file, and no others, as they are when a connection is made: who replaces the file need not tell
// us. One that cannot be read then is as it was. An empty name is the system's authorities.
func trust(t *http.Transport, caFile string) error {
	if caFile == "" {
		return nil
	}
	roots, err := readRoots(caFile)
	if err != nil {
		return err
	}
	var last atomic.Pointer[x509.CertPool]
	last.Store(roots)
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if roots, err := readRoots(caFile); err == nil {
			last.Store(roots)
		}
		raw, err := t.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		config := t.TLSClientConfig.Clone()
		config.RootCAs = last.Load()
		if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		ctx, cancel := context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return conn, nil
	}
	return nil
}

func readRoots(caFile string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA file for vault: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA file for vault, %s, holds no PEM certificate", caFile)
	}
	return roots, nil
}

func httpClient(transport http.RoundTripper, state *clusterState, nodes *nodes) *http.Client {
	return &http.Client{
		Transport:     standbyRedirects{activeNode{anyNode{transport, nodes}, state}, nodes},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// standbyRedirects refuses every redirect but the one a standby answers with: 307, to the same path at the active node.
// The API client follows one redirect and takes our token along, so anything else must not reach it.
type standbyRedirects struct {
	http.RoundTripper
	nodes *nodes
}

func (t standbyRedirects) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode < 300 || resp.StatusCode > 399 {
		return resp, err
	}
	to, err := resp.Location()
	if err == nil && resp.StatusCode == http.StatusTemporaryRedirect && to.Path == req.URL.Path &&
		(to.Scheme == req.URL.Scheme || to.Scheme == "https") {
		t.nodes.prefer(to.Host)
		return resp, nil
	}
	resp.Body.Close()
	return nil, fmt.Errorf("the server answered with a redirect (%d) that is not a standby's, not followed", resp.StatusCode)
}

// CloseIdleConnections makes http.Client.CloseIdleConnections reach the transport.
func (t standbyRedirects) CloseIdleConnections() { closeIdle(t.RoundTripper) }

func closeIdle(t http.RoundTripper) {
	if c, ok := t.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// https reports whether the way to the server is TLS.
func (c *Client) https() bool { return strings.HasPrefix(c.cfg.Address, "https:") }

// newAPI returns an API client for one token. It is never changed afterwards: a client whose token is replaced while
// others use it sends requests with either.
func (c *Client) newAPI(hc *http.Client, token string, timeout time.Duration) (*api.Client, error) {
	a, err := api.NewClient(&api.Config{
		Address:      c.cfg.Address,
		HttpClient:   hc,
		Timeout:      timeout,
		MaxRetries:   3,
		MinRetryWait: 50 * time.Millisecond,
		MaxRetryWait: 400 * time.Millisecond,
		CheckRetry:   retryable,
		Backoff:      retryDelay,
	})
	if err != nil { // it reads variables that it then does not use
		return nil, fmt.Errorf("making a client for vault: %w: unset the VAULT_ variable that cannot be read", err)
	}
	// NewClient fills all four from VAULT_* variables. The configuration alone decides who we are, and nothing is wrapped.
	a.SetWrappingLookupFunc(func(string, string) string { return "" })
	a.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if c.cfg.Namespace != "" {
		a.SetNamespace(c.cfg.Namespace)
	}
	a.SetToken(token)
	return a, nil
}

// retryable tells which attempts are worth another inside the call's deadline. A write is repeated only when the
// server cannot have applied it: after a lost answer, repeating a check-and-set would report a conflict with ourselves.
func retryable(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		var failed *url.Error
		var network *net.OpError
		read := errors.As(err, &failed) && strings.EqualFold(failed.Op, http.MethodGet)
		unsent := errors.As(err, &network) && network.Op == "dial"
		return read || unsent, nil
	}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusPreconditionFailed: // refused before it was looked at
		return true, nil
	case resp.StatusCode >= 500:
		return resp.Request.Method == http.MethodGet, nil
	}
	return false, nil
}

// retryDelay doubles from low to high, with jitter so that replicas hit by the same outage spread out. It ignores
// Retry-After: a wait longer than the deadline answers nobody.
func retryDelay(low, high time.Duration, attempt int, _ *http.Response) time.Duration {
	d := min(low<<attempt, high)
	return d/2 + rand.N(d/2)
}
