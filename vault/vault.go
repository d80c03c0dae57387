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
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

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
	Address   string   // https://host:8200, http://…, or unix:///path/to.sock
	Nodes     []string // addresses of further nodes of the same cluster, which are asked when one does not answer
	Namespace string   // Vault Enterprise or OpenBao namespace; empty: the root
	CAFile    string   // PEM file that verifies the server instead of the system's roots; empty: those
	Mount     string   // KV version 2 mount; default "wayleave"
	PKIMount  string   // PKI mount; default "wayleave-pki"
	Auth      Auth

	// Tracer shows calls that are made for something that is traced. Nil: none.
	Tracer trace.Tracer

	// Called is told of each call that a Client has made, log-ins apart; it must not block. Nil: nobody is.
	Called func(Call)
}

// Call is a call of the server, with what was tried again.
type Call struct {
	Operation string // read, list, update or delete
	Took      time.Duration
	Err       error // nil: it worked
}

// The mounts' names when the configuration gives none; the policies in deploy/vault use them too.
const (
	defaultMount    = "wayleave"
	defaultPKIMount = "wayleave-pki"
	defaultAppRole  = "approle"
)

// Auth says how we log in. What is in a file is read again at each log-in, so that whoever rotates it need not tell us.
type Auth struct {
	Method string // token, approle, kubernetes, jwt or cert
	Mount  string // path where the method is mounted; default its name. Token has none

	Token     secret.Text // token: the token, or
	TokenFile string      // the file that holds it

	RoleID       string      // approle
	SecretID     secret.Text // approle: the secret id, or
	SecretIDFile string      // the file that holds it

	Role    string      // kubernetes, jwt: the role to log in with; cert: the same, or empty for whichever fits
	JWT     secret.Text // jwt: the JSON web token, or
	JWTFile string      // the file that holds it; kubernetes: that of the pod's service account

	CertFile, KeyFile string // cert: PEM files of the client certificate with its chain, and of its key
}

// callTimeout bounds one call of a request path, retries and a second log-in included: shorter than what workers and
// Envoy wait, so that our own answer is the one they see.
const callTimeout = 2 * time.Second

// Client is one identity at one server.
type Client struct {
	cfg       Config
	log       *slog.Logger
	transport http.RoundTripper // the bare way to the server
	state     *clusterState     // shared by all log-ins
	nodes     *nodes            // the same
	http      *http.Client      // shared by all log-ins but those with a client certificate; carries no credential

	login   atomic.Pointer[login] // the current log-in; replaced whole, never changed
	logging chan struct{}         // holds one element while somebody logs in
	healing time.Time             // when the heals were begun to be counted; belongs to whoever fills logging
	heals   int                   // log-ins that refusals made since; the same

	deletes atomic.Pointer[string] // see Deletes; nil: it does not, as far as we know

	stop        context.CancelFunc
	ended       chan struct{} // closed when the renewal goroutine has ended
	lastWarning time.Time     // of a secret id that ends; the renewal goroutine's
}

// Open logs in and keeps the log-in alive until Close. The error is [ErrDenied] when the credential is refused, missing
// or unreadable, and [ErrUnavailable] when the server cannot answer.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	base, transport, err := dialer(cfg.Address, cfg.CAFile, 1+len(cfg.Nodes))
	if err != nil {
		return nil, err
	}
	cfg.Address = base
	return open(ctx, cfg, log, transport)
}

// newClient is a client that has not logged in.
func newClient(cfg Config, log *slog.Logger, transport http.RoundTripper) (*Client, error) {
	nodes, err := newNodes(cfg.Address, cfg.Nodes)
	if err != nil {
		return nil, err
	}
	cfg.Mount = cmp.Or(strings.Trim(cfg.Mount, "/"), defaultMount)
	cfg.PKIMount = cmp.Or(strings.Trim(cfg.PKIMount, "/"), defaultPKIMount)
	// `bao auth list` and policies write it with what is before it.
	cfg.Auth.Mount = cmp.Or(strings.TrimPrefix(strings.Trim(cfg.Auth.Mount, "/"), "auth/"), cfg.Auth.Method)
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	state := new(clusterState)
	return &Client{
		cfg: cfg, log: log, transport: transport, state: state, nodes: nodes, http: httpClient(transport, state, nodes),
		logging: make(chan struct{}, 1), ended: make(chan struct{}),
	}, nil
}

// open is Open with the way to the server given.
func open(ctx context.Context, cfg Config, log *slog.Logger, transport http.RoundTripper) (*Client, error) {
	c, err := newClient(cfg, log, transport)
	if err != nil {
		return nil, err
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
	c.login.Load().http.CloseIdleConnections()
}
