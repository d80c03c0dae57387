package envoy

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"
)

// Bootstrap is what one Envoy starts from. It holds no more than how to reach the gate; the rest comes from there.
type Bootstrap struct {
	NodeID  string // names this Envoy among its fleet
	Cluster string // names the fleet; empty: "wayleave"
	Group   string // the part of the fleet that it is in, which it tells the gate as metadata; empty: none
	// GateSockets are the unix sockets of the gates' gRPC services. Envoy asks any of several, and sees which are well.
	GateSockets []string
	// AdminSocket is the unix socket Envoy's admin interface is to listen on.
	AdminSocket string
	// LogLevel is one of LogLevels; empty: warning. At debug and trace the parts of Envoy that would print credentials stay at info.
	LogLevel string
	// Components are levels of parts of Envoy, in place of LogLevel.
	Components map[string]string
	// LogCredentials lets every part print what it wants.
	LogCredentials bool
	// MaxConnections is how many worker connections Envoy accepts at once; zero: 20,000.
	MaxConnections int64
	// MaxForClusters is how many connections Envoy makes at once for some clusters, by name, where that is less than the clusters say. Nil: as they say.
	MaxForClusters map[string]int64
	// Memory is how much there is for Envoy, in bytes. Near its end Envoy cuts what holds most of it and takes no more, rather than be
	// killed with everything in it. Zero: nobody knows.
	Memory uint64
}

const (
	gateCluster        = "gate"
	defaultConnections = 20_000
	// regexProgramSize replaces Envoy's limit of 100 instructions, which the list of headers ext_proc may change
	// passes. The expressions are ours, not a worker's.
	regexProgramSize = 4000
)

// YAML returns the configuration file.
func (b Bootstrap) YAML() ([]byte, error) {
	m, err := b.message()
	if err != nil {
		return nil, err
	}
	return toYAML(m)
}

// Args are Envoy's arguments, without the program's name, to run with the file config.
func (b Bootstrap) Args(config string) []string {
	// Without hot restart an Envoy that is killed leaves no shared memory behind.
	return append(b.args(config), "--disable-hot-restart", "--drain-time-s", "600")
}

func (b Bootstrap) args(config string) []string {
	return append([]string{"-c", config}, b.logArgs()...)
}

// Hot says which Envoy another one takes over from.
type Hot struct {
	Dir   string        // private directory of the sockets over which it does, of all Envoys that follow one another
	Epoch int           // how many there were before it; 0: it takes over from none
	Drain time.Duration // how long the one before takes to send its clients elsewhere; it ends half as long after that
}

// HotArgs are Args for an Envoy that takes over the listening sockets from another, and hands them on to the next.
func (b Bootstrap) HotArgs(config string, h Hot) []string {
	drain := int(h.Drain.Seconds())
	id := fnv.New32a()
	_, _ = id.Write([]byte(h.Dir))
	return append(b.args(config),
		"--restart-epoch", strconv.Itoa(h.Epoch),
		// Names their shared memory, which is the system's: one that is left behind is found again and removed.
		"--base-id", strconv.Itoa(int(id.Sum32()%100_000_000)),
		// Not the default, an abstract socket, to which any user of this machine may connect.
		"--socket-path", filepath.Join(h.Dir, "envoy"), "--socket-mode", "600",
		"--drain-time-s", strconv.Itoa(drain), "--parent-shutdown-time-s", strconv.Itoa(drain+(drain+1)/2))
}

