package xds

import (
	"net/http"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The gate is told how each request and each tunnel ended about which it decided, by Envoy's gRPC access log: for the audit, for the
// tokens that a provider has rejected, and for the failures by which revisions of a configuration are compared. One that keeps no audit says
// so, and is told of failures alone, since to tell of all is a good part of what Envoy does for a request. What the gate decided
// is in Envoy's dynamic metadata, of which the log has all. Envoy sends headers only when they are named, and none is.

// Where the metadata of a decision is: ext_proc's is our own, ext_authz's are the filters'.
const (
	filterNetworkAuthz = "envoy.filters.network.ext_authz"

	metadataNote = "note" // what the gate is to be told again; without one it tells nobody, and wants to be told nothing
	metadataGate = "gate" // that decided, where there are several

	metadataFailures = "failures" // is there where the gate keeps no account, so that failures alone are of use to it
)

// How ends are told. What is on its way to a gate that is killed is lost, so it is not kept for long where a gate is there. While it is
// away, each of Envoy's threads keeps as much as the buffer holds, and counts what is more (access_logs.grpc_access_log.logs_dropped).
const (
	endsEvery  = 50 * time.Millisecond
	endsBuffer = 1 << 20 // some 800 ends; a gate takes messages of up to 4 MiB
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
	var all []*accesslogv3.AccessLog
	for _, gate := range sortedKeys(p.gateSockets) {
		decided := metadataFilter(namespace, metadataGate, exactly(gate))
		if gate == "" { // it is alone
			decided = metadataFilter(namespace, metadataNote, present())
		}
		wanted := anyOf(wholeAccount(namespace), failed(), flagged())
		if namespace == metadataNamespace {
			rejected := metadataFilter(namespace, metadataAnswered, exactly("16")) // with status 200
			wanted = anyOf(metadataFilter(namespace, metadataLane, present()), allOf(whenEnded(), anyOf(wanted, rejected)))
		}
		all = append(all, &accesslogv3.AccessLog{
			Name: logger, Filter: allOf(decided, wanted),
			ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(settings(toGate("ends", endsCluster(gate))))},
		})
	}
	return all
}

// wholeAccount selects what is of use to the gate however it ended.
func wholeAccount(namespace string) *accesslogv3.AccessLogFilter {
	f := metadataFilter(namespace, metadataFailures, exactly("no")) // which it never is
	f.GetMetadataFilter().MatchIfKeyNotFound = wrapperspb.Bool(true)
	return f
}

// failed selects answers that are errors; a rejected token is among them.
func failed() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{
		Comparison: &accesslogv3.ComparisonFilter{Op: accesslogv3.ComparisonFilter_GE, Value: &corev3.RuntimeUInt32{DefaultValue: http.StatusBadRequest, RuntimeKey: "wayleave.failed"}},
	}}}
}

// flagged selects what ended in another way than by an answer, such as part of one.
func flagged() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{}}}
}

func allOf(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: filters}}}
}

func anyOf(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: filters}}}
}

func present() *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
}

// OpenFor is after how long Envoy tells the gate of a request in the fast lane that has not ended, and again each time. Of all others the gate
// has known since it decided.
const OpenFor = 10 * time.Second

// toGate is how a log of this name gets to a gate.
func toGate(name, cluster string) *grpcv3.CommonGrpcAccessLogConfig {
	return &grpcv3.CommonGrpcAccessLogConfig{
		LogName:             name,
		GrpcService:         &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster}}},
		TransportApiVersion: corev3.ApiVersion_V3,
		BufferFlushInterval: seconds(endsEvery),
		BufferSizeBytes:     number(endsBuffer),
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

// endsCluster is where a gate is told of the ends of what it decided.
func endsCluster(gate string) string { return strings.TrimSuffix("ends/"+gate, "/") }

// endsClusters are those of all gates.
//
// Envoy keeps what it has to tell only if it knows that the gate is away before it tells: what it sends to a gate that does not come, it
// forgets. It knows at once, since the streams that end with the gate count as failures of it; if there were none, by asking it all the
// time; and that is also how it learns that the gate is back.
func endsClusters(p plan) []*clusterv3.Cluster {
	var all []*clusterv3.Cluster
	for _, gate := range sortedKeys(p.gateSockets) {
		name := endsCluster(gate)
		all = append(all, &clusterv3.Cluster{
			Name:                          name,
			ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:                seconds(connectTimeout),
			LoadAssignment:                endpoints(name, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: p.gateSockets[gate]}}}),
			TypedExtensionProtocolOptions: httpOptions(onlyHTTP2()),
			CommonLbConfig:                &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}},
			HealthChecks: []*corev3.HealthCheck{{
				Timeout:            seconds(2 * gateAsked),
				Interval:           seconds(gateAsked),
				NoTrafficInterval:  seconds(gateAsked),
				UnhealthyThreshold: number(1),
				HealthyThreshold:   number(1),
				HealthChecker:      &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{}},
			}},
			OutlierDetection: &clusterv3.OutlierDetection{
				Consecutive_5Xx:          number(1),
				EnforcingConsecutive_5Xx: number(100),
				MaxEjectionPercent:       number(100),
				BaseEjectionTime:         seconds(time.Hour), // it is asked before
				MaxEjectionTime:          seconds(time.Hour),
			},
		})
	}
	return all
}

// gateAsked is how often a gate is asked whether it is there.
const gateAsked = 250 * time.Millisecond
