package xds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	matchercore "github.com/cncf/xds/go/xds/core/v3"
	matcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	directv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/direct_response/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	preservev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sniv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/cert_mappers/sni/v3"
	ondemandv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/cert_selectors/on_demand_secret/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The internal listener receives what is inside a CONNECT tunnel, or was redirected, and tells it apart by server name:
//
//	original_dst ▶ tls_inspector ▶ filter_chain_matcher
//	    intercept_…   TLS ends here, with a leaf made for the name; HTTP filters; upstream
//	    tunnel…       bytes pass untouched
//	    plain         it is no TLS: HTTP's words
//	    deny          TLS alert

const (
	transportTLS     = "envoy.transport_sockets.tls"
	handshakeTimeout = 10 * time.Second
	inspectTimeout   = 15 * time.Second // until the ClientHello is there
	maxHeadersKiB    = 96
	noServerName     = staticPrefix + "no_server_name" // a secret that does not exist
	fatalAlert       = "\x15\x03\x03\x00\x02\x02\x31"  // TLS 1.2 record, alert, fatal, access_denied (RFC 8446 section 6.2)
)

func interceptListener(p plan) *listenerv3.Listener {
	chains := interceptChains(p)
	for _, port := range tunnelPorts(p.tunnel) {
		chains = append(chains, tunnelChain(p, port))
	}
	if len(chains) > 0 {
		chains = append(chains, tlsOnlyChain(), denyChain(deniedChainName))
	}
	l := &listenerv3.Listener{
		Name:                             listenerIntercept,
		ListenerSpecifier:                &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		PerConnectionBufferLimitBytes:    number(bufferLimit),
		ListenerFiltersTimeout:           seconds(inspectTimeout),
		ContinueOnListenerFiltersTimeout: false,
		ListenerFilters:                  []*listenerv3.ListenerFilter{originalDestination(), tlsInspector()},
		AccessLog:                        refusedConnectionLog(p.accessLog),
		FilterChains:                     chains,
		DefaultFilterChain:               denyChain("deny"),
	}
	if len(chains) > 0 {
		l.FilterChainMatcher = chainByName(p)
		l.AccessLog = append(l.AccessLog, untrustedLog())
	}
	return l
}

func listenerFilter(name string, settings proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(settings)}}
}

// chainOf is the action of a matcher that picks a filter chain.
func chainOf(name string) *matcher.Matcher_OnMatch {
	return &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Action{Action: matchExtension("chain", wrapperspb.String(name))}}
}

func then(m *matcher.Matcher) *matcher.Matcher_OnMatch {
	return &matcher.Matcher_OnMatch{OnMatch: &matcher.Matcher_OnMatch_Matcher{Matcher: m}}
}

// chainByName picks the filter chain of a TLS connection by its server name; whatever it does not know goes to
// the default chain. The names are here and not in filter_chain_match, where a changed list changes the chain and
// so cuts all its connections.
func chainByName(p plan) *matcher.Matcher {
	domains := map[string][]string{} // chain → names
	for _, r := range p.routes {
		for _, h := range r.hosts {
			c := interceptChainName(r.alpn)
			domains[c] = append(domains[c], h.name)
		}
	}
	for _, h := range p.tunnel {
		c := tunnelChainName(h.port)
		domains[c] = append(domains[c], h.name)
	}
	denyNames(domains, deniedNames(p))
	return byTransport(then(byServerName(domains)), chainOf(plainChainName))
}

// denyNames moves names to the chain that refuses.
func denyNames(domains map[string][]string, denied []string) {
	for chain := range domains {
		domains[chain] = slices.DeleteFunc(domains[chain], func(name string) bool { return slices.Contains(denied, name) })
	}
	if len(denied) > 0 {
		domains[deniedChainName] = denied
	}
}

// byServerName picks a chain for each of its names. Others than those of which host names are made have none: Envoy asks for a certificate by the
// name as it came, and bytes that are no UTF-8 in it would be no string, and end the stream of all its configuration, again each time it came back.
func byServerName(domains map[string][]string) *matcher.Matcher {
	names := &matcher.ServerNameMatcher{}
	for _, chain := range sortedKeys(domains) {
		list := domains[chain]
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		names.DomainMatchers = append(names.DomainMatchers, &matcher.ServerNameMatcher_DomainMatcher{
			Domains: slices.Compact(list), // one name at several ports
			OnMatch: chainOf(chain),
		})
	}
	return when(serverNameIs("[A-Za-z0-9._-]+"), then(tree(&matcher.Matcher_MatcherTree{
		Input:    serverName(),
		TreeType: &matcher.Matcher_MatcherTree_CustomMatch{CustomMatch: matchExtension("server_name", names)},
	})))
}

