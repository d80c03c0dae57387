package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Node is one connected Envoy.
type Node struct {
	ID, Cluster string    // from its bootstrap
	Group       string    // too, "group" of its metadata
	Version     string    // of Envoy, as 1.40.0
	Since       time.Time // when its stream began
	Revision    string    // it is told
	Has         string    // the revision that it has acknowledged whole; empty: none, or it is on the way to another
	Drained     bool      // it is told to have no listeners where workers come
	Listening   bool      // it has acknowledged listeners, and has not refused the newest
	Types       []TypeState
}

// TypeState is how far a Node has come with one kind of resource.
type TypeState struct {
	Type  string // Listener, RouteConfiguration, VirtualHost, Cluster, TypedExtensionConfig or Secret
	Sent  string // the version sent last
	Sends int    // how many responses were sent
	Acked string // the version Envoy took last
	// Refused is the version Envoy refused last and Error what it said, until it takes another. Envoy may have
	// applied a part of a refused response, and goes on with its old version of the rest.
	Refused, Error string
}

// Current reports whether the node has taken all that was sent to it.
func (n Node) Current() bool {
	return len(n.Types) > 0 && !slices.ContainsFunc(n.Types, func(t TypeState) bool { return t.Sent != t.Acked })
}

// nodes follows the state of all streams.
type nodes struct {
	mu      sync.Mutex
	streams map[*nodeStream]struct{}
}

// nodeStream is one stream's state, guarded by nodes.mu.
type nodeStream struct {
	nodes   *nodes
	config  *follower // which has a lock of its own
	node    *corev3.Node
	here    bool // told of to whoever chooses
	since   time.Time
	types   map[string]*TypeState
	pending map[string]string // type and nonce → version, until acknowledged
}

func (n *nodes) open(config *follower) *nodeStream {
	s := &nodeStream{nodes: n, config: config, since: time.Now(), types: map[string]*TypeState{}, pending: map[string]string{}}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams == nil {
		n.streams = map[*nodeStream]struct{}{}
	}
	n.streams[s] = struct{}{}
	return s
}

func (s *nodeStream) close() {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	delete(s.nodes.streams, s)
}

// sending must come before the response is sent, or the acknowledgement could overtake it.
func (s *nodeStream) sending(resp *discovery.DeltaDiscoveryResponse) {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	t := s.types[resp.GetTypeUrl()]
	if t == nil {
		t = &TypeState{Type: shortType(resp.GetTypeUrl())}
		s.types[resp.GetTypeUrl()] = t
	}
	t.Sent = resp.GetSystemVersionInfo()
	t.Sends++
	s.pending[resp.GetTypeUrl()+" "+resp.GetNonce()] = t.Sent
}

// received reports whether req answers a response, and returns the type and the error when it refuses it.
// Envoy tells its node in the first request of a stream only.
func (s *nodeStream) received(req *discovery.DeltaDiscoveryRequest) (refused, reason string, answered bool) {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	if req.GetNode() != nil {
		s.node = req.GetNode()
	}
	key := req.GetTypeUrl() + " " + req.GetResponseNonce()
	version, known := s.pending[key]
	if !known {
		return "", "", false
	}
	delete(s.pending, key)
	t := s.types[req.GetTypeUrl()]
	if e := req.GetErrorDetail(); e != nil {
		t.Refused, t.Error = version, e.GetMessage()
		return t.Type, t.Error, true
	}
	t.Acked, t.Refused, t.Error = version, "", ""
	return "", "", true
}

// present makes the stream one of those that Serve tells.
func (s *nodeStream) present() {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	s.here = true
}

// present are the streams whose Envoys have said what they are.
func (n *nodes) present() []*nodeStream {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*nodeStream
	for s := range n.streams {
		if s.here {
			out = append(out, s)
		}
	}
	return out
}

func (s *nodeStream) id() string {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	return s.node.GetId()
}

// describe is all of a Node but its Types.
func (s *nodeStream) describe() Node {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	return s.known()
}

// known is called with nodes.mu held.
func (s *nodeStream) known() Node {
	out := s.config.state()
	out.ID, out.Cluster, out.Version, out.Since = s.node.GetId(), s.node.GetCluster(), envoyVersion(s.node), s.since
	out.Group = s.node.GetMetadata().GetFields()["group"].GetStringValue()
	return out
}

func (n *nodes) list() []Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Node
	for s := range n.streams {
		if s.node == nil {
			continue // nothing received yet
		}
		node := s.known()
		for _, url := range slices.Sorted(maps.Keys(s.types)) {
			node.Types = append(node.Types, *s.types[url])
		}
		out = append(out, node)
	}
	slices.SortFunc(out, func(a, b Node) int { return cmp.Or(cmp.Compare(a.ID, b.ID), a.Since.Compare(b.Since)) })
	return out
}

// buildLabel is what follows the hyphen of a version, as dev (Envoy's source/common/version/version.cc).
const buildLabel = "build.label"

func envoyVersion(n *corev3.Node) string {
	v := n.GetUserAgentBuildVersion().GetVersion()
	version := fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	if label := n.GetUserAgentBuildVersion().GetMetadata().GetFields()[buildLabel].GetStringValue(); label != "" {
		version += "-" + strings.TrimPrefix(label, "-")
	}
	return version
}

func shortType(url string) string { return url[strings.LastIndexByte(url, '.')+1:] }
