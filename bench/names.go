package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"wayleave/ca"
	"wayleave/envoy"
	"wayleave/vault/vaulttest"
)

// names: what many server names cost. A worker can make names up below a wildcard, and each gets a certificate of its own,
// made when it is first asked for. How many are kept is limited; here is seen that memory is too, and what a handshake takes.

const (
	spread  = "ten wildcards" // limited in all
	below   = "one wildcard"  // limited by themselves
	passing = "tunnel"        // no certificate is made: what connections alone cost

	fresh  = "fresh name"
	cached = "the same again"
)

type namesRun struct {
	*report
	names, rounds, handshakes, leaves int

	memory, latency, mints *table
}

func namesFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &namesRun{}
	f.IntVar(&r.names, "names", 10_000, "how many names are asked for")
	f.IntVar(&r.rounds, "rounds", 3, "how often everything is started anew and measured")
	f.IntVar(&r.handshakes, "handshakes", 500, "of each kind, after each step of a round")
	f.IntVar(&r.leaves, "leaves", 0, "how many certificates are kept (0: as many as in the product)")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.names < 1 || r.rounds < 1 || r.handshakes < 1 {
			return errors.New("names, rounds and handshakes are at least 1")
		}
		return r.run(ctx)
	}
}

const (
	envoyMB = "Envoy MB"
	heapMB  = "of it in use MB"
	gateMB  = "gate MB"
	held    = "certificates"
	p50ms   = "p50 ms"
	p99ms   = "p99 ms"

	oneLeaf = "a key and a certificate, P-256"
	cpuUS   = "CPU µs"
)

func (r *namesRun) run(ctx context.Context) error {
	r.memory = r.table("Memory after so many names (or connections through a tunnel)", passing, metric{Name: envoyMB}, metric{Name: heapMB}, metric{Name: gateMB}, metric{Name: held, NoRatio: true})
	r.latency = r.table("TLS handshakes inside a tunnel, one at a time", passing, metric{Name: p50ms}, metric{Name: p99ms})
	r.mints = r.table("What it takes the gate to make one, in its own process", oneLeaf, metric{Name: cpuUS})
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	for round := range r.rounds {
		if err := r.mint(ctx, round); err != nil {
			return err
		}
		if err := r.round(ctx, up, round); err != nil {
			return err
		}
	}
	return nil
}

// field is a world that is filled, and how.
type field struct {
	*world
	variant string
	next    atomic.Int64 // name, none of them asked for before
	visit   func(context.Context, int) (time.Duration, error)
}

func (r *namesRun) round(ctx context.Context, up *upstream, round int) error {
	var fields []*field
	for _, variant := range []string{spread, below, passing} {
		s := setup{leaves: r.leaves}
		for i := range 10 {
			s.hosts = append(s.hosts, fmt.Sprintf("*.w%d.bench.test", i))
		}
		w, err := newWorld(ctx, up, s)
		if err != nil {
			return err
		}
		defer w.stop()
		f := &field{world: w, variant: variant}
		f.visit = func(ctx context.Context, n int) (time.Duration, error) {
			switch variant {
			case spread:
				return w.intercepted(ctx, fmt.Sprintf("n%d.w%d.bench.test", n, n%10))
			case below:
				return w.intercepted(ctx, fmt.Sprintf("n%d.w0.bench.test", n))
			}
			return w.untouched(ctx)
		}
		for range 50 { // what the first connections need once
			if _, err := w.untouched(ctx); err != nil {
				return err
			}
		}
		fields = append(fields, f)
	}
	steps := r.steps()
	for step, names := range steps {
		for i := range fields { // in turn, and not always the same first
			f := fields[(i+round)%len(fields)]
			r.say("round %d of %d: %s names, %s", round+1, r.rounds, grouped(names), f.variant)
			if err := f.fill(ctx, names); err != nil {
				return err
			}
			if err := r.weigh(ctx, f, round, names); err != nil {
				return err
			}
		}
		// The handshakes ask for further names, which are to be fewer than those of the next step.
		if last := step == len(steps)-1; last || names > 0 && steps[step+1]-names > r.handshakes {
			if err := r.time(ctx, fields[0], round, names); err != nil {
				return err
			}
		}
	}
	return nil
}

