package main

import (
	"bytes"
	"crypto/x509"
	"net"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/protobuf/proto"

	"wayleave/ca"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
	"wayleave/xds"
)

// Each kind of work is done over real connections, through the proxy that needs no Envoy, which sets the credential.
func TestWorkThroughTheGoProxy(t *testing.T) {
	up, err := newUpstream(false)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	h2, err := newUpstream(true)
	if err != nil {
		t.Fatal(err)
	}
	defer h2.Close()
	address, spec, err := rival(up, h2)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(t.Context(), vaulttest.NewMemory(), ca.Config{Domains: []string{"*.bench.test"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer mitm(spec, authority, l)()
	w := &world{gate: &gate{gateHello: gateHello{carried: carried{mitmUser, mitmPassword, placeholder}}}, proxy: address, roots: x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(authority.RootPEM())
	for _, k := range []work{get, post, sse, get2, post2, sse2} {
		a, err := w.requester(t.Context(), k, 200)
		if err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		if err := a.ask(); err != nil { // once more over the same connection
			t.Errorf("%s, again: %v", k.name, err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	k := get
	k.host = "n1.fresh.bench.test"
	if a, err := w.requester(t.Context(), k, 200); err != nil {
		t.Errorf("a name below a wildcard: %v", err)
	} else {
		a.Close()
	}
	w.gate.Token = "another"
	if _, err := w.requester(t.Context(), get, 200); err == nil {
		t.Error("the proxy takes any password")
	}
	w.gate.Token = mitmPassword
	if _, err := w.requester(t.Context(), get, statusUnswapped); err == nil {
		t.Error("an answer with another status is good")
	}
}

// Should what it edits get another name, a way would inject nothing or more than it says. That the credential arrives is seen when it
// is measured.
func TestInjectionsAreWhatTheySay(t *testing.T) {
	const lua, swap, barrier, injects, asks = "wayleave.upstream", filterSwap, filterBarrier, "envoy.filters.http.credential_injector", "filters.http.ext_proc.v3.ExternalProcessor"
	const facts = "connection.requested_server_name"
	const lane = "authorization " + laneCredential // of a route; the filters are always there
	parts := []string{lua, swap, barrier, injects, asks, realToken, clusterTCP, filterAgain, lane}
	for name, there := range map[string][]string{
		alone:        nil,
		routeHeader:  {realToken},
		injector:     {injects, realToken},
		minimal:      {asks},
		ours:         {lua, swap, barrier, asks, filterAgain},
		fast:         {lua, swap, barrier, asks, filterAgain, lane},
		fastNoEnds:   {lua, swap, barrier, asks, filterAgain, lane},
		fastNoSearch: {swap, barrier, asks, filterAgain, lane},
		fastNeither:  {swap, asks, lane},
		oursTCP:      {lua, swap, barrier, asks, clusterTCP, filterAgain},
		noAgain:      {swap, barrier, asks},
		noBarriers:   {swap, asks},
		noDecision:   {swap, asks},
		noFacts:      {swap, asks},
	} {
		route := xds.Route{Name: "api", Hosts: []string{apiHost}, ConnectTo: "127.0.0.1:1"}
		if variantNamed(name).fast {
			route.Lane = laneOf()
		}
		r, err := xds.Build(xds.Config{
			ProxyAddress: "127.0.0.1:3128", UpstreamCA: []byte("-----BEGIN CERTIFICATE-----"), APISockets: []string{"/api.sock"}, GateSockets: map[string]string{"": "/gate.sock"}, Marker: worker.Marker,
			Routes: []xds.Route{route}, AccessLogPath: "/dev/null",
		})
		if err != nil {
			t.Fatal(err)
		}
		if edit := variantNamed(name).envoy; edit != nil {
			if err := edit(r); err != nil {
				t.Fatal(err)
			}
		}
		if name == oursTCP {
			if err := overTCP(r, "127.0.0.1:2"); err != nil {
				t.Fatal(err)
			}
		}
		var text []byte
		for _, m := range r.All() {
			wire, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, wire...)
		}
		if has := bytes.Contains(text, []byte(facts)); has != slices.Contains([]string{fast, fastNoEnds, fastNoSearch, fastNeither, ours, oursTCP, noAgain, noBarriers, noDecision}, name) {
			t.Errorf("%s: facts are asked for: %t", name, has)
		}
		for _, part := range parts {
			if bytes.Contains(text, []byte(part)) != slices.Contains(there, part) {
				t.Errorf("%s: %s is there: %t", name, part, bytes.Contains(text, []byte(part)))
			}
		}
	}
}

func TestResolver(t *testing.T) {
	question := func(kind dnsmessage.Type) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.bench.test."), Type: kind, Class: dnsmessage.ClassINET}}}
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return query
	}
	for kind, want := range map[dnsmessage.Type]int{dnsmessage.TypeA: 1, dnsmessage.TypeAAAA: 0} {
		var m dnsmessage.Message
		if err := m.Unpack(here(question(kind))); err != nil || m.ID != 7 || !m.Response || len(m.Answers) != want {
			t.Errorf("%v: %v, %v", kind, m, err)
		}
	}
	if reply := here([]byte("no question")); reply != nil {
		t.Errorf("%q", reply)
	}
}

func TestTens(t *testing.T) {
	for most, want := range map[int][]int{2: {1, 2}, 10: {1, 10}, 1000: {1, 10, 100, 1000}, 20: {1, 10, 20}} {
		if got := tens(most); !slices.Equal(got, want) {
			t.Errorf("%d: %v", most, got)
		}
	}
}
