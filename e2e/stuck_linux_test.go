package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// newStuck is an address, at a port, that answers nobody who connects: no refusal comes, and no end.
func newStuck(t *testing.T, ip [4]byte, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: ip, Port: port}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	to := net.JoinHostPort(net.IP(ip[:]).String(), strconv.Itoa(port))
	for range 8 { // until the kernel keeps no more of those that nobody accepts
		c, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(t.Context(), "tcp", to)
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("this kernel takes connections that nobody accepts")
}

// A host with several addresses is reached by the one that answers, though another one says nothing at all.
func TestAddressThatSaysNothing(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	dns := newResolver(t)
	up := newUpstream(t, w.CA, "*.dns.demo.test", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	p, err := strconv.Atoi(up.port())
	if err != nil {
		t.Fatal(err)
	}
	newStuck(t, [4]byte{127, 0, 0, 8}, p)
	dns.set("first.dns.demo.test", "127.0.0.8", "127.0.0.1")
	dns.set("last.dns.demo.test", "127.0.0.1", "127.0.0.8")
	g := startIn(t, w, base(fmt.Sprintf("  - {hosts: [\"*.dns.demo.test:%s\"], grant: claude}\n", up.port()),
		fmt.Sprintf(`, dns_resolvers: ["%s"], allow_private: [127.0.0.0/8]`, dns.address), ""), "claude")
	me := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := me.client(t, true)
	for _, name := range []string{"first", "last"} {
		a, err := do(client, me.request(http.MethodGet, "https://"+name+".dns.demo.test:"+up.port()+"/", nil))
		if err != nil || a.status != http.StatusOK {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
}
