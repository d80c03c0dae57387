package xds

import (
	"errors"
	"fmt"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// All returns every resource, in the order Envoy should learn of them.
func (r *Resources) All() []proto.Message {
	var all []proto.Message
	all = appendMessages(all, r.Secrets)
	all = appendMessages(all, r.Clusters)
	all = appendMessages(all, r.Extensions)
	all = appendMessages(all, r.Routes)
	return appendMessages(all, r.Listeners)
}

// Revision names the content of r: equal resources have equal revisions, on every replica.
func (r *Resources) Revision() string { return contentHash(r.All()) }

func appendMessages[M proto.Message](all []proto.Message, more []M) []proto.Message {
	for _, m := range more {
		all = append(all, m)
	}
	return all
}

// check reports what Envoy would not: it accepts a route to a cluster that does not exist, and waits for a filter
// that never comes.
func (r *Resources) check() error {
	var faults []error
	unique := func(kind string, names []string) map[string]bool {
		set := map[string]bool{}
		for _, n := range names {
			if set[n] {
				faults = append(faults, fmt.Errorf("two %ss are named %q", kind, n))
			}
			set[n] = true
		}
		return set
	}
	missing := func(kind, name, wantedBy string, have map[string]bool) {
		if !have[name] {
			faults = append(faults, fmt.Errorf("%s %q, which %s refers to, is not among the resources", kind, name, wantedBy))
		}
	}
	clusters := unique("cluster", namesOf(r.Clusters))
	clusters[clusterGate] = true // in the bootstrap
	routes := unique("route configuration", namesOf(r.Routes))
	extensions := unique("extension", namesOf(r.Extensions))
	unique("listener", namesOf(r.Listeners))
	unique("secret", namesOf(r.Secrets))

	for _, c := range r.Routes {
		for _, vh := range c.GetVirtualHosts() {
			for _, route := range vh.GetRoutes() {
				if a, ok := route.GetAction().(*routev3.Route_Route); ok {
					missing("cluster", a.Route.GetCluster(), "route "+c.GetName()+"/"+route.GetName(), clusters)
				}
			}
		}
	}
	for _, l := range r.Listeners {
		for _, filter := range networkFilters(l) {
			if filter.GetConfigDiscovery() != nil {
				missing("extension", filter.GetName(), "listener "+l.GetName(), extensions)
			}
			manager := resource.GetHTTPConnectionManager(filter)
			if name := manager.GetRds().GetRouteConfigName(); name != "" {
				missing("route configuration", name, "listener "+l.GetName(), routes)
			}
			for _, f := range manager.GetHttpFilters() {
				if f.GetConfigDiscovery() != nil {
					missing("extension", f.GetName(), "listener "+l.GetName(), extensions)
				}
			}
		}
	}
	return errors.Join(faults...)
}

func networkFilters(l *listenerv3.Listener) []*listenerv3.Filter {
	var all []*listenerv3.Filter
	for _, c := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		all = append(all, c.GetFilters()...)
	}
	return all
}

func namesOf[R interface{ GetName() string }](resources []R) []string {
	names := make([]string, len(resources))
	for i, r := range resources {
		names[i] = r.GetName()
	}
	return names
}
