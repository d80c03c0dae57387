package extproc

import (
	"strings"
	"testing"
)

// What an operator has to run depends on where the credential comes from.
func TestRefusalNamesTheCommand(t *testing.T) {
	for _, reason := range []string{neverConnected, needsReconnect, badCredentialStored} {
		for imported, want := range map[bool]string{false: "wayleave grant connect npm", true: "wayleave grant import npm"} {
			if m := (&refusal{reason: reason, grant: "npm", imported: imported}).message(); !strings.Contains(m, want) {
				t.Errorf("%s, imported %v: %s", reason, imported, m)
			}
		}
	}
}
