package xds

import (
	"net/netip"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The proxy listener is where workers arrive:
//
//	worker ── CONNECT host:port, Proxy-Authorization ──▶ ext_authz ▶ set_filter_state ▶ router
//	                                                      407, 403                        │
//	                                   the internal listener "intercept" ◀────────────────┘

// unreadFor is how long a worker may read nothing of what is left of an answer with which its connection ends (Connection: close), before
// that is lost. Envoy's own is a second, which a worker that writes to a pipe or a slow disk passes. It is also how long a worker goes on
// sending, unread, what was refused by then, before it is stopped by a reset; so it is not long either.
const unreadFor = 10 * time.Second

// headersInHead is how many headers a request or an answer has at most; how long they are together is what bounds them (maxHeadersKiB). Envoy's own limit
// is 100, which browsers pass: over HTTP/2 each cookie may be a header (RFC 9113 section 8.2.3).
const headersInHead = 1000

const (
	proxyChainName    = "proxy"
	httpManager       = "envoy.filters.network.http_connection_manager"
	filterAuthz       = "envoy.filters.http.ext_authz"
	bufferLimit       = 64 << 10
	connectionIdle    = time.Hour // without one request or tunnel
	headersTimeout    = 30 * time.Second
	authzTimeout      = 15 * time.Second // keepalive ends the connection to a gate that hangs before this; a machine may be busy for as long
	streamsPerH2      = 256
	requestsPerProxy  = 700 // of one connection; see proxyManager
	hashableString    = "envoy.hashable_string"
	originalRemoteKey = "envoy.filters.listener.original_dst.remote_ip"
)

func proxyListener(p plan) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:                          listenerProxy,
		Address:                       listenAddress(p.proxy),
		PerConnectionBufferLimitBytes: number(bufferLimit),
		TcpKeepalive:                  tcpKeepalive(),
		FilterChains:                  []*listenerv3.FilterChain{proxyChain(p, false)},
	}
}

// proxyChain is the proxy, whatever listener its connections come from; certified says that clients may show certificates there.
func proxyChain(p plan, certified bool) *listenerv3.FilterChain {
	manager := proxyManager(p)
	if certified {
		manager.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		manager.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Cert: true}
	}
	return &listenerv3.FilterChain{
		Name:    proxyChainName,
		Filters: []*listenerv3.Filter{networkFilter(httpManager, manager)},
	}
}

// listenAddress takes IPv4 as well where all of IPv6 is listened on.
func listenAddress(a netip.AddrPort) *corev3.Address {
	address := socketAddress(a.Addr().String(), uint32(a.Port()))
	address.GetSocketAddress().Ipv4Compat = a.Addr() == netip.IPv6Unspecified()
	return address
}

func networkFilter(name string, settings proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(settings)}}
}

func httpFilter(name string, settings proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(settings)}}
}

// tcpKeepalive finds peers that are gone. Nothing else does, because no timeout cuts an idle stream.
func tcpKeepalive() *corev3.TcpKeepalive {
	return &corev3.TcpKeepalive{KeepaliveProbes: number(4), KeepaliveTime: number(60), KeepaliveInterval: number(15)}
}

// proxyManager terminates CONNECT, and forwards what goes to plain hosts.
func proxyManager(p plan) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:     listenerProxy,
		ServerName:     "wayleave",
		RouteSpecifier: routesByName(routesProxy),
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}},
		// Python's http.client and openssl send "CONNECT … HTTP/1.0".
		HttpProtocolOptions:  &corev3.Http1ProtocolOptions{AllowAbsoluteUrl: yes(), AcceptHttp_10: true, IgnoreHttp_11Upgrade: toTLS()},
		Http2ProtocolOptions: connectOverHTTP2(),
		// The worker API is found by its path, so dots in it are resolved first, as clients resolve them.
		NormalizePath: yes(),
		// The worker API may read the worker's address as the last element of x-forwarded-for.
		UseRemoteAddress:      yes(),
		InternalAddressConfig: nobodyInternal(),
		// What a worker writes about its certificate is nobody's word.
		ForwardClientCertDetails: hcmv3.HttpConnectionManager_SANITIZE,
		GenerateRequestId:        yes(), // and so %STREAM_ID%; from a worker none is taken
		StreamIdleTimeout:        durationpb.New(0),
		DelayedCloseTimeout:      seconds(unreadFor),
		RequestHeadersTimeout:    seconds(headersTimeout),
		MaxRequestHeadersKb:      number(maxHeadersKiB),
		// Clients end a tunnel by a reset, and 1,000 resets of HTTP/2 streams, or some 33 a second after that, end a connection
		// with all its tunnels. So before that clients are sent to another one, and what is open goes on.
		CommonHttpProtocolOptions:  &corev3.HttpProtocolOptions{IdleTimeout: seconds(connectionIdle), MaxHeadersCount: number(headersInHead), MaxRequestsPerConnection: number(requestsPerProxy)},
		LocalReplyConfig:           withHelp(proxyReplies(), p.helpURL),
		AccessLog:                  append(accessLog(p.accessLog, "connect", httpLog(streamID)), httpEnds(p, filterAuthz)...),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_APPEND_IF_ABSENT,
		HttpFilters: slices.Concat(
			[]*hcmv3.HttpFilter{setState([]*setstatecommon.FilterStateValue{nodeState()}), lowerAuthority(), httpFilter(filterAuthz, connectAuthz(p)), setState(tunnelState())},
			plainFilters(p),
			[]*hcmv3.HttpFilter{router()},
		),
	}
}

