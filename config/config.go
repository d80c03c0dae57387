// Package config owns the one YAML file: what can be written in it, what its values default to, and what is wrong with it.
//
// The comments of the struct fields below are the manual; the JSON Schema (Schema) is made from them.
// Load reads strictly and reports everything wrong at once, each fault with its line and its fix. It needs no secret and
// no network: LoadSecrets reads the files and variables the configuration names, and is called by whoever will use them.
// What the values do is left to the packages they are handed to by cmd/wayleave.
package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"wayleave/provider"
	"wayleave/secret"
)

// A Config is one configuration file, with every default filled in.
//
// A relative file name in it is relative to the directory of the file; Path resolves it.
// Names (of providers, grants, routes, profiles, issuers, workers, targets) are 1 to 63 of a-z 0-9 . _ - and start with a letter or digit.
//
// A host is a lower-case DNS name such as api.example.com, or *.example.com for every name below example.com at any
// depth, with :port when the port is not 443 (80 in plain). Where several patterns match a connection the most specific one decides:
// an exact name before a wildcard, a longer wildcard before a shorter one. A host that nothing matches is refused.
type Config struct {
	// Where grants, the certificate authority and the session keys are kept: HashiCorp Vault or OpenBao.
	Vault Vault `yaml:"vault"`

	// Where workers connect.
	Listen Listen `yaml:"listen"`

	// Operators' web pages and HTTP API.
	Console Console `yaml:"console"`

	// Figures for Prometheus, and whether the gate is alive and ready.
	Metrics Metrics `yaml:"metrics"`

	// What the gate logs.
	Log Log `yaml:"log"`

	// Account of what is done through the gate.
	Audit Audit `yaml:"audit"`

	// Traces and figures for an OpenTelemetry collector.
	Telemetry Telemetry `yaml:"telemetry"`

	// Who is told when something needs an operator.
	Notify Notify `yaml:"notify"`

	// Requests written down with what was decided of them, to try other rules on.
	Record Record `yaml:"record"`

	// Who is asked about requests that wait for an operator.
	Approvals Approvals `yaml:"approvals"`

	// The Envoy process that carries the traffic.
	Envoy Envoy `yaml:"envoy"`

	// How a change of the configuration reaches the Envoys.
	Rollout Rollout `yaml:"rollout"`

	// How destinations are reached.
	Upstream Upstream `yaml:"upstream"`

	// OAuth providers by name. One that is used as it is delivered needs no entry: a grant names the preset itself.
	// An entry is a preset and the keys in which it differs; a list or map written here replaces the preset's whole.
	Providers map[string]Provider `yaml:"providers"`

	// Consents of an operator at a provider, by name. A grant starts to work with `wayleave grant connect <name>`; one of a
	// static provider with `wayleave grant import <name>`; one of a provider whose grant_type is client_credentials or jwt_bearer
	// by itself.
	Grants map[string]Grant `yaml:"grants"`

	// Destinations whose requests get a credential. Their TLS is terminated by the gate.
	Routes []Route `yaml:"routes" jsonschema:"uniqueItems=true"`

	// Hosts that are let through with their bytes untouched and without a credential.
	// A name is either tunnelled or routed, whatever the port: TLS names carry no port.
	Tunnel []string `yaml:"tunnel" jsonschema:"uniqueItems=true,pattern=^([*]\\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1\\,5})?$"`

	// Hosts that speak HTTP without TLS, in which no credential of the gate's ever is: http URLs for them are forwarded for every
	// worker, and a placeholder in such a request refuses it. The port is 80 when none is written. Nothing else is forwarded
	// without TLS.
	Plain []string `yaml:"plain" jsonschema:"uniqueItems=true,pattern=^([*]\\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1\\,5})?$"`

	// Hosts that are refused although a wildcard in routes, tunnel or plain matches them. The most specific pattern decides
	// here too: an exact name in routes or tunnel stays open under a wildcard in deny.
	Deny []string `yaml:"deny" jsonschema:"uniqueItems=true,pattern=^([*]\\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1\\,5})?$"`

	// What a set of workers may use, by name.
	Profiles map[string]Profile `yaml:"profiles"`

	// Who vouches for workers that have no token of the gate's, by name.
	Issuers map[string]Issuer `yaml:"issuers"`

	// Who may connect, by name.
	Workers map[string]Worker `yaml:"workers"`

	// Dir is the directory of the file.
	Dir string `yaml:"-"`

	// Warnings are what looks unintended but works. They are looked for only when there is no fault.
	Warnings Faults `yaml:"-"`

	doc    *document    // where everything is
	public *publicFiles // see Files
}

