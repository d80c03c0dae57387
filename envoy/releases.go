package envoy

import (
	"fmt"
	"strings"

	"wayleave/program"
)

// A SecurityRelease is a release of Envoy that mends security problems of the ones before it in its minor line.
type SecurityRelease struct {
	Version  string // as 1.40.1
	Problems string // what it mends, as its release notes name it: "CVE-2026-00000, CVE-2026-00001"
}

// securityReleases are those of the lines that Program supports. Add a line for each that Envoy announces
// (github.com/envoyproxy/envoy/security/advisories). In November 2026, with 1.40.0 the first and latest of its line, there
// is none.
var securityReleases []SecurityRelease

// Known says what is known against an Envoy of this version (as 1.40.0), and which release to run instead; "" when nothing
// is.
func Known(version string) string { return known(securityReleases, version) }

func known(releases []SecurityRelease, version string) string {
	if !Program.Supports(version) {
		return fmt.Sprintf("Envoy %s is not supported, and may do other than it is told: run %s or later", version, Program.Minimum)
	}
	var lacks []string
	fixed := ""
	for _, r := range releases {
		if line(r.Version) == line(version) && program.Compare(version, r.Version) < 0 {
			lacks = append(lacks, r.Problems)
			if fixed == "" || program.Compare(fixed, r.Version) < 0 {
				fixed = r.Version
			}
		}
	}
	if len(lacks) == 0 {
		return ""
	}
	return fmt.Sprintf("Envoy %s has known security problems (%s): run %s or later", version, strings.Join(lacks, ", "), fixed)
}

// line is the minor line of a version: 1.40 of 1.40.0.
func line(version string) string { return version[:max(strings.LastIndexByte(version, '.'), 0)] }
