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

// securityReleases are those of the minor lines that are maintained, as of 6 October 2026. Add a line for each that Envoy announces
// (github.com/envoyproxy/envoy/security/advisories). Of the line 1.40, which is the one that Program supports, there is none: 1.40.0, the first and
// latest of it, came on 1 October and has what was mended in August; its notes do not say whether it has what 1.39.2 mended on that day.
var securityReleases = []SecurityRelease{
	{"1.36.10", august2026}, {"1.37.6", august2026}, {"1.38.4", august2026}, {"1.39.1", august2026},
	{"1.38.5", october2026}, {"1.39.2", october2026},
}

const (
	august2026 = "CVE-2026-48521, CVE-2026-50572, CVE-2026-73511, CVE-2026-73512, CVE-2026-73513, CVE-2026-73546, CVE-2026-73547, CVE-2026-73548, CVE-2026-73549, " +
		"CVE-2026-73550, CVE-2026-73551, CVE-2026-73552, CVE-2026-73553"
	october2026 = "CVE-2026-35189"
)

// Known says what is known against an Envoy of this version (as 1.40.0), and which release to run instead; "" when nothing
// is.
func Known(version string) string { return known(securityReleases, version) }

func known(releases []SecurityRelease, version string) string {
	var lacks, against []string
	instead := ""
	for _, r := range releases {
		if line(r.Version) == line(version) && program.Compare(version, r.Version) < 0 {
			lacks = append(lacks, r.Problems)
			if instead == "" || program.Compare(instead, r.Version) < 0 {
				instead = r.Version
			}
		}
	}
	if !Program.Supports(version) {
		against, instead = append(against, "is not supported, and may do other than it is told"), Program.Minimum
	}
	if len(lacks) > 0 {
		against = append(against, "has known security problems ("+strings.Join(lacks, ", ")+")")
	}
	if len(against) == 0 {
		return ""
	}
	return fmt.Sprintf("Envoy %s %s: run %s or later", version, strings.Join(against, ", and "), instead)
}

// line is the minor line of a version: 1.40 of 1.40.0.
func line(version string) string {
	version, _, _ = strings.Cut(version, "-")
	return version[:max(strings.LastIndexByte(version, '.'), 0)]
}
