package console

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"wayleave/oauth"
	"wayleave/operate"
)

const (
	flowLife = 10 * time.Minute // for the operator to agree
	flowKept = 5 * time.Minute  // for whoever looks at what came of it
	maxFlows = 1000
)

// States of a Flow.
const (
	FlowWaiting   = "waiting" // for the operator
	FlowStoring   = "storing" // the provider's answer is being exchanged and stored
	FlowConnected = "connected"
	FlowFailed    = "failed"
)

// Flow is a connect that has begun. It has nothing secret but what the operator is to see.
type Flow struct {
	ID    string `json:"id"`
	Grant string `json:"grant"`
	Way   string `json:"way"` // code or device
	State string `json:"state"`
	Error string `json:"error,omitempty"` // of a failed one

	URL    string    `json:"url,omitempty"`    // the page to open
	Pasted bool      `json:"pasted,omitempty"` // its answer is to be pasted; else the browser comes back by itself
	Code   string    `json:"code,omitempty"`   // what to enter there, of a device flow
	Ends   time.Time `json:"ends"`
}

// flow is a Flow with what it needs. Its fields but Flow do not change.
type flow struct {
	Flow
	owner   string // who began it, and alone may see and finish it
	actor   actor
	from    string
	consent *operate.Consent // of way code
	stop    context.CancelFunc
}

// flows are the connects of this console. They are in memory: whoever restarts the gate begins again.
type flows struct {
	now  func() time.Time
	ctx  context.Context //nolint:containedctx // of everything that goes on between two requests
	stop context.CancelFunc

	mu   sync.Mutex
	byID map[string]*flow // guarded by mu, and so is each one's Flow
}

func newFlows(now func() time.Time) *flows {
	ctx, stop := context.WithCancel(context.Background())
	return &flows{now: now, ctx: ctx, stop: stop, byID: map[string]*flow{}}
}

// add keeps a flow, and forgets those that are over.
func (f *flows) add(x *flow) Flow {
	x.ID = rand.Text()
	x.State = FlowWaiting
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, old := range f.byID {
		if f.now().After(old.Ends.Add(flowKept)) || len(f.byID) >= maxFlows {
			if old.stop != nil {
				old.stop()
			}
			delete(f.byID, id)
		}
	}
	f.byID[x.ID] = x
	return x.Flow
}

// find is a flow of the owner's.
func (f *flows) find(id, owner string) (Flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, ok := f.byID[id]
	if !ok || x.owner != owner {
		return Flow{}, false
	}
	f.expire(x)
	return x.Flow, true
}

// expire fails a flow that nobody finished. The mutex is held.
func (f *flows) expire(x *flow) {
	if x.State == FlowWaiting && f.now().After(x.Ends) {
		x.State, x.Error = FlowFailed, "nobody agreed in time; connect again"
	}
}

// take is the flow of the owner's that chosen says; it is taken once, and then being stored.
func (f *flows) take(owner string, chosen func(*flow) bool) (*flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.byID {
		if x.owner != owner || x.consent == nil || !chosen(x) {
			continue
		}
		if f.expire(x); x.State != FlowWaiting {
			return nil, false
		}
		x.State = FlowStoring
		return x, true
	}
	return nil, false
}

// set changes what is known of a flow.
func (f *flows) set(x *flow, state string, err error) Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.State, x.Error = state, ""
	if err != nil {
		x.Error = err.Error()
	}
	return x.Flow
}

var errFlowGone = &operate.Refusal{Kind: operate.NoSuch, Words: "there is no such connect: it was begun elsewhere, or is over; connect again"}

// beginConnect begins to connect a grant. The browser comes back to us, unless the provider shows its code on a page of its own
// or the answer is to be pasted.
func (s *Server) beginConnect(ctx context.Context, who actor, from, name string, way operate.Way, paste bool) (Flow, error) {
	ways, err := s.Desk.Ways(name)
	if err != nil {
		return Flow{}, err
	}
	if way == "" {
		way = ways[0]
	}
	offered := false
	for _, w := range ways {
		offered = offered || w == way
	}
	if !offered {
		return Flow{}, &operate.Refusal{Kind: operate.Misused, Words: fmt.Sprintf("%s cannot be connected by %q; there are: %v", name, way, ways)}
	}
	spec, err := s.Desk.Spec(name)
	if err != nil {
		return Flow{}, err
	}
	client := s.Desk.Client(name)
	x := &flow{owner: who.owner(), actor: who, from: from}
	x.Grant, x.Way, x.Ends = name, string(way), s.now().Add(flowLife)
	if way == operate.ByDevice {
		return s.beginDevice(ctx, x, client, spec.Scopes)
	}
	redirect := s.Desk.FixedRedirect(name)
	x.Pasted = redirect != "" || paste || who.login == nil
	switch {
	case redirect != "":
	case x.Pasted:
		redirect = "http://127.0.0.1/callback" // nobody is there: the address is what is pasted
	default:
		redirect = s.URL.JoinPath("/callback").String()
	}
	x.consent = operate.NewConsent(client, redirect, spec.Scopes)
	x.URL = x.consent.URL()
	return s.flows.add(x), nil
}

// beginDevice shows a code, and waits for the consent in the background.
func (s *Server) beginDevice(ctx context.Context, x *flow, client *oauth.Client, scopes []string) (Flow, error) {
	d, err := client.StartDevice(ctx, scopes)
	if err != nil {
		return Flow{}, fmt.Errorf("connecting %s: %w", x.Grant, err)
	}
	x.Code, x.URL = d.UserCode, d.VerificationURL
	if d.VerificationURLComplete != "" {
		x.URL = d.VerificationURLComplete
	}
	if d.Expires.Before(x.Ends) {
		x.Ends = d.Expires
	}
	wait, stop := context.WithTimeout(s.flows.ctx, x.Ends.Sub(s.now()))
	x.stop = stop
	shown := s.flows.add(x)
	go func() {
		defer stop()
		token, err := client.AwaitDevice(wait, d)
		if err != nil && errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("nobody agreed in time; connect again")
		}
		s.connected(s.flows.ctx, x, token, err)
	}()
	return shown, nil
}

// finishConnect takes the answer of a consent page. A wrong answer leaves a flow whose answers are pasted as it was.
func (s *Server) finishConnect(ctx context.Context, x *flow, answer string) Flow {
	code, err := x.consent.Parse(answer)
	if err != nil && x.Pasted && !errors.Is(err, oauth.ErrDenied) {
		return s.flows.set(x, FlowWaiting, fmt.Errorf("%w; paste it again", err))
	}
	if err != nil {
		return s.connected(ctx, x, oauth.Token{}, err)
	}
	// Whoever closes the page does not keep a code that is spent from being stored.
	ctx = context.WithoutCancel(ctx)
	token, err := x.consent.Exchange(ctx, code)
	return s.connected(ctx, x, token, err)
}

// connected stores what a flow brought, or says why it brought nothing.
func (s *Server) connected(ctx context.Context, x *flow, token oauth.Token, err error) Flow {
	if err == nil {
		_, err = s.Desk.Connect(ctx, x.Grant, token)
	}
	s.did(x.actor, x.from, "grant.connect", x.Grant, err)
	state := FlowConnected
	if err != nil {
		state, err = FlowFailed, fmt.Errorf("connecting %s: %w", x.Grant, err)
	}
	out := s.flows.set(x, state, err)
	s.hub.publish(topicGrants)
	return out
}
