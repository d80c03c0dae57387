package xds

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	snidfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
)

// tunnelChainName names the chain of the tunnelled hosts at a port. The port is not in the ClientHello, so it is
// the chain that knows it.
func tunnelChainName(port uint16) string {
	if port == 443 {
		return "tunnel"
	}
	return "tunnel_" + strconv.Itoa(int(port))
}

func tunnelPorts(hosts []host) []uint16 {
	var ports []uint16
	for _, h := range hosts {
		ports = append(ports, h.port)
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

const deniedChainName = "denied"

// deniedNames are the names of p.deny that would be tunnelled, and the fenced ones. A CONNECT for them is refused before;
// whoever was redirected has not been asked.
func deniedNames(p plan) []string {
	tunnelled := map[string]uint16{} // name → port; 0: intercepted
	for _, r := range p.routes {
		for _, h := range r.hosts {
			tunnelled[h.name] = 0
		}
	}
	for _, h := range p.tunnel {
		tunnelled[h.name] = h.port
	}
	names := fencedNames(p)
	for _, d := range p.deny {
		for name := d.name; name != ""; name = wider(name) {
			if port, known := tunnelled[name]; known {
				if port == d.port {
					names = append(names, d.name)
				}
				break
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// wider is the narrowest wildcard that covers a name or wildcard and more; "" when there is none.
func wider(name string) string {
	_, parent, ok := strings.Cut(strings.TrimPrefix(name, "*."), ".")
	if !ok {
		return ""
	}
	return "*." + parent
}

// tunnelSilent is after how long without a byte either way a tunnel ends, which may be silent for hours. Of a worker that is gone Envoy 1.40
// knows no more here than that it will send nothing, and would keep the connection to a host that does not end its side of it.
const tunnelSilent = 24 * time.Hour

// tunnelChain passes TLS on untouched. No HTTP check looks inside, so the server name must be the very host the
// CONNECT was allowed for: or a worker allowed one host would reach every tunnelled one.
func tunnelChain(p plan, port uint16) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name: tunnelChainName(port),
		Filters: []*listenerv3.Filter{
			networkFilter("envoy.filters.network.rbac", &rbacv3.RBAC{
				StatPrefix: "tunnel_",
				Rules:      deny("connect_authority", celPolicy(mismatch(port))),
			}),
			networkFilter("envoy.filters.network.sni_dynamic_forward_proxy", &snidfpv3.FilterConfig{
				DnsCacheConfig: dnsCache(p.dns),
				PortSpecifier:  &snidfpv3.FilterConfig_PortValue{PortValue: uint32(port)},
			}),
			networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
				StatPrefix:       "tunnel",
				ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: clusterTunnel},
				IdleTimeout:      seconds(tunnelSilent),
				AccessLog:        accessLog(p.accessLog, "tunnel", connectionLog),
			}),
		},
	}
}

// mismatch is true of a connection whose CONNECT is unknown or asked for another destination than its server name.
func mismatch(port uint16) string {
	return fmt.Sprintf("!('%[1]s' in filter_state) || string(filter_state['%[1]s']).lowerAscii() != connection.requested_server_name.lowerAscii() + ':%[2]d'", stateAuthority, port)
}

func deny(name string, p *rbacconfig.Policy) *rbacconfig.RBAC {
	return &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{name: p}}
}

// celPolicy applies to every peer for which the CEL condition holds.
func celPolicy(condition string) *rbacconfig.Policy {
	return &rbacconfig.Policy{
		Permissions: anything(),
		Principals:  anyone(),
		Condition:   celExpression(condition),
		CelConfig:   celStrings(),
	}
}

func anything() []*rbacconfig.Permission {
	return []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_Any{Any: true}}}
}

func anyone() []*rbacconfig.Principal {
	return []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}}
}
