package oauth

import (
	"strings"
	"testing"
)

func TestChallengeParam(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []string
		want   string
	}{
		{"plain", []string{`Bearer resource_metadata="https://a/b"`}, "https://a/b"},
		{"among others", []string{`Bearer realm="x, y", error="invalid_token" , resource_metadata="https://a/b", scope="s"`}, "https://a/b"},
		{"token", []string{`bearer Resource_Metadata=https-a`}, "https-a"},
		{"spaces around the sign", []string{"Bearer resource_metadata\t= \"https://a\""}, "https://a"},
		{"escapes", []string{`Bearer realm="a\"b", resource_metadata="https://\a"`}, "https://a"},
		{"second challenge of a value", []string{`Basic realm="x", Bearer resource_metadata="https://a"`}, "https://a"},
		{"second value", []string{`Negotiate`, `Bearer resource_metadata="https://a"`}, "https://a"},
		{"after token68", []string{`Negotiate abc==, Bearer resource_metadata="https://a"`}, "https://a"},
		{"first of two", []string{`Bearer resource_metadata="https://a", Bearer resource_metadata="https://b"`}, "https://a"},
		{"of another scheme", []string{`DPoP resource_metadata="https://a"`}, ""},
		{"in a string", []string{`Bearer realm="Bearer resource_metadata=x"`}, ""},
		{"none", []string{`Bearer`, ``}, ""},
		{"not closed", []string{`Bearer resource_metadata="https://a`}, ""},
		{"not closed after an escape", []string{`Bearer resource_metadata="https://a\`}, ""},
		{"commas only", []string{`,,,`, `Bearer ,,resource_metadata="https://a",,`}, "https://a"},
		{"control characters", []string{"\x00Bearer resource_metadata=a"}, ""},
	} {
		if got := challengeParam(tt.values, "resource_metadata"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// It ends, and what it finds stands in the value.
func FuzzChallengeParam(f *testing.F) {
	f.Add(`Bearer resource_metadata="https://a/b", scope="x"`)
	f.Add(`Negotiate abc==, Basic realm="x\"y"`)
	f.Add("Bearer a=,b=\"")
	f.Fuzz(func(t *testing.T, value string) {
		got := challengeParam([]string{value}, "scope")
		if got != "" && !strings.Contains(strings.ReplaceAll(value, `\`, ""), strings.ReplaceAll(got, `\`, "")) {
			t.Fatalf("%q is not in %q", got, value)
		}
	})
}