func (b Bootstrap) message() (*bootstrapv3.Bootstrap, error) {
	if b.NodeID == "" {
		return nil, fmt.Errorf("envoy bootstrap: the node id is empty")
	}
	if err := b.checkLog(); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	if len(b.GateSockets) == 0 {
		return nil, fmt.Errorf("envoy bootstrap: there is no gate")
	}
	for _, path := range append(slices.Clone(b.GateSockets), b.AdminSocket) {
		if err := checkSocket(path); err != nil {
			return nil, fmt.Errorf("envoy bootstrap: %w", err)
		}
	}
	cluster := b.Cluster
	if cluster == "" {
		cluster = "wayleave"
	}
	internalListener, err := anypb.New(&internalv3.InternalListener{BufferSizeKb: wrapperspb.UInt32(64)})
	if err != nil {
		return nil, err
	}
	gate, err := gate(b.GateSockets)
	if err != nil {
		return nil, err
	}
	overload, err := overload(b.MaxConnections, b.Memory)
	if err != nil {
		return nil, err
	}
	settings := map[string]any{
		"re2.max_program_size.error_level": regexProgramSize,
		// An end of a connection inside Envoy is no reset: of a redirected connection a reset takes the answer with it.
		"envoy.reloadable_features.enable_send_rst_on_user_space_socket": false,
	}
	for cluster, most := range b.MaxForClusters { // which have it from the gate, and that does not know this machine
		settings["circuit_breakers."+cluster+".default.max_connections"] = most
	}
	runtime, err := structpb.NewStruct(settings)
	if err != nil {
		return nil, err
	}
	node := &corev3.Node{Id: b.NodeID, Cluster: cluster}
	if b.Group != "" {
		node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"group": structpb.NewStringValue(b.Group)}}
	}
	return &bootstrapv3.Bootstrap{
		Node:  node,
		Admin: &bootstrapv3.Admin{Address: pipe(b.AdminSocket), IgnoreGlobalConnLimit: true},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.bootstrap.internal_listener",
			TypedConfig: internalListener,
		}},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: adsSource(),
			LdsConfig: fromADS(),
			CdsConfig: fromADS(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{gate}},
		StatsConfig:     statsWithoutCertificates(),
		OverloadManager: overload,
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
			Name:           "static",
			LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: runtime},
		}}},
	}, nil
}

// checkSocket refuses paths that do not fit a sockaddr_un (unix(7)).
func checkSocket(path string) error {
	switch {
	case path == "" || path[0] != '/':
		return fmt.Errorf("socket %q is not an absolute path", path)
	case len(path) > 107:
		return fmt.Errorf("socket path %q has %d bytes, and the system takes 107: use a shorter directory", path, len(path))
	}
	return nil
}

// adsSource is one delta stream for everything. Envoy's own back-off makes it wait up to 30 seconds after the gate
// is back. Of this one Envoy takes a random part each time, from nothing up to the interval, so that a fleet does not come back
// all at once.
func adsSource() *corev3.ApiConfigSource {
	return &corev3.ApiConfigSource{
		ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
				ClusterName: gateCluster,
				RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
					BaseInterval: durationpb.New(250 * time.Millisecond),
					MaxInterval:  durationpb.New(2 * time.Second),
				}},
			},
		}}},
	}
}

func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		// An Envoy is not live before it knows what to listen on: it would make the one before it go.
		InitialFetchTimeout: durationpb.New(0),
	}
}

// gate is the cluster of ADS, ext_proc and ext_authz. It is static, so that no configuration can take it away.
func gate(sockets []string) (*clusterv3.Cluster, error) {
	patience := 15 * time.Second
	if len(sockets) > 1 {
		patience = hungAfter // there is another to ask
	}
	options, err := anypb.New(&upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{ConnectionKeepalive: &corev3.KeepaliveSettings{
						Interval: durationpb.New(patience),
						Timeout:  durationpb.New(patience),
					}},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	var endpoints []*endpointv3.LbEndpoint
	for _, s := range sockets {
		endpoints = append(endpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: pipe(s)}},
		})
	}
	c := &clusterv3.Cluster{
		Name:                 gateCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
		},
		// Each request under way is a stream, and the default limit is 1,024.
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxPendingRequests: wrapperspb.UInt32(100_000),
			MaxRequests:        wrapperspb.UInt32(100_000),
			MaxRetries:         wrapperspb.UInt32(100_000), // a gate that ends may leave many
		}}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: gateCluster,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: endpoints}},
		},
	}
	if len(sockets) > 1 {
		c.HealthChecks = []*corev3.HealthCheck{health()}
		// Those that are not well are asked only when none is.
		c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 1}}
	}
	return c, nil
}

