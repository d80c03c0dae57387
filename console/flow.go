package console

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"wayleave/api"
	"wayleave/oauth"
	"wayleave/operate"
)

const (
	flowLife = 10 * time.Minute // for the operator to agree
	flowKept = 5 * time.Minute  // for whoever looks at what came of it
	maxFlows = 1000

	flowLast = operate.ConnectTime // for what is agreed to when the gate is stopped to be stored
)

// flow is a Flow with what it needs. Its fields but Flow do not change.
type flow struct {
	api.Flow
	owner   string // who began it, and alone may see and finish it
	actor   actor
	from    string
	consent *operate.Consent // of way code
	ours    bool             // the browser comes back to us
	stop    context.CancelFunc
}

// flows are the connects of this console. They are in memory: whoever restarts the gate begins again.
type flows struct {
	now  func() time.Time
	ctx  context.Context //nolint:containedctx // of everything that waits between two requests
	stop context.CancelFunc
	work sync.WaitGroup // whose answers may hold tokens that are nowhere else; counts up with mu held

	mu    sync.Mutex
	ended bool             // guarded by mu: no more work is begun
	byID  map[string]*flow // guarded by mu, and so is each one's Flow
}

func newFlows(now func() time.Time) *flows {
	ctx, stop := context.WithCancel(context.Background())
	return &flows{now: now, ctx: ctx, stop: stop, byID: map[string]*flow{}}
}

// end has nobody wait any more, and returns when what was agreed to is stored, or flowLast is over.
func (f *flows) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.stop()
	done := make(chan struct{})
	go func() { defer close(done); f.work.Wait() }()
	select {
	case <-done:
	case <-time.After(flowLast):
	}
}

// begin reports whether work may be begun, which work.Done ends.
func (f *flows) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.work.Add(1)
	}
	return !f.ended
}

// add keeps a flow, and forgets those that are over.
func (f *flows) add(x *flow) api.Flow {
	x.ID = rand.Text()
	x.State = api.FlowWaiting
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
func (f *flows) find(id, owner string) (api.Flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, ok := f.byID[id]
	if !ok || x.owner != owner {
		return api.Flow{}, false
	}
	f.expire(x)
	return x.Flow, true
}

// known is the flow of the owner's that chosen says, as it is.
func (f *flows) known(owner string, chosen func(*flow) bool) (api.Flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.byID {
		if x.owner == owner && x.consent != nil && chosen(x) {
			f.expire(x)
			return x.Flow, true
		}
	}
	return api.Flow{}, false
}

// expire fails a flow that nobody finished. The mutex is held. That of a device ends by itself: its last answer may be under way.
func (f *flows) expire(x *flow) {
	if x.consent != nil && x.State == api.FlowWaiting && f.now().After(x.Ends) {
		x.State, x.Error = api.FlowFailed, "nobody agreed in time; connect again"
	}
}

// take is the flow of the owner's that chosen says; it is taken once, and then being stored, which is work.
func (f *flows) take(owner string, chosen func(*flow) bool) (*flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.byID {
		if x.owner != owner || x.consent == nil || !chosen(x) {
			continue
		}
		if f.expire(x); x.State != api.FlowWaiting || f.ended {
			return nil, false
		}
		f.work.Add(1)
		x.State = api.FlowStoring
		return x, true
	}
	return nil, false
}

// giveUp fails a flow of the owner's that still waits for somebody to agree. It returns the flow as it is then.
func (f *flows) giveUp(id, owner string) (api.Flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, ok := f.byID[id]
	if !ok || x.owner != owner {
		return api.Flow{}, false
	}
	if x.State == api.FlowWaiting {
		x.State, x.Error = api.FlowFailed, "it was given up; connect again"
		if x.stop != nil {
			x.stop()
		}
	}
	return x.Flow, true
}

// agreed reports whether a flow of a device that ended is still waited for, and is then being stored.
func (f *flows) agreed(x *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	waited := x.State == api.FlowWaiting
	if waited {
		x.State = api.FlowStoring
	}
	return waited
}

// set changes what is known of a flow.
func (f *flows) set(x *flow, state string, stored *operate.Stored, err error) api.Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.State, x.Error, x.Stored = state, "", stored
	if err != nil {
		x.Error = err.Error()
	}
	return x.Flow
}

var errFlowGone = &operate.Refusal{Kind: operate.NoSuch, Words: "there is no such connect: it was begun elsewhere, or is over; connect again"}

// comesBack is how the answer of a consent page comes back, unless the provider shows its code on a page of its own.
type comesBack struct {
	pasted   bool   // by whoever began, and not with the browser to us
	redirect string // where they wait for it; empty: nowhere
}