// Vault says where HashiCorp Vault or OpenBao is and how the gate logs in.
type Vault struct {
	// An https:// URL, an http:// URL on a loopback address, or unix:///path/of/socket.
	// Default: $VAULT_ADDR. When that is empty too, `wayleave up` starts an OpenBao of its own and `wayleave serve` refuses.
	Address string `yaml:"address"`

	// Further nodes of the same cluster, written like address. The gate asks another one when one does not answer or is sealed.
	Nodes []string `yaml:"nodes" jsonschema:"uniqueItems=true"`

	// Namespace of Vault Enterprise or OpenBao. Default: none.
	Namespace string `yaml:"namespace"`

	// PEM file of the authority that signed the server's certificate. It is read again for each connection, so that it can be replaced;
	// when the server's authority changes, put the new one beside the old before. Default: the system's.
	CAFile string `yaml:"ca_file"`

	// Path of the KV version 2 mount that holds the grants. It must exist; `wayleave vault setup` makes it.
	Mount string `yaml:"mount" jsonschema:"default=wayleave"`

	// Path of the PKI mount whose root signs the gate's intermediate. `wayleave vault setup` makes it.
	PKIMount string `yaml:"pki_mount" jsonschema:"default=wayleave-pki"`

	// How the gate logs in.
	Auth Auth `yaml:"auth"`
}

// Auth says how the gate logs in to Vault. Files are read again at each log-in, so that whoever rotates them need not
// tell the gate.
type Auth struct {
	// token: a token made by somebody else, renewed as long as Vault allows.
	// approle: role_id and secret_id_file, for anything that stays up.
	// kubernetes: the service-account token of the pod, and role; no secret to hand out.
	// jwt: a JSON web token from jwt_file or jwt_env, as CI systems and SPIFFE helpers write them, and role.
	// cert: a TLS client certificate from cert_file and key_file.
	Method string `yaml:"method" jsonschema:"enum=token,enum=approle,enum=kubernetes,enum=jwt,enum=cert,default=token"`

	// Path where the method is mounted. Default: the method's name; for token, approle, where `wayleave vault setup`
	// makes the gate's role.
	Mount string `yaml:"mount"`

	// Role to log in with, for methods kubernetes, jwt and cert. With cert, default: whichever fits the certificate.
	Role string `yaml:"role"`

	// File that holds the token, for method token. Default: the token is in $VAULT_TOKEN.
	TokenFile string `yaml:"token_file"`

	// Role id, for method approle. It is a name, not a secret.
	RoleID string `yaml:"role_id"`

	// File that holds the secret id, for method approle.
	SecretIDFile string `yaml:"secret_id_file"`

	// File that holds the JSON web token, for methods jwt and kubernetes.
	// Default for kubernetes: /var/run/secrets/kubernetes.io/serviceaccount/token.
	JWTFile string `yaml:"jwt_file"`

	// Name of the environment variable that holds the JSON web token, for method jwt instead of jwt_file.
	// A variable cannot be rotated: it suits a job that is shorter than its token.
	JWTEnv string `yaml:"jwt_env"`

	// PEM file of the client certificate and its chain, for method cert.
	CertFile string `yaml:"cert_file"`

	// PEM file of the certificate's key, for method cert. It may be the same file.
	KeyFile string `yaml:"key_file"`

	// Token is filled by LoadSecrets from $VAULT_TOKEN, for method token without token_file.
	Token secret.Text `yaml:"-"`

	// JWT is filled by LoadSecrets from jwt_env.
	JWT secret.Text `yaml:"-"`
}

