package xds

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	connectTimeout = 5 * time.Second
	upstreamIdle   = 5 * time.Minute // a connection without requests

	// Servers of gRPC end a connection, with all its streams, on which they are pinged more often than every five minutes (gRFC A8); one
	// whose streams are silent is pinged for as long as they are.
	upstreamPings = 6 * time.Minute

	// An HTTP/2 connection on which nothing came for so long is pinged once before it gets another request, of which no server complains: it
	// may be dead, as after a suspended machine's night or behind a balancer that has forgotten it, and requests would wait for the pings above.
	upstreamQuiet = 10 * time.Second
	upstreamPong  = 20 * time.Second // until it counts as dead

	// Servers end an HTTP/2 connection, with all its streams, of which too many were reset: Netty's 200 in half a minute, Envoy 500 in all.
	// They cannot tell a worker that cancels from the others on it, whose answers would be cut. So another one is begun before.
	requestsPerUpstream = 200
)

// HostClusters are those of connections to hosts, wherever the hosts' names lead. Each route with a ConnectTo has clusters of its own beside them.
var HostClusters = []string{clusterUpstream, clusterUpstreamH1, clusterTunnel, clusterPlain}

func clusters(p plan) []*clusterv3.Cluster {
	filters, ca := upstreamFilters(p), upstreamCA(p).GetName()
	list := append(endsClusters(p),
		apiCluster(p.apiSockets),
		interceptCluster(),
		upstreamCluster(clusterUpstream, p.dns, ca, anyHTTP(filters)),
		upstreamCluster(clusterUpstreamH1, p.dns, ca, onlyHTTP1(filters)),
		tunnelCluster(p.dns),
	)
	if len(p.plain) > 0 {
		list = append(list, plainCluster(p))
	}
	for _, r := range p.routes {
		list = append(list, r.clusters(p.dns, ca, filters)...)
	}
	return list
}

// clusters are those of the route alone.
func (r plannedRoute) clusters(dns dnsSettings, ca string, filters []*hcmv3.HttpFilter) []*clusterv3.Cluster {
	if r.dial == nil {
		return nil
	}
	return []*clusterv3.Cluster{
		dialCluster(r.cluster(), *r.dial, dns, ca, anyHTTP(filters)),
		dialCluster(r.clusterH1(), *r.dial, dns, ca, onlyHTTP1(filters)),
	}
}

// apiCluster is the worker API.
func apiCluster(sockets []string) *clusterv3.Cluster {
	var gates []*corev3.Address
	for _, s := range sockets {
		gates = append(gates, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: s}}})
	}
	return &clusterv3.Cluster{
		Name:                 clusterAPI,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       seconds(connectTimeout),
		LoadAssignment:       endpoints(clusterAPI, gates...),
	}
}

// interceptCluster leads to the internal listener and carries filter state across. One pool for each worker's
// connection is a second guard beside the one described at tunnelState.
func interceptCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                                  clusterIntercept,
		ClusterDiscoveryType:                  &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                        seconds(connectTimeout),
		ConnectionPoolPerDownstreamConnection: true,
		CircuitBreakers:                       circuitBreakers(), // one connection for each tunnel
		LoadAssignment: endpoints(clusterIntercept, &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{
			EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
				AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listenerIntercept},
			},
		}}),
		TransportSocket: transportSocket("envoy.transport_sockets.internal_upstream", &internalv3.InternalUpstreamTransport{
			TransportSocket: transportSocket("envoy.transport_sockets.raw_buffer", &rawv3.RawBuffer{}),
		}),
	}
}

// upstreamCluster dials the request's own host over verified TLS.
func upstreamCluster(name string, dns dnsSettings, ca string, http *upstreamhttpv3.HttpProtocolOptions) *clusterv3.Cluster {
	c := forwardProxyCluster(name, dns)
	c.TransportSocket = transportSocket(transportTLS, verifiedTLS(ca))
	c.TypedExtensionProtocolOptions = httpOptions(http)
	return c
}

// tunnelCluster dials the server name of a tunnelled connection.
func tunnelCluster(dns dnsSettings) *clusterv3.Cluster {
	return forwardProxyCluster(clusterTunnel, dns)
}

func forwardProxyCluster(name string, dns dnsSettings) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:     name,
		LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.dynamic_forward_proxy",
			TypedConfig: pack(&dfpclusterv3.ClusterConfig{
				ClusterImplementationSpecifier: &dfpclusterv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache(dns)},
			}),
		}},
		ConnectTimeout:            seconds(connectTimeout),
		CircuitBreakers:           circuitBreakers(),
		UpstreamConnectionOptions: upstreamConnection(),
	}
}

