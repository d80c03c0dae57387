package extproc

import (
	"context"
	"maps"

	"google.golang.org/grpc/metadata"
)

// Several revisions of the configuration may be live at once: during a rollout, some Envoys have the one and some the other. Each
// Envoy says with every question which one its routes are of, and which Envoy it is. No worker can: both are said by Envoy's
// configuration, as metadata of the gRPC call.
const (
	metadataRevision  = "wayleave-revision"
	metadataNode      = "wayleave-node"
	extensionRevision = "revision" // of ext_authz, which says it so where a route does
)

// policies are those of all revisions that are live. It is never changed.
type policies struct {
	stable *policy
	of     map[string]*policy // by their revisions, and by those as they are shown
}

func newPolicies(stable string, revisions map[string]Config) *policies {
	all := &policies{of: make(map[string]*policy, 2*len(revisions))}
	for revision, cfg := range revisions {
		p := newPolicy(cfg)
		p.revision = revision
		all.of[shortRevision(revision)] = p
		all.of[revision] = p
	}
	if all.stable = all.of[stable]; all.stable == nil {
		all.stable = newPolicy(Config{}) // which refuses everything
		all.stable.revision = stable
	}
	return all
}

// by is what decides about a request of this revision: the stable one when it is not known, or none is said.
func (p *policies) by(revision string) *policy {
	if known := p.of[revision]; known != nil {
		return known
	}
	return p.stable
}

// Update replaces the configurations at once: those of all revisions that are live, and which of them decides about the requests of
// an Envoy that says none of these. Each request is decided by the old or by the new ones, and by one of them all the way. The
// server keeps references into them, which must not be changed any more.
func (s *Server) Update(stable string, revisions map[string]Config) {
	s.live.Store(newPolicies(stable, maps.Clone(revisions)))
}

// asked notes in r who asks: which Envoy, and by which revision.
func (r *request) asked(ctx context.Context, extensions map[string]string) {
	said := func(name string) string {
		if values := metadata.ValueFromIncomingContext(ctx, name); len(values) == 1 {
			return values[0]
		}
		return ""
	}
	r.revision = said(metadataRevision)
	if r.node == "" { // ext_proc says it otherwise
		r.node = said(metadataNode)
	}
	if r.revision == "" {
		r.revision = extensions[extensionRevision]
	}
}

// shortRevision is a revision as people see it.
func shortRevision(revision string) string { return revision[:min(12, len(revision))] }
