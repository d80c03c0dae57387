package xds

import (
	"context"
	"slices"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// follower is the configuration half of one Envoy's ADS stream: what the Envoy shall have, what it has, and what it is sent
// next. It owes the newest state only, never a row of states, and of each kind one response at a time until Envoy has answered it.
//
// What is new comes before what refers to it: clusters and their secrets, then routes and filters, then listeners, each
// once Envoy has taken the ones before. What is gone goes by the same way, but for clusters: a request that is under way may
// still want the one its route named, so those stay until the node is told something else again.
type follower struct {
	shared  *memo
	secrets *subscriber // of the same stream
	wake    chan struct{}

	mu     sync.Mutex
	target *target // nil: nothing to tell yet
	before []*set  // clusters that the routes Envoy has may name
	subs   [kinds]*subscription
	whole  *target // the one that Envoy has acknowledged whole; nil: none, or it is on the way to another
}

// target is what one node shall have.
type target struct {
	revision string
	root     string
	drained  bool
	sets     [kinds]*set
}

// subscription is about one kind.
type subscription struct {
	all     bool     // every name, not only
	names   []string // these, sorted
	held    *set     // as far as it is known
	owed    bool     // an answer is, even an empty one
	sent    *change  // not acknowledged yet; nil: none
	nonce   string   // of sent
	taken   bool     // the last answer was an acknowledgement
	fresh   bool     // Envoy came without any, and has acknowledged none
	refused *set     // is not sent again, unless the Envoy is told something else in between
}

func newFollower(shared *memo, secrets *subscriber) *follower {
	return &follower{shared: shared, secrets: secrets, wake: make(chan struct{}, 1)}
}

// tell sets what the Envoy shall have. An equal target as before may come again.
func (f *follower) tell(t *target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.target != nil && *f.target == *t {
		return
	}
	if f.target != nil && f.taken(kindListeners) {
		f.before = []*set{f.target.sets[kindClusters]} // no other's routes are left
	}
	if f.whole != nil && f.whole.revision != t.revision {
		f.whole = nil
	}
	for _, sub := range f.subs {
		if sub != nil {
			sub.refused = nil
		}
	}
	f.target = t
	f.secrets.turn(t.root)
	f.awake()
}

// secretAnswered is for when Envoy has taken or refused a secret: what waited for it may go on.
func (f *follower) secretAnswered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.complete()
	f.awake()
}

func (f *follower) awake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// state is the revision that is told, the one that is acknowledged whole, and whether listeners are.
func (f *follower) state() (n Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.target != nil {
		n.Revision, n.Drained = f.target.revision, f.target.drained
	}
	if f.whole != nil {
		n.Has = f.whole.revision
	}
	l := f.subs[kindListeners]
	n.Listening = l != nil && l.taken
	return n
}