// How soon Envoy stops asking one of several gates.
const (
	// HealthNotice is how long Envoy may take to see that a gate says NOT_SERVING.
	HealthNotice = 2 * healthInterval

	healthInterval = time.Second
	// hungAfter is how long a gate may not answer a ping, or be asked for one. What waits for a gate that does not is asked
	// of another one.
	hungAfter = 2 * time.Second
)

// health asks each gate how it is (grpc.health.v1). A gate is not asked after two failures, or one NOT_SERVING, and is
// again after one success.
func health() *corev3.HealthCheck {
	return &corev3.HealthCheck{
		Timeout:            durationpb.New(healthInterval),
		Interval:           durationpb.New(healthInterval),
		NoTrafficInterval:  durationpb.New(healthInterval),
		UnhealthyThreshold: wrapperspb.UInt32(2),
		HealthyThreshold:   wrapperspb.UInt32(1),
		HealthChecker:      &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{}},
	}
}

func pipe(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: 0o600}}}
}

// statsWithoutCertificates leaves out the gauges that each leaf certificate would add: their number is the
// workers' to choose.
func statsWithoutCertificates() *metricsv3.StatsConfig {
	return &metricsv3.StatsConfig{StatsMatcher: &metricsv3.StatsMatcher{
		StatsMatcher: &metricsv3.StatsMatcher_ExclusionList{ExclusionList: &matcherv3.ListStringMatcher{
			Patterns: []*matcherv3.StringMatcher{{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
				SafeRegex: &matcherv3.RegexMatcher{Regex: `.*\.ssl\.certificate\..*`},
			}}},
		}},
	}}
}

// overload keeps a flood of connections from using up the file descriptors, and what workers do not read, or send to nobody who reads it,
// from using up the memory.
func overload(connections int64, memory uint64) (*overloadv3.OverloadManager, error) {
	if connections <= 0 {
		connections = defaultConnections
	}
	m := &overloadv3.OverloadManager{}
	if err := monitor(m, "envoy.resource_monitors.global_downstream_max_connections", &connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: connections}); err != nil {
		return nil, err
	}
	if memory == 0 {
		return m, nil
	}
	// Beside Envoy's heap are its stacks, what the system keeps of its connections, and whoever started it.
	if err := monitor(m, monitorHeap, &heapv3.FixedHeapConfig{MaxHeapSizeBytes: memory / 10 * 8}); err != nil {
		return nil, err
	}
	m.RefreshInterval = durationpb.New(250 * time.Millisecond)
	m.BufferFactoryConfig = &overloadv3.BufferFactoryConfig{MinimumAccountToTrackPowerOfTwo: 17} // 128 KiB, more than passes by at once
	m.Actions = []*overloadv3.OverloadAction{
		{Name: "envoy.overload_actions.shrink_heap", Triggers: []*overloadv3.Trigger{from(0.8)}},
		{Name: "envoy.overload_actions.reset_high_memory_stream", Triggers: []*overloadv3.Trigger{between(0.85, 0.95)}},
		{Name: "envoy.overload_actions.stop_accepting_connections", Triggers: []*overloadv3.Trigger{from(0.95)}},
		{Name: "envoy.overload_actions.stop_accepting_requests", Triggers: []*overloadv3.Trigger{from(0.98)}},
	}
	return m, nil
}

const monitorHeap = "envoy.resource_monitors.fixed_heap"

func monitor(m *overloadv3.OverloadManager, name string, settings proto.Message) error {
	packed, err := anypb.New(settings)
	if err != nil {
		return err
	}
	m.ResourceMonitors = append(m.ResourceMonitors, &overloadv3.ResourceMonitor{Name: name, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: packed}})
	return nil
}

// from does all of something when so much of the heap is used.
func from(share float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: monitorHeap, TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: share}}}
}

// between does more of something the more of the heap is used.
func between(none, all float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: monitorHeap, TriggerOneof: &overloadv3.Trigger_Scaled{Scaled: &overloadv3.ScaledTrigger{ScalingThreshold: none, SaturationThreshold: all}}}
}

// toYAML goes by JSON, whose text protojson deliberately varies; YAML is always the same.
func toYAML(m proto.Message) ([]byte, error) {
	j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing envoy's configuration: %w", err)
	}
	return yaml.JSONToYAML(j)
}
