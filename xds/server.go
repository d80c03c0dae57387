package xds

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// Minter makes a leaf certificate for one lower-case host name by a root, which is as in Assignment: the certificate and the chain
// above it, its key, and when it expires. An error refuses the name. It is called from several goroutines and should not wait for
// anything outside the process: the other names of the same Envoy wait with it.
type Minter func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error)

// Options are the limits of a Server.
type Options struct {
	// MaxLeaves is how many leaf certificates are live at once; docs/performance.md has what each costs. Beyond it, those
	// asked for longest ago are withdrawn, and first those that are not themselves in the configuration. The names below
	// one wildcard, and all those spelled with capitals, have a fifth of it each. Zero: 5,000.
	MaxLeaves int
	// LeafIdle is how long after it was last asked for a leaf is withdrawn. Zero: 24 hours.
	LeafIdle time.Duration
	// Joined is told of each Envoy that connects, once it has said what it is; it must not wait. May be nil.
	Joined func(Node)
	// Changed is told when an Envoy has come, gone, or answered what it was sent; it must not wait. May be nil.
	Changed func()
	// Sent is told of each response to an Envoy, by the kind of what is in it as in TypeState, and Answered of what Envoy said to one; they
	// must not wait. May be nil.
	Sent     func(kind string)
	Answered func(kind string, refused bool)
	// Log is where refusals go. Nil: slog's default.
	Log *slog.Logger
}

func (o Options) maxLeaves() int {
	if o.MaxLeaves <= 0 {
		return 5000
	}
	return o.MaxLeaves
}

func (o Options) leafIdle() time.Duration {
	if o.LeafIdle <= 0 {
		return 24 * time.Hour
	}
	return o.LeafIdle
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.Default()
	}
	return o.Log
}

// sweepEvery is how often leaves are looked at. Looking at 5,000 of them takes less than a millisecond.
const sweepEvery = time.Second

// Server serves resources and leaf certificates over delta ADS: several revisions at once, and each node is told one of them.
type Server struct {
	log      *slog.Logger
	joined   func(Node)
	changed  func()
	sent     func(kind string)
	answered func(kind string, refused bool)
	secrets  *secrets
	nodes    nodes
	shared   memo
	ctx      context.Context // ends with Run, and with it every stream
	end      context.CancelFunc

	mu        sync.Mutex // of the last Serve
	revisions map[string]*revision
	choose    func(Node) Assignment
}

// Assignment is what one node is told.
type Assignment struct {
	Revision string // of those that are served
	Root     string // of the leaf certificates that it gets
	Drained  bool   // the same, without the listeners where workers come
}

// NewServer makes a server that has nothing to serve until Serve. Its streams last until Run's context ends.
func NewServer(mint Minter, o Options) *Server {
	s := &Server{
		log:      o.log(),
		joined:   o.Joined,
		changed:  o.Changed,
		sent:     o.Sent,
		answered: o.Answered,
		secrets:  newSecrets(mint, o.maxLeaves(), o.leafIdle(), o.log()),
	}
	if s.joined == nil {
		s.joined = func(Node) {}
	}
	if s.sent == nil {
		s.sent = func(string) {}
	}
	if s.answered == nil {
		s.answered = func(string, bool) {}
	}
	if s.changed == nil {
		s.changed = func() {}
	}
	s.shared.forget(nil)
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// Register adds the ADS service to g. Its streams last as long as Envoy does, so whoever stops g gracefully ends them first.
func (s *Server) Register(g *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, adsService{server: s})
}

// Run re-issues and withdraws leaf certificates until ctx ends, and then ends every stream.
func (s *Server) Run(ctx context.Context) {
	defer s.end()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.secrets.sweep()
		}
	}
}

