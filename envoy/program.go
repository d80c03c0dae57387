package envoy

import (
	"regexp"

	"wayleave/program"
)

// Program is how Envoy is found. The configuration uses fields that came with 1.40.0, and an extension of it that may
// change with a major release.
var Program = program.Spec{
	Name:        "envoy",
	VersionArgs: []string{"--version"},
	// Envoy prints "…  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL", and 1.40.0-dev before that release.
	Version: regexp.MustCompile(`version: [^/\s]+/(\d+\.\d+\.\d+(?:-[A-Za-z0-9_-]+)?)[^/]*/`),
	Minimum: "1.40.0",
	Below:   "2.0.0",
	Setting: "envoy.binary or WAYLEAVE_ENVOY",
}