// toTLS are offers to go on with TLS (RFC 2817 section 3.1), which some clients, Apache's HttpClient since 5.4 among them, make with every
// request without it. Nobody has to take them; Envoy would refuse the request, and a CONNECT too.
func toTLS() []*matcherv3.StringMatcher {
	return []*matcherv3.StringMatcher{{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "TLS/"}, IgnoreCase: true}}
}

func connectOverHTTP2() *corev3.Http2ProtocolOptions {
	o := http2ForWorkers()
	o.AllowConnect = true
	return o
}

func routesByName(name string) *hcmv3.HttpConnectionManager_Rds {
	return &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: name, ConfigSource: ads()}}
}

// nobodyInternal makes Envoy trust no worker. From an address that it calls internal, which are the private ones
// when none is named here, it would obey x-envoy-… headers and keep the worker's x-request-id; and %STREAM_ID% is
// that header. The broadcast address is nobody's.
func nobodyInternal() *hcmv3.HttpConnectionManager_InternalAddressConfig {
	return &hcmv3.HttpConnectionManager_InternalAddressConfig{CidrRanges: []*corev3.CidrRange{
		{AddressPrefix: "255.255.255.255", PrefixLen: number(32)},
	}}
}

func router() *hcmv3.HttpFilter {
	return httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})
}

// connectAuthz asks the gate about each CONNECT, and each request to a plain host, with all of its headers. Its answer
// names the worker as dynamic metadata "identity"; a failure to ask refuses.
func connectAuthz(p plan) *authzv3.ExtAuthz {
	return &authzv3.ExtAuthz{
		Services:            &authzv3.ExtAuthz_GrpcService{GrpcService: askedByNode(gateService(len(p.apiSockets), authzTimeout))},
		TransportApiVersion: corev3.ApiVersion_V3,
		FailureModeAllow:    false,
		StatusOnError:       &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
	}
}

// tunnelState hands what is known of the CONNECT to the connection inside it.
//
// Envoy keeps the connections to the internal listener in a pool, and would give one opened for one worker's
// tunnel to another worker's. State is part of the pool's key only when its object can be hashed: that is why
// every value is an envoy.hashable_string, and not the envoy.string of Envoy's examples. The tunnel's own random
// value makes each key unique even where a worker finds colliding ones; the worker's address and port, and
// interceptCluster's pool for each connection, do the same in other ways. With none of them half of the requests of
// two concurrent workers carry the other's credential, and a test with one worker passes.
func tunnelState() []*setstatecommon.FilterStateValue {
	return crossingState("%DYNAMIC_METADATA("+filterAuthz+":identity)%", "%REQ(:AUTHORITY)%", streamID)
}

// crossingState is what the internal listener knows of a connection: whose it is, what for, and a value that no other
// connection has.
func crossingState(identity, authority, unique string) []*setstatecommon.FilterStateValue {
	return shared(
		stateValue(stateIdentity, hashableString, identity),
		stateValue(stateAuthority, hashableString, authority),
		stateValue(stateTunnel, hashableString, unique),
		// Read by original_dst on the internal listener, which then knows the worker's address.
		stateValue(originalRemoteKey, "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
	)
}

// shared makes values cross one hop.
func shared(values ...*setstatecommon.FilterStateValue) []*setstatecommon.FilterStateValue {
	for _, v := range values {
		v.SharedWithUpstream = setstatecommon.FilterStateValue_ONCE
	}
	return values
}

func setState(values []*setstatecommon.FilterStateValue) *hcmv3.HttpFilter {
	return httpFilter("envoy.filters.http.set_filter_state", &setstatev3.Config{OnRequestHeaders: values})
}

// stateValue sets one value; an empty factory is the one registered under the key itself.
func stateValue(key, factory, format string) *setstatecommon.FilterStateValue {
	return &setstatecommon.FilterStateValue{
		Key:        &setstatecommon.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey: factory,
		Value: &setstatecommon.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			OmitEmptyValues: true,
			Format:          &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inlineString(format)},
		}},
	}
}
