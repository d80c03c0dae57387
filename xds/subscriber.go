package xds

import (
	"context"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// batch is how many removals one response carries at most.
const batch = 100

// subscriber is the secrets half of one Envoy's ADS stream. The maps are guarded by secrets.mu.
type subscriber struct {
	secrets *secrets
	wake    chan struct{}     // holds one token while something is owed
	holds   map[string]string // name → version sent; "" for a static secret that does not exist yet
	owed    map[string]bool   // names to answer, by a secret or by its removal when there is none to be had
	gone    map[string]bool   // names to remove
	sent    map[string]sent   // by nonce, until acknowledged
	root    string            // of its leaves
	turning map[string]bool   // names of which it may hold the leaf of another root
}

// sent is the secret in a response.
type sent struct {
	name string
	root string // of a leaf
}

// join adds a stream. leave must follow.
func (s *secrets) join() *subscriber {
	sub := &subscriber{
		secrets: s,
		wake:    make(chan struct{}, 1),
		holds:   map[string]string{},
		owed:    map[string]bool{},
		gone:    map[string]bool{},
		sent:    map[string]sent{},
		turning: map[string]bool{},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
	return sub
}

func (s *secrets) leave(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscribers, sub)
}

// owe notes that a name is to be answered. secrets.mu is held.
func (sub *subscriber) owe(name string) {
	sub.owed[name] = true
	delete(sub.gone, name)
	sub.awake()
}

// retract notes that a name is to be removed. secrets.mu is held.
func (sub *subscriber) retract(name string) {
	sub.gone[name] = true
	delete(sub.owed, name)
	delete(sub.holds, name)
	delete(sub.turning, name)
	sub.awake()
}

func (sub *subscriber) awake() {
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// settled reports whether no secret of our own is on the way.
func (sub *subscriber) settled() bool {
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	for name := range sub.owed {
		if isStatic(name) {
			return false
		}
	}
	for _, one := range sub.sent {
		if isStatic(one.name) {
			return false
		}
	}
	return true
}

// turn makes its leaves those of another root: what it holds is owed anew. Open connections do not notice.
func (sub *subscriber) turn(root string) {
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	if sub.root == root {
		return
	}
	sub.root = root
	for name := range sub.holds {
		if !isStatic(name) {
			sub.turning[name] = true
			sub.owe(name)
		}
	}
}

// turned reports whether it has taken the leaves of its root in the place of all others.
func (sub *subscriber) turned() bool {
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	return len(sub.turning) == 0
}

// receive takes one request in, and returns the name of the secret that it refuses, if any. It never waits for anything
// but the lock.
func (sub *subscriber) receive(req *discovery.DeltaDiscoveryRequest) (refused string) {
	s := sub.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	was := sub.sent[req.GetResponseNonce()]
	delete(sub.sent, req.GetResponseNonce())
	if was.root == sub.root {
		delete(sub.turning, was.name)
	}
	if req.GetErrorDetail() != nil && was.name != "" {
		refused = was.name
		// Envoy keeps an old static secret, but waits for a leaf it refused, and would not ask again.
		if !isStatic(was.name) {
			s.withdraw(was.name)
			sub.retract(was.name)
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(sub.holds, name)
		delete(sub.owed, name)
		delete(sub.gone, name)
		delete(sub.turning, name)
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		s.touch(name)
		sub.owe(name)
	}
	return refused
}

// serve sends what is owed until ctx ends or send fails.
func (sub *subscriber) serve(ctx context.Context, send func(*discovery.DeltaDiscoveryResponse) error) error {
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sub.wake:
		}
		for {
			resp := sub.next("secret-" + strconv.Itoa(n))
			if resp == nil {
				break
			}
			resp.SystemVersionInfo = strconv.Itoa(n)
			n++
			if err := send(resp); err != nil {
				return err
			}
		}
	}
}

// next makes the next response, nil when nothing is owed.
//
// There is one secret in each: Envoy refuses a response as a whole. It does not say for which of its secrets, loses some of
// the others and of the removals, and takes the one at fault for good when the same bytes are sent again, though it
// cannot use them.
func (sub *subscriber) next(nonce string) *discovery.DeltaDiscoveryResponse {
	removed, name, more := sub.take()
	if !more {
		return nil
	}
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: resource.SecretType, Nonce: nonce, RemovedResources: removed}
	if removed != nil {
		return resp
	}
	one, root := sub.secrets.answerTo(sub, name)
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	if one == nil {
		delete(sub.turning, name)
		resp.RemovedResources = []string{name}
		return resp
	}
	resp.Resources = []*discovery.Resource{{Name: name, Version: one.version, Resource: one.body}}
	sub.sent[nonce] = sent{name, root}
	return resp
}

// take takes off what is owed: a batch of names to remove or, when there are none, a name to answer.
func (sub *subscriber) take() (removed []string, name string, more bool) {
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	for gone := range sub.gone {
		delete(sub.gone, gone)
		if removed = append(removed, gone); len(removed) == batch {
			break
		}
	}
	if removed != nil {
		return removed, "", true
	}
	for name := range sub.owed {
		delete(sub.owed, name)
		return nil, name, true
	}
	return nil, "", false
}
