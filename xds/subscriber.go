package xds

import (
	"context"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// batch is how many secrets one response carries at most: a whole fleet's worth in one message would delay all
// other resources of the stream.
const batch = 100

type debt bool

const (
	answer  debt = false // a secret, or its removal when there is none to be had
	removal debt = true
)

// subscriber is the secrets half of one Envoy's ADS stream. The maps are guarded by secrets.mu.
type subscriber struct {
	secrets *secrets
	wake    chan struct{}       // holds one token while something is owed
	holds   map[string]string   // name → version sent; "" for a static secret that does not exist yet
	owed    map[string]debt     // names to send
	sent    map[string][]string // nonce → names, until acknowledged
}

// join adds a stream. leave must follow.
func (s *secrets) join() *subscriber {
	sub := &subscriber{
		secrets: s,
		wake:    make(chan struct{}, 1),
		holds:   map[string]string{},
		owed:    map[string]debt{},
		sent:    map[string][]string{},
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

// owe notes that something is to be sent. secrets.mu is held.
func (sub *subscriber) owe(name string, what debt) {
	sub.owed[name] = what
	if what == removal {
		delete(sub.holds, name)
	}
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// receive takes one request in. It never waits for anything but the lock.
func (sub *subscriber) receive(req *discovery.DeltaDiscoveryRequest) {
	s := sub.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	names := sub.sent[req.GetResponseNonce()]
	delete(sub.sent, req.GetResponseNonce())
	if req.GetErrorDetail() != nil {
		for _, name := range names {
			// Envoy keeps an old static secret, but waits for a leaf it refused, and would not ask again.
			if _, isStatic := s.static[name]; !isStatic {
				s.withdraw(name)
				sub.owe(name, removal)
			}
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(sub.holds, name)
		delete(sub.owed, name)
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		s.touch(name)
		sub.owe(name, answer)
	}
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
			owed := sub.take()
			if len(owed) == 0 {
				break
			}
			resp := sub.respond(owed)
			resp.Nonce = "secret-" + strconv.Itoa(n)
			resp.SystemVersionInfo = strconv.Itoa(n)
			n++
			sub.remember(resp)
			if err := send(resp); err != nil {
				return err
			}
		}
	}
}

// take removes up to a batch of debts.
func (sub *subscriber) take() map[string]debt {
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	taken := map[string]debt{}
	for name, what := range sub.owed {
		if len(taken) == batch {
			break
		}
		taken[name] = what
		delete(sub.owed, name)
	}
	return taken
}

func (sub *subscriber) respond(owed map[string]debt) *discovery.DeltaDiscoveryResponse {
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: resource.SecretType}
	for _, name := range sortedKeys(owed) {
		var one *secret
		if owed[name] == answer {
			one = sub.secrets.answerTo(sub, name)
		}
		if one == nil {
			resp.RemovedResources = append(resp.RemovedResources, name)
			continue
		}
		resp.Resources = append(resp.Resources, &discovery.Resource{Name: name, Version: one.version, Resource: one.body})
	}
	return resp
}

// remember keeps the names of a response until Envoy has said what it thinks of them.
func (sub *subscriber) remember(resp *discovery.DeltaDiscoveryResponse) {
	if len(resp.GetResources()) == 0 {
		return
	}
	sub.secrets.mu.Lock()
	defer sub.secrets.mu.Unlock()
	sub.sent[resp.GetNonce()] = namesOf(resp.GetResources())
}
