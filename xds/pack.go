package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setstatecommon "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// pack puts m into an Any, always as the same bytes. The only failure of marshalling is text that is not UTF-8,
// which Config.plan has excluded.
func pack(m proto.Message) *anypb.Any {
	var a anypb.Any
	if err := anypb.MarshalFrom(&a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic("xds: marshalling " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
	}
	return &a
}

// extension names an Envoy extension and its settings.
func extension(name string, settings proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(settings)}
}

// ads says that a resource comes over the ADS stream. It must be the same bytes everywhere: Envoy takes another
// source for another subscription, and never delivers a secret it already holds to the second one.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// previousHosts makes a retry go to another host.
const previousHosts = "envoy.retry_host_predicates.previous_hosts"

// tryTimeout is how long a gate may take for an answer before another one is asked. Envoy takes it from the longest pause
// between two tries, which is much shorter: a busy machine must not look like a gate that hangs.
const tryTimeout = 2 * time.Second

// gateService asks any of the gates. What one of several gets no answer to from a gate that ends, it asks another: the
// answers are the same.
func gateService(gates int, timeout time.Duration) *corev3.GrpcService {
	s := &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: clusterGate},
	}}
	if gates > 1 {
		// Not EnvoyGrpc's field of this name, which is for xDS streams only.
		s.RetryPolicy = &corev3.RetryPolicy{
			RetryOn:      "connect-failure,refused-stream,reset,unavailable",
			NumRetries:   number(uint32(gates)),
			RetryBackOff: &corev3.BackoffStrategy{BaseInterval: seconds(5 * time.Millisecond), MaxInterval: seconds(tryTimeout)},
			RetryHostPredicate: []*corev3.RetryPolicy_RetryHostPredicate{{
				Name: previousHosts, ConfigType: &corev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previoushostsv3.PreviousHostsPredicate{})},
			}},
			HostSelectionRetryMaxAttempts: 10,
		}
	}
	if timeout > 0 {
		s.Timeout = seconds(timeout)
	}
	return s
}

// metadataNode is the gRPC metadata in which ext_authz tells the gate which Envoy asks.
const metadataNode = "wayleave-node"

// askedByNode also says which Envoy asks, as nodeState has noted it. All Envoys have the same resources, and Envoy 1.40 crashes
// on a CEL expression right here, where each of its threads reads the format by itself.
func askedByNode(s *corev3.GrpcService) *corev3.GrpcService {
	s.InitialMetadata = []*corev3.HeaderValue{{Key: metadataNode, Value: "%FILTER_STATE(" + stateNode + ":PLAIN)%"}}
	return s
}

// nodeState notes which Envoy this is.
func nodeState() *setstatecommon.FilterStateValue {
	return stateValue(stateNode, hashableString, "%CEL(xds.node.id)%")
}

func seconds(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
func number(n uint32) *wrapperspb.UInt32Value      { return wrapperspb.UInt32(n) }
func yes() *wrapperspb.BoolValue                   { return wrapperspb.Bool(true) }
func no() *wrapperspb.BoolValue                    { return wrapperspb.Bool(false) }

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func inlineString(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// overwrite sets a header whatever the message holds already.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// contentHash is equal for equal messages in equal order, on every replica.
func contentHash(messages []proto.Message) string {
	h := sha256.New()
	for _, m := range messages {
		h.Write(pack(m).GetValue())
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
