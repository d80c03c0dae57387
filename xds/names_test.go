package xds

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dfpcommon "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	dfpfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snidfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
)

// When Envoy has the addresses of as many names as it keeps, who asks for another one is told so, and known names go on.
func TestMoreNamesThanAreKept(t *testing.T) {
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes = append(c.Routes, Route{Name: "wild", Hosts: []string{"*.wild.localhost:" + port}})
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, func(r *Resources) { editDNS(t, r, keepNames(3)) })
	ann, bob := s.worker("ann"), s.worker("bob")
	url := func(i int) string { return fmt.Sprintf("https://n%d.wild.localhost:%s/", i, port) }
	for i := range 3 {
		if a := get(t, ann, url(i)); a.status != 200 {
			t.Fatalf("name %d: %d %q", i, a.status, a.body)
		}
	}
	a := get(t, bob, url(3))
	replied(t, a, 503, "upstream_unreachable")
	if !strings.Contains(a.body, "more names") || a.header.Get("x-should-retry") != "true" {
		t.Errorf("one more: %v %q", a.header, a.body)
	}
	if a := get(t, bob, url(0)); a.status != 200 {
		t.Errorf("a known name: %d %q", a.status, a.body)
	}
}

// A name in other letters is no other name: one worker would fill what Envoy keeps with a host's thousand spellings.
func TestNamesInOtherLetters(t *testing.T) {
	var port string
	s := start(t, func(c *Config) {
		_, port, _ = strings.Cut(c.Routes[0].ConnectTo, ":")
		c.Routes = append(c.Routes, Route{Name: "wild", Hosts: []string{"*.wild.localhost:" + port}})
		c.Tunnel = []string{"*.tunnel.localhost:" + port}
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, func(r *Resources) { editDNS(t, r, keepNames(3)) })
	ann := s.worker("ann")
	for _, name := range []string{"one", "ONE", "One", "oNe", "onE", "oNE", "two"} {
		if a := get(t, ann, fmt.Sprintf("https://%s.wild.localhost:%s/", name, port)); a.status != 200 {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
	}
	for _, name := range []string{"one", "ONE", "One", "oNe"} {
		host := name + ".tunnel.localhost"
		raw, err := s.dialTunnel(host + ":" + port)
		if err != nil {
			t.Fatal(err)
		}
		if err := tls.Client(raw, &tls.Config{ServerName: host, InsecureSkipVerify: true}).HandshakeContext(t.Context()); err != nil {
			t.Errorf("a tunnel to %s: %v", name, err)
		}
	}
}

// keepNames has Envoy keep no more names than that.
func keepNames(most uint32) func(*dfpcommon.DnsCacheConfig) {
	return func(c *dfpcommon.DnsCacheConfig) { c.MaxHosts = number(most) }
}

// editDNS changes how Envoy resolves names for requests.
func editDNS(t *testing.T, r *Resources, edit func(*dfpcommon.DnsCacheConfig)) {
	t.Helper()
	for _, c := range r.Clusters {
		var settings dfpclusterv3.ClusterConfig
		if packed := c.GetClusterType().GetTypedConfig(); packed.MessageIs(&settings) {
			if err := packed.UnmarshalTo(&settings); err != nil {
				t.Fatal(err)
			}
			edit(settings.GetDnsCacheConfig())
			if err := packed.MarshalFrom(&settings); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, l := range r.Listeners {
		for _, f := range networkFilters(l) {
			var settings snidfpv3.FilterConfig
			if f.GetTypedConfig().UnmarshalTo(&settings) == nil {
				edit(settings.GetDnsCacheConfig())
				f.ConfigType = networkFilter(f.GetName(), &settings).ConfigType
			}
		}
	}
	editManagers(r, func(m *hcmv3.HttpConnectionManager) {
		for _, f := range m.GetHttpFilters() {
			var settings dfpfilterv3.FilterConfig
			if packed := f.GetTypedConfig(); packed.MessageIs(&settings) {
				if err := packed.UnmarshalTo(&settings); err != nil {
					t.Fatal(err)
				}
				edit(settings.GetDnsCacheConfig())
				if err := packed.MarshalFrom(&settings); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
