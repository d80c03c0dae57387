package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/extproc"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/identity"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/worker"
	"wayleave/xds"
)

// revision is one revision of the configuration, as this gate serves it.
type revision struct {
	fleet.Revision
	cfg       *config.Config
	specs     []grant.Spec
	exchanges map[string]grant.Exchange
	resources *xds.Resources
	policy    extproc.Config
	laned     []config.Route
	workers   *worker.Registry
	vouching  *identity.Verifier
	enrolment http.Handler // made when it is served for the first time
}

// set is all revisions that some Envoy has or may get. It is never changed.
type set struct {
	state  rollout.State
	stable *revision
	all    map[string]*revision // by id, which is what a name in the state has of it; stable too
}

// of is the revision that a request came under, as its Envoy says. One that is not known, such as that of an Envoy that was
// away, is none that operators want any more.
func (s *set) of(id string) *revision {
	if r := s.all[id]; r != nil {
		return r
	}
	return s.stable
}

// assign says what an Envoy is told.
func (s *set) assign(n xds.Node) xds.Assignment {
	name := s.state.Revision(n.ID)
	if s.all[fleet.Configuration(name)] == nil {
		name = s.state.Stable
	}
	return xds.Assignment{Revision: name, Root: fleet.Root(name), Drained: slices.Contains(s.state.Drained, n.ID)}
}

