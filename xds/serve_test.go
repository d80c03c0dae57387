package xds

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// pupil is the client end of the configuration's half of a stream, one step at a time.
type pupil struct {
	t      *testing.T
	stream *nodeStream
	server *Server
	has    map[string]string // "type name" → version
	nonce  int
}

func learn(t *testing.T, s *Server, id, group string) *pupil {
	p := &pupil{t: t, server: s, has: map[string]string{}}
	p.stream = s.nodes.open(newFollower(&s.shared, s.secrets.join()))
	p.stream.node = &corev3.Node{Id: id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"group": structpb.NewStringValue(group)}}}
	s.join(p.stream)
	for k := range kinds {
		p.subscribe(k)
	}
	return p
}

func (p *pupil) subscribe(k kind) {
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[k]}
	if !k.wildcard() {
		req.ResourceNamesSubscribe = []string{"r"}
	}
	p.stream.config.receive(req)
}

// next is the next response, in words; the answer is an acknowledgement unless it is refused.
func (p *pupil) next(refuse bool) string {
	p.t.Helper()
	p.nonce++
	resp := p.stream.config.next(fmt.Sprint(p.nonce))
	if resp == nil {
		return ""
	}
	words := shortType(resp.GetTypeUrl())
	for _, r := range resp.GetResources() {
		words += " +" + r.GetName()
	}
	for _, name := range resp.GetRemovedResources() {
		words += " -" + name
	}
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refuse {
		answer.ErrorDetail = &rpcstatus.Status{Code: 13, Message: "no"}
	}
	p.stream.config.receive(answer)
	return words
}

// all is everything that is sent, each response taken.
func (p *pupil) all() []string {
	p.t.Helper()
	var out []string
	for {
		words := p.next(false)
		if words == "" {
			return out
		}
		out = append(out, words)
	}
}

func (p *pupil) node() Node { return p.stream.describe() }

// small is a Resources of two clusters, one of its own, and a route to it.
func small(own string) *Resources {
	return &Resources{
		Clusters: []*clusterv3.Cluster{{Name: "common"}, {Name: own}},
		Routes: []*routev3.RouteConfiguration{{Name: "r", VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{Name: own, Match: prefix("/"), Action: &routev3.Route_Route{Route: routeTo(own)}}},
		}}}},
		Listeners: []*listenerv3.Listener{{Name: listenerProxy}, {Name: listenerIntercept, StatPrefix: own}},
	}
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// A node is led from one revision to another: what is new before what refers to it, what is gone not before it is told
// something else again, and what it has is said when it has it whole.
func TestServeLeadsFromRevisionToRevision(t *testing.T) {
	s := NewServer(nil, Options{})
	live := map[string]*Resources{"a": small("a"), "b": small("b"), "c": small("c")}
	assigned := Assignment{Revision: "a"}
	choose := func(n Node) Assignment {
		if n.ID != "n" || n.Group != "g" {
			t.Errorf("asked about %+v", n)
		}
		return assigned
	}
	serve := func() {
		t.Helper()
		if err := s.Serve(live, choose); err != nil {
			t.Fatal(err)
		}
	}
	serve()
	p := learn(t, s, "n", "g")
	want(t, "at first", p.all(), "Cluster +a +common", "TypedExtensionConfig -r", "RouteConfiguration +r", "VirtualHost", "Listener +intercept +proxy")
	if n := p.node(); n.Revision != "a" || n.Has != "a" || !n.Listening || n.Drained {
		t.Errorf("node %+v", n)
	}
	serve()
	want(t, "the same again", p.all())

	assigned.Revision = "b"
	serve()
	want(t, "first to b", []string{p.next(false)}, "Cluster +b")
	if n := p.node(); n.Revision != "b" || n.Has != "" {
		t.Errorf("node %+v", n)
	}
	want(t, "then to b", p.all(), "RouteConfiguration +r", "Listener +intercept")
	if n := p.node(); n.Has != "b" {
		t.Errorf("node %+v", n)
	}
	assigned.Revision = "c"
	serve()
	want(t, "to c", p.all(), "Cluster +c -a", "RouteConfiguration +r", "Listener +intercept")

	assigned.Drained = true
	serve()
	want(t, "drained", p.all(), "Cluster -b", "Listener -proxy")
	if n := p.node(); n.Has != "c" || !n.Drained {
		t.Errorf("node %+v", n)
	}
	assigned.Drained = false
	serve()
	want(t, "open again", p.all(), "Listener +proxy")

	// Told something else on the way: only the newest counts, and what no route named goes at once.
	assigned.Revision = "a"
	serve()
	want(t, "on the way to a", []string{p.next(false)}, "Cluster +a")
	assigned.Revision = "b"
	serve()
	want(t, "to b", p.all(), "Cluster +b -a", "RouteConfiguration +r", "Listener +intercept")

	assigned.Revision = "unknown"
	if err := s.Serve(live, choose); err == nil {
		t.Error("an unknown revision was taken")
	}
	want(t, "after the error", p.all())
	if n := p.node(); n.Has != "b" || n.Revision != "b" {
		t.Errorf("node %+v", n)
	}
}

