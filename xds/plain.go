package xds

import (
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Plain hosts speak HTTP without TLS. A worker asks for them in the absolute form (RFC 9112 section 3.2.2):
//
//	worker ── GET http://host/path, Proxy-Authorization ──▶ ext_authz ▶ hygiene ▶ placeholder barrier ▶ host
//
// ext_proc has no part in it: there is no credential of ours on this way, and none could get there.

const (
	filterForwardProxy = "envoy.filters.http.dynamic_forward_proxy"
	routePlain         = "plain"
)

// plainFilters are between the check and the router. They are switched off but for the routes of plain hosts: the worker
// API wants the headers that hygiene removes.
func plainFilters(p plan) []*hcmv3.HttpFilter {
	if len(p.plain) == 0 {
		return nil
	}
	filters := []*hcmv3.HttpFilter{
		hygiene(),
		placeholderBarrier(append(slices.Clone(p.credentialHeaders), ":path", "cookie"), p.marker),
		forwardProxy(p.dns),
	}
	for _, f := range filters {
		f.Disabled = true
	}
	return filters
}

// forwardProxy resolves the host of a request.
func forwardProxy(dns dnsSettings) *hcmv3.HttpFilter {
	return httpFilter(filterForwardProxy, &dfpv3.FilterConfig{
		ImplementationSpecifier: &dfpv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache(dns)},
	})
}

// plainHosts forwards requests in the clear, and only those that were meant so: an https URL in the absolute form is for
// a server with TLS, wherever the form itself was sent. What else there is for these hosts is as for any other.
func plainHosts(hosts []host, connect, advice *routev3.Route) *routev3.VirtualHost {
	match := prefix("/")
	match.Headers = []*routev3.HeaderMatcher{{
		Name: ":scheme",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "http"},
		}},
	}}
	read := reading()
	read.Headers = append(read.Headers, match.Headers...)
	on := map[string]*anypb.Any{}
	for _, name := range []string{filterHygiene, filterRBAC, filterForwardProxy} {
		on[name] = pack(&routev3.FilterConfig{Config: &anypb.Any{}})
	}
	vh := &routev3.VirtualHost{
		Name:                    routePlain,
		RequestHeadersToRemove:  notToUpstream,
		ResponseHeadersToRemove: notFromUpstream,
		Routes: []*routev3.Route{
			connect,
			{Name: routePlain, Match: read, Action: &routev3.Route_Route{Route: readFrom(clusterPlain)}, TypedPerFilterConfig: on},
			{Name: routePlain, Match: match, Action: &routev3.Route_Route{Route: upstreamTo(clusterPlain)}, TypedPerFilterConfig: on},
			advice,
		},
	}
	for _, h := range hosts {
		vh.Domains = append(vh.Domains, h.plainDomains()...)
	}
	return vh
}

// fencedHosts are forwarded by no wildcard of the plain ones. The gate is asked, since it has the words for why.
func fencedHosts(hosts []host, connect *routev3.Route) *routev3.VirtualHost {
	vh := &routev3.VirtualHost{Name: "fenced", Routes: []*routev3.Route{connect, reply(403, streamID, reasonUseConnect, useConnect)}}
	for _, h := range hosts {
		vh.Domains = append(vh.Domains, h.plainDomains()...)
	}
	return vh
}

// plainDomains is domains where the port that need not be written is 80.
func (h host) plainDomains() []string {
	withPort := h.name + ":" + strconv.Itoa(int(h.port))
	if h.port == 80 {
		return []string{h.name, withPort}
	}
	return []string{withPort}
}

// plainCluster dials the request's own host without TLS, for which the options about TLS have no meaning, and without the
// filters that put tokens into requests.
func plainCluster(p plan) *clusterv3.Cluster {
	c := forwardProxyCluster(clusterPlain, p.dns)
	c.TypedExtensionProtocolOptions = httpOptions(onlyHTTP1(nil))
	return c
}
