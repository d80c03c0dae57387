// Package notify owns telling operators that something needs them: when each trouble is told, to whom, again while it lasts, and
// once more when it is over; and that several gates together tell it once. What the troubles are is found by alerts.go from
// what grants, authorities and Envoys say of themselves; what to do about them is done in the console or on the command line.
//
//	source ──▶ Notifier ── plan (pure) ──▶ Message ──▶ one queue per target ──▶ webhook, Slack, SMTP
//	              │ check-and-set
//	              ▼
//	      notifications/told: what all gates have told
package notify

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"wayleave/vault"
)

// Alert is one trouble.
type Alert struct {
	// Key tells troubles apart. It is the same at every gate that sees this one.
	Key string `json:"key"`
	// Kind is what is in trouble, and Subject its name.
	Kind    Kind   `json:"kind"`
	Subject string `json:"subject"`

	Severity Severity `json:"severity"`
	Title    string   `json:"title"`          // one line, without a final stop
	Text     string   `json:"text,omitempty"` // sentences
	Next     string   `json:"next,omitempty"` // what to do
	// URL is the page where it is done; empty where there is no console.
	URL string `json:"url,omitempty"`

	// Wait is how long it must last before it is told: most troubles of a moment mend themselves.
	Wait time.Duration `json:"-"`
	// Local says that other gates cannot see whether it lasts.
	Local bool `json:"-"`
}

// Kind is what an alert is about.
type Kind string

// Kinds of alerts.
const (
	Grant         Kind = "grant"
	CA            Kind = "ca"
	Envoy         Kind = "envoy"
	Vault         Kind = "vault"
	Configuration Kind = "configuration"
	Approval      Kind = "approval"
	Rollout       Kind = "rollout"
)

// Severity is how bad it is.
type Severity string

// Severities.
const (
	Warning  Severity = "warning"  // nobody is refused yet
	Critical Severity = "critical" // workers are refused, or soon will be
)

// Documents is the store that all gates share.
type Documents interface {
	Get(ctx context.Context, path string, into any) (version int, err error)
	Put(ctx context.Context, path string, doc any, cas int) (version int, err error)
}

// Options are how a Notifier works.
type Options struct {
	Holder string // this gate's name, the same after a restart
	Docs   Documents
	// Alerts are the troubles there are now. It is asked every second and must not wait.
	Alerts  func() []Alert
	Targets []Target
	Timing  Timing
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // nil: time.Now
}

// Notifier tells operators.
type Notifier struct {
	Options
	queues []chan Message // one per target
	took   chan []string  // keys that a target was told

	// What only Run's goroutine knows.
	sights sights
	book   book            // what all gates have told, as last seen
	read   bool            // the book was
	mine   map[string]bool // keys that this gate has told since it began
	apart  map[string]bool // keys that it told while the store could not be asked
	marks  map[string]bool // keys that some target was told, which is to be written down
}

const (
	toldPath  = "notifications/told"
	lookEvery = time.Second
	storeTime = 5 * time.Second
	lastTime  = 2 * time.Second // of what is done at the end
	backlog   = 64              // messages that a target may be behind
)

// New returns a Notifier; its Run does the work.
func New(o Options) *Notifier {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	n := &Notifier{
		Options: o, took: make(chan []string, 2*backlog*max(1, len(o.Targets))),
		sights: sights{}, book: book{}, mine: map[string]bool{}, apart: map[string]bool{}, marks: map[string]bool{},
	}
	for range o.Targets {
		n.queues = append(n.queues, make(chan Message, backlog))
	}
	return n
}

// Run tells operators until ctx ends. Without targets it returns at once.
func (n *Notifier) Run(ctx context.Context) {
	if len(n.Targets) == 0 {
		return
	}
	var group sync.WaitGroup
	for i := range n.Targets {
		group.Go(func() { n.deliver(ctx, n.Targets[i], n.queues[i]) })
	}
	defer func() {
		group.Wait()
		n.finish(context.WithoutCancel(ctx))
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case keys := <-n.took:
			n.note(keys)
		case <-tick.C:
			n.look(ctx)
		}
	}
}

func (n *Notifier) note(keys []string) {
	for _, key := range keys {
		n.marks[key] = true
	}
}