// checkRedirect refuses what is not a program of the operator's own that waits on loopback (RFC 8252 section 7.3).
func checkRedirect(redirect string) error {
	u, err := url.Parse(redirect)
	if err == nil {
		at, perr := netip.ParseAddrPort(u.Host)
		if perr == nil && at.Addr().IsLoopback() && *u == (url.URL{Scheme: "http", Host: u.Host, Path: "/callback"}) {
			return nil
		}
	}
	return &operate.Refusal{Kind: operate.Misused, Words: "redirect is not where a program waits on loopback, as http://127.0.0.1:PORT/callback"}
}

// beginConnect begins to connect a grant.
func (s *Server) beginConnect(ctx context.Context, who actor, from, name string, way operate.Way, back comesBack) (api.Flow, error) {
	ways, err := s.Desk().Ways(name)
	if err != nil {
		return api.Flow{}, err
	}
	if way == "" {
		way = ways[0]
	}
	offered := false
	for _, w := range ways {
		offered = offered || w == way
	}
	if !offered {
		return api.Flow{}, &operate.Refusal{Kind: operate.Misused, Words: fmt.Sprintf("%s cannot be connected by %q; there are: %v", name, way, ways)}
	}
	spec, err := s.Desk().Spec(name)
	if err != nil {
		return api.Flow{}, err
	}
	client := s.Desk().Client(name)
	x := &flow{owner: who.owner(), actor: who, from: from}
	x.Grant, x.Way, x.Ends, x.Account = name, string(way), s.now().Add(flowLife), s.Desk().Config.Grants[name].Account
	if way == operate.ByDevice {
		return s.beginDevice(ctx, x, client, spec.Scopes)
	}
	redirect := s.Desk().FixedRedirect(name)
	x.Pasted = redirect != "" || back.redirect == "" && (back.pasted || who.login == nil)
	switch {
	case redirect != "":
	case back.redirect != "":
		if err := checkRedirect(back.redirect); err != nil {
			return api.Flow{}, err
		}
		redirect = back.redirect
	case x.Pasted:
		redirect = "http://127.0.0.1/callback" // nobody is there: the address is what is pasted
	default:
		redirect, x.ours = s.URL.JoinPath("/callback").String(), true
	}
	x.consent = operate.NewConsent(client, redirect, spec.Scopes)
	x.URL = x.consent.URL()
	return s.flows.add(x), nil
}

// beginDevice shows a code, and waits for the consent in the background.
func (s *Server) beginDevice(ctx context.Context, x *flow, client *oauth.Client, scopes []string) (api.Flow, error) {
	d, err := client.StartDevice(ctx, scopes)
	if err != nil {
		return api.Flow{}, err
	}
	if !s.flows.begin() {
		return api.Flow{}, errFlowGone
	}
	x.Code, x.URL = d.UserCode, d.VerificationURL
	if c := d.VerificationURLComplete; c != "" && c != x.URL {
		x.URL, x.EnterAt = c, x.URL
	}
	if d.Expires.Before(x.Ends) {
		x.Ends = d.Expires
	}
	wait, stop := context.WithTimeout(s.flows.ctx, x.Ends.Sub(s.now()))
	x.stop = stop
	shown := s.flows.add(x)
	go func() {
		defer s.flows.work.Done()
		defer stop()
		token, err := client.AwaitDevice(wait, d)
		if err != nil && errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("nobody agreed in time; connect again")
		}
		if s.flows.agreed(x) {
			s.connected(context.WithoutCancel(wait), x, token, err)
		}
	}()
	return shown, nil
}

// finishConnect takes the answer of a consent page. A wrong answer leaves a flow as it was whose
// answers come from who began it.
func (s *Server) finishConnect(ctx context.Context, x *flow, answer string) api.Flow {
	defer s.flows.work.Done()
	code, err := x.consent.Parse(answer)
	if err != nil && !x.ours && !errors.Is(err, oauth.ErrDenied) {
		return s.flows.set(x, api.FlowWaiting, nil, err)
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
func (s *Server) connected(ctx context.Context, x *flow, token oauth.Token, err error) api.Flow {
	var stored *operate.Stored
	if err == nil {
		var now operate.Stored
		if now, err = s.Desk().Connect(ctx, x.Grant, token); err == nil {
			stored = &now
		}
	}
	s.did(x.actor, x.from, "grant.connect", x.Grant, err)
	state := api.FlowConnected
	if err != nil {
		state = api.FlowFailed
	}
	out := s.flows.set(x, state, stored, err)
	s.Grants.Reread(x.Grant)
	s.hub.publish(topicGrants)
	return out
}
