// Package loopback knows the names of this machine: what is sent to them in clear text, nobody else reads.
package loopback

import "net/netip"

// Host reports whether a host, a name or an address without a port, is this machine whatever a resolver says.
func Host(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
