package extproc

import (
	"encoding/json"
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

// Every message ends with the command that prints the page of its reason.
func TestRefusalNamesItsPage(t *testing.T) {
	for _, r := range reasons {
		a := (&refusal{reason: r.Name, detail: "words"}).answer(nil, "1")
		var body struct{ Message string }
		if err := json.Unmarshal(a.body, &body); err != nil || !strings.HasSuffix(body.Message, " (more: wayleave explain "+r.Name+")") {
			t.Errorf("%s: %s, %v", r.Name, a.body, err)
		}
	}
}