// dialCluster dials one given place; the TLS name is the request's host all the same. The operator names the
// place, so its address may be private.
func dialCluster(name string, to dialTarget, dns dnsSettings, ca string, http *upstreamhttpv3.HttpProtocolOptions) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                seconds(connectTimeout),
		CircuitBreakers:               circuitBreakers(),
		UpstreamConnectionOptions:     upstreamConnection(),
		LoadAssignment:                endpoints(name, socketAddress(to.host, uint32(to.port))),
		TransportSocket:               transportSocket(transportTLS, verifiedTLS(ca)),
		TypedExtensionProtocolOptions: httpOptions(http),
	}
	if !to.isIP {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		c.DnsLookupFamily = clusterv3.Cluster_ALL
		c.TypedDnsResolverConfig = resolver(dns.resolvers)
	}
	return c
}

// tlsParameters are those of TLS on either side, of which Envoy's own are narrower: 1.2 alone to upstreams, and no P-384, which is
// all that some servers and workers may use.
func tlsParameters() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		EcdhCurves:                []string{"X25519MLKEM768", "X25519", "P-256", "P-384", "P-521"},
	}
}

// verifiedTLS trusts the CA in the secret of that name; the name to expect comes from the request (upstreamHTTP).
func verifiedTLS(ca string) *tlsv3.UpstreamTlsContext {
	parameters := tlsParameters()
	parameters.CipherSuites = []string{ // Envoy's own, and of TLS 1.2 those without AEAD, which are all that some servers have; only who has no other takes one
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305",
		"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA",
	}
	parameters.SignatureAlgorithms = []string{ // Envoy's own, and those of keys for Ed25519 and P-521
		"ecdsa_secp256r1_sha256", "rsa_pss_rsae_sha256", "rsa_pkcs1_sha256", "ecdsa_secp384r1_sha384", "rsa_pss_rsae_sha384", "rsa_pkcs1_sha384",
		"rsa_pss_rsae_sha512", "rsa_pkcs1_sha512", "ed25519", "ecdsa_secp521r1_sha512",
	}
	return &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsParams: parameters,
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: secretSource(ca),
		},
	}}
}

// upstreamHTTP sends the request's host as server name, and expects it in the certificate. The filters are upstreamFilters,
// or none.
func upstreamHTTP(filters []*hcmv3.HttpFilter) *upstreamhttpv3.HttpProtocolOptions {
	return &upstreamhttpv3.HttpProtocolOptions{
		UpstreamHttpProtocolOptions: &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: true},
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: seconds(upstreamIdle), MaxHeadersCount: number(headersInHead), MaxResponseHeadersKb: number(maxHeadersKiB),
			MaxRequestsPerConnection: number(requestsPerUpstream),
		},
		HttpFilters: filters,
	}
}

// anyHTTP speaks HTTP/2 or HTTP/1.1, as the upstream chooses by ALPN.
func anyHTTP(filters []*hcmv3.HttpFilter) *upstreamhttpv3.HttpProtocolOptions {
	h2 := http2Options()
	// As much as all requests of one connection can leave unread: when the connection's window is taken up by some, the others wait for them.
	h2.InitialConnectionWindowSize = number(requestsPerUpstream * streamWindow)
	h2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: seconds(upstreamPings), Timeout: seconds(upstreamPong), ConnectionIdleInterval: seconds(upstreamQuiet)}
	// Frames with nothing in them are odd and no attack. Envoy ends a connection after two in a row otherwise, with all of its requests.
	h2.MaxConsecutiveInboundFramesWithEmptyPayload = number(10_000)
	o := upstreamHTTP(filters)
	o.UpstreamProtocolOptions = &upstreamhttpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &upstreamhttpv3.HttpProtocolOptions_AutoHttpConfig{
		HttpProtocolOptions:  http1(),
		Http2ProtocolOptions: h2,
	}}
	return o
}

func onlyHTTP1(filters []*hcmv3.HttpFilter) *upstreamhttpv3.HttpProtocolOptions {
	o := upstreamHTTP(filters)
	o.UpstreamProtocolOptions = &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: http1()},
	}}
	return o
}

// onlyHTTP2 is for gates, one of which may hang.
func onlyHTTP2() *upstreamhttpv3.HttpProtocolOptions {
	return &upstreamhttpv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: seconds(5 * time.Second), Timeout: seconds(5 * time.Second)},
			}},
		},
	}}
}

func http1() *corev3.Http1ProtocolOptions {
	return &corev3.Http1ProtocolOptions{HeaderKeyFormat: preserveCase()}
}

func httpOptions(o *upstreamhttpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(o)}
}

func upstreamConnection() *clusterv3.UpstreamConnectionOptions {
	return &clusterv3.UpstreamConnectionOptions{TcpKeepalive: tcpKeepalive()}
}

// circuitBreakers lifts Envoy's default limits: 1,024, which a fleet of workers passes with tunnels alone, and three
// retries at a time, where one lost connection may have had many requests waiting for it.
func circuitBreakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     number(100_000),
		MaxPendingRequests: number(100_000),
		MaxRequests:        number(100_000),
		MaxRetries:         number(100_000),
	}}}
}

func endpoints(cluster string, addresses ...*corev3.Address) *endpointv3.ClusterLoadAssignment {
	all := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addresses {
		all.LbEndpoints = append(all.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{all}}
}
