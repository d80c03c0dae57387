package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
)

// routes: what a request costs by how many routes there are. Each has a host, an upstream and clusters of its own, and the
// connections are to different ones.

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
	hosts []string
}

func (r *routesRun) run(ctx context.Context) error {
	t := r.table(fmt.Sprintf("A GET by how many routes there are, %d at a time", parallel), counted(1),
		metric{Name: perSecond}, metric{Name: p50us}, metric{Name: p99us}, metric{Name: envoyCPU}, metric{Name: gateCPU}, metric{Name: envoyMB}, metric{Name: gateMB})
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	var all []sized
	for n := 1; ; n = min(n*10, r.routes) {
		s := sized{}
		for i := range n {
			s.hosts = append(s.hosts, fmt.Sprintf("r%d.bench.test", i))
		}
		r.say("starting with %s", counted(n))
		if s.world, err = newWorld(ctx, up, setup{hosts: s.hosts}); err != nil {
			return fmt.Errorf("%s: %w", counted(n), err)
		}
		defer s.stop()
		if _, err := s.measure(ctx, parallel*4); err != nil { // so that everything is warm
			return fmt.Errorf("%s: %w", counted(n), err)
		}
		all = append(all, s)
		if n == r.routes {
			break
		}
	}
	for round := range r.rounds {
		r.say("round %d of %d", round+1, r.rounds)
		found := make([]map[string]float64, len(all))
		for _, i := range rand.Perm(len(all)) {
			if found[i], err = all[i].measure(ctx, r.requests); err != nil {
				return fmt.Errorf("%s: %w", counted(len(all[i].hosts)), err)
			}
		}
		for i, s := range all {
			t.add("", counted(len(s.hosts)), round, found[i])
		}
	}
	return nil
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
	first := rand.IntN(len(s.hosts))
	for i := range parallel { // spread over all routes
		k := get
		k.host = s.hosts[(first+i*len(s.hosts)/parallel)%len(s.hosts)]
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
