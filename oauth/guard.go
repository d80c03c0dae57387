package oauth

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// What other parties name as their endpoints could be anything inside our network. So discovery and registration look at
// the address of each connection, after name resolution.

var (
	errPrivate   = errors.New("the address is not a public one: allow private addresses if this server is your own")
	errTransport = errors.New("the HTTP client's transport is not an *http.Transport, so its connections cannot be checked")
)

// special are the ranges that are nobody's public server, beside those that netip knows (RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),    // carrier-grade NAT
	netip.MustParsePrefix("168.63.129.16/32"), // a cloud's own services, on a public address
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"), // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("fec0::/10"),
}

// allows reports whether ip may be connected to.
func (o DiscoverOptions) allows(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid(), ip.IsMulticast(), ip.IsUnspecified():
		return false
	case ip.IsLoopback():
		return o.AllowInsecure || o.AllowPrivate
	case o.AllowPrivate:
		return true
	case ip.IsPrivate(), ip.IsLinkLocalUnicast():
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// guard returns a client like hc that connects to allowed addresses only, uses no proxy (which would resolve names for
// us), and follows redirects on the same host, a few times. A nil hc is NewHTTPClient(nil).
func (o DiscoverOptions) guard(hc *http.Client) (*http.Client, error) {
	if hc == nil {
		hc = NewHTTPClient(nil)
	}
	transport, ok := hc.Transport.(*http.Transport)
	if !ok && hc.Transport != nil {
		return nil, errTransport
	}
	if transport == nil {
		transport = NewHTTPClient(nil).Transport.(*http.Transport)
	}
	transport = transport.Clone()
	transport.Proxy, transport.DialTLSContext = nil, nil
	dialer := &net.Dialer{Timeout: 10 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || !o.allows(to.Addr()) {
			return errPrivate
		}
		return nil
	}}
	transport.DialContext = dialer.DialContext
	own := *hc
	own.Transport, own.Jar = transport, nil
	if own.Timeout == 0 {
		own.Timeout = longestAsk
	}
	own.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host || len(via) > 3 || req.Method != http.MethodGet {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &own, nil
}

// fault says why an address that somebody else named is not used; empty when it may be.
func (o DiscoverOptions) fault(address string) string {
	if !isPage(address, o.AllowInsecure) {
		return "is not a full https address, so it is not used"
	}
	u, err := url.Parse(address)
	if err != nil {
		return "is not an address"
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "localhost" {
		ip, err = netip.IPv6Loopback(), nil
	}
	if err == nil && !o.allows(ip) {
		return "is not a public one: allow private addresses if this server is your own"
	}
	return ""
}