// Listen says where workers connect.
type Listen struct {
	// IP address and port of Envoy's proxy listener, such as 0.0.0.0:3128 for every address.
	// Workers authenticate to it with session tokens in clear text: beyond this machine, use a network you trust, or proxy_tls.
	Proxy string `yaml:"proxy" jsonschema:"default=127.0.0.1:3128"`

	// IP address and port where the same proxy is offered over TLS, for HTTPS_PROXY=https://gate.example.com:3129. It needs
	// tls_names, or tls_cert_file and tls_key_file. Default: nowhere.
	ProxyTLS string `yaml:"proxy_tls"`

	// IP address and port where connections that a packet filter redirected are taken, of workers with addresses: for programs
	// that cannot be given a proxy. docs/transparent.md has the rules. Default: nowhere.
	Transparent string `yaml:"transparent"`

	// DNS names of the gate. The gate makes the certificates of proxy_tls for them, under the authority that its workers trust
	// anyway. A client that sends no server name gets that of the first; an IP address is in none of them. No route or tunnel may
	// match them.
	TLSNames []string `yaml:"tls_names" jsonschema:"uniqueItems=true,pattern=^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$"`

	// PEM file of a certificate of your own for proxy_tls, with its chain, in place of tls_names. Envoy reads it by itself, and
	// again when it is replaced by renaming.
	TLSCertFile string `yaml:"tls_cert_file"`

	// PEM file of its key.
	TLSKeyFile string `yaml:"tls_key_file"`

	// PEM file of the authorities that sign workers' certificates: the trust bundle of one SPIFFE trust domain. Workers that have
	// spiffe_id then prove with such a certificate, on proxy_tls, who they are; others need none there. Envoy reads the file by
	// itself, and again when it is replaced by renaming.
	ClientCAFile string `yaml:"client_ca_file"`

	// Names of the gates that one Envoy asks, when there are several: each is a `wayleave serve --replica NAME` with the same
	// --run-dir, and while one is restarted, or after it has died, the others answer. `wayleave up` is one gate all the same.
	// Default: one gate without a name.
	Replicas []string `yaml:"replicas" jsonschema:"uniqueItems=true,pattern=^[a-z0-9][a-z0-9_-]{0\\,15}$"`

	// Where your people read docs/errors, which has a page about each reason of a refusal: an address with {reason} in it, such as
	// https://docs.example.com/wayleave/errors/{reason}.html. Each refusal leads there in its header Link, of relation help. Default: no
	// such header; the message names `wayleave explain`, which prints the page, in any case.
	HelpURL string `yaml:"help_url" jsonschema:"pattern=^https?://[^{} ]+[{]reason[}][^{} ]*$"`
}

// Envoy says which Envoy runs and what it logs.
type Envoy struct {
	// Envoy binary, 1.40 or later. Default: $WAYLEAVE_ENVOY, then the one in $PATH, then the one fetched by `make tools`.
	Binary string `yaml:"binary"`

	// What Envoy logs. At debug and trace the parts of it that print requests stay at info, since those have real credentials in them.
	LogLevel string `yaml:"log_level" jsonschema:"enum=trace,enum=debug,enum=info,enum=warning,enum=error,enum=critical,enum=off,default=warning"`

	// Name of this machine's Envoy among those of its fleet, which no other may have. Default: the machine's host name.
	Name string `yaml:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9._-]{0\\,252}$"`

	// Name of the group that this machine's Envoy is in, for steps of rollout. Default: none.
	Group string `yaml:"group" jsonschema:"pattern=^[a-z0-9][a-z0-9._-]{0\\,62}$"`
}

// Upstream says how destinations are reached.
type Upstream struct {
	// PEM files of authorities that may sign the certificates of routed hosts, in addition to the system's.
	CAFiles []string `yaml:"ca_files" jsonschema:"uniqueItems=true"`

	// Resolvers that names are looked up with, as ip:port. Default: the system's.
	DNSResolvers []netip.AddrPort `yaml:"dns_resolvers" jsonschema:"uniqueItems=true"`

	// Private networks a name may resolve to, as CIDR. Default: none: loopback, link-local, private and
	// cloud metadata addresses are refused after look-up, so that a name cannot be pointed at the inside.
	AllowPrivate []netip.Prefix `yaml:"allow_private" jsonschema:"uniqueItems=true"`
}

