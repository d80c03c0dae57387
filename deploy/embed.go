// Package deploy owns the files an operator installs with: here, those the program itself needs too.
package deploy

import "embed"

// VaultPolicies holds vault/<role>.hcl, the policy of each role, written for the default mounts "wayleave" and
// "wayleave-pki".
//
//go:embed vault/*.hcl
var VaultPolicies embed.FS