// receive takes one request in.
func (f *follower) receive(req *discovery.DeltaDiscoveryRequest) {
	k, known := kindOfType(req.GetTypeUrl())
	if !known {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.awake()
	sub := f.subs[k]
	if sub == nil {
		sub = &subscription{all: k.wildcard() && len(req.GetResourceNamesSubscribe()) == 0, held: f.shared.claimed(k, req.GetInitialResourceVersions()), owed: true, fresh: len(req.GetInitialResourceVersions()) == 0}
		f.subs[k] = sub
		if k == kindClusters {
			f.before = []*set{sub.held} // the routes of an Envoy that comes back may name any of them
		}
	}
	if sub.sent != nil && req.GetResponseNonce() == sub.nonce {
		f.answer(sub, req.GetErrorDetail() != nil)
	}
	sub.subscribe(req.GetResourceNamesSubscribe(), req.GetInitialResourceVersions())
	sub.unsubscribe(req.GetResourceNamesUnsubscribe())
	sub.held = f.shared.same(sub.held)
	f.complete()
}

// answer notes that Envoy has taken what was sent, or refused it: then nobody knows what it has of that.
func (f *follower) answer(sub *subscription, refused bool) {
	c := sub.sent
	sub.sent = nil
	if refused {
		sub.held, sub.taken, sub.refused = f.shared.same(sub.held.uncertain(c.names())), false, c.to
		return
	}
	sub.held, sub.taken, sub.fresh, sub.refused = c.to, true, false, nil
}

// subscribe adds names. An Envoy that asks for one again has lost it, but for those it tells versions of.
func (s *subscription) subscribe(names []string, told map[string]string) {
	for _, name := range names {
		if name == "*" {
			s.all, s.owed = true, true
			continue
		}
		if i, found := slices.BinarySearch(s.names, name); !found {
			s.names = slices.Insert(s.names, i, name)
		}
		s.owed = true
		if _, has := told[name]; !has {
			s.held = s.held.uncertain([]string{name})
		}
	}
}

func (s *subscription) unsubscribe(names []string) {
	for _, name := range names {
		if name == "*" {
			s.all = false
		}
		if i, found := slices.BinarySearch(s.names, name); found {
			s.names = slices.Delete(s.names, i, i+1)
		}
	}
	if len(names) > 0 && !s.all {
		s.held = s.held.only(s.names)
	}
}

// wanted is what the Envoy shall have of a kind that it has subscribed to. mu is held.
func (f *follower) wanted(k kind) *set {
	sub, want := f.subs[k], f.target.sets[k]
	if k == kindClusters {
		for _, before := range f.before {
			want = f.shared.and(want, before)
		}
	}
	if !sub.all {
		want = f.shared.only(want, sub.names)
	}
	return want
}

// settled reports whether nothing of a kind is on the way. mu is held.
func (f *follower) settled(k kind) bool {
	sub := f.subs[k]
	return sub == nil || sub.sent == nil && !sub.owed && sub.held.version == f.wanted(k).version
}

// complete notes when the Envoy has acknowledged all there is. mu is held.
func (f *follower) complete() {
	if f.target == nil || !f.secrets.turned() {
		return
	}
	for k := range kinds {
		if f.subs[k] == nil && len(f.target.sets[k].items) > 0 || !f.settled(k) {
			return
		}
	}
	f.whole = f.target
}

// next makes a response that may be sent now, nil when there is none.
func (f *follower) next(nonce string) *discovery.DeltaDiscoveryResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.target == nil {
		return nil
	}
	for k := range kinds {
		sub := f.subs[k]
		if sub == nil || sub.sent != nil || f.settled(k) || !f.mayFollow(k) {
			continue
		}
		want := f.wanted(k)
		if sub.refused != nil && sub.refused.version == want.version && !sub.owed {
			continue
		}
		if now := f.target.sets[kindClusters]; stages[k] == stages[kindRoutes] && !slices.Contains(f.before, now) {
			f.before = append(f.before, now)
		}
		sub.sent, sub.nonce, sub.owed = f.shared.change(sub.held, want), nonce, false
		return &discovery.DeltaDiscoveryResponse{
			TypeUrl: typeURLs[k], SystemVersionInfo: want.version, Nonce: nonce, Resources: sub.sent.put, RemovedResources: sub.sent.removed,
		}
	}
	f.complete()
	return nil
}

// mayFollow reports whether the kinds that k refers to have been taken. An Envoy that has nothing of k yet gets it in any
// case: some of it is better than none. mu is held.
func (f *follower) mayFollow(k kind) bool {
	if f.subs[k].fresh {
		return true
	}
	if stages[k] > 0 && !f.secrets.settled() {
		return false
	}
	return f.taken(k)
}

// taken reports whether the kinds that k refers to have been. mu is held.
func (f *follower) taken(k kind) bool {
	for other := range kinds {
		if stages[other] < stages[k] && !f.settled(other) {
			return false
		}
	}
	return true
}

// serve sends what is owed until ctx ends or send fails.
func (f *follower) serve(ctx context.Context, send func(*discovery.DeltaDiscoveryResponse) error) error {
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		}
		for {
			resp := f.next(strconv.Itoa(n))
			if resp == nil {
				break
			}
			n++
			if err := send(resp); err != nil {
				return err
			}
		}
	}
}
