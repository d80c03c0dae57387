package embedded

import (
	"regexp"

	"wayleave/program"
)

// Program is how OpenBao is found. A store that a version wrote is read back by the later ones of its major version.
var Program = program.Spec{
	Name:        "bao",
	VersionArgs: []string{"version"},
	Version:     regexp.MustCompile(`^OpenBao v(\d+\.\d+\.\d+(?:-[A-Za-z0-9.-]+)?)`),
	Minimum:     "2.7.0",
	Below:       "3.0.0",
	Setting:     "WAYLEAVE_BAO (or VAULT_ADDR, to use a Vault of your own)",
}
