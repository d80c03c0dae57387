package config

// A Route is hosts whose requests get the credential of one grant.
type Route struct {
	// Name in logs and messages. Default: the first host, with any for * and - for the colon before a port.
	Name string `yaml:"name" jsonschema:"pattern=^[a-z0-9][a-z0-9._-]{0\\,62}$"`

	// Hosts of the route. Several routes may share a host when their grants differ and no profile holds two of them: the
	// profile of the worker then says which route is meant.
	Hosts []string `yaml:"hosts" jsonschema:"required,minItems=1,uniqueItems=true,pattern=^([*]\\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1\\,5})?$"`

	// Grant whose access token replaces the worker's placeholder.
	Grant string `yaml:"grant" jsonschema:"required"`

	// Scopes the grant must hold for any request of this route; without them it is refused with the way to reconnect.
	// Each must be among the scopes the grant asks for. Default: none.
	RequiredScopes []string `yaml:"required_scopes" jsonschema:"uniqueItems=true"`

	// Methods that are let through, in upper case. TRACE and CONNECT never are: TRACE echoes the credential.
	// Default: every other method.
	Methods []string `yaml:"methods" jsonschema:"minItems=1,uniqueItems=true,pattern=^[A-Z][A-Z-]*$"`

	// Rules for some of the paths. The first one that matches decides; a path without a match has the route's own settings.
	Paths []Rule `yaml:"paths" jsonschema:"uniqueItems=true"`

	// Headers the credential is read from and written to.
	Header Header `yaml:"header"`

	// Protocols offered to workers and upstream. Default: the provider's, else both. Some clients break on one of them.
	ALPN []string `yaml:"alpn" jsonschema:"enum=h2,enum=http/1.1,minItems=1,uniqueItems=true"`

	// host:port to dial instead of the host's own address, such as 10.0.0.7:8443. The name in TLS and the certificate
	// check stay those of the host. Default: the host's own address.
	ConnectTo string `yaml:"connect_to"`

	// What happens to a credential that is not a placeholder: pass sends it on untouched, as clients that also hold bearers
	// of the provider's own need; refuse refuses the request; replace sends the grant's token in its place, for
	// clients that cannot be given a placeholder. Somebody else's placeholder is refused in any case.
	ForeignBearer string `yaml:"foreign_bearer" jsonschema:"enum=pass,enum=refuse,enum=replace,default=pass"`

	// What of the provider's answers reaches workers.
	Response Response `yaml:"response"`

	// What happens to a request without a credential: pass sends it on without one, refuse refuses it, but for a browser's question what it may
	// ask (a CORS preflight), which never has one.
	NoCredential string `yaml:"no_credential" jsonschema:"enum=pass,enum=refuse,default=pass"`

	// How requests get the credential: auto lets Envoy set it by itself where the gate has just decided the same about the same connection, and
	// asks the gate about all others; ext_proc asks the gate about each request. Routes whose requests must all be looked at are asked about
	// in any case: see docs/performance.md.
	Lane string `yaml:"lane" jsonschema:"enum=auto,enum=ext_proc,default=auto"`
}

// A Rule is what is different for some of a route's paths. It has either prefix or exact.
type Rule struct {
	// Start of the path, from its first / on. /v1/code also matches /v1/codes; /v1/code/ does not.
	Prefix string `yaml:"prefix" jsonschema:"pattern=^/"`

	// The whole path, without the query.
	Exact string `yaml:"exact" jsonschema:"pattern=^/"`

	// Methods the rule is for; with another method, the next rules are looked at. Default: every method.
	Methods []string `yaml:"methods" jsonschema:"minItems=1,uniqueItems=true,pattern=^[A-Z][A-Z-]*$"`

	// Scopes the grant must hold, in addition to the route's. Default: none.
	RequiredScopes []string `yaml:"required_scopes" jsonschema:"uniqueItems=true"`

	// Refuses the request, in whatever letter case and with or without a final slash its path is written; the text is shown to the worker
	// as the reason. Default: not refused.
	Deny string `yaml:"deny"`
}

// A Header says where in a request the credential is.
type Header struct {
	// Header in which workers send the placeholder, in lower case. Default: the provider's, else authorization.
	In string `yaml:"in" jsonschema:"pattern=^[^A-Z: ]+$"`

	// Word before the placeholder, compared without regard to case. Basic: the placeholder is the password, as git sends it.
	// Default: the provider's, else Bearer when the header is authorization, else none.
	InScheme string `yaml:"in_scheme"`

	// Another header in which workers may send the placeholder instead, in lower case, with Bearer before it in authorization. The token leaves
	// in that one too, unless out names one. Default: the provider's, else none.
	AlsoIn string `yaml:"also_in" jsonschema:"pattern=^[^A-Z: ]+$"`

	// Query parameter in which workers may send the placeholder instead, such as key. It is taken out of the address, and the
	// token is sent in the header all the same: addresses end up in logs. Default: none; a placeholder in the query is refused.
	InQuery string `yaml:"in_query" jsonschema:"pattern=^[A-Za-z0-9._~-]+$"`

	// Header in which the token is sent, in lower case. Default: the provider's, else the one it came in.
	Out string `yaml:"out" jsonschema:"pattern=^[^A-Z: ]+$"`

	// Word before the token. Default: the provider's, else in_scheme when the header is the one it came in, else Bearer for
	// authorization and none for others.
	OutScheme string `yaml:"out_scheme"`
}

// A Response says what of a provider's answers reaches workers. The credential that was sent never does in a header, and
// Alt-Svc never does, because it would lead clients around the gate.
type Response struct {
	// Set-Cookie: remove, since a cookie of the credential's own account is a credential that workers would hold, or pass,
	// for an API that needs its cookies back.
	SetCookie string `yaml:"set_cookie" jsonschema:"enum=remove,enum=pass,default=remove"`

	// Takes the credential out of bodies too, as they stream by: each occurrence of the token, as it was sent and as it is
	// inside Basic, becomes asterisks. It does not see what is compressed, escaped or encoded, and costs a trip to the gate
	// for each piece of a body.
	MaskBody bool `yaml:"mask_body" jsonschema:"default=false"`

	// WWW-Authenticate and Authentication-Info: pass, since git and others send the placeholder only when they are asked
	// to, or remove, so that clients do not begin a log-in of their own after a 401.
	Challenges string `yaml:"challenges" jsonschema:"enum=pass,enum=remove,default=pass"`
}

// Removed are the headers that are taken from the answers, in lower case.
func (r Response) Removed() []string {
	var out []string
	if r.Challenges == Remove {
		out = append(out, "authentication-info", "www-authenticate")
	}
	if r.SetCookie == Remove {
		out = append(out, "set-cookie")
	}
	return out
}

// Values of Route.ForeignBearer, Route.NoCredential, and of the fields of Response.
const (
	Pass    = "pass"
	Refuse  = "refuse"
	Replace = "replace"
	Remove  = "remove"
)

// Values of Route.Lane.
const (
	LaneAuto    = "auto"
	LaneExtProc = "ext_proc"
)
