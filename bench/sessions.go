package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"wayleave/secret"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// sessions: what it costs to know whose a connection or a request is, by how many sessions are live: by itself, since nothing of this is
// asked of anybody else, and on the whole way of a request through Envoy.

const (
	oneLive    = "1" // what more live sessions are compared with
	connection = "a connection"
	question   = "a request"
	asRead     = "as read"
	afterwards = "after the checks"

	fewLive = 10 // what more of them are compared with on the whole way

	cpuNS  = "CPU ns"
	heldMB = "MB"
)

type sessionsRun struct {
	*report
	live, rounds, checks, requests int
}

func sessionsFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &sessionsRun{}
	f.IntVar(&r.live, "live", 10_000, "how many sessions are live")
	f.IntVar(&r.rounds, "rounds", 11, "how often sessions are made anew and measured")
	f.IntVar(&r.checks, "checks", 100_000, "of connections and of requests, in each round")
	f.IntVar(&r.requests, "requests", 2000, "through Envoy, for each number of sessions, in each round")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.live < 2 || r.rounds < 1 || r.checks < 1 || r.requests < parallel {
			return fmt.Errorf("live is at least 2, rounds and checks at least 1, and requests %d, one for each connection", parallel)
		}
		return r.run(ctx)
	}
}

func (r *sessionsRun) run(ctx context.Context) error {
	cost := r.table("To know whose it is, one at a time, by live sessions", oneLive, metric{Name: cpuNS})
	memory := r.table("Memory that a gate has more once it has read the ledger, by live sessions", asRead, metric{Name: heldMB})
	for round := range r.rounds {
		r.say("round %d of %d", round+1, r.rounds)
		var crowds []*crowd
		for _, n := range []int{1, r.live} {
			c, err := newCrowd(ctx, vaulttest.NewMemory(), n)
			if err != nil {
				return err
			}
			crowds = append(crowds, c)
		}
		before := heap()
		for _, kind := range []struct {
			name  string
			check func(*crowd, *holder) error
		}{{connection, (*crowd).connects}, {question, (*crowd).requests}} {
			took := make([]float64, len(crowds))
			for _, i := range rand.Perm(len(crowds)) { // the order makes a difference
				var err error
				if took[i], err = crowds[i].time(ctx, kind.check, r.checks); err != nil {
					return fmt.Errorf("%s, %d live: %w", kind.name, len(crowds[i].holders), err)
				}
			}
			for i, c := range crowds {
				cost.add(kind.name, grouped(len(c.holders)), round, map[string]float64{cpuNS: took[i]})
			}
		}
		const mb = 1e6
		read, grown := crowds[1].heap, heap()-before
		memory.add(grouped(r.live), asRead, round, map[string]float64{heldMB: float64(read) / mb})
		memory.add(grouped(r.live), afterwards, round, map[string]float64{heldMB: float64(read+grown) / mb})
		runtime.KeepAlive(crowds)
	}
	return r.whole(ctx)
}

// whole measures requests, each connection of any of the workers.
func (r *sessionsRun) whole(ctx context.Context) error {
	t := r.table(fmt.Sprintf("A GET by live sessions, %d at a time", parallel), grouped(fewLive),
		metric{Name: perSecond}, metric{Name: p50us}, metric{Name: p99us}, metric{Name: envoyCPU}, metric{Name: gateCPU}, metric{Name: gateMB})
	t.Chart = &chart{"", p50us}
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	sizes := slices.DeleteFunc(tens(r.live), func(n int) bool { return n < fewLive })
	worlds := make([]*world, len(sizes))
	for i, n := range sizes {
		r.say("starting with %s sessions", grouped(n))
		if worlds[i], err = newWorld(ctx, up, setup{hosts: []string{apiHost}, live: n}); err != nil {
			return fmt.Errorf("%s sessions: %w", grouped(n), err)
		}
		defer worlds[i].stop()
	}
	for round := range r.rounds + 1 {
		r.say("round %d of %d: requests", round, r.rounds)
		found := make([]map[string]float64, len(sizes))
		for _, i := range rand.Perm(len(sizes)) {
			if found[i], err = r.ask(ctx, worlds[i]); err != nil {
				return fmt.Errorf("%s sessions: %w", grouped(sizes[i]), err)
			}
		}
		for i, n := range sizes {
			if round > 0 { // the one before is for warmth
				t.add("", grouped(n), round-1, found[i])
			}
		}
	}
	return nil
}

