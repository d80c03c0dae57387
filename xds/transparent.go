package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	networkauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The transparent listener takes connections that a packet filter redirected to it, of workers known by their address:
//
//	worker ── TLS for a host ──▶ original_dst ▶ tls_inspector ▶ address and name known? ▶ set_filter_state ▶ tcp_proxy
//	                                                            TLS alert                                        │
//	                                                the internal listener "intercept" ◀──────────────────────────┘
//
// In front of them ext_authz asks the gate, where the name is of a tunnel.
//
// What a CONNECT says is here made of what the connection shows: the server name and the port that was dialled. The
// address that was dialled counts for nothing; the host is resolved again.

// Transparent says who may come without a proxy.
type Transparent struct {
	// Address is the ip:port where redirected connections arrive.
	Address string
	// Sources are the addresses of workers. Connections from anywhere else get a TLS alert.
	Sources []netip.Prefix
}

type plannedTransparent struct {
	address netip.AddrPort
	sources []netip.Prefix // sorted
}

// addressIdentity begins the identity of a worker that is known by its address, which follows. The identity of a session
// never begins so.
const addressIdentity = "address|"

func (t Transparent) plan() (*plannedTransparent, error) {
	address, err := parseListen(t.Address)
	if err != nil {
		return nil, fmt.Errorf("address %w", err)
	}
	p := &plannedTransparent{address: address}
	for _, s := range t.Sources {
		if !s.IsValid() {
			return nil, errors.New("a source is no prefix, as 10.1.2.0/24 is")
		}
		p.sources = append(p.sources, s.Masked())
	}
	slices.SortFunc(p.sources, netip.Prefix.Compare)
	p.sources = slices.Compact(p.sources)
	return p, nil
}

func transparentListener(p plan) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:                             listenerTransparent,
		Address:                          listenAddress(p.transparent.address),
		PerConnectionBufferLimitBytes:    number(bufferLimit),
		TcpKeepalive:                     tcpKeepalive(),
		ListenerFiltersTimeout:           seconds(inspectTimeout),
		ContinueOnListenerFiltersTimeout: false,
		ListenerFilters:                  []*listenerv3.ListenerFilter{originalDestination(), tlsInspector()},
		AccessLog:                        refusedConnectionLog(p.accessLog),
		DefaultFilterChain:               denyChain("deny"),
	}
	routed, tunnelled := p.serverNames()
	if len(p.transparent.sources) > 0 && len(routed)+len(tunnelled) > 0 {
		// What would be refused inside is refused here: a close inside resets this connection, and the words are lost.
		l.FilterChains = []*listenerv3.FilterChain{redirectedChain(p, redirectedChainName), redirectedChain(p, redirectedTunnelChainName), tlsOnlyChain(), denyChain(deniedChainName)}
		domains := map[string][]string{redirectedChainName: routed, redirectedTunnelChainName: tunnelled}
		denyNames(domains, deniedNames(p))
		l.AccessLog = append(l.AccessLog, tunnelEnds(p)...)
		l.FilterChainMatcher = bySource(p.transparent.sources, then(byTransport(then(byServerName(domains)), chainOf(plainChainName))))
	}
	return l
}

// serverNames are those of all hosts that are reached over TLS.
func (p plan) serverNames() (routed, tunnelled []string) {
	for _, r := range p.routes {
		for _, h := range r.hosts {
			routed = append(routed, h.name)
		}
	}
	for _, h := range p.tunnel {
		tunnelled = append(tunnelled, h.name)
	}
	return routed, tunnelled
}

func originalDestination() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

func tlsInspector() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
}

const (
	redirectedChainName       = "redirected"
	redirectedTunnelChainName = "redirected_tunnel"
)

// redirectedChain goes where a CONNECT goes, with the same kinds of state. Of a tunnel the gate is asked first, since nobody
// asks it inside.
func redirectedChain(p plan, name string) *listenerv3.FilterChain {
	filters := []*listenerv3.Filter{
		networkFilter("envoy.filters.network.set_filter_state", &setstatev3.Config{OnNewConnection: redirectedState()}),
		networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
			StatPrefix:       listenerTransparent,
			ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: clusterIntercept},
			IdleTimeout:      durationpb.New(0),
			AccessLog:        accessLog(p.accessLog, "redirected", connectionLog),
		}),
	}
	if name == redirectedTunnelChainName {
		filters = slices.Insert(filters, 0,
			networkFilter("envoy.filters.network.set_filter_state", &setstatev3.Config{OnNewConnection: []*setstatecommon.FilterStateValue{nodeState()}}),
			discoveredNetworkFilter(filterTunnelAuthz, tunnelAuthz(p)))
	}
	return &listenerv3.FilterChain{Name: name, Filters: filters}
}

// tunnelAuthz asks the gate about each redirected tunnel, by its addresses and its server name. No byte goes on before the
// answer, and without one the connection ends.
func tunnelAuthz(p plan) *networkauthzv3.ExtAuthz {
	gate := askedByNode(gateService(len(p.apiSockets), authzTimeout))
	gate.InitialMetadata = append(gate.InitialMetadata, tagged(p.revision)...)
	return &networkauthzv3.ExtAuthz{
		StatPrefix:          listenerTransparent,
		GrpcService:         gate,
		TransportApiVersion: corev3.ApiVersion_V3,
		IncludeTlsSession:   true, // the server name
	}
}

func redirectedState() []*setstatecommon.FilterStateValue {
	return crossingState(addressIdentity+"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%REQUESTED_SERVER_NAME%:%DOWNSTREAM_LOCAL_PORT%", "%UNIQUE_ID%")
}

// bySource is for connections from these addresses.
func bySource(sources []netip.Prefix, known *matcher.Matcher_OnMatch) *matcher.Matcher {
	ranges := &matcher.IPMatcher_IPRangeMatcher{OnMatch: known}
	for _, s := range sources {
		ranges.Ranges = append(ranges.Ranges, &xdscore.CidrRange{AddressPrefix: s.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(s.Bits()))})
	}
	return tree(&matcher.Matcher_MatcherTree{
		Input: matchExtension("source_ip", &inputsv3.SourceIPInput{}),
		TreeType: &matcher.Matcher_MatcherTree_CustomMatch{
			CustomMatch: matchExtension("ip", &matcher.IPMatcher{RangeMatchers: []*matcher.IPMatcher_IPRangeMatcher{ranges}}),
		},
	})
}
