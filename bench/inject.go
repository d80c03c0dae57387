package main

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	extprocfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wayleave/xds"
)

// The ways in which Envoy itself can have the credential set. Each is what the product tells Envoy, without what swaps and checks there,
// and with that one thing in its place: so all intercept alike.

const (
	routeHeader = "Envoy, header of a route"
	injector    = "Envoy, credential_injector"
	minimal     = "Envoy, minimal ext_proc"
	ours        = "Wayleave"
	oursTCP     = "Wayleave, over TCP"
	alone       = "Envoy, nothing injected"

	filterSwap    = "wayleave.ext_proc"
	filterAgain   = "wayleave.ext_proc_again"
	filterBarrier = "envoy.filters.http.rbac"
	routesWithin  = "intercept"
	clusterTCP    = "gate_tcp"
	secretToken   = "static/bench_token"
)

// injections are variants of what Envoy and the gate do, as variants are.
var injections = map[string]variant{
	alone:       {status: statusUnswapped, envoy: floor},
	routeHeader: {status: http.StatusOK, envoy: withRouteHeader},
	injector:    {status: http.StatusOK, envoy: withInjector},
	minimal:     {status: http.StatusOK, envoy: withMinimal, gate: []grpc.ServerOption{grpc.StreamInterceptor(answerAtOnce)}},
	ours:        {status: http.StatusOK},
	oursTCP:     {status: http.StatusOK},
	fast:        inFastLane(nil),

	noAgain:    {status: http.StatusOK, envoy: withoutAgain},
	noBarriers: {status: http.StatusOK, envoy: withoutBarriers},
	noDecision: {status: http.StatusOK, envoy: withoutBarriers, gate: []grpc.ServerOption{grpc.StreamInterceptor(answerAtOnce)}},
	noFacts:    {status: http.StatusOK, envoy: withoutFacts, gate: []grpc.ServerOption{grpc.StreamInterceptor(answerAtOnce)}},
}

// What Wayleave adds to the least that any ext_proc costs, as variants that leave out ever more of it.
const (
	noAgain    = "nor the filter for a 401"
	noBarriers = "nor barriers"
	noDecision = "nor a decision: the gate answers at once"
	noFacts    = "nor facts about the connection for it"
)

var ladder = []string{noSearch, noAgain, noBarriers, noDecision, noFacts}

func withoutAgain(r *xds.Resources) error {
	return errors.Join(withoutLua(r), upstreamFilters(r, func(f *hcmv3.HttpFilter) bool { return f.GetName() == filterAgain }))
}

func withoutBarriers(r *xds.Resources) error {
	return errors.Join(withoutAgain(r), managers(r, "intercept", func(m *hcmv3.HttpConnectionManager) {
		m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcmv3.HttpFilter) bool { return f.GetName() == filterBarrier })
	}))
}

func withoutFacts(r *xds.Resources) error {
	return errors.Join(withoutBarriers(r), askedBy(r, func(m *extprocfilterv3.ExternalProcessor) { m.RequestAttributes = nil }))
}

// variantNamed is one of either kind.
func variantNamed(name string) variant {
	if v, ok := variants[name]; ok {
		return v
	}
	return injections[name]
}

func withRouteHeader(r *xds.Resources) error {
	for i, routes := range r.Routes {
		if routes.GetName() != routesWithin {
			continue
		}
		routes = proto.CloneOf(routes)
		for _, host := range routes.GetVirtualHosts() {
			host.RequestHeadersToAdd = append(host.RequestHeadersToAdd, &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: "authorization", Value: "Bearer " + realToken},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			})
		}
		r.Routes[i] = routes
	}
	return floor(r)
}

// withInjector has the token come by SDS, as it must where tokens change.
func withInjector(r *xds.Resources) error {
	if err := floor(r); err != nil {
		return err
	}
	generic, err := anypb.New(&genericv3.Generic{Credential: &tlsv3.SdsSecretConfig{
		Name: secretToken,
		SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion:    corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		},
	}})
	if err != nil {
		return err
	}
	settings, err := anypb.New(&injectorv3.CredentialInjector{
		Overwrite:  true,
		Credential: &corev3.TypedExtensionConfig{Name: "envoy.http.injected_credentials.generic", TypedConfig: generic},
	})
	if err != nil {
		return err
	}
	r.Secrets = append(r.Secrets, &tlsv3.Secret{Name: secretToken, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "Bearer " + realToken}},
	}}})
	return managers(r, "intercept", func(m *hcmv3.HttpConnectionManager) {
		m.HttpFilters = slices.Insert(m.HttpFilters, 0, &hcmv3.HttpFilter{
			Name: "envoy.filters.http.credential_injector", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: settings},
		})
	})
}

// withMinimal asks a gate that looks at nothing, and says nothing but the header: what any ext_proc costs.
func withMinimal(r *xds.Resources) error {
	if err := floor(r); err != nil {
		return err
	}
	settings, err := anypb.New(&extprocfilterv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "gate"}}},
		ProcessingMode: &extprocfilterv3.ProcessingMode{
			RequestHeaderMode: extprocfilterv3.ProcessingMode_SEND, ResponseHeaderMode: extprocfilterv3.ProcessingMode_SKIP,
			RequestTrailerMode: extprocfilterv3.ProcessingMode_SKIP, ResponseTrailerMode: extprocfilterv3.ProcessingMode_SKIP,
		},
		MessageTimeout: durationpb.New(25 * time.Second),
	})
	if err != nil {
		return err
	}
	return managers(r, "intercept", func(m *hcmv3.HttpConnectionManager) {
		m.HttpFilters = slices.Insert(m.HttpFilters, 0, &hcmv3.HttpFilter{
			Name: "envoy.filters.http.ext_proc", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: settings},
		})
	})
}

// theHeader is the whole of what a minimal gate says.
var theHeader = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
	Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "authorization", RawValue: []byte("Bearer " + realToken)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}},
}}}

// answerAtOnce stands in for the gate's ext_proc.
func answerAtOnce(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.FullMethod != extprocv3.ExternalProcessor_Process_FullMethodName {
		return handler(server, stream)
	}
	if err := stream.RecvMsg(&extprocv3.ProcessingRequest{}); err != nil {
		return err
	}
	return stream.SendMsg(theHeader)
}

// overTCP has Envoy ask the gate about requests at this address. The rest it asks where it did.
func overTCP(r *xds.Resources, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	options, err := anypb.New(&upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}},
	})
	if err != nil {
		return err
	}
	r.Clusters = append(r.Clusters, &clusterv3.Cluster{
		Name: clusterTCP, ConnectTimeout: durationpb.New(time.Second),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
		CircuitBreakers:               &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(100_000), MaxPendingRequests: wrapperspb.UInt32(100_000)}}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: clusterTCP, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
				SocketAddress: &corev3.SocketAddress{Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)}},
			}}}},
		}}}}},
	})
	return askedBy(r, func(m *extprocfilterv3.ExternalProcessor) { m.GetGrpcService().GetEnvoyGrpc().ClusterName = clusterTCP })
}

// askedBy changes how Envoy asks the gate about a request.
func askedBy(r *xds.Resources, change func(*extprocfilterv3.ExternalProcessor)) error {
	for _, e := range r.Extensions {
		if e.GetName() != filterSwap {
			continue
		}
		if err := edit(e.GetTypedConfig(), change); err != nil {
			return err
		}
	}
	return nil
}