// A node that refuses something gets nothing that refers to it, and is led back to what it had.
func TestServeAfterARefusal(t *testing.T) {
	s := NewServer(nil, Options{})
	live := map[string]*Resources{"a": small("a"), "b": small("b")}
	told := "a"
	serve := func() {
		t.Helper()
		if err := s.Serve(live, func(Node) Assignment { return Assignment{Revision: told} }); err != nil {
			t.Fatal(err)
		}
	}
	serve()
	p := learn(t, s, "n", "")
	p.all()
	told = "b"
	serve()
	want(t, "what is refused", []string{p.next(true)}, "Cluster +b")
	want(t, "after it was refused", p.all())
	told = "a"
	serve()
	want(t, "back", p.all(), "Cluster -b")
	if n := p.node(); n.Has != "a" || !n.Listening {
		t.Errorf("node %+v", n)
	}
	told = "b"
	serve()
	want(t, "again", p.all(), "Cluster +b", "RouteConfiguration +r", "Listener +intercept")

	// One that has nothing yet gets what it can.
	q := learn(t, s, "m", "")
	want(t, "what is refused", []string{q.next(true)}, "Cluster +b +common")
	want(t, "all the same", q.all(), "TypedExtensionConfig -r", "RouteConfiguration +r", "VirtualHost", "Listener +intercept +proxy")
	if n := q.node(); n.Has != "" || !n.Listening {
		t.Errorf("node %+v", n)
	}
}

// An Envoy that comes back tells what it has, and is sent what is new. Its clusters stay for the moment, as its routes may name them.
func TestServeToWhoComesBack(t *testing.T) {
	s := NewServer(nil, Options{})
	if err := s.Serve(map[string]*Resources{"a": small("a")}, func(Node) Assignment { return Assignment{Revision: "a"} }); err != nil {
		t.Fatal(err)
	}
	p := &pupil{t: t, server: s}
	p.stream = s.nodes.open(newFollower(&s.shared, s.secrets.join()))
	p.stream.node = &corev3.Node{Id: "n"}
	s.join(p.stream)
	sets := s.revisions["a"].sets
	for k := range kinds {
		had := map[string]string{}
		for name, r := range sets[k].items {
			had[name] = r.GetVersion()
		}
		if k == kindClusters {
			had["a"], had["old"] = "older", "1"
		}
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[k], InitialResourceVersions: had}
		if !k.wildcard() {
			req.ResourceNamesSubscribe = []string{"r"}
		}
		p.stream.config.receive(req)
	}
	got := p.all()
	slices.Sort(got)
	want(t, "what is sent", got, "Cluster +a", "Listener", "RouteConfiguration", "TypedExtensionConfig -r", "VirtualHost")
	if n := p.node(); n.Has != "a" {
		t.Errorf("node %+v", n)
	}
}

// Routes that want a cluster wait for its secret too.
func TestServeWaitsForSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(nil, Options{})
		told := "a"
		serve := func() {
			t.Helper()
			live := map[string]*Resources{"a": small("a"), "b": small("b")}
			live["b"].Secrets = []*tlsv3.Secret{caSecret("static/ca", []byte("CA"))}
			if err := s.Serve(live, func(Node) Assignment { return Assignment{Revision: told} }); err != nil {
				t.Fatal(err)
			}
		}
		serve()
		p := learn(t, s, "n", "")
		p.all()
		told = "b"
		serve()
		p.stream.config.secrets.receive(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"static/ca"}})
		want(t, "while a secret is owed", p.all(), "Cluster +b")
		p.stream.config.secrets.next("n")
		want(t, "while a secret is not acknowledged", p.all())
		p.stream.config.secrets.receive(&discovery.DeltaDiscoveryRequest{ResponseNonce: "n"})
		want(t, "then", p.all(), "RouteConfiguration +r", "Listener +intercept")
	})
}

// A node that has not answered owes nothing more than that, however often it is told something else; then it gets the newest.
func TestServeWaitsForAnswers(t *testing.T) {
	s := NewServer(nil, Options{})
	live := map[string]*Resources{}
	told := "0"
	for i := range 100 {
		live[fmt.Sprint(i)] = small(fmt.Sprintf("own%d", i))
	}
	serve := func() {
		t.Helper()
		if err := s.Serve(live, func(Node) Assignment { return Assignment{Revision: told} }); err != nil {
			t.Fatal(err)
		}
	}
	serve()
	p := learn(t, s, "n", "")
	p.all()
	told = "1"
	serve()
	sent := p.stream.config.next("first")
	for i := range 100 {
		told = fmt.Sprint(i)
		serve()
		if again := p.stream.config.next("more"); again != nil {
			t.Fatalf("sent before the answer: %v", again)
		}
	}
	p.stream.config.receive(&discovery.DeltaDiscoveryRequest{TypeUrl: sent.GetTypeUrl(), ResponseNonce: "first"})
	got := p.all()
	want(t, "in the end", got[1:], "RouteConfiguration +r", "Listener +intercept")
	if n := p.node(); n.Has != "99" {
		t.Errorf("node %+v", n)
	}
}

// Of two revisions a name gets its certificate when one of them serves it.
func TestCertified(t *testing.T) {
	a := &Resources{Hosts: []string{"*.a.test", "b.test"}, Refused: []string{"x.a.test", "y.test", "z.test"}}
	b := &Resources{Hosts: []string{"*.a.test", "y.test"}, Refused: []string{"b.test", "z.test"}}
	hosts, refused := certified([]*Resources{a, b})
	slices.Sort(hosts)
	want(t, "hosts", slices.Compact(hosts), "*.a.test", "b.test", "y.test")
	slices.Sort(refused)
	want(t, "refused", slices.Compact(refused), "z.test")
}
