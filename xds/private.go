package xds

import (
	"fmt"
	"net/netip"
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// private lists the ranges a host name must not resolve to: this machine, its networks, cloud metadata services,
// and the IPv6 forms that embed IPv4 addresses (IANA special-purpose registries, RFC 6890).
var private = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, and 100.100.100.200
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"), // a cloud's own services, on a public address
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"), // 6to4 relays
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), // this host, and IPv4-compatible
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("::ffff:0:0:0/96"), // IPv4-translated
	netip.MustParsePrefix("64:ff9b::/96"),    // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),  // nowhere
	netip.MustParsePrefix("2001::/23"), // for protocols: Teredo and others
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("5f00::/16"), // segment routing
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// subtract returns the prefixes that cover ranges without the addresses of allowed.
func subtract(ranges, allowed []netip.Prefix) []netip.Prefix {
	left := slices.Clone(ranges)
	for _, a := range allowed {
		var next []netip.Prefix
		for _, r := range left {
			next = append(next, without(r, a)...)
		}
		left = next
	}
	return left
}

// without halves r until what remains either is a or does not meet it.
func without(r, a netip.Prefix) []netip.Prefix {
	if !r.Overlaps(a) {
		return []netip.Prefix{r}
	}
	if a.Bits() <= r.Bits() {
		return nil
	}
	low, high := halves(r)
	return append(without(low, a), without(high, a)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bit := p.Bits()
	b := p.Addr().AsSlice()
	low = netip.PrefixFrom(p.Addr(), bit+1)
	b[bit/8] |= 0x80 >> (bit % 8)
	addr, _ := netip.AddrFromSlice(b) // the length of an address's own slice is always right
	return low, netip.PrefixFrom(addr, bit+1)
}

// checkAllowed normalises operator-given prefixes.
func checkAllowed(allowed []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range allowed {
		if !p.IsValid() {
			return nil, fmt.Errorf("allowed private range %s is not a prefix, as 10.1.0.0/16 is", p)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// addressFilter matches the addresses of ranges. Envoy drops matching addresses after each resolution
// (dns_cache_config.resolved_address_filter).
func addressFilter(ranges []netip.Prefix) *matcherv3.AddressMatcher {
	m := &matcherv3.AddressMatcher{}
	for _, r := range ranges {
		m.Ranges = append(m.Ranges, &xdscore.CidrRange{
			AddressPrefix: r.Addr().String(),
			PrefixLen:     wrapperspb.UInt32(uint32(r.Bits())),
		})
	}
	return m
}
