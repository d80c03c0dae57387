package xds

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
)

// Minter makes a leaf certificate for one lower-case host name: the certificate and the chain above it, its key,
// and when it expires. An error refuses the name. It is called from several goroutines and should not wait for
// anything outside the process: the other names of the same Envoy wait with it.
type Minter func(host string) (certPEM, keyPEM []byte, notAfter time.Time, err error)

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

// Server serves resources and leaf certificates over delta ADS. One fleet has one configuration, so every node
// gets the same.
type Server struct {
	log     *slog.Logger
	joined  func(Node)
	secrets *secrets
	nodes   nodes
	cache   cache.SnapshotCache
	config  delta.Server    // serves cache
	ctx     context.Context // ends with Run, and with it every stream
	end     context.CancelFunc

	mu       sync.Mutex
	clusters []*clusterv3.Cluster // of the last Publish
}

// fleet is the cache's key for every node.
const fleet = "fleet"

type oneFleet struct{}

func (oneFleet) ID(*corev3.Node) string { return fleet }

// NewServer makes a server that has nothing to serve until Publish. Its streams last until Run's context ends.
func NewServer(mint Minter, o Options) *Server {
	s := &Server{
		log:     o.log(),
		joined:  o.Joined,
		secrets: newSecrets(mint, o.maxLeaves(), o.leafIdle(), o.log()),
		cache:   cache.NewSnapshotCache(true, oneFleet{}, nil),
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.config = delta.NewServer(s.ctx, s.cache, nil)
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

// Publish gives every node, present and future, these resources. It refuses resources that refer to one another
// inconsistently; what else Envoy thinks of them is seen in Nodes.
func (s *Server) Publish(r *Resources) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets.setStatic(r.Secrets)
	s.secrets.setHosts(r.Hosts, r.Refused)
	if err := s.cache.SetSnapshot(s.ctx, fleet, snapshot(r, departed(s.clusters, r.Clusters))); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	s.clusters = r.Clusters
	return nil
}

// RotateLeaves makes every leaf certificate anew and pushes it, as after a change of the certificate authority.
// Open connections are not touched.
func (s *Server) RotateLeaves() { s.secrets.rotate() }

// Nodes returns the state of every connected Envoy, by id.
func (s *Server) Nodes() []Node { return s.nodes.list() }

// departed returns the clusters of before that are not in now. They stay until the next Publish: Envoy learns of
// clusters before routes, and a route that still named a removed one would fail for a moment.
func departed(before, now []*clusterv3.Cluster) []*clusterv3.Cluster {
	kept := namesOf(now)
	return slices.DeleteFunc(slices.Clone(before), func(c *clusterv3.Cluster) bool { return slices.Contains(kept, c.GetName()) })
}

// snapshot gives each kind of resource a version that is a hash of its content. The cache does the same for each
// resource.
func snapshot(r *Resources, departed []*clusterv3.Cluster) *cache.Snapshot {
	var snap cache.Snapshot
	snap.Resources[types.Cluster] = versioned(slices.Concat(r.Clusters, departed))
	snap.Resources[types.Route] = versioned(r.Routes)
	snap.Resources[types.Listener] = versioned(r.Listeners)
	snap.Resources[types.ExtensionConfig] = versioned(r.Extensions)
	return &snap
}

func versioned[R types.Resource](list []R) cache.Resources {
	items := make([]types.Resource, len(list))
	for i, r := range list {
		items[i] = r
	}
	return cache.NewResources(contentHash(appendMessages(nil, list)), items)
}
