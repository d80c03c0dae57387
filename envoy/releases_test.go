package envoy

import (
	"regexp"
	"strings"
	"testing"
)

func TestKnown(t *testing.T) {
	releases := []SecurityRelease{{"1.39.5", "CVE-0"}, {"1.40.2", "CVE-1"}, {"1.40.10", "CVE-2, CVE-3"}, {"1.41.1", "CVE-3"}}
	for version, want := range map[string]string{
		"1.39.4":  "Envoy 1.39.4 is not supported, and may do other than it is told, and has known security problems (CVE-0): run 1.40.0 or later",
		"1.39.9":  "Envoy 1.39.9 is not supported, and may do other than it is told: run 1.40.0 or later",
		"1.40.0":  "Envoy 1.40.0 has known security problems (CVE-1, CVE-2, CVE-3): run 1.40.10 or later",
		"1.40.9":  "Envoy 1.40.9 has known security problems (CVE-2, CVE-3): run 1.40.10 or later",
		"1.40.10": "",
		"1.41.0":  "Envoy 1.41.0 has known security problems (CVE-3): run 1.41.1 or later",
		"1.41.1":  "",
		"1.42.0":  "", // a line of which nothing is known
		// What was built before a release has not what that mends.
		"1.40.0-dev":  "Envoy 1.40.0-dev is not supported, and may do other than it is told, and has known security problems (CVE-1, CVE-2, CVE-3): run 1.40.0 or later",
		"1.40.10-dev": "Envoy 1.40.10-dev has known security problems (CVE-2, CVE-3): run 1.40.10 or later",
		"1.40.11-dev": "",
		"1.41.1-rc.1": "Envoy 1.41.1-rc.1 has known security problems (CVE-3): run 1.41.1 or later",
		"1.41.1-fips": "", // the builder's word
	} {
		if got := known(releases, version); got != want {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
	}
}

// Each release is written so that it is compared, once, and no supported release is older than all that is known of its line.
func TestSecurityReleases(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range securityReleases {
		if !regexp.MustCompile(`^1\.\d+\.\d+$`).MatchString(r.Version) || !regexp.MustCompile(`^CVE-\d{4}-\d+(, CVE-\d{4}-\d+)*$`).MatchString(r.Problems) || seen[r.Version] {
			t.Errorf("%+v is of no use", r)
		}
		seen[r.Version] = true
	}
	for version, want := range map[string]string{
		"1.39.0": "CVE-2026-73547, ", "1.39.1": "(CVE-2026-35189)", "1.38.3": "CVE-2026-73513", "1.35.0": "is not supported",
	} {
		if got := Known(version); !strings.Contains(got, want) || !strings.HasSuffix(got, "run "+Program.Minimum+" or later") {
			t.Errorf("%s: %q, want %q in it", version, got, want)
		}
	}
	if got := Known("1.40.0"); got != "" {
		t.Errorf("against the release that everything is tested with: %s", got)
	}
}
