package envoy

import "testing"

func TestKnown(t *testing.T) {
	releases := []SecurityRelease{{"1.40.2", "CVE-1"}, {"1.40.10", "CVE-2, CVE-3"}, {"1.41.1", "CVE-3"}}
	for version, want := range map[string]string{
		"1.39.9":  "Envoy 1.39.9 is not supported, and may do other than it is told: run 1.40.0 or later",
		"1.40.0":  "Envoy 1.40.0 has known security problems (CVE-1, CVE-2, CVE-3): run 1.40.10 or later",
		"1.40.9":  "Envoy 1.40.9 has known security problems (CVE-2, CVE-3): run 1.40.10 or later",
		"1.40.10": "",
		"1.41.0":  "Envoy 1.41.0 has known security problems (CVE-3): run 1.41.1 or later",
		"1.41.1":  "",
		"1.42.0":  "", // a line of which nothing is known
	} {
		if got := known(releases, version); got != want {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
	}
}

// Each release is one of a line that is supported, so that its line in the table can matter.
func TestSecurityReleases(t *testing.T) {
	for _, r := range securityReleases {
		if !Program.Supports(r.Version) || r.Problems == "" {
			t.Errorf("%+v is of no use", r)
		}
	}
}