// A Provider is a preset and the keys in which this provider differs from it.
type Provider struct {
	// Preset to start from. Default: the preset with the entry's own name; for any other name oauth2, which knows no endpoints, or
	// static with kind: static.
	Preset string `yaml:"preset"`

	// File that holds the client secret. Only for providers that gave the client one; see auth_style. It is read again for each request, so that
	// it can be replaced.
	ClientSecretFile string `yaml:"client_secret_file"`

	// Name of the environment variable that holds the client secret, instead of client_secret_file.
	ClientSecretEnv string `yaml:"client_secret_env"`

	// PEM file of the client's private key (PKCS #8, PKCS #1 or SEC 1; RSA of 2048 bits or more, EC or Ed25519; unencrypted), for
	// auth_style private_key_jwt, grant_type jwt_bearer and exchange.actor of a grant. It is read again for each request, too.
	ClientKeyFile string `yaml:"client_key_file"`

	provider.Provider `yaml:",inline"`
}

// A Grant is an operator's consent at a provider, the gate's own rights there, or a value that an operator imported.
type Grant struct {
	// Entry of providers, or preset.
	Provider string `yaml:"provider" jsonschema:"required"`

	// Scopes to ask for, as the provider names them. Default: those of the provider's preset, if it has any.
	// A change takes effect with the next `wayleave grant connect <name>`: a refresh can never widen a grant (RFC 6749 section 6).
	// Where the gate gets its tokens by itself it takes effect at once. Not for static providers, whose values have none.
	Scopes []string `yaml:"scopes" jsonschema:"uniqueItems=true"`

	// Trades the grant's token for one of each worker's own (RFC 8693), which is what its requests then carry. Default: requests
	// carry the grant's token.
	Exchange Exchange `yaml:"exchange"`

	// Account to connect, in words for the operator who does it. Default: none.
	Account string `yaml:"account"`

	// How much all workers together may send with the grant's credential. docs/policy.md says what is counted. Default: without limit.
	Limits Limits `yaml:"limits"`
}

// An Exchange says which token a worker's requests carry in place of the grant's (RFC 8693 section 2.1). It has at least one of
// audience, resource and scopes.
type Exchange struct {
	// Name, as the provider knows it, of the service the new token is for.
	Audience string `yaml:"audience"`

	// Absolute address of the API the new token is for.
	Resource string `yaml:"resource"`

	// Scopes of the new token, of those the grant holds. Default: the provider decides.
	Scopes []string `yaml:"scopes" jsonschema:"uniqueItems=true"`

	// Whether the provider is told who acts: none, or worker, which sends the worker's name in an actor token signed with the
	// provider's client_key_file. Each worker has a token of its own in either case.
	Actor string `yaml:"actor" jsonschema:"enum=none,enum=worker,default=none"`
}

// Wanted reports whether there is anything to exchange for.
func (x Exchange) Wanted() bool { return x.Audience != "" || x.Resource != "" || len(x.Scopes) > 0 }

// StandIn is a value of Profile.TokenEndpoint; the other is Refuse.
const StandIn = "placeholder"

// Values of Profile.Default.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Values of Exchange.Actor.
const (
	ActorNone   = "none"
	ActorWorker = "worker"
)

// Load reads the configuration at path. The error is of type Faults unless the file cannot be read at all.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w; name another file with --config", err)
	}
	return Parse(path, data)
}

// Parse reads a configuration from memory; name is the file name for messages and for relative file names.
// The error is of type Faults.
func Parse(name string, data []byte) (*Config, error) {
	c := &Config{Dir: filepath.Dir(name), public: &publicFiles{}}
	doc := newDocument(name, data)
	doc.read(c)
	return c.finish(doc)
}

// finish checks what was read.
func (c *Config) finish(doc *document) (*Config, error) {
	c.doc = doc
	if !doc.broken[""] {
		c.applyDefaults(doc.given)
		c.Warnings = check(c, doc)
	}
	if len(doc.faults) > 0 {
		doc.faults.sort()
		return nil, doc.faults
	}
	return c, nil
}

// Text is the file as it was read. A configuration made by With has that of its shared part.
func (c *Config) Text() []byte {
	if c.doc == nil {
		return nil
	}
	return bytes.Clone(c.doc.data)
}

// Path resolves a file name written in the configuration: a relative one is relative to the directory of the file.
func (c *Config) Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.Dir, name)
}
