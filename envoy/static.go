package envoy

import (
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Static returns a configuration file in which the resources stand in place of the references to them. It is for
// Validate: of resources that come later, Envoy's validation mode sees nothing. The leaf certificates, which are
// made on demand, are still fetched.
//
// The resources may be clusters, listeners, route configurations, extension configurations and secrets; they are
// not changed.
func Static(b Bootstrap, resources []proto.Message) ([]byte, error) {
	m, err := b.message()
	if err != nil {
		return nil, err
	}
	in := inliner{routes: map[string]*routev3.RouteConfiguration{}, extensions: map[string]*corev3.TypedExtensionConfig{}, secrets: map[string]bool{}}
	for _, r := range resources {
		switch r := r.(type) {
		case *routev3.RouteConfiguration:
			in.routes[r.GetName()] = r
		case *corev3.TypedExtensionConfig:
			in.extensions[r.GetName()] = r
		case *tlsv3.Secret:
			in.secrets[r.GetName()] = true
		}
	}
	m.DynamicResources = &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: adsSource()}
	for _, r := range resources {
		r, err := in.inline(r)
		if err != nil {
			return nil, err
		}
		switch r := r.(type) {
		case *clusterv3.Cluster:
			m.StaticResources.Clusters = append(m.StaticResources.Clusters, r)
		case *listenerv3.Listener:
			m.StaticResources.Listeners = append(m.StaticResources.Listeners, r)
		case *tlsv3.Secret:
			m.StaticResources.Secrets = append(m.StaticResources.Secrets, r)
		case *routev3.RouteConfiguration, *corev3.TypedExtensionConfig: // where they are referred to
		default:
			return nil, fmt.Errorf("a %s is no resource of envoy's", r.ProtoReflect().Descriptor().FullName())
		}
	}
	return toYAML(m)
}

type inliner struct {
	routes     map[string]*routev3.RouteConfiguration
	extensions map[string]*corev3.TypedExtensionConfig
	secrets    map[string]bool
}

// inline returns a copy of m without references.
func (in inliner) inline(m proto.Message) (proto.Message, error) {
	m = proto.Clone(m)
	return m, in.rewrite(m.ProtoReflect())
}

// rewrite replaces the references in m and in all messages below it, those packed into an Any as well.
func (in inliner) rewrite(m protoreflect.Message) error {
	switch v := m.Interface().(type) {
	case *anypb.Any:
		return in.rewriteAny(v)
	case *hcmv3.HttpConnectionManager:
		if name := v.GetRds().GetRouteConfigName(); name != "" {
			config := in.routes[name]
			if config == nil {
				return fmt.Errorf("route configuration %q is not among the resources", name)
			}
			v.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: proto.CloneOf(config)}
		}
	case *hcmv3.HttpFilter:
		if v.GetConfigDiscovery() != nil {
			config := in.extensions[v.GetName()]
			if config == nil {
				return fmt.Errorf("extension %q is not among the resources", v.GetName())
			}
			v.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: proto.CloneOf(config.GetTypedConfig())}
		}
	case *listenerv3.Filter:
		if v.GetConfigDiscovery() != nil {
			config := in.extensions[v.GetName()]
			if config == nil {
				return fmt.Errorf("extension %q is not among the resources", v.GetName())
			}
			v.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: proto.CloneOf(config.GetTypedConfig())}
		}
	case *tlsv3.SdsSecretConfig:
		if in.secrets[v.GetName()] {
			v.SdsConfig = nil // a static secret goes by its name alone
		}
	}
	var fault error
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				fault = in.rewrite(v.Message())
				return fault == nil
			})
		case field.IsList() && field.Message() != nil:
			for i := 0; i < value.List().Len() && fault == nil; i++ {
				fault = in.rewrite(value.List().Get(i).Message())
			}
		case !field.IsMap() && !field.IsList() && field.Message() != nil:
			fault = in.rewrite(value.Message())
		}
		return fault == nil
	})
	return fault
}

func (in inliner) rewriteAny(a *anypb.Any) error {
	if a.GetTypeUrl() == "" { // nothing is packed: "on, as it is"
		return nil
	}
	inner, err := a.UnmarshalNew()
	if err != nil {
		return fmt.Errorf("reading a packed %s: %w", a.GetTypeUrl(), err)
	}
	if err := in.rewrite(inner.ProtoReflect()); err != nil {
		return err
	}
	return anypb.MarshalFrom(a, inner, proto.MarshalOptions{Deterministic: true})
}