// Serve sets all live revisions, and who is told which, for every node, present and future. choose is asked about each node now
// and when it connects; it must not wait and not call the Server. Resources that were served before cost nothing anew,
// so it may be called whenever choose would answer otherwise.
//
// It refuses resources that refer to one another inconsistently, and a choice that is none of the revisions; then nothing changes.
// What else Envoy thinks of them is seen in Nodes.
func (s *Server) Serve(revisions map[string]*Resources, choose func(Node) Assignment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.marshal(revisions)
	if err != nil {
		return err
	}
	present := s.nodes.present()
	targets := make([]*target, len(present))
	for i, n := range present {
		if targets[i], err = aim(next, choose(n.describe())); err != nil {
			return fmt.Errorf("serving: envoy %q: %w", n.describe().ID, err)
		}
	}
	s.revisions, s.choose = next, choose
	s.shared.forget(slices.Collect(maps.Values(next)))
	static := map[string]*secret{}
	for _, r := range next {
		maps.Copy(static, r.secrets)
	}
	s.secrets.setStatic(static)
	s.secrets.setHosts(certified(slices.Collect(maps.Values(revisions))))
	for i, n := range present {
		n.config.tell(targets[i])
	}
	s.secrets.dropRoots()
	return nil
}

// marshal makes ready what has not been served before. mu is held.
func (s *Server) marshal(revisions map[string]*Resources) (map[string]*revision, error) {
	known := slices.Collect(maps.Values(s.revisions))
	next := map[string]*revision{}
	for _, id := range slices.Sorted(maps.Keys(revisions)) {
		r := revisions[id]
		i := slices.IndexFunc(known, func(k *revision) bool { return k.from == r })
		if i < 0 {
			if err := r.check(); err != nil {
				return nil, fmt.Errorf("serving %q: %w", id, err)
			}
			known = append(known, marshal(r, known))
			i = len(known) - 1
		}
		next[id] = known[i]
	}
	return next, nil
}

// aim is what an assignment comes to.
func aim(revisions map[string]*revision, a Assignment) (*target, error) {
	r := revisions[a.Revision]
	if r == nil {
		return nil, fmt.Errorf("the revision %q, which it is to be told, is not served", a.Revision)
	}
	t := &target{revision: a.Revision, root: a.Root, drained: a.Drained, sets: r.sets}
	if a.Drained {
		t.sets[kindListeners] = r.drained
	}
	return t, nil
}

// join tells an Envoy that has just said what it is what to have.
func (s *Server) join(n *nodeStream) {
	s.joined(n.describe())
	s.assign(n)
	s.changed()
}

func (s *Server) assign(n *nodeStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.present()
	if s.choose == nil {
		return // Serve will
	}
	t, err := aim(s.revisions, s.choose(n.describe()))
	if err != nil {
		s.log.Error("an envoy is told nothing", "node", n.id(), "reason", err)
		return
	}
	n.config.tell(t)
}

func (s *Server) leave(n *nodeStream) {
	n.close()
	s.changed()
}

// RotateLeaves makes every leaf certificate anew and pushes it, as after a change of the certificate authority.
// Open connections are not touched.
func (s *Server) RotateLeaves() { s.secrets.rotate() }

// Nodes returns the state of every connected Envoy, by id.
func (s *Server) Nodes() []Node { return s.nodes.list() }

// certified is for which names certificates are made, and for which not: those that a revision refuses and no other serves.
func certified(all []*Resources) (hosts, refused []string) {
	for _, r := range all {
		hosts = append(hosts, r.Hosts...)
	}
	for _, r := range all {
		for _, name := range r.Refused {
			if !slices.ContainsFunc(all, func(other *Resources) bool { return other.certifies(name) }) {
				refused = append(refused, name)
			}
		}
	}
	return hosts, refused
}

// certifies reports whether what the most specific pattern says of a name is that its TLS ends at Envoy.
func (r *Resources) certifies(name string) bool {
	for ; name != ""; name = wider(name) {
		switch {
		case slices.Contains(r.Hosts, name):
			return true
		case slices.Contains(r.Refused, name):
			return false
		}
	}
	return false
}
