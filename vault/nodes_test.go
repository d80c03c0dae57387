package vault

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// clusterNode is one that a test closes, seals and breaks.
type clusterNode struct {
	*httptest.Server
	answer atomic.Pointer[http.HandlerFunc] // nil: it is well
	got    atomic.Int64                     // requests for documents
}

func startNode(t *testing.T) *clusterNode {
	n := new(clusterNode)
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/data/") {
			n.got.Add(1)
		}
		if f := n.answer.Load(); f != nil {
			(*f)(w, r)
			return
		}
		vaultHandler(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				fmt.Fprint(w, aDocument)
				return
			}
			fmt.Fprint(w, `{"data":{"version":4}}`)
		})(w, r)
	}))
	t.Cleanup(n.Close)
	return n
}

func (n *clusterNode) answers(f http.HandlerFunc) { n.answer.Store(&f) }

func sealedNode(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprint(w, `{"errors":["Vault is sealed"]}`)
}

func nodesOf(t *testing.T, n int) []*clusterNode {
	t.Helper()
	var all []*clusterNode
	for range n {
		all = append(all, startNode(t))
	}
	return all
}

// A node that is away, or sealed, costs no call; not even at the log-in.
func TestNodesAway(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*clusterNode){
		"gone":   func(n *clusterNode) { n.CloseClientConnections(); n.Listener.Close() },
		"sealed": func(n *clusterNode) { n.answers(sealedNode) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := nodesOf(t, 3)
			away(all[0])
			c := openAt(t, Config{Address: all[0].URL, Nodes: []string{all[1].URL, all[2].URL}})
			use := func() {
				t.Helper()
				if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil || v != 3 {
					t.Errorf("read version %d, %v", v, err)
				}
				if v, err := c.Put(t.Context(), "grants/a", map[string]string{}, 3); err != nil || v != 4 {
					t.Errorf("wrote version %d, %v", v, err)
				}
			}
			use()
			if all[1].got.Load() != 2 {
				t.Errorf("the second node was asked %d times; want all of it", all[1].got.Load())
			}
			away(all[1])
			use()
			if name == "sealed" {
				all[0].answer.Store(nil)
				away(all[2])
				use()
			}
		})
	}
}

// A node that is silent leaves time to ask another one within the call.
func TestNodeSilent(t *testing.T) {
	t.Parallel()
	all := nodesOf(t, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and no more
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	secure := httptest.NewTLSServer(all[0].Config.Handler)
	defer secure.Close()
	hosts, err := newNodes("https://"+l.Addr().String(), []string{secure.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, transport, err := dialer("https://"+l.Addr().String(), "", 2)
	if err != nil {
		t.Fatal(err)
	}
	transport.TLSClientConfig.RootCAs = secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+l.Addr().String()+"/v1/wayleave/data/a", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := anyNode{transport, hosts}.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if hosts.current.Load() != 1 {
		t.Error("the next request goes to the silent node again")
	}
}

// A write that a node may have acted on is not sent to another one; the next one is.
func TestNodeBreaksOff(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]http.HandlerFunc{
		"closes the connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"has no leader": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"errors":["local node not active but active cluster node not found"]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := nodesOf(t, 2)
			c := openAt(t, Config{Address: all[0].URL, Nodes: []string{all[1].URL}})
			all[0].answers(breaks)
			if _, err := c.Put(t.Context(), "grants/a", map[string]string{}, 3); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v; want it left open whether it was written", err)
			}
			if all[1].got.Load() != 0 {
				t.Error("the write went to the other node too")
			}
			if v, err := c.Put(t.Context(), "grants/a", map[string]string{}, 3); err != nil || v != 4 {
				t.Errorf("the next one: version %d, %v", v, err)
			}
		})
	}
}

// An empty answer is none, and a read is asked of another node.
func TestNodeSaysNothing(t *testing.T) {
	t.Parallel()
	all := nodesOf(t, 2)
	c := openAt(t, Config{Address: all[0].URL, Nodes: []string{all[1].URL}})
	all[0].answers(func(http.ResponseWriter, *http.Request) {})
	if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil || v != 3 {
		t.Errorf("version %d, %v", v, err)
	}
}

// The active node that a standby names is the one that is asked from then on.
func TestNodeNamesActive(t *testing.T) {
	t.Parallel()
	all := nodesOf(t, 2)
	c := openAt(t, Config{Address: all[0].URL, Nodes: []string{all[1].URL}})
	c.nodes.current.Store(1)
	all[1].answers(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, all[0].URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if v, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil || v != 3 {
		t.Errorf("version %d, %v", v, err)
	}
	if c.nodes.current.Load() != 0 {
		t.Error("the standby is asked again")
	}
}

func TestNodesRefused(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"http://b:8200", "b:8200", "unix:///b", "https://"} {
		if _, err := Open(t.Context(), Config{Address: "https://a:8200", Nodes: []string{node}, Auth: given}, nil); err == nil || !strings.Contains(err.Error(), "https://host:port") {
			t.Errorf("%s: %v", node, err)
		}
	}
	if _, err := Open(t.Context(), Config{Address: "unix:///a", Nodes: []string{"http://b:8200"}, Auth: given}, nil); err == nil {
		t.Error("a socket with further nodes was taken")
	}
}