// roots are the root CAs of which Envoys get certificates.
func (s *set) roots() []string {
	var all []string
	for _, name := range s.state.Revisions() {
		all = append(all, fleet.Root(name))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ordered are the revisions, the stable one first.
func (s *set) ordered() []*revision {
	list := []*revision{s.stable}
	for _, id := range slices.Sorted(maps.Keys(s.all)) {
		if s.all[id] != s.stable {
			list = append(list, s.all[id])
		}
	}
	return list
}

// specs are the grants of all revisions; of one that is in several, as the stable one has it. asked are scopes that a
// revision which waits for them needs too.
func (s *set) specs(asked map[string][]string) []grant.Spec {
	var specs []grant.Spec
	known := map[string]bool{}
	for _, r := range s.ordered() {
		for _, spec := range r.specs {
			if known[spec.Name] {
				continue
			}
			known[spec.Name] = true
			for _, scope := range asked[spec.Name] {
				if !slices.Contains(spec.Scopes, scope) {
					spec.Scopes = append(slices.Clone(spec.Scopes), scope)
				}
			}
			specs = append(specs, spec)
		}
	}
	return specs
}

// exchanges are those of all revisions, likewise.
func (s *set) exchanges() map[string]grant.Exchange {
	rules := map[string]grant.Exchange{}
	list := s.ordered()
	for _, r := range slices.Backward(list) {
		maps.Copy(rules, r.exchanges)
	}
	return rules
}

// domains are the hosts of all revisions.
func (s *set) domains() []string {
	var all []string
	for _, r := range s.ordered() {
		all = append(all, r.cfg.CertifiedHosts()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// resources are what Envoys get, by name; policies what requests do, by revision: the root CA says nothing of them.
func (s *set) resources() map[string]*xds.Resources {
	all := map[string]*xds.Resources{}
	for _, name := range s.state.Revisions() {
		if r := s.all[fleet.Configuration(name)]; r != nil {
			all[name] = r.resources
		}
	}
	return all
}

func (s *set) policies() map[string]extproc.Config {
	all := map[string]extproc.Config{}
	for id, r := range s.all {
		all[id] = r.policy
	}
	return all
}

// revisions are what the gate serves now, for everybody who asks. It changes with the state of the rollout.
type revisions struct {
	gate   gate
	docs   fleet.Documents
	loaded map[string]*revision // belongs to whoever calls load, of which there is one at a time
	now    atomic.Pointer[set]

	mu    sync.Mutex
	kept  *set                // guarded by mu; whose grants are kept
	asked map[string][]string // guarded by mu; scopes that a revision waits for, by grant

	sessions  *worker.Sessions
	grants    *grant.Keeper
	exchanger *grant.Exchanger
	authority *ca.Authority
	swap      *extproc.Server
	envoys    *xds.Server
}

// load gets ready for a state. It fails if the stable revision cannot be served here; unable are the others that cannot.
func (v *revisions) load(ctx context.Context, s rollout.State) (next *set, unable map[string]error, err error) {
	next, unable = &set{state: s, all: map[string]*revision{}}, map[string]error{}
	for _, name := range s.Revisions() {
		id := fleet.Configuration(name)
		r := cmp.Or(next.all[id], v.loaded[id])
		if r == nil {
			if r, err = v.prepare(ctx, id); err != nil {
				unable[name] = err
				continue
			}
		}
		next.all[id] = r
	}
	if next.stable = next.all[fleet.Configuration(s.Stable)]; next.stable == nil {
		return nil, unable, fmt.Errorf("this gate cannot serve the revision %.12s, which its fleet has: %w", s.Stable, unable[s.Stable])
	}
	v.loaded = next.all
	return next, unable, nil
}

// prepare makes of a stored revision what is needed to serve it here.
func (v *revisions) prepare(ctx context.Context, id string) (*revision, error) {
	stored, err := fleet.LoadRevision(ctx, v.docs, id)
	if err != nil {
		return nil, err
	}
	cfg, err := v.gate.join(stored)
	if err != nil {
		return nil, err
	}
	return v.make(stored, cfg)
}

// make is prepare for a configuration with its secrets.
func (v *revisions) make(stored fleet.Revision, cfg *config.Config) (*revision, error) {
	var err error
	r := &revision{Revision: stored, cfg: cfg, specs: v.keptSpecs(cfg)}
	r.exchanges = exchanges(cfg, r.specs)
	if r.resources, err = envoyResources(cfg, stored.ID, v.gate.sockets, v.gate.accessLog); err != nil {
		return nil, err
	}
	for _, f := range hostFaults(cfg, r.resources.Quarantined) {
		v.gate.log.Error("a host has a fault in the configuration and is refused; the others are served", "revision", rollout.Short(stored.ID), "fault", f, "fix", "mend it, and see that 'wayleave config check' finds no other")
	}
	r.policy, r.laned = swapConfig(cfg, r.resources.Quarantined), laned(cfg)
	workers, err := v.gate.workers(cfg)
	if err != nil {
		return nil, err
	}
	if r.workers, err = worker.NewRegistry(workers); err != nil {
		return nil, err
	}
	if r.vouching, err = issuers(cfg, v.gate.log); err != nil {
		return nil, err
	}
	return r, nil
}

// keptSpecs are the specs of cfg, with the clients of the revisions that are loaded where those mean the same: a grant that is
// kept in the same way then notices nothing.
func (v *revisions) keptSpecs(cfg *config.Config) []grant.Spec {
	specs := operate.Specs(cfg)
	for i := range specs {
		is, _ := cfg.ProviderOf(specs[i].Name)
		for _, r := range v.loaded {
			was, known := r.cfg.ProviderOf(specs[i].Name)
			if !known || !reflect.DeepEqual(was.Config, is.Config) {
				continue
			}
			if j := slices.IndexFunc(r.specs, func(s grant.Spec) bool { return s.Name == specs[i].Name }); j >= 0 && r.specs[j].Kind == specs[i].Kind {
				specs[i].OAuth = r.specs[j].OAuth
			}
		}
	}
	return specs
}

// applyTimeout is for what a change needs of Vault: a certificate for the names that are new.
const applyTimeout = 30 * time.Second

// apply makes this gate and its Envoys go by a state. Whatever fails, what was served before goes on.
func (v *revisions) apply(ctx context.Context, s rollout.State) (unable map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	next, unable, err := v.load(ctx, s)
	if err != nil {
		v.gate.log.Error("a revision cannot be served; this gate goes on with what it has", "revision", rollout.Short(s.Stable), "err", err)
		return unable
	}
	// What requests need is there before an Envoy lets them come.
	if err := v.tell(ctx, next); err != nil {
		v.gate.log.Error("a change could not be made whole; it is tried again", "err", err)
		for _, name := range s.Revisions() {
			unable[name] = err
		}
	}
	return unable
}

// tell makes everything that has to do with requests go by next.
func (v *revisions) tell(ctx context.Context, next *set) error {
	if err := v.keep(ctx, func() { v.kept = next }); err != nil {
		return fmt.Errorf("keeping the grants: %w", err)
	}
	if err := v.authority.Certify(ctx, next.domains(), next.roots()); err != nil {
		return fmt.Errorf("certifying the hosts: %w", err)
	}
	v.exchanger.Update(next.exchanges())
	return v.serve(next)
}

// serve is tell for what needs nothing to be done first.
func (v *revisions) serve(next *set) error {
	for _, r := range next.all {
		if r.enrolment == nil {
			r.enrolment = worker.NewAPI(worker.APIConfig{
				Workers: r.workers, Issuers: r.vouching, Sessions: v.sessions, CA: v.authority.RootPEM, Ports: ports(r.cfg), Log: v.gate.log,
				Credentials: credentials(r.cfg, v.sessions, v.grants),
			})
		}
	}
	if was := v.now.Load(); was == nil || was == next || was.stable != next.stable || !maps.Equal(was.all, next.all) { // not whenever another Envoy is chosen
		v.swap.Update(next.stable.ID, next.policies())
	}
	v.now.Store(next)
	if err := v.envoys.Serve(next.resources(), next.assign); err != nil {
		return fmt.Errorf("telling the Envoys: %w", err)
	}
	return nil
}

// keep changes whose grants are kept, or for which scopes. The lock is held while the keeper takes that over, which needs nobody else.
func (v *revisions) keep(ctx context.Context, change func()) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
	if v.kept == nil {
		return nil // nothing is kept yet
	}
	return v.grants.Update(ctx, v.kept.specs(v.asked))
}

// want makes operators be asked for scopes that a revision needs before it can begin: its grants say so, a connect asks for
// them, and what they can do already is served meanwhile.
func (v *revisions) want(ctx context.Context, asked map[string][]string) error {
	if maps.EqualFunc(v.wanted(), asked, slices.Equal) {
		return nil
	}
	return v.keep(ctx, func() { v.asked = asked })
}

// wanted are those scopes.
func (v *revisions) wanted() map[string][]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

// desk is where operators work now.
func (v *revisions) desk(docs grant.Documents) operate.Desk {
	now := v.now.Load()
	d := v.gate.desk(docs)
	d.Config, d.Specs = now.stable.cfg, now.specs(v.wanted())
	return d
}

// summaries are the grants as this gate knows them.
func (v *revisions) summaries() []grant.Summary {
	var all []grant.Summary
	for _, spec := range v.now.Load().specs(nil) {
		all = append(all, v.grants.Summary(spec.Name))
	}
	return all
}

// underWay reports whether a rollout is.
func (v *revisions) underWay() bool { return v.now.Load().state.Current != nil }

// ServeHTTP answers workers by the revision that their Envoy has.
func (v *revisions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.now.Load().of(r.Header.Get(xds.RevisionHeader)).enrolment.ServeHTTP(w, r)
}
