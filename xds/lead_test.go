package xds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// walker is an Envoy that keeps what it takes, refuses now and then, and comes back after a lost connection.
type walker struct {
	t      *testing.T
	server *Server
	stream *nodeStream
	nonce  int
	has    [kinds]map[string]*discovery.Resource
	asked  []*discovery.DeltaDiscoveryResponse // not answered yet
}

func (w *walker) connect() {
	if w.stream != nil {
		w.server.leave(w.stream)
	}
	w.asked = nil
	w.stream = w.server.nodes.open(newFollower(&w.server.shared, w.server.secrets.join()))
	w.stream.received(&discovery.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "walker"}})
	w.server.join(w.stream)
	for k := range kinds {
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[k], InitialResourceVersions: map[string]string{}}
		for name, r := range w.has[k] {
			req.InitialResourceVersions[name] = r.GetVersion()
		}
		if !k.wildcard() {
			req.ResourceNamesSubscribe = []string{"r"}
		}
		w.stream.config.receive(req)
	}
}

// receive takes what is sent next, if anything is.
func (w *walker) receive() bool {
	w.nonce++
	resp := w.stream.config.next(fmt.Sprint(w.nonce))
	if resp == nil {
		return false
	}
	for _, other := range w.asked {
		if other.GetTypeUrl() == resp.GetTypeUrl() {
			w.t.Fatal("two responses of one kind are not answered")
		}
	}
	w.asked = append(w.asked, resp)
	return true
}

// answer answers the response that was sent first. Envoy answers in order.
func (w *walker) answer(refuse bool) {
	resp := w.asked[0]
	w.asked = w.asked[1:]
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refuse {
		req.ErrorDetail = &rpcstatus.Status{Code: 13}
	} else {
		k, _ := kindOfType(resp.GetTypeUrl())
		for _, r := range resp.GetResources() {
			if r.GetResource() == nil {
				w.t.Fatalf("%s has no content", r.GetName())
			}
			w.has[k][r.GetName()] = r
		}
		for _, name := range resp.GetRemovedResources() {
			delete(w.has[k], name)
		}
	}
	w.stream.config.receive(req)
}

// routed is the cluster of the route that the walker has.
func (w *walker) routed() string {
	r := w.has[kindRoutes]["r"]
	if r == nil {
		return ""
	}
	var c routev3.RouteConfiguration
	if err := r.GetResource().UnmarshalTo(&c); err != nil {
		w.t.Fatal(err)
	}
	return c.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()
}

// Whatever an Envoy is told, and however it answers, its routes never name a cluster that it does not have, and in the end it
// has what it is to have.
func TestServeInAnyOrder(t *testing.T) {
	for seed := range uint64(1000) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := NewServer(nil, Options{})
		live := map[string]*Resources{}
		for _, id := range []string{"a", "b", "c", "d"} {
			live[id] = small(id)
		}
		told := Assignment{Revision: "a"}
		serve := func() {
			if err := s.Serve(live, func(Node) Assignment { return told }); err != nil {
				t.Fatal(err)
			}
		}
		serve()
		w := &walker{t: t, server: s}
		for k := range kinds {
			w.has[k] = map[string]*discovery.Resource{}
		}
		w.connect()
		settle := func() {
			for w.receive() || len(w.asked) > 0 {
				for len(w.asked) > 0 {
					w.answer(false)
				}
			}
		}
		settle() // an Envoy that begins with refusals has nothing to lose
		for range 40 {
			switch random.IntN(12) {
			case 0, 1:
				told = Assignment{Revision: string("abcd"[random.IntN(4)]), Drained: random.IntN(3) == 0}
				serve()
			case 2:
				w.connect()
			case 3:
				live["d"] = small([]string{"d", "e"}[random.IntN(2)]) // another that is called the same
				serve()
			case 4, 5, 6, 7:
				w.receive()
			default:
				if len(w.asked) > 0 {
					w.answer(random.IntN(8) == 0)
				}
			}
			if c := w.routed(); w.has[kindClusters][c] == nil {
				t.Fatalf("seed %d: the route names %q, and the clusters are %v", seed, c, sortedKeys(w.has[kindClusters]))
			}
		}
		for _, id := range []string{"a", "b", "a", "b"} { // what was refused is sent again once it is told anew
			told = Assignment{Revision: id}
			serve()
			settle()
		}
		n := w.stream.describe()
		if n.Has != "b" || n.Revision != "b" || !n.Listening || w.routed() != "b" || len(w.has[kindListeners]) != 2 {
			t.Fatalf("seed %d: %+v, has %v", seed, n, w.has)
		}
		if got := sortedKeys(w.has[kindClusters]); !slices.Contains(got, "b") || len(got) > 3 {
			t.Fatalf("seed %d: clusters %v", seed, got)
		}
	}
}

// Many Envoys come, answer and go while they are led to and fro: for the race detector.
func TestServeConcurrently(t *testing.T) {
	s := NewServer(nil, Options{})
	live := map[string]*Resources{"a": small("a"), "b": small("b")}
	if err := s.Serve(live, func(Node) Assignment { return Assignment{Revision: "a"} }); err != nil {
		t.Fatal(err)
	}
	var walkers sync.WaitGroup
	for range 8 {
		walkers.Go(func() {
			w := &walker{t: t, server: s}
			for k := range kinds {
				w.has[k] = map[string]*discovery.Resource{}
			}
			for range 20 {
				w.connect()
				for w.receive() || len(w.asked) > 0 {
					for len(w.asked) > 0 {
						w.answer(false)
					}
				}
			}
			s.leave(w.stream)
		})
	}
	for i := range 200 {
		told := Assignment{Revision: []string{"a", "b"}[i%2], Drained: i%3 == 0}
		if err := s.Serve(live, func(Node) Assignment { return told }); err != nil {
			t.Fatal(err)
		}
		s.Nodes()
	}
	walkers.Wait()
	if n := s.Nodes(); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}
