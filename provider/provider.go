// Package provider owns what is known about each provider, as data: its endpoints and OAuth habits, or that its credentials
// are static, what a worker's environment has to look like for its clients to use a placeholder, and how its errors are shaped. Presets are embedded
// YAML and every field can be overridden by an operator, because public knowledge about providers changes and
// contradicts itself. Speaking the protocol is left to package oauth, applying an environment to package worker.
package provider

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"sync"

	"go.yaml.in/yaml/v3"

	"wayleave/oauth"
)

// ErrorFormat is the shape of a provider's error bodies, in which refusals of our own are written too, so that its
// clients show their text.
type ErrorFormat string

// Error formats. Empty means FormatGeneric.
const (
	FormatAnthropic ErrorFormat = "anthropic" // {"type":"error","error":{"type":…,"message":…}}
	FormatOpenAI    ErrorFormat = "openai"    // {"error":{"message":…,"type":…,"code":…}}
	FormatGitHub    ErrorFormat = "github"    // {"message":…,"documentation_url":…}
	FormatGeneric   ErrorFormat = "generic"   // {"error":…,"message":…}
)

// Kind says where a provider's credentials come from.
type Kind string

// Kinds. Empty means OAuth.
const (
	OAuth  Kind = "oauth"  // tokens of an OAuth 2 authorization server
	Static Kind = "static" // an API key, a password or any other header value, imported by an operator
)

// Provider is an API, the clients of that API, and the OAuth 2 authorization server in front of it, if there is one.
type Provider struct {
	// Name under which the configuration knows it.
	Name string `yaml:"-" json:"-"`

	// Kind is oauth (default), or static: credentials are imported by an operator, and there is no OAuth part.
	Kind Kind `yaml:"kind,omitempty" jsonschema:"enum=oauth,enum=static"`

	oauth.Config `yaml:",inline"`

	// Scopes a grant requests when it names none.
	Scopes []string `yaml:"scopes,omitempty"`
	// PlaceholderPrefix is the beginning that clients expect of a token, for example "sk-ant-oat01-"; characters
	// A-Z a-z 0-9 . _ ~ - only.
	PlaceholderPrefix string `yaml:"placeholder_prefix,omitempty"`

	// Header says where in a request the credential is, for routes that do not say it themselves.
	Header Header `yaml:"header,omitempty"`

	// Env are variables set for a worker in every mode: name to template (see Render).
	Env map[string]string `yaml:"env,omitempty"`
	// Unset are variables removed in every mode, because clients would prefer them to the placeholder.
	Unset []string `yaml:"unset,omitempty"`
	// DefaultMode is the entry of EnvModes used when a profile chooses none. Empty: no mode, Env and Unset alone.
	DefaultMode string `yaml:"default_mode,omitempty"`
	// EnvModes are the ways in which a client of this provider can be given the placeholder.
	EnvModes map[string]Mode `yaml:"env_modes,omitempty"`

	// EnsureHeaders are values that must be in these list headers of a request that gets the real token; they are merged
	// into what the client sent (RFC 9110 §5.3), never replacing it and never twice.
	EnsureHeaders map[string]string `yaml:"ensure_headers,omitempty"`
	// EnsurePaths are the path prefixes that EnsureHeaders apply to. Empty: every path.
	EnsurePaths []string `yaml:"ensure_paths,omitempty"`

	// RewriteHeaders are headers of a request that gets the real token in which a client names the account that it takes for its own: header,
	// in lower case, to the fact (see facts) that takes the place of its value. A header whose fact is not known is left out.
	RewriteHeaders map[string]string `yaml:"rewrite_headers,omitempty"`

	// LocalAnswers are requests that the gate answers by itself, for workers whose profile has a grant of this provider.
	LocalAnswers []Answer `yaml:"answers,omitempty"`

	// ErrorFormat of refusals: anthropic, openai, github or generic (default).
	ErrorFormat ErrorFormat `yaml:"error_format,omitempty" jsonschema:"enum=anthropic,enum=openai,enum=github,enum=generic"`
	// RefusalStatus replaces the HTTP status of a refusal: reason (as in x-wayleave-reason) to status, 400 to 599.
	RefusalStatus map[string]int `yaml:"refusal_status,omitempty"`
	// RefusedHosts are endpoints that a worker never reaches through us, as host or host/path prefix: a client that
	// refreshed by itself there would receive real tokens and spend the shared refresh token. The token and revocation
	// endpoints are among them without being named; see Refused. Their hosts are not tunnelled under a wildcard; one that tunnel has by its
	// very name is, all of it, as nobody looks into tunnels.
	RefusedHosts []string `yaml:"refused_hosts,omitempty"`

	// ALPN protocols offered to workers on intercepted connections: h2, http/1.1, in order of preference.
	ALPN []string `yaml:"alpn,omitempty" jsonschema:"enum=h2,enum=http/1.1"`
	// BasicUser is the user name that goes with a token sent as Basic, as git does. Empty: the client's own stays.
	BasicUser string `yaml:"basic_user,omitempty"`
}

// Header says where in a request the credential is. Empty fields are left to the route's own defaults.
type Header struct {
	// In is the header in which workers send the placeholder, in lower case.
	In string `yaml:"in,omitempty" jsonschema:"pattern=^[^A-Z: ]+$"`
	// AlsoIn is another header in which workers may send it instead, in lower case. The credential then leaves in that one too, unless Out names one.
	AlsoIn string `yaml:"also_in,omitempty" jsonschema:"pattern=^[^A-Z: ]+$"`
	// InScheme is the word before the placeholder.
	InScheme string `yaml:"in_scheme,omitempty"`
	// Out is the header in which the credential is sent, in lower case.
	Out string `yaml:"out,omitempty" jsonschema:"pattern=^[^A-Z: ]+$"`
	// OutScheme is the word before the credential.
	OutScheme string `yaml:"out_scheme,omitempty"`
}

//go:embed presets.yaml
var presetsYAML []byte

// presets are the embedded file's, by name, read once: a configuration asks for them again and again. The file is part of the program, so a
// fault in it is a bug.
var presets = sync.OnceValue(func() map[string]yaml.Node {
	var nodes map[string]yaml.Node
	if err := yaml.Unmarshal(presetsYAML, &nodes); err != nil {
		panic(fmt.Sprintf("provider: presets.yaml: %v", err))
	}
	return nodes
})

// Presets returns the names of the presets, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets())) }

// Preset returns a preset. It is the caller's own copy, maps and lists included.
func Preset(name string) (Provider, bool) {
	node, ok := presets()[name]
	if !ok {
		return Provider{}, false
	}
	var p Provider
	if err := node.Decode(&p); err != nil {
		panic(fmt.Sprintf("provider: the preset %s: %v", name, err))
	}
	p.Name = name
	return p, true
}
