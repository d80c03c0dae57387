package xds

import (
	"bufio"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"wayleave/envoy/envoytest"
)

// manyRoutes adds 999 routes of two hosts each to the one there is.
func manyRoutes(c *Config) {
	for i := range 999 {
		c.Routes = append(c.Routes, Route{Name: fmt.Sprintf("route%04d", i), Hosts: []string{fmt.Sprintf("a%d.many.test", i), fmt.Sprintf("*.b%d.many.test", i)}})
	}
}

// A thousand routes are the same bytes whichever order they come in, and one more host changes what it must: the routes,
// and the listener's list of names.
func TestManyRoutesAreDeterministic(t *testing.T) {
	config := Config{ProxyAddress: "127.0.0.1:3128", APISockets: []string{"/run/api.sock"}, GateSockets: map[string]string{"": "/run/gate.sock"}, Marker: testMarker, UpstreamCA: newAuthority(t).pem}
	manyRoutes(&config)
	build := func() *Resources {
		t.Helper()
		r, err := Build(config)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := build()
	slices.Reverse(config.Routes)
	if second := build(); first.Revision() != second.Revision() {
		t.Error("the order of the routes shows")
	}
	config.Routes[7].Hosts = append(config.Routes[7].Hosts, "another.many.test")
	changed := map[string]bool{}
	before, after := first.All(), build().All()
	if len(before) != len(after) {
		t.Fatalf("%d resources became %d", len(before), len(after))
	}
	for i := range before {
		if !proto.Equal(before[i], after[i]) {
			changed[shortType("/"+string(before[i].ProtoReflect().Descriptor().FullName()))] = true
		}
	}
	if want := map[string]bool{"RouteConfiguration": true, "Listener": true}; fmt.Sprint(changed) != fmt.Sprint(want) {
		t.Errorf("changed: %v, want %v", changed, want)
	}
}

// Envoy takes a thousand routes, and a change of them while connections are open, which it leaves alone.
func TestManyRoutes(t *testing.T) {
	s := start(t, manyRoutes, nil)
	conn, err := s.connect(apiHost+":443", apiHost, s.leaves.pool())
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	if a := ask(t, conn, r, apiHost); a.status != 200 {
		t.Fatalf("got %d %q", a.status, a.body)
	}
	for i := range 5 {
		s.config.Routes[0].Hosts = append(s.config.Routes[0].Hosts, fmt.Sprintf("added%d.provider.test", i))
		s.publish()
		added := fmt.Sprintf("added%d.provider.test", i)
		envoytest.Await(t, "the new host", func() error {
			c, err := s.connect(added+":443", added, s.leaves.pool())
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if a := ask(t, conn, r, apiHost); a.status != 200 {
			t.Fatalf("got %d %q", a.status, a.body)
		}
		if a := get(t, s.worker("ann"), "https://"+added+"/"); a.status != 200 || a.body != "Bearer real-ann" {
			t.Errorf("%s: got %d %q", added, a.status, a.body)
		}
	}
}
