// Package isolate runs a program in a network of its own, whose only way out is the gate: what reads proxy variables finds
// a proxy there that needs no password, and what does not is captured, because every name and address leads to us.
//
//	the program's network namespace                                     │ the network of this process
//	  proxy   127.0.0.1:…  ◀── HTTPS_PROXY                              │
//	  tcp     any address  :443 :80, and the ports of the gate's hosts ─┼─▶ relay ── CONNECT, as the session ──▶ gate
//	  names   any address  :53, each name an address of 198.18.0.0/15   │
//	  anything else: connection refused                                 │
//
// The sockets are made inside and handed out, so that nothing of ours stays inside, and the program holds neither the
// session's token nor a capability over its network. What the program may reach is the gate's decision alone; this package
// makes sure that it is asked.
package isolate

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"wayleave/secret"
)

// ErrNotPermitted says that this machine does not let us make a network namespace. Test with [errors.Is].
var ErrNotPermitted = errors.New("this machine lets this user make no network of its own")

// A Way is how the relay gets to the gate.
type Way struct {
	// Gate is the URL of the gate's proxy, http or https.
	Gate *url.URL
	// Roots are whom to believe that a gate over https is the one; nil are the system's.
	Roots *x509.CertPool
	// User and Password open the proxy.
	User     string
	Password secret.Text
	// Ports are captured besides 80 and 443; PlainPorts too, and carry HTTP without TLS, as 80 does.
	Ports, PlainPorts []uint16
	// Search are the suffixes that resolvers append to names (resolv.conf(5)), to those with fewer dots than Dots before they try them as they are. What such
	// a name becomes does not exist inside, but for one of a single label and those in Known.
	Search, Known []string
	Dots          int
	// Hosts are the names of addresses that programs know from elsewhere than from us, see HostsFile.
	Hosts map[netip.Addr][]string
	// Refused is told once of each destination the program did not reach, in words. May be nil.
	Refused func(destination, why string)
}

// Serve is the way out of a program that Prepare has prepared: it waits for the program's network, has environment make the
// variables of the program with the address of the proxy in that network, and serves until
// ctx ends. It is to run while the program starts and lives.
func (c *Child) Serve(ctx context.Context, environment func(proxy netip.AddrPort) []string) error {
	return c.serve(ctx, environment)
}

// SearchList returns the suffixes that resolvers append to names, and how many dots a name has that they try as it is first, of a resolv.conf(5).
func SearchList(resolvConf []byte) (suffixes []string, dots int) {
	dots = 1
	for line := range strings.Lines(string(resolvConf)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "search", fields[0] == "domain":
			suffixes = fields[1:] // the last line counts
		case fields[0] == "options":
			for _, option := range fields[1:] {
				if n, err := strconv.Atoi(strings.TrimPrefix(option, "ndots:")); err == nil {
					dots = n
				}
			}
		}
	}
	return suffixes, dots
}

// HostsFile returns the names of addresses by a hosts(5) file, which programs read before they ask for a name: of each address but
// those of this machine.
func HostsFile(hosts []byte) map[netip.Addr][]string {
	names := map[netip.Addr][]string{}
	for line := range strings.Lines(string(hosts)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		address, err := netip.ParseAddr(fields[0])
		if err != nil || address.IsLoopback() || address.IsUnspecified() || address.IsMulticast() {
			continue
		}
		for _, name := range fields[1:] {
			names[address.Unmap()] = append(names[address.Unmap()], strings.ToLower(name))
		}
	}
	return names
}