// serverNameIs matches a server name that is all of what the expression matches.
func serverNameIs(expression string) *matcher.Matcher_MatcherList_Predicate {
	return single(&matcher.Matcher_MatcherList_Predicate_SinglePredicate{
		Input:   serverName(),
		Matcher: &matcher.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: wholly(expression)},
	})
}

// when picks what is given for connections that meet the condition.
func when(condition *matcher.Matcher_MatcherList_Predicate, picked *matcher.Matcher_OnMatch) *matcher.Matcher {
	return &matcher.Matcher{MatcherType: &matcher.Matcher_MatcherList_{MatcherList: &matcher.Matcher_MatcherList{
		Matchers: []*matcher.Matcher_MatcherList_FieldMatcher{{Predicate: condition, OnMatch: picked}},
	}}}
}

func serverName() *matchercore.TypedExtensionConfig {
	return matchExtension("server_name", &inputsv3.ServerNameInput{})
}

// byTransport tells TLS from anything else.
func byTransport(tls, other *matcher.Matcher_OnMatch) *matcher.Matcher {
	return tree(&matcher.Matcher_MatcherTree{
		Input: matchExtension("transport_protocol", &inputsv3.TransportProtocolInput{}),
		TreeType: &matcher.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &matcher.Matcher_MatcherTree_MatchMap{
			Map: map[string]*matcher.Matcher_OnMatch{"tls": tls, "raw_buffer": other},
		}},
	})
}

func tree(t *matcher.Matcher_MatcherTree) *matcher.Matcher {
	return &matcher.Matcher{MatcherType: &matcher.Matcher_MatcherTree_{MatcherTree: t}}
}

func matchExtension(name string, settings proto.Message) *matchercore.TypedExtensionConfig {
	return &matchercore.TypedExtensionConfig{Name: name, TypedConfig: pack(settings)}
}

// interceptChainName names the chain that offers alpn: a chain has one list of protocols, so routes with equal
// lists share one.
func interceptChainName(alpn []string) string {
	name := "intercept"
	for _, a := range alpn {
		name += "_" + strings.NewReplacer("/", "", ".", "").Replace(a)
	}
	return name
}

// interceptChains returns one chain for each list of protocols in use.
func interceptChains(p plan) []*listenerv3.FilterChain {
	alpns := map[string][]string{}
	for _, r := range p.routes {
		alpns[interceptChainName(r.alpn)] = r.alpn
	}
	var chains []*listenerv3.FilterChain
	for _, name := range sortedKeys(alpns) {
		chains = append(chains, &listenerv3.FilterChain{
			Name: name,
			// Envoy waits for a leaf as long as this, and without it for ever.
			TransportSocketConnectTimeout: seconds(handshakeTimeout),
			TransportSocket:               transportSocket(transportTLS, leafTLS(alpns[name], noServerName)),
			Filters:                       []*listenerv3.Filter{networkFilter(httpManager, interceptManager(p))},
		})
	}
	return chains
}

func transportSocket(name string, settings proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: name, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(settings)}}
}

// leafTLS asks for the certificate of each server name when a handshake first needs it, and for that of unnamed when
// the client sends no name. Envoy refuses session resumption together with on-demand certificates.
func leafTLS(alpn []string, unnamed string) *tlsv3.DownstreamTlsContext {
	return &tlsv3.DownstreamTlsContext{
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		DisableStatefulSessionResumption: true,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols: alpn,
			TlsParams:     tlsParameters(),
			CustomTlsCertificateSelector: extension("envoy.tls.certificate_selectors.on_demand_secret", &ondemandv3.Config{
				ConfigSource: ads(),
				CertificateMapper: extension("envoy.tls.certificate_mappers.sni", &sniv3.SNI{
					DefaultValue: unnamed,
				}),
			}),
		},
	}
}

