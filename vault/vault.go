// Package vault owns everything we say to HashiCorp Vault or OpenBao: JSON documents written with check-and-set
// (KV version 2), the signature under our intermediate CA (PKI), our own log-in and its renewal, and the one-time
// set-up of mounts and policies. What the documents mean is left to their owners (grant, worker), and so is what a
// certificate is used for (ca).
//
// A Client stands for one identity. The methods for documents and certificates are safe for concurrent use, end
// within two seconds whatever the server does, and fail in four ways a caller can tell apart: [ErrNotFound],
// [ErrConflict], [ErrDenied] and [ErrUnavailable].
package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"wayleave/secret"
)

// The four failures a caller decides on; test with [errors.Is].
var (
	// ErrNotFound: there is no such document, or its latest version was deleted.
	ErrNotFound = errors.New("no such document")
	// ErrConflict: somebody else wrote since the version given as check-and-set. Read again and decide anew.
	ErrConflict = errors.New("changed by somebody else since it was read")
	// ErrDenied: the server knows us and refuses, or does not accept our credential. Waiting does not help; a policy
	// or a credential must change.
	ErrDenied = errors.New("permission denied")
	// ErrUnavailable: no usable answer (network, sealed, no leader, 429, 5xx) after our own retries. A write that ends
	// so may have been applied.
	ErrUnavailable = errors.New("vault is unavailable")
)

// Role is one of the three identities the product needs. Each has a policy of its own, "wayleave-" and the role's name,
// in deploy/vault.
type Role string

const (
	Gateway  Role = "gateway"  // refreshes grants, signs certificates
	Operator Role = "operator" // connects grants, cannot read their tokens
	Viewer   Role = "viewer"   // reads the public summaries
)

// Policy returns the name of the role's policy on the server.
func (r Role) Policy() string { return "wayleave-" + string(r) }

// Config says which server, where on it, and who we are.
type Config struct {
	Address   string // https://host:8200, http://…, or unix:///path/to.sock
	Namespace string // Vault Enterprise or OpenBao namespace; empty: the root
	CAFile    string // PEM file that verifies the server instead of the system's roots; empty: those
	Mount     string // KV version 2 mount; default "wayleave"
	PKIMount  string // PKI mount; default "wayleave-pki"
	Auth      Auth
}

// The mounts' names when the configuration gives none; the policies in deploy/vault use them too.
const (
	defaultMount    = "wayleave"
	defaultPKIMount = "wayleave-pki"
	defaultAppRole  = "approle"
)

// Auth says how we log in.
type Auth struct {
	Method       string // "token" or "approle"
	Token        secret.Text
	RoleID       string
	SecretID     secret.Text
	AppRoleMount string // default "approle"
}

// callTimeout bounds one call of a request path, retries and a second log-in included: shorter than what workers and
// Envoy wait, so that our own answer is the one they see.
const callTimeout = 2 * time.Second

// Client is one identity at one server.
type Client struct {
	cfg  Config
	log  *slog.Logger
	http *http.Client // shared by all log-ins; carries no credential

	login    atomic.Pointer[login] // the current log-in; replaced whole, never changed
	logging  chan struct{}         // holds one element while somebody logs in
	lastHeal time.Time             // when a refusal last made us log in again; belongs to whoever fills logging

	stop  context.CancelFunc
	ended chan struct{} // closed when the renewal goroutine has ended
}

// Open logs in and keeps the log-in alive until Close. The error is [ErrDenied] when the credential is refused and
// [ErrUnavailable] when the server cannot answer.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	base, transport, err := dialer(cfg.Address, cfg.CAFile)
	if err != nil {
		return nil, err
	}
	cfg.Address = base
	return open(ctx, cfg, log, transport)
}

// open is Open with the way to the server given.
func open(ctx context.Context, cfg Config, log *slog.Logger, transport http.RoundTripper) (*Client, error) {
	cfg.Mount = cmp.Or(cfg.Mount, defaultMount)
	cfg.PKIMount = cmp.Or(cfg.PKIMount, defaultPKIMount)
	cfg.Auth.AppRoleMount = cmp.Or(cfg.Auth.AppRoleMount, defaultAppRole)
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		cfg: cfg, log: log, http: httpClient(transport),
		logging: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	first, err := c.logIn(ctx)
	if err != nil {
		return nil, fmt.Errorf("logging in to vault: %w", err)
	}
	c.login.Store(first)
	// The log-in outlives the call that opened the client, and ends with Close.
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	go func() {
		defer close(c.ended)
		c.keepLoggedIn(keep)
	}()
	return c, nil
}

// Close ends the renewal of our log-in. Calls made later fail once the token has expired.
func (c *Client) Close() {
	c.stop()
	<-c.ended
	c.http.CloseIdleConnections()
}