// finish writes down what has reached somebody, so that it is not told again after a restart.
func (n *Notifier) finish(ctx context.Context) {
	for {
		select {
		case keys := <-n.took:
			n.note(keys)
			continue
		default:
		}
		break
	}
	if len(n.marks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastTime)
	defer cancel()
	var stored told
	version, err := n.Docs.Get(ctx, toldPath, &vault.Fitting{Value: &stored})
	if b := stored.open(); err == nil && b.mark(n.marks) {
		_, err = n.Docs.Put(ctx, toldPath, vault.Fitting{Value: told{b}}, version)
	}
	if err != nil {
		n.Log.Warn("operators may be told again what they were told last", "err", err)
	}
}

// look tells what is due, unless another gate has.
func (n *Notifier) look(ctx context.Context) {
	now := n.Now()
	n.sights.update(n.Alerts(), n.book, now)
	if n.read && len(n.marks)+len(n.apart) == 0 && !n.plan(n.book, now).due() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	var stored told
	version, err := n.Docs.Get(ctx, toldPath, &vault.Fitting{Value: &stored})
	if err != nil && !errors.Is(err, vault.ErrNotFound) {
		n.tellApart(now, err)
		return
	}
	b := stored.open()
	for key := range n.apart {
		if e, there := n.book[key]; there {
			b[key] = e
		} else {
			delete(b, key)
		}
	}
	marked := b.mark(n.marks)
	p := n.plan(b, now)
	if !p.due() && !marked && len(n.apart) == 0 {
		n.book, n.read = b, true
		return
	}
	switch _, err := n.Docs.Put(ctx, toldPath, vault.Fitting{Value: told{p.book}}, version); {
	case errors.Is(err, vault.ErrConflict): // another gate has told something: look again
	case err != nil:
		n.tellApart(now, err)
	default:
		n.read = true
		clear(n.apart)
		clear(n.marks)
		n.tell(p)
	}
}

// tellApart tells what is due without asking the store, which may be what is in trouble. Other gates may tell it too.
func (n *Notifier) tellApart(now time.Time, why error) {
	p := n.plan(n.book, now)
	if !p.due() {
		return
	}
	n.Log.Warn("operators may be told the same by several gates, for what was told cannot be looked up", "err", why)
	for key, e := range p.book {
		if n.book[key] != e {
			n.apart[key] = true
		}
	}
	for key := range n.book {
		if _, still := p.book[key]; !still {
			n.apart[key] = true
		}
	}
	n.tell(p)
}

func (n *Notifier) plan(b book, now time.Time) plan {
	return makePlan(b, n.sights, n.Timing, now, n.Holder, n.mine)
}

// tell gives the plan's message to the targets.
func (n *Notifier) tell(p plan) {
	n.book = p.book
	for _, key := range p.message.keys() {
		n.mine[key] = true
	}
	p.message.ID = newID()
	for i, t := range n.Targets {
		part := p.message.about(t.Kinds)
		if part.empty() {
			continue
		}
		select {
		case n.queues[i] <- part:
		default:
			n.Log.Error("operators are not told of something: this target is too far behind", "target", t.Name, "subject", part.Subject())
		}
	}
}

// deliver sends what is queued for a target, one after the other. Nobody waits for those who get a message later.
func (n *Notifier) deliver(ctx context.Context, t Target, queue <-chan Message) {
	var later sync.WaitGroup
	defer later.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-queue:
			err := persist(ctx, t.Sender, m)
			some, partial := errors.AsType[Partial](err)
			switch {
			case partial:
				n.took <- m.keys()
				later.Go(func() {
					if err := some.finish(ctx, m); err != nil {
						n.Log.Warn("some operators were not told of something", "target", t.Name, "subject", m.Subject(), "err", err, "fix", "take them out of the target, or mend their addresses")
						return
					}
					n.Log.Info("operators were told of something", "target", t.Name, "subject", m.Subject())
				})
			case err == nil:
				n.took <- m.keys()
				n.Log.Info("operators were told of something", "target", t.Name, "subject", m.Subject())
			case ctx.Err() == nil:
				n.Log.Error("operators were not told of something", "target", t.Name, "subject", m.Subject(), "err", err, "fix", "mend the target, and see that `wayleave notify test` reaches it")
			}
		}
	}
}