func (r *sessionsRun) ask(ctx context.Context, w *world) (map[string]float64, error) {
	var all []requester
	for range parallel {
		a, err := w.as(w.gate.Others[rand.IntN(len(w.gate.Others))]).requester(ctx, get, http.StatusOK)
		if err != nil {
			return nil, err
		}
		defer a.Close()
		all = append(all, a)
	}
	l, err := w.load(all, r.requests)
	if err != nil {
		return nil, err
	}
	_, gate, err := w.memory()
	return map[string]float64{perSecond: l.perSecond(), p50us: l.p50(), p99us: l.p99(), envoyCPU: l.each(l.proxy), gateCPU: l.each(l.gate), gateMB: gate}, err
}

// crowd are live sessions, each renewed once, at a gate that has read of them.
type crowd struct {
	gate    *worker.Sessions
	now     time.Time
	holders []holder
	heap    int64 // bytes that the gate has of them
}

// holder is a worker with its session.
type holder struct {
	worker, id, identity string // the last as it crosses Envoy
	token                secret.Text
	placeholder          string
}

func newCrowd(ctx context.Context, store *vaulttest.Memory, n int) (*crowd, error) {
	issuer, err := worker.OpenSessions(ctx, store, worker.LedgerOptions{})
	if err != nil {
		return nil, err
	}
	c := &crowd{now: time.Now()}
	for i := range n {
		name := fmt.Sprintf("worker-%d", i)
		s, token, err := issuer.Issue(name, profileName, time.Hour, c.now)
		if err != nil {
			return nil, err
		}
		issuer.Issued(s, "repo:acme/app:ref:refs/heads/main", "192.0.2.1")
		issuer.Renew(s, c.now.Add(2*time.Hour))
		c.holders = append(c.holders, holder{name, s.ID, s.Identity(), token, issuer.Placeholder(s, grantName, placeholder)})
	}
	rand.Shuffle(n, func(i, j int) { c.holders[i], c.holders[j] = c.holders[j], c.holders[i] })
	ended, end := context.WithCancel(ctx)
	end()
	issuer.Run(ended) // which writes down what is not written yet
	before := heap()
	if c.gate, err = worker.OpenSessions(ctx, store, worker.LedgerOptions{}); err != nil {
		return nil, err
	}
	c.heap = heap() - before
	if live, err := worker.ListSessions(ctx, store, c.now); err != nil || len(live) != n {
		return nil, fmt.Errorf("of %d sessions the ledger has %d: %w", n, len(live), err)
	}
	return c, nil
}

// heap is what is in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools keep for one
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// time returns the CPU time of one check, in nanoseconds.
func (c *crowd) time(ctx context.Context, check func(*crowd, *holder) error, checks int) (float64, error) {
	runtime.GC()
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return 0, err
	}
	for i := range checks {
		if i%1000 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err := check(c, &c.holders[i%len(c.holders)]); err != nil {
			return 0, err
		}
	}
	after, err := cpuTime(os.Getpid())
	return float64(after-before) / float64(checks), err
}

// connects is what happens when a worker opens a tunnel.
func (c *crowd) connects(h *holder) error {
	s, err := c.gate.Verify(h.id, h.token)
	if err != nil {
		return err
	}
	return c.gate.Check(s, c.now)
}

// requests is what happens for each request in it.
func (c *crowd) requests(h *holder) error {
	s, err := worker.ParseIdentity(h.identity)
	if err != nil {
		return err
	}
	if _, why := c.gate.Recognize(h.placeholder, s, grantName, placeholder); why != "" {
		return fmt.Errorf("a placeholder is not recognised: %s", why)
	}
	return c.gate.Check(s, c.now)
}
