package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

// routes: what a request costs by how many routes there are. A route's upstream is found by its name, or has an address in the
// configuration, and so clusters of its own in Envoy. All connections of a round are to the host of one route.

const (
	byName    = "found by name"
	byAddress = "with connect_to"

	startedMS = "started in ms"
)

type routesRun struct {
	*report
	routes, rounds, requests int
}

func routesFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &routesRun{}
	f.IntVar(&r.routes, "routes", 1000, "the most routes")
	f.IntVar(&r.rounds, "rounds", 11, "how often each number of routes is measured")
	f.IntVar(&r.requests, "requests", 2000, "for each number of routes, in each round")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.routes < 2 || r.rounds < 1 || r.requests < parallel {
			return fmt.Errorf("routes are at least 2, rounds at least 1, and requests %d, one for each connection", parallel)
		}
		return r.run(ctx)
	}
}

const parallel = 16 // connections

// sized is a world with so many routes.
type sized struct {
	*world
	kind  string
	hosts []string

	started time.Duration // what it took: the gate, then Envoy, until it listens
}

func (r *routesRun) run(ctx context.Context) error {
	t := r.table(fmt.Sprintf("A GET by how many routes there are, %d at a time", parallel), counted(1),
		metric{Name: perSecond}, metric{Name: p50us}, metric{Name: p99us}, metric{Name: envoyCPU}, metric{Name: gateCPU}, metric{Name: envoyMB}, metric{Name: gateMB}, metric{Name: startedMS})
	t.Chart = &chart{byName, p50us}
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	dns, err := startResolver()
	if err != nil {
		return err
	}
	defer dns.Close()
	var all []sized
	for _, kind := range []string{byName, byAddress} {
		for _, n := range tens(r.routes) {
			s := sized{kind: kind}
			with := setup{}
			for i := range n {
				host := fmt.Sprintf("r%d.bench.test", i)
				if kind == byName {
					host, with.dns = up.named(host), dns.LocalAddr().String()
				}
				s.hosts = append(s.hosts, host)
			}
			with.hosts = s.hosts
			r.say("starting with %s %s", counted(n), kind)
			begun := time.Now()
			if s.world, err = newWorld(ctx, up, with); err != nil {
				return fmt.Errorf("%s %s: %w", counted(n), kind, err)
			}
			defer s.stop()
			s.started = time.Since(begun)
			all = append(all, s)
		}
	}
	for round := range r.rounds + 1 {
		r.say("round %d of %d", round, r.rounds)
		found := make([]map[string]float64, len(all))
		for _, i := range rand.Perm(len(all)) {
			if found[i], err = all[i].measure(ctx, r.requests); err != nil {
				return fmt.Errorf("%s %s: %w", counted(len(all[i].hosts)), all[i].kind, err)
			}
		}
		for i, s := range all {
			if round == 1 {
				found[i][startedMS] = millis(s.started)
			}
			if round > 0 { // the one before is for warmth
				t.add(s.kind, counted(len(s.hosts)), round-1, found[i])
			}
		}
	}
	return nil
}

// tens are 1, 10, 100 and so on, and at last most.
func tens(most int) (n []int) {
	for next := 1; next < most; next *= 10 {
		n = append(n, next)
	}
	return append(n, most)
}

func counted(routes int) string {
	if routes == 1 {
		return "1 route"
	}
	return grouped(routes) + " routes"
}

func (s sized) measure(ctx context.Context, requests int) (_ map[string]float64, err error) {
	var all []requester
	defer func() {
		for _, a := range all {
			err = errors.Join(err, a.Close())
		}
	}()
	k := get
	k.host = s.hosts[rand.IntN(len(s.hosts))]
	for range parallel {
		a, err := s.requester(ctx, k, http.StatusOK)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	l, err := s.load(all, requests)
	if err != nil {
		return nil, err
	}
	envoy, gate, err := s.memory()
	return map[string]float64{
		perSecond: l.perSecond(), p50us: l.p50(), p99us: l.p99(), envoyCPU: l.each(l.proxy), gateCPU: l.each(l.gate), envoyMB: envoy, gateMB: gate,
	}, err
}
