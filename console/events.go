package console

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"wayleave/grant"
)

// What pages hear of. Events have no content: who hears of one asks again. console.js knows them by name.
const (
	topicAll       = "all"       // anything may not be as it was: the stream has begun, or the store answers again or does not
	topicGrants    = "grants"    // a grant, a connect or what needs an operator is not as it was
	topicFleet     = "fleet"     // an Envoy or a rollout is not as it was
	topicDecisions = "decisions" // there were requests
	topicApprovals = "approvals" // a request waits for an operator, or does not any more
	topicSessions  = "sessions"  // a session has begun, was renewed or ended
	topicTick      = "tick"      // time has passed, which pages show
)

const (
	lookEvery = 250 * time.Millisecond
	askEvery  = 2 * time.Second // the store
	tickEvery = 30 * time.Second
)

// hub tells everybody who listens.
type hub struct {
	mu        sync.Mutex
	listeners map[*listener]bool // guarded by mu
}

// listener hears of each topic once, however often it was published since it looked last.
type listener struct {
	news    chan struct{}   // there are some
	pending map[string]bool // guarded by the hub's mu
}

func newHub() *hub { return &hub{listeners: map[*listener]bool{}} }

func (h *hub) listen() *listener {
	l := &listener{news: make(chan struct{}, 1), pending: map[string]bool{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners[l] = true
	return l
}

func (h *hub) leave(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.listeners, l)
}

func (h *hub) publish(topic string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		l.pending[topic] = true
		select {
		case l.news <- struct{}{}:
		default:
		}
	}
}

// heard is what was published since.
func (h *hub) heard(l *listener) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	topics := slices.Sorted(maps.Keys(l.pending))
	clear(l.pending)
	return topics
}

func (h *hub) anybody() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners) > 0
}

// watch looks for changes until ctx ends, as long as somebody listens. Of what only the store knows it asks the store, which may take its
// time; of all else this gate's memory.
func (s *Server) watch(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { s.watchStore(ctx) })
	both.Go(func() { s.watchGate(ctx) })
	both.Wait()
}

func (s *Server) watchStore(ctx context.Context) {
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	var held [sha256.Size]byte
	answered := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask.C:
		}
		if !s.hub.anybody() {
			continue
		}
		v := s.askHeld(ctx)
		if now := digestOf(v.held); now != held {
			held = now
			s.hub.publish(topicApprovals)
		}
		if is := v.err == nil; is != answered {
			answered = is
			s.hub.publish(topicAll) // each says so
		}
	}
}

func (s *Server) watchGate(ctx context.Context) {
	look, tick := time.NewTicker(lookEvery), time.NewTicker(tickEvery)
	defer look.Stop()
	defer tick.Stop()
	var seen, fleet [sha256.Size]byte
	var decisions, sessions uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.hub.publish(topicTick)
		case <-look.C:
			if !s.hub.anybody() {
				continue
			}
			if now := s.fingerprint(); now != seen {
				seen = now
				s.hub.publish(topicGrants)
			}
			if now := s.fleetNow(); now != fleet {
				fleet = now
				s.hub.publish(topicFleet)
			}
			if now := s.Decisions.count(); now != decisions {
				decisions = now
				s.hub.publish(topicDecisions)
			}
			if now := s.Sessions.Changes(); now != sessions {
				sessions = now
				s.hub.publish(topicSessions)
			}
		}
	}
}

// fleetNow changes with what is known of the fleet. That gates are still there is nothing new.
func (s *Server) fleetNow() [sha256.Size]byte {
	v := s.Fleet()
	reports := slices.Clone(v.Reports)
	for i := range reports {
		reports[i].At = time.Time{}
	}
	return digestOf([]any{v.State, reports})
}

// fingerprint changes with every grant and with what needs an operator.
func (s *Server) fingerprint() [sha256.Size]byte {
	var all []grant.Summary
	for _, spec := range s.Desk().Specs {
		all = append(all, s.Grants.Summary(spec.Name))
	}
	return digestOf([]any{all, s.Needs()})
}

func digestOf(v any) [sha256.Size]byte {
	data, _ := json.Marshal(v) // strings, numbers and times
	return sha256.Sum256(data)
}

// events is a stream of server-sent events. It ends with the log-in it was begun under.
func (s *Server) events(w http.ResponseWriter, r *http.Request, who actor) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")                 // nginx would keep them back
	w.Header().Set("Cache-Control", "no-store, no-transform") // and so would who compresses them
	out := http.NewResponseController(w)
	send := func(topic string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if _, err := fmt.Fprintf(w, "event: %s\ndata: \n\n", topic); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	l := s.hub.listen()
	defer s.hub.leave(l)
	// Whoever comes, or comes again, may have missed anything.
	if !send(topicAll) {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case <-s.flows.ctx.Done():
			return
		case <-l.news:
		}
		if !s.stands(r.Context(), who) {
			send("over")
			return
		}
		for _, topic := range s.hub.heard(l) {
			if !send(topic) {
				return
			}
		}
	}
}
