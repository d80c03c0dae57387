package e2e

import (
	"fmt"
	"net"
	"net/http"
	"testing"
)

// A name server that says nothing is not waited for as long as a look-up may take: the next one is asked.
func TestNameServerThatSaysNothing(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	silent, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dns := newResolver(t)
	up := newUpstream(t, w.CA, "*.dns.demo.test", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	for i := range 4 {
		dns.set(fmt.Sprintf("n%d.dns.demo.test", i), "127.0.0.1")
	}
	g := startIn(t, w, base(fmt.Sprintf("  - {hosts: [\"*.dns.demo.test:%s\"], grant: claude}\n", up.port()),
		fmt.Sprintf(`, dns_resolvers: ["%s", "%s"], allow_private: [127.0.0.0/8]`, silent.LocalAddr(), dns.address), ""), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := me.client(t, true)
	for i := range 4 {
		a, err := do(client, me.request(http.MethodGet, fmt.Sprintf("https://n%d.dns.demo.test:%s/", i, up.port()), nil))
		if err != nil || a.status != http.StatusOK {
			t.Errorf("%d: %v, %v", i, a, err)
		}
	}
}
