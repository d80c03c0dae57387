package config

import "time"

// A Profile is what a set of workers may use.
type Profile struct {
	// Grants whose placeholders the workers get.
	Grants []string `yaml:"grants" jsonschema:"uniqueItems=true"`

	// How long a session lasts, from 1m to 720h. `wayleave run` renews it while its command runs.
	SessionTTL time.Duration `yaml:"session_ttl" jsonschema:"default=24h"`

	// How long a session may last with all its renewals, from session_ttl to 2160h. A worker that runs longer is started again, and
	// gets another. The same as session_ttl: none is renewed.
	MaxSession time.Duration `yaml:"max_session" jsonschema:"default=720h"`

	// What happens when a client tries to refresh its credential by itself, at the provider's token endpoint: refuse, or
	// placeholder, which answers in the provider's place with the placeholder the client has already. Nothing goes to the
	// provider in either case. Clients that are given a log-in, as with claude_code: login_file, want an answer.
	TokenEndpoint string `yaml:"token_endpoint" jsonschema:"enum=refuse,enum=placeholder,default=refuse"`

	// How the placeholder of a grant is given, by the grant's name: one of the env_modes of its provider, such as git for a grant
	// of preset github. Default: claude_code where the provider has that mode, else the provider's default_mode.
	Modes map[string]string `yaml:"modes"`

	// How Claude Code is given its placeholder. Only matters for grants of a provider that has such modes, as anthropic does.
	// auth_token: in ANTHROPIC_AUTH_TOKEN, nothing else; the client then keeps its remote control off.
	// oauth_env: in CLAUDE_CODE_OAUTH_TOKEN, with the scopes the grant really holds; remote control works.
	// login_file: in a credentials file of its own, never over a real log-in; remote control works.
	ClaudeCode string `yaml:"claude_code" jsonschema:"enum=auth_token,enum=oauth_env,enum=login_file,default=auth_token"`

	// Rules about requests, beyond what routes and their paths say. The first whose condition holds decides. docs/policy.md has
	// examples.
	Rules []PolicyRule `yaml:"rules" jsonschema:"uniqueItems=true"`

	// What happens to requests for which no rule's condition holds.
	Default string `yaml:"default" jsonschema:"enum=allow,enum=deny,default=allow"`

	// How much each worker may send. docs/policy.md says what is counted. Default: without limit.
	Limits Limits `yaml:"limits"`

	// Refuses nothing because of rules, default and limits, and logs what they would have refused.
	DryRun bool `yaml:"dry_run" jsonschema:"default=false"`
}

// A PolicyRule is a condition, and what happens to requests for which it holds: allow, deny or hold.
type PolicyRule struct {
	// Name in logs, messages and approvals; unique in its profile.
	Name string `yaml:"name" jsonschema:"required,pattern=^[a-z0-9][a-z0-9._-]{0\\,62}$"`

	// Condition in CEL over worker, profile, session, credential, route, host, port, source, now, method, path, query and headers,
	// such as method == "DELETE" && path.startsWith("/repos/"). When it cannot be evaluated for a request, the request is refused.
	// Default: it always holds.
	When string `yaml:"when"`

	// Lets the request go on.
	Allow bool `yaml:"allow"`

	// Refuses the request; the text is shown to the worker as the reason.
	Deny string `yaml:"deny"`

	// Makes the request wait for an operator, who allows or denies it with `wayleave approval`.
	Hold Hold `yaml:"hold"`
}

// A Hold is how a request waits for an operator. Tunnels and requests to hosts of plain cannot wait, and are refused.
type Hold struct {
	// What the operator is asked, and the worker is told.
	Words string `yaml:"words" jsonschema:"required"`

	// How long the request waits, from 1s to 30m, before it is refused. Many clients give up by themselves after some minutes.
	For time.Duration `yaml:"for" jsonschema:"default=5m"`
}

// LongestHold is the most that a rule may hold a request for.
const LongestHold = 30 * time.Minute

// A Worker is a client of the gate. It has token_sha256, token_file, from or spiffe_id, or none of them: then `wayleave up` makes
// a token and keeps it in its state directory, and `wayleave serve` refuses to start.
type Worker struct {
	// Entry of profiles.
	Profile string `yaml:"profile" jsonschema:"required"`

	// SHA-256 of the worker's token, in 64 lower-case hexadecimal digits: printf %s "$token" | sha256sum
	TokenSHA256 string `yaml:"token_sha256" jsonschema:"pattern=^([0-9a-f]{64})?$"`

	// File that holds the worker's token.
	TokenFile string `yaml:"token_file"`

	// What a token of the worker's platform says about it, in place of a token of the gate's.
	From From `yaml:"from"`

	// SPIFFE ID in the certificate with which the worker proves who it is, in place of a token; with /* at the end, every ID that goes
	// on there. It needs listen.client_ca_file.
	SPIFFEID string `yaml:"spiffe_id"`

	// IP addresses and networks (CIDR) of the worker, and nobody else's, by which listen.transparent knows it: whoever sends from
	// them is this worker, so the network must keep others from doing so. No two workers' addresses overlap. They do not restrict
	// where the worker may use a proxy from.
	Addresses []string `yaml:"addresses" jsonschema:"uniqueItems=true"`

	// TokenDigest is the SHA-256 of the worker's token in lower-case hexadecimal: token_sha256, or what LoadSecrets
	// found in token_file. Empty when the worker has neither.
	TokenDigest string `yaml:"-"`
}