// mint makes certificates of fresh names.
func (r *namesRun) mint(ctx context.Context, round int) error {
	const n = 2000
	authority, err := ca.New(ctx, vaulttest.NewMemory(), ca.Config{Domains: []string{"*.bench.test"}})
	if err != nil {
		return err
	}
	cpu, err := cpuOf(func() error {
		for i := range n {
			if _, err := authority.Leaf(fmt.Sprintf("n%d.bench.test", i), ""); err != nil {
				return err
			}
		}
		return nil
	})
	r.mints.add("", oneLeaf, round, map[string]float64{cpuUS: micros(cpu) / n})
	return err
}

// steps are the numbers of names after which is measured.
func (r *namesRun) steps() []int {
	steps := slices.DeleteFunc([]int{0, 1000, 5000, 10_000, 50_000}, func(n int) bool { return n >= r.names })
	return append(steps, r.names)
}

// fill asks for names until there were so many, from eight connections at a time.
func (f *field) fill(ctx context.Context, names int) error {
	group, ctx := errgroup.WithContext(ctx)
	for range 8 {
		group.Go(func() error {
			for {
				n := f.next.Load()
				if n >= int64(names) {
					return nil
				}
				if !f.next.CompareAndSwap(n, n+1) {
					continue
				}
				if _, err := f.visit(ctx, int(n)); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// weigh takes the memory of both processes, once all connections have ended.
func (r *namesRun) weigh(ctx context.Context, f *field, round, names int) error {
	certificates, err := settled(ctx, f.admin)
	if err != nil {
		return err
	}
	if _, err := f.gate.settle(); err != nil {
		return err
	}
	inUse, err := envoy.Allocated(ctx, f.admin)
	if err != nil {
		return err
	}
	ofEnvoy, err := resident(f.envoy)
	if err != nil {
		return err
	}
	ofGate, err := resident(f.gate.pid)
	if err != nil {
		return err
	}
	const mb = 1e6
	r.memory.add(grouped(names), f.variant, round, map[string]float64{
		envoyMB: ofEnvoy / mb, heapMB: float64(inUse) / mb, gateMB: ofGate / mb, held: certificates,
	})
	return nil
}

// time takes handshakes of each kind in turn.
func (r *namesRun) time(ctx context.Context, f *field, round, names int) error {
	before, err := f.gate.settle()
	if err != nil {
		return err
	}
	took := map[string][]float64{}
	for range r.handshakes {
		n := int(f.next.Add(1)) - 1
		for _, kind := range []struct {
			name string
			make func() (time.Duration, error)
		}{
			{fresh, func() (time.Duration, error) { return f.visit(ctx, n) }},
			{cached, func() (time.Duration, error) { return f.visit(ctx, n) }},
			{passing, func() (time.Duration, error) { return f.untouched(ctx) }},
		} {
			d, err := kind.make()
			if err != nil {
				return err
			}
			took[kind.name] = append(took[kind.name], float64(d)/float64(time.Millisecond))
		}
	}
	after, err := f.gate.settle()
	if err != nil {
		return err
	}
	if made := after.Minted - before.Minted; made != int64(r.handshakes) {
		return fmt.Errorf("%d certificates were made for %d names that are asked for twice: what is cached is not, or what is fresh", made, r.handshakes)
	}
	for _, kind := range []string{fresh, cached, passing} {
		r.latency.add("after "+grouped(names)+" names", kind, round, map[string]float64{p50ms: quantile(took[kind], 0.5), p99ms: quantile(took[kind], 0.99)})
	}
	return nil
}

// settled waits until no worker is connected and Envoy has taken the certificates that were withdrawn out of use. It returns
// how many are left.
func settled(ctx context.Context, admin string) (certificates float64, err error) {
	const connections, active = "http.proxy.downstream_cx_active", "on_demand_secret.cert_active"
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for before := -1.0; ; before = certificates {
		stats, err := envoy.Stats(ctx, admin, "^http.proxy.downstream_cx_active$|on_demand_secret.cert_active$")
		if err != nil {
			return 0, err
		}
		certificates = 0
		for name, n := range stats {
			if strings.HasSuffix(name, active) {
				certificates += n
			}
		}
		if stats[connections] == 0 && certificates == before {
			return certificates, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
