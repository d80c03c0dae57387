package config

import (
	"net/netip"
	"time"

	"wayleave/secret"
)

// Console says where operators' web pages and HTTP API are served, and who may use them. Workers never reach it: it is not on
// the proxy.
type Console struct {
	// IP address and port where the gate serves it, or none. Beyond loopback it needs oidc and public_url. Default: none for `wayleave serve`; for `wayleave up` 127.0.0.1:3180, or any port of
	// loopback when that one is taken.
	Listen string `yaml:"listen"`

	// https:// address at which operators reach it, without a path: with tls_cert_file directly, else through a reverse proxy.
	// Default: the address in listen.
	PublicURL string `yaml:"public_url"`

	// Networks of reverse proxies whose X-Forwarded-For says where a log-in comes from, such as 10.1.0.0/16 or 127.0.0.1/32. What anybody
	// else sends in it is ignored. Default: none; whoever connects is the client.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies" jsonschema:"uniqueItems=true"`

	// PEM file of the certificate with its chain, read again when it changes. Default: none; it is served without TLS.
	TLSCertFile string `yaml:"tls_cert_file"`

	// PEM file of its key.
	TLSKeyFile string `yaml:"tls_key_file"`

	// Log-in with the operators' own identity provider.
	OIDC OIDC `yaml:"oidc"`

	// How long a log-in lasts that is not used, from 1m to 24h.
	SessionIdle time.Duration `yaml:"session_idle" jsonschema:"default=30m"`

	// How long a log-in lasts at most, from 5m to 168h.
	SessionLife time.Duration `yaml:"session_life" jsonschema:"default=12h"`
}

// ListenNone is a value of Console.Listen.
const ListenNone = "none"

// OIDC says how operators log in with OpenID Connect, and what each may do. The redirect URL to register is /login/callback at
// the console's address.
type OIDC struct {
	// Issuer, an https:// URL, whose /.well-known/openid-configuration names the endpoints. Default: no log-in by OIDC.
	Issuer string `yaml:"issuer"`

	// Client id.
	ClientID string `yaml:"client_id"`

	// File that holds the client secret. Default: the client is public.
	ClientSecretFile string `yaml:"client_secret_file"`

	// Name of the environment variable that holds the client secret, instead of client_secret_file.
	ClientSecretEnv string `yaml:"client_secret_env"`

	// PEM file of authorities that may sign the issuer's certificate, in addition to the system's. Default: none.
	CAFile string `yaml:"ca_file"`

	// Scopes to ask for, openid among them. Default: openid, email, profile.
	Scopes []string `yaml:"scopes" jsonschema:"uniqueItems=true"`

	// Claim of the identity token that says what somebody is: a string, a list of strings, or an object of objects, whose names count, as in
	// urn:zitadel:iam:org:project:roles. A dot leads into an object, as in realm_access.roles.
	RolesClaim string `yaml:"roles_claim" jsonschema:"default=groups"`

	// Whether an address counts of which the provider does not say that it has verified it (email_verified): else somebody could write
	// a colleague's there, and such an address is neither shown nor gives a role.
	AllowUnverifiedEmail bool `yaml:"allow_unverified_email"`

	// Which values of that claim make somebody what. Who has none of them may not come in.
	Roles Roles `yaml:"roles"`

	// ClientSecret is filled by LoadSecrets.
	ClientSecret secret.Text `yaml:"-"`
}

// Roles are values of OIDC.RolesClaim. Each role may do what the one before it may.
type Roles struct {
	// Sees how grants, sessions and requests are.
	Viewer []string `yaml:"viewer" jsonschema:"uniqueItems=true"`

	// Connects, imports, refreshes and disconnects grants, ends sessions, and sees the configuration.
	Operator []string `yaml:"operator" jsonschema:"uniqueItems=true"`

	// Rolls configurations out, and sees and ends everybody's API tokens.
	Admin []string `yaml:"admin" jsonschema:"uniqueItems=true"`
}
