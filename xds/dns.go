package xds

import (
	"fmt"
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dfpcommon "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// dnsSettings is how the names of upstream hosts are resolved.
type dnsSettings struct {
	resolvers []netip.AddrPort
	refused   []netip.Prefix
}

func planDNS(resolvers []string, allowPrivate []netip.Prefix) (dnsSettings, error) {
	var d dnsSettings
	for _, r := range resolvers {
		a, err := netip.ParseAddrPort(r)
		if err != nil {
			return d, fmt.Errorf("DNS resolver %q is not ip:port, as 10.0.0.53:53 is", r)
		}
		d.resolvers = append(d.resolvers, a)
	}
	allowed, err := checkAllowed(allowPrivate)
	d.refused = subtract(private, allowed)
	return d, err
}

// dnsCache is the one resolver of all dynamic upstreams. Envoy refuses a second user of a cache that gives other
// settings, and the old users live on while a change is taken in: so the name depends on the settings.
//
// max_hosts and host_ttl bound what a worker can fill it with through a wildcard host.
func dnsCache(d dnsSettings) *dfpcommon.DnsCacheConfig {
	patience := 4 * time.Second // each of three resolvers is asked once
	if len(d.resolvers) == 0 {
		patience = 12 * time.Second // Envoy's own resolver waits for the first for five
	}
	c := &dfpcommon.DnsCacheConfig{
		DnsLookupFamily:   clusterv3.Cluster_ALL, // both families, raced
		DnsRefreshRate:    seconds(time.Minute),
		DnsMinRefreshRate: seconds(5 * time.Second),
		DnsQueryTimeout:   seconds(patience),
		DnsFailureRefreshRate: &clusterv3.Cluster_RefreshRate{
			BaseInterval: seconds(time.Second),
			MaxInterval:  seconds(10 * time.Second),
		},
		HostTtl:  seconds(5 * time.Minute),
		MaxHosts: number(4096),
		// 1,024 in all otherwise, which workers that start at once pass while one name is looked up.
		DnsCacheCircuitBreaker: &dfpcommon.DnsCacheCircuitBreakers{MaxPendingRequests: number(100_000)},
		TypedDnsResolverConfig: resolver(d.resolvers),
	}
	if len(d.refused) > 0 {
		c.ResolvedAddressFilter = addressFilter(d.refused)
	}
	c.Name = "upstream_" + contentHash([]proto.Message{c})
	return c
}

// resolver asks the given servers, the next one when one has said nothing for a second; none leaves Envoy its default, the servers of the
// system.
func resolver(servers []netip.AddrPort) *corev3.TypedExtensionConfig {
	if len(servers) == 0 {
		return nil
	}
	c := &caresv3.CaresDnsResolverConfig{
		DnsResolverOptions:  &corev3.DnsResolverOptions{NoDefaultSearchDomain: true},
		QueryTimeoutSeconds: wrapperspb.UInt64(1),
	}
	for _, s := range servers {
		c.Resolvers = append(c.Resolvers, socketAddress(s.Addr().String(), uint32(s.Port())))
	}
	return extension("envoy.network.dns_resolver.cares", c)
}
