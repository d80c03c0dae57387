package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The gate is told how each request and each tunnel ended about which it decided, by Envoy's gRPC access log: for the audit, for the
// tokens that a provider has rejected, and for the failures by which revisions of a configuration are compared. What the gate decided
// is in Envoy's dynamic metadata, of which the log has all. Envoy sends headers only when they are named, and none is.

// Where the metadata of a decision is: ext_proc's is our own, ext_authz's are the filters'.
const (
	filterNetworkAuthz = "envoy.filters.network.ext_authz"

	metadataRequest = "request" // the name of what was decided; without one the gate tells nobody, and wants to be told nothing
	metadataGate    = "gate"    // that decided, where there are several
)

// How ends are told. What a gate is told of is lost with it when it is killed, so it is not kept here for long. While a gate is away,
// Envoy asks for it again and again, and keeps what it has to tell: XXX
const (
	endsEvery   = 50 * time.Millisecond
	endsBuffer  = 64 << 10
	endsRetries = 1000
)

// httpEnds tells the gate of requests; namespace is where it noted what it decided.
func httpEnds(p plan, namespace string) []*accesslogv3.AccessLog {
	return ends(p, namespace, "envoy.access_loggers.http_grpc", func(c *grpcv3.CommonGrpcAccessLogConfig) proto.Message {
		return &grpcv3.HttpGrpcAccessLogConfig{CommonConfig: c}
	})
}

// tunnelEnds tells the gate of tunnels that were redirected.
func tunnelEnds(p plan) []*accesslogv3.AccessLog {
	return ends(p, filterNetworkAuthz, "envoy.access_loggers.tcp_grpc", func(c *grpcv3.CommonGrpcAccessLogConfig) proto.Message {
		return &grpcv3.TcpGrpcAccessLogConfig{CommonConfig: c}
	})
}

// ends has one log for each gate, which is told of what it decided.
func ends(p plan, namespace, logger string, settings func(*grpcv3.CommonGrpcAccessLogConfig) proto.Message) []*accesslogv3.AccessLog {
	one := func(name, cluster string, decided *accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
		return &accesslogv3.AccessLog{
			Name: logger, Filter: decided,
			ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(settings(toGate(name, cluster)))},
		}
	}
	if len(p.gateSockets) == 0 {
		present := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
		return []*accesslogv3.AccessLog{one("ends", clusterGate, metadataFilter(namespace, metadataRequest, present))}
	}
	var all []*accesslogv3.AccessLog
	for _, gate := range sortedKeys(p.gateSockets) {
		all = append(all, one("ends", gateCluster(gate), metadataFilter(namespace, metadataGate, exactly(gate))))
	}
	return all
}

// toGate is how a log of this name gets to a gate.
func toGate(name, cluster string) *grpcv3.CommonGrpcAccessLogConfig {
	return &grpcv3.CommonGrpcAccessLogConfig{
		LogName:               name,
		GrpcService:           &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster}}},
		TransportApiVersion:   corev3.ApiVersion_V3,
		BufferFlushInterval:   seconds(endsEvery),
		BufferSizeBytes:       number(endsBuffer),
		GrpcStreamRetryPolicy: &corev3.RetryPolicy{NumRetries: number(endsRetries)},
	}
}

// metadataFilter selects what has a field in its metadata that matches.
func metadataFilter(namespace, field string, value *matcherv3.ValueMatcher) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{MetadataFilter: &accesslogv3.MetadataFilter{
		Matcher: &matcherv3.MetadataMatcher{
			Filter: namespace,
			Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: field}}},
			Value:  value,
		},
		MatchIfKeyNotFound: wrapperspb.Bool(false),
	}}}
}

// gateCluster is where one of several gates is told of the ends of what it decided.
func gateCluster(gate string) string { return clusterGate + "/" + gate }

// gateClusters are those of all.
func gateClusters(p plan) []*clusterv3.Cluster {
	var all []*clusterv3.Cluster
	for _, gate := range sortedKeys(p.gateSockets) {
		name := gateCluster(gate)
		all = append(all, &clusterv3.Cluster{
			Name:                          name,
			ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:                seconds(connectTimeout),
			LoadAssignment:                endpoints(name, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: p.gateSockets[gate]}}}),
			TypedExtensionProtocolOptions: httpOptions(onlyHTTP2()),
		})
	}
	return all
}
