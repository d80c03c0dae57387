package console

import (
	"net/http"
	"strings"
	"testing"

	"wayleave/approval"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// That the store does not answer any more is told to whoever listens, and what it said last is shown with a warning; and so is that it
// answers again.
func TestStoreThatIsAway(t *testing.T) {
	w := newWorld(t, nil)
	w.hold(approval.Request{Worker: "ci", Rule: "eyes", Host: "api.acme.example", Method: "GET", Path: "/", Words: "look"})
	b := w.loggedIn()
	b.wants("overview", b.get("/"), http.StatusOK, "A request waits for an operator")
	l := w.console.hub.listen()
	defer w.console.hub.leave(l)
	heard := func(topic string) {
		t.Helper()
		eventually(t, topic+" is heard", func() bool {
			for _, is := range w.console.hub.heard(l) {
				if is == topic {
					return true
				}
			}
			return false
		})
	}
	w.docs.Inject(func(_, path string) vaulttest.Fault {
		if path == "approvals/held" {
			return vaulttest.Fault{Before: vault.ErrUnavailable}
		}
		return vaulttest.Fault{}
	})
	heard(topicAll)
	for _, path := range []string{"/?live=", "/"} {
		b.wants("without the store", b.get(path), http.StatusOK, "Vault does not answer; this is what this gate remembers", "A request waits for an operator")
	}
	w.docs.Inject(nil)
	heard(topicAll)
	if page := b.get("/?live="); page.status != http.StatusOK || strings.Contains(page.body, "Vault does not answer") {
		t.Errorf("with it again: %d %.2000s", page.status, page.body)
	}
}