// interceptManager handles the decrypted requests. The order of its filters is the order of the argument:
// clean the request, let the gate decide and swap, refuse what still holds a placeholder, refuse what the gate
// has not decided, and only then find the upstream.
func interceptManager(p plan) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:     listenerIntercept,
		RouteSpecifier: routesByName(routesIntercept),
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			HeaderKeyFormat: preserveCase(),
			AcceptHttp_10:   true, // of old tools; it goes on as HTTP/1.1

			IgnoreHttp_11Upgrade: toTLS(),
		},
		// No extended CONNECT (RFC 8441): clients then open WebSockets over HTTP/1.1, which every upstream knows.
		Http2ProtocolOptions:       http2ForWorkers(),
		UseRemoteAddress:           yes(),
		SkipXffAppend:              true,
		InternalAddressConfig:      nobodyInternal(),
		GenerateRequestId:          yes(),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		// Whatever a worker writes: http would go on as it is, over TLS.
		SchemeHeaderTransformation: &corev3.SchemeHeaderTransformation{Transformation: &corev3.SchemeHeaderTransformation_SchemeToOverwrite{SchemeToOverwrite: "https"}},
		DelayedCloseTimeout:        seconds(unreadFor),
		StreamIdleTimeout:          durationpb.New(0), // an event stream may be silent for hours
		RequestHeadersTimeout:      seconds(headersTimeout),
		MaxRequestHeadersKb:        number(maxHeadersKiB),
		CommonHttpProtocolOptions:  &corev3.HttpProtocolOptions{IdleTimeout: seconds(connectionIdle), MaxHeadersCount: number(headersInHead)},
		LocalReplyConfig:           withHelp(interceptReplies(), p.helpURL),
		AccessLogOptions:           &hcmv3.HttpConnectionManager_HcmAccessLogOptions{AccessLogFlushInterval: seconds(OpenFor)},
		AccessLog:                  append(accessLog(p.accessLog, "request", httpLog(requestID)), httpEnds(p, metadataNamespace)...),
		HttpFilters: slices.Concat(
			[]*hcmv3.HttpFilter{
				setState([]*setstatecommon.FilterStateValue{stateValue(stateRequestID, hashableString, streamID)}),
				hygiene(showTraceparent(p.tracing)...),
				lowerAuthority(),
			},
			laneFilters(p),
			[]*hcmv3.HttpFilter{
				discoveredFilter(filterExtProc, extProcSettings(p), unlessSet(p)),
				leaseFilter(p),
				barrier(append(slices.Clone(p.credentialHeaders), ":path"), p.marker),
				forwardProxy(p.dns),
				router(),
			},
		),

		Tracing:                       tracing(p.tracing, len(p.apiSockets)),
		EarlyHeaderMutationExtensions: putAway(p.tracing),
	}
}

// discoveredFilter is a filter whose settings come by ECDS. Only the types of like are used.
func discoveredFilter(name string, like ...proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(like...)}}
}

func discoveredNetworkFilter(name string, like proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: discovered(like)}}
}

func discovered(like ...proto.Message) *corev3.ExtensionConfigSource {
	source := &corev3.ExtensionConfigSource{ConfigSource: ads()}
	for _, l := range like {
		source.TypeUrls = append(source.TypeUrls, pack(l).GetTypeUrl())
	}
	return source
}

// preserveCase sends HTTP/1.1 header names as they came; some peers compare them as bytes.
func preserveCase() *corev3.Http1ProtocolOptions_HeaderKeyFormat {
	return &corev3.Http1ProtocolOptions_HeaderKeyFormat{
		HeaderFormat: &corev3.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
			StatefulFormatter: extension("preserve_case", &preservev3.PreserveCaseFormatterConfig{}),
		},
	}
}

const plainChainName = "plain"

// tlsOnlyChain is for where hosts are reached over TLS and no other way.
func tlsOnlyChain() *listenerv3.FilterChain {
	return plainChain(reasonUseConnect, "wayleave forwards nothing without TLS: use an https URL for this host")
}

// plainChain answers whoever speaks without TLS where it is expected, and most of those speak HTTP.
func plainChain(reason, message string) *listenerv3.FilterChain {
	body := errorBody("invalid_request_error", reason, message)
	return &listenerv3.FilterChain{
		Name: plainChainName,
		Filters: []*listenerv3.Filter{
			networkFilter("envoy.filters.network.direct_response", &directv3.Config{Response: inlineString(fmt.Sprintf(
				"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n%s: %s\r\nx-should-retry: false\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s",
				reasonHeader, reason, len(body), body))}),
		},
	}
}

// denyChain refuses a connection in TLS's own words, so that clients report more than a closed connection.
func denyChain(name string) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name: name,
		Filters: []*listenerv3.Filter{
			networkFilter("envoy.filters.network.direct_response", &directv3.Config{Response: inline([]byte(fatalAlert))}),
		},
	}
}
