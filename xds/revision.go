package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// A kind is one of the types of resources that make the configuration.
type kind int

const (
	kindClusters kind = iota
	kindExtensions
	kindRoutes
	kindHosts
	kindListeners
	kinds
)

// Envoy learns of resources before others refer to them: of those with a lower stage first.
var (
	typeURLs = [kinds]string{kindClusters: resource.ClusterType, kindExtensions: resource.ExtensionConfigType, kindRoutes: resource.RouteType, kindHosts: resource.VirtualHostType, kindListeners: resource.ListenerType}
	stages   = [kinds]int{kindClusters: 0, kindExtensions: 1, kindRoutes: 1, kindHosts: 1, kindListeners: 2}
)

func kindOfType(url string) (kind, bool) {
	k := kind(slices.Index(typeURLs[:], url))
	return k, k >= 0
}

// wildcard kinds are those of which an Envoy wants all there are when it names none. Of virtual hosts it never names any.
func (k kind) wildcard() bool { return k == kindClusters || k == kindHosts || k == kindListeners }

// doors are the listeners where workers come. A drained Envoy has none of them.
var doors = []string{listenerProxy, listenerProxyTLS, listenerTransparent}

// set is all resources of one kind, or some of them. It is not changed once made: all nodes and revisions share it.
type set struct {
	items   map[string]*discovery.Resource // by name, in the form in which they are sent
	version string                         // equal for equal content, on every replica
}

var nothing = newSet(map[string]*discovery.Resource{})

func newSet(items map[string]*discovery.Resource) *set {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(items)) {
		h.Write([]byte(name + "\x00" + items[name].GetVersion() + "\x00"))
	}
	return &set{items: items, version: hex.EncodeToString(h.Sum(nil)[:8])}
}

// claimed is a set as an Envoy tells of it: names and versions.
func claimed(versions map[string]string) *set {
	items := make(map[string]*discovery.Resource, len(versions))
	for name, version := range versions {
		items[name] = &discovery.Resource{Name: name, Version: version}
	}
	return newSet(items)
}

// only is what s has of names.
func (s *set) only(names []string) *set {
	items := map[string]*discovery.Resource{}
	for _, name := range names {
		if r := s.items[name]; r != nil {
			items[name] = r
		}
	}
	if len(items) == len(s.items) {
		return s
	}
	return newSet(items)
}

// and is s with those of other whose names s does not have.
func (s *set) and(other *set) *set {
	items := maps.Clone(s.items)
	for name, r := range other.items {
		if items[name] == nil {
			items[name] = r
		}
	}
	if len(items) == len(s.items) {
		return s
	}
	return newSet(items)
}

// uncertain is s with these names as of no version, so that they are sent or removed.
func (s *set) uncertain(names []string) *set {
	items := maps.Clone(s.items)
	for _, name := range names {
		items[name] = &discovery.Resource{Name: name}
	}
	return newSet(items)
}

// without is s without these names.
func (s *set) without(names []string) *set {
	items := maps.Clone(s.items)
	for _, name := range names {
		delete(items, name)
	}
	return newSet(items)
}

// change is what leads from one set to another.
type change struct {
	to      *set
	put     []*discovery.Resource
	removed []string
}

func (c *change) names() []string {
	names := slices.Clone(c.removed)
	for _, r := range c.put {
		names = append(names, r.GetName())
	}
	return names
}

func (s *set) changeTo(to *set) *change {
	c := &change{to: to}
	for name, r := range to.items {
		if has := s.items[name]; has == nil || has.GetVersion() != r.GetVersion() {
			c.put = append(c.put, r)
		}
	}
	for name := range s.items {
		if to.items[name] == nil {
			c.removed = append(c.removed, name)
		}
	}
	slices.SortFunc(c.put, func(a, b *discovery.Resource) int { return cmp.Compare(a.GetName(), b.GetName()) })
	slices.Sort(c.removed)
	return c
}

// revision is a Resources ready to be sent.
type revision struct {
	from    *Resources
	sets    [kinds]*set
	drained *set // listeners, without the doors
	secrets map[string]*secret
}

// marshal makes the revision of r. What one of others has too is shared with it, so that revisions that differ little cost little.
func marshal(r *Resources, others []*revision) *revision {
	routes, hosts := split(r.Routes)
	all := [kinds][]proto.Message{
		kindClusters:   appendMessages(nil, r.Clusters),
		kindExtensions: appendMessages(nil, r.Extensions),
		kindRoutes:     routes,
		kindHosts:      hosts,
		kindListeners:  appendMessages(nil, r.Listeners),
	}
	out := &revision{from: r, secrets: map[string]*secret{}}
	for k, messages := range all {
		items := make(map[string]*discovery.Resource, len(messages))
		for _, m := range messages {
			one := marshalled(m)
			for _, o := range others {
				if same := o.sets[k].items[one.GetName()]; same.GetVersion() == one.GetVersion() {
					one = same
				}
			}
			items[one.GetName()] = one
		}
		out.sets[k] = newSet(items)
		for _, o := range others {
			if o.sets[k].version == out.sets[k].version {
				out.sets[k] = o.sets[k]
			}
		}
	}
	out.drained = out.sets[kindListeners].without(doors)
	for _, s := range r.Secrets {
		out.secrets[s.GetName()] = newSecret(s)
	}
	return out
}

// split takes the virtual hosts out of the routes of intercepted hosts, which may be thousands, so that a change of one is
// sent as one (VHDS). The one for all others stays: it is there before them. Envoy finds those of a route configuration by
// its name before the slash, and removes one by its own name, which therefore is that of the resource.
func split(configs []*routev3.RouteConfiguration) (routes, hosts []proto.Message) {
	for _, c := range configs {
		if c.GetName() != routesIntercept {
			routes = append(routes, c)
			continue
		}
		rest := proto.CloneOf(&routev3.RouteConfiguration{Name: c.GetName(), RequestHeadersToRemove: c.GetRequestHeadersToRemove(), TypedPerFilterConfig: c.GetTypedPerFilterConfig(), Vhds: &routev3.Vhds{ConfigSource: ads()}})
		for _, vh := range c.GetVirtualHosts() {
			if slices.Contains(vh.GetDomains(), "*") {
				rest.VirtualHosts = append(rest.VirtualHosts, vh)
				continue
			}
			named := proto.CloneOf(vh)
			named.Name = c.GetName() + "/" + vh.GetName()
			hosts = append(hosts, named)
		}
		routes = append(routes, rest)
	}
	return routes, hosts
}

// marshalled versions a resource by its content.
func marshalled(m proto.Message) *discovery.Resource {
	body := pack(m)
	sum := sha256.Sum256(body.GetValue())
	return &discovery.Resource{Name: m.(interface{ GetName() string }).GetName(), Version: hex.EncodeToString(sum[:8]), Resource: body}
}
