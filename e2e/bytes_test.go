package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
)

// Whatever bytes a worker writes where text is meant, its requests are served, and their ends are told as those of all others:
// what Envoy and the gate tell each other is text.
func TestBytesBeyondASCIIAreTold(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	up := newUpstream(t, made.CA, "odd.demo.test", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Odd", "\xfe")
		fmt.Fprint(w, r.Header.Get("X-Odd"))
	})
	g := startIn(t, made, base(fmt.Sprintf(`
  - {hosts: [odd.demo.test], grant: claude, connect_to: "%s"}
`, up.address), "", "audit: {file: audit.jsonl}\n"), "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	const odd = "X-Odd: \xff caf\xe9\r\nUser-Agent: \xff\r\nReferer: \x80\r\n"

	c := g.dial(t)
	if a := ask(t, c, "CONNECT odd.demo.test:443 HTTP/1.1\r\nHost: odd.demo.test\r\n"+odd+w.proxyAuthorization()+"\r\n"); a.status != http.StatusOK {
		t.Fatalf("CONNECT: %v", a)
	}
	inside := tls.Client(c, &tls.Config{ServerName: "odd.demo.test", RootCAs: w.roots, NextProtos: []string{"http/1.1"}})
	if a := ask(t, inside, "GET /one HTTP/1.1\r\nHost: odd.demo.test\r\n"+odd+"Authorization: Bearer "+w.placeholder+"\r\n\r\n"); a.status != http.StatusOK || a.body != "\xff caf\xe9" || a.header.Get("X-Odd") != "\xfe" {
		t.Errorf("HTTP/1.1: %v", a)
	}
	for _, path := range []string{"/two?\xe9", "/caf\xe9"} {
		a, err := g.h2(t, w, "odd.demo.test", "odd.demo.test", [][2]string{
			{":method", "GET"}, {":scheme", "https"}, {":authority", "odd.demo.test"}, {":path", path}, {"x-odd", "\xff caf\xe9"}, {"user-agent", "\xff"}, {"authorization", "Bearer " + w.placeholder},
		})
		if err != nil || a.status != http.StatusOK || a.body != "\xff caf\xe9" {
			t.Errorf("HTTP/2, %q: %v, %v", path, a, err)
		}
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, l := range auditLines(t, g.saved("audit.jsonl")) {
		if l.Kind == "request" && l.Outcome == "swapped" && l.Status == http.StatusOK && !l.Open {
			told++
		}
	}
	if told != 3 {
		t.Errorf("the audit has %d of 3 requests with their ends", told)
	}
}
