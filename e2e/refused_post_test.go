package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// Some versions of curl take an answer over HTTP/2 that comes before the request has been sent for an error of the connection, and show none of it.
func TestRefusalOfAPostIsShown(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	g := startIn(t, made, base(`
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
`, "", ""), "claude")
	script := `for i in $(seq 40); do curl -sS -X POST -H "Authorization: Bearer ${ANTHROPIC_AUTH_TOKEN}x" -d '{}' https://api.demo.test/echo 2>&1; echo; done`
	out, err := g.command("wayleave", "run", "--worker", "w", "--", "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n := strings.Count(string(out), "not_your_placeholder"); n < 40 {
		t.Errorf("curl showed the words of %d refusals of 40: %s", n, fmt.Sprintf("%.600s", out))
	}
}
