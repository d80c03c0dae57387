package console

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// clientOf is who sent a request: the other end of the connection, or, as far as those are proxies that we trust, who they say
// it came from. Each proxy appends to X-Forwarded-For whom it had it from, so what a client writes itself stands further left
// than the first address that is no proxy's, and is not looked at. Forwarded (RFC 7239) is not read: a proxy that writes one of
// both passes the other on as the client sent it.
func clientOf(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	isProxy := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, hop := range slices.Backward(strings.Split(strings.Join(forwarded, ","), ",")) {
		if !isProxy(peer) {
			break
		}
		said, ok := parseHop(strings.TrimSpace(hop))
		if !ok { // unknown, or nonsense: what stands further left is nobody's word
			break
		}
		peer = said
	}
	return peer
}

// parseHop is an address, to which some proxies add the port.
func parseHop(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		at, perr := netip.ParseAddrPort(s)
		if perr != nil {
			return netip.Addr{}, false
		}
		a = at.Addr()
	}
	return a.Unmap().WithZone(""), true
}

// knowClient puts the client's address in the place of the connection's, for all that is done with the request.
func (s *Server) knowClient(r *http.Request) {
	if peer, ok := parseHop(r.RemoteAddr); ok {
		r.RemoteAddr = clientOf(peer, r.Header.Values("X-Forwarded-For"), s.TrustedProxies).String()
	}
}

// from is the address of whoever sent a request.
func from(r *http.Request) string { return r.RemoteAddr }

// source is whose wrong log-ins are counted together: an address, of IPv6 the network that one customer has.
func source(r *http.Request) string {
	if a, err := netip.ParseAddr(r.RemoteAddr); err == nil && a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return r.RemoteAddr
}
