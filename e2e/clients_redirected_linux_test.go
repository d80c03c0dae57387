package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"wayleave/freeport"
)

// The same clients where the network leads them to the gate: they know of no proxy, and take the hosts to be elsewhere.
func TestClientsRedirected(t *testing.T) {
	parallel(t)
	if !namespaced(t) {
		return
	}
	n := newNetworkOf(t, 1)
	made := makeWorld(t)
	up := newSite(t, made.CA, "front.demo.test", made.accepts)
	free, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort("0.0.0.0:" + port(free))
	redirect(t, listen.Port(), 443)
	g := startIn(t, made, `
listen: {proxy: $PROXY, transparent: "`+listen.String()+`"}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
  - {hosts: [front.demo.test], grant: claude, connect_to: "`+up.address+`"}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default, addresses: [`+n.source(0)+`]}
`, "claude")

	hosts, nothing := made.saved("hosts"), made.saved("resolv.conf")
	for path, content := range map[string]string{hosts: fmt.Sprintf("127.0.0.1 localhost\n%s front.demo.test\n", bogus), nothing: ""} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w := g.hold(t, "w", "--transparent")
	w.dial = n.at(n.source(0), w).dial
	clientsDo(t, g, up, []way{{name: "transparent", host: "front.demo.test", worker: w, upstream: up, where: func(c *exec.Cmd) *exec.Cmd {
		// Names lead to where nobody is.
		named := exec.Command("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`, hosts, nothing, c.Path}, c.Args[1:]...)...)
		named.Dir, named.Env = c.Dir, c.Env
		return n.command(named)
	}}})
}
