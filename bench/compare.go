package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// compare: what it costs to have a credential set in the ways that there are. All take CONNECT with a password, end the TLS of the
// same hosts with certificates of their own, and ask the same upstreams over verified TLS. An answer that says that the credential was
// not there ends the benchmark.

const (
	goProxy   = "Go proxy of net/http"
	mitmproxy = "mitmproxy"

	proxyCPU = "proxy's CPU µs"
	proxyMB  = "proxy MB"

	known    = "a host that was asked for before"
	unknown  = "a host that nobody asked for before"
	straight = "the upstream itself, through a tunnel"

	overMS = "ms over a tunnel"
)

type compareRun struct {
	*report
	rounds, requests int
	up, h2           *upstream
	fresh            atomic.Int64 // how many hosts were asked for that nobody asked for before
}

func compareFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &compareRun{}
	f.IntVar(&r.rounds, "rounds", 11, "how often each way is measured")
	f.IntVar(&r.requests, "requests", 2000, "for each number of connections, in each round: fewer where each takes longer")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if err := checkSizes(r.requests, r.rounds); err != nil {
			return err
		}
		return r.run(ctx)
	}
}

// rivals are the ways that are compared, each with how many times fewer requests it is given: it would take all the time.
func (r *compareRun) rivals(ctx context.Context) []rivalry {
	list := []rivalry{
		{name: alone}, {name: routeHeader}, {name: injector}, {name: minimal}, {name: fast}, {name: ours}, {name: oursTCP},
		{name: goProxy, start: func(ctx context.Context) (*world, error) { return newMITM(ctx, r.up, r.h2) }},
	}
	program, version := findMitmdump(ctx)
	if program == "" {
		r.say("mitmproxy is left out: deploy/tools/fetch.sh mitmproxy brings it")
		return list
	}
	r.Machine.Others = map[string]string{mitmproxy: version}
	return append(list, rivalry{name: mitmproxy, slower: 8, start: func(ctx context.Context) (*world, error) {
		return newMitmproxy(ctx, program, r.up, r.h2)
	}})
}

type rivalry struct {
	name   string
	slower int                                   // 0: not
	start  func(context.Context) (*world, error) // nil: an Envoy, as injections say
	*world
}

func (v rivalry) status() int {
	if v.start != nil {
		return http.StatusOK
	}
	return variantNamed(v.name).status
}

// requests are how many of so many it is given.
func (v rivalry) requests(n int) int { return n / max(1, v.slower) }

func (r *compareRun) run(ctx context.Context) (err error) {
	if r.up, err = newUpstream(false); err != nil {
		return err
	}
	defer r.up.Close()
	if r.h2, err = newUpstream(true); err != nil {
		return err
	}
	defer r.h2.Close()
	rivals := r.rivals(ctx)
	others := len(rivals)
	for _, name := range ladder {
		rivals = append(rivals, rivalry{name: name})
	}
	for i, v := range rivals {
		start := v.start
		if start == nil {
			start = func(ctx context.Context) (*world, error) {
				return newWorld(ctx, r.up, setup{hosts: []string{apiHost, apiHostH2, "*.fresh.bench.test"}, variant: v.name, h2: r.h2, tcp: v.name == oursTCP})
			}
		}
		if rivals[i].world, err = start(ctx); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		defer rivals[i].stop()
	}
	rivals, steps := rivals[:others:others], rivals[others:]
	costs := []metric{{Name: perSecond}, {Name: p50us}, {Name: p99us}, {Name: proxyCPU}, {Name: gateCPU, NoRatio: true}}
	works := []compareWork{
		{get, r.table("A GET, over HTTP/1.1", alone, costs...), 1},
		{post, r.table("A POST of 16 KiB, over HTTP/1.1", alone, costs...), 2},
		{sse, r.table(fmt.Sprintf("A stream of %d events, over HTTP/1.1: times are of the whole stream", events), alone, costs...), 8},
		{get2, r.table("A GET, over HTTP/2 on both sides, a connection for each client", alone, costs...), 1},
	}
	floors := r.table("A GET, over HTTP/1.1, with ever less of what Wayleave does, and the least that any ext_proc costs", minimal, metric{Name: perSecond}, metric{Name: p50us}, metric{Name: proxyCPU}, metric{Name: gateCPU})
	connects := r.table("A new connection with one GET: CONNECT, TLS, the answer; one at a time", straight,
		metric{Name: p50ms}, metric{Name: overMS, NoRatio: true}, metric{Name: p99ms}, metric{Name: proxyCPU}, metric{Name: gateCPU, NoRatio: true})
	connects.Chart = &chart{unknown, p50ms}
	memory := r.table("Memory after that", alone, metric{Name: proxyMB}, metric{Name: gateMB, NoRatio: true})
	works = append(works, // at the end, as the page knows tables by their numbers
		compareWork{post2, r.table("A POST of 16 KiB, over HTTP/2 on both sides", alone, costs...), 2},
		compareWork{sse2, r.table(fmt.Sprintf("A stream of %d events, over HTTP/2 on both sides: times are of the whole stream", events), alone, costs...), 8},
	)
	for _, k := range works {
		k.table.Chart = &chart{"16 at a time", perSecond}
	}

	for _, v := range slices.Concat(rivals, steps) { // so that everything is warm
		for _, k := range works {
			if _, err := r.measure(ctx, v, k.work, 64, 16); err != nil {
				return fmt.Errorf("%s, %s: %w", v.name, k.name, err)
			}
		}
	}
	for _, v := range rivals {
		if v.name != fast {
			continue
		}
		if err := v.awaitLane(ctx); err != nil {
			return err
		}
	}
	for round := range r.rounds {
		for _, k := range works {
			r.say("round %d of %d: %s", round+1, r.rounds, k.name)
			here := rivals
			if k.work == get {
				here = slices.Concat(rivals, steps)
			}
			for _, connections := range []int{1, 16, 64} {
				if err := inTurn(here, func(v rivalry) (map[string]float64, error) {
					return r.measure(ctx, v, k.work, v.requests(r.requests/k.slower), connections)
				}, func(v rivalry, values map[string]float64) {
					of := fmt.Sprintf("%d at a time", connections)
					step := slices.Contains(ladder, v.name)
					if !step {
						k.table.add(of, v.name, round, values)
					}
					if step || k.work == get && (v.name == minimal || v.name == ours) {
						floors.add(of, v.name, round, values)
					}
				}); err != nil {
					return fmt.Errorf("%s: %w", k.name, err)
				}
			}
		}
		r.say("round %d of %d: new connections", round+1, r.rounds)
		if err := r.connections(ctx, rivals, connects, round); err != nil {
			return err
		}
		for _, v := range rivals {
			proxy, gate, err := v.memory()
			if err != nil {
				return err
			}
			memory.add("", v.name, round, map[string]float64{proxyMB: proxy, gateMB: gate})
		}
	}
	return nil
}

// compareWork is what is asked of all, where it is noted, and how many times longer than a GET it takes.
type compareWork struct {
	work
	table  *table
	slower int
}

// inTurn measures all in an order that is not always the same, since it makes a difference, and notes what was found in theirs.
func inTurn(rivals []rivalry, measure func(rivalry) (map[string]float64, error), note func(rivalry, map[string]float64)) error {
	found := make([]map[string]float64, len(rivals))
	for _, i := range rand.Perm(len(rivals)) {
		var err error
		if found[i], err = measure(rivals[i]); err != nil {
			return fmt.Errorf("%s: %w", rivals[i].name, err)
		}
	}
	for i, v := range rivals {
		note(v, found[i])
	}
	return nil
}

// measure sends so many requests over so many connections, which are new ones: which of its threads a proxy gives each to is chance,
// and makes a difference.
func (r *compareRun) measure(ctx context.Context, v rivalry, k work, requests, connections int) (map[string]float64, error) {
	var all []requester
	for range connections {
		a, err := v.requester(ctx, k, v.status())
		if err != nil {
			return nil, err
		}
		defer a.Close()
		all = append(all, a)
	}
	l, err := v.load(all, requests)
	if err != nil {
		return nil, err
	}
	return l.costs(), nil
}

func (l loaded) costs() map[string]float64 {
	return map[string]float64{perSecond: l.perSecond(), p50us: l.p50(), p99us: l.p99(), proxyCPU: l.each(l.proxy), gateCPU: l.each(l.gate)}
}

// visitor is a requester that opens a connection each time.
type visitor func() error

func (v visitor) ask() error   { return v() }
func (v visitor) Close() error { return nil }

// connections measures new ones, of the ways in which they differ: of what Envoys do to requests, TLS knows nothing.
func (r *compareRun) connections(ctx context.Context, rivals []rivalry, t *table, round int) error {
	rivals = slices.DeleteFunc(slices.Clone(rivals), func(v rivalry) bool { return v.start == nil && v.name != ours })
	rivals = append(rivals, rivals[0]) // once more, for what a tunnel costs
	last := len(rivals) - 1
	rivals[last].name = straight
	for _, c := range []string{known, unknown} {
		found := map[string]map[string]float64{}
		if err := inTurn(rivals, func(v rivalry) (map[string]float64, error) {
			l, err := v.load([]requester{visitor(func() error {
				authority, roots, k, status := apiHost+":443", v.roots, get, http.StatusOK
				switch {
				case v.name == straight:
					authority, roots, status = v.upstream.tunnelled(), v.upstream.roots, statusUnswapped
				case c == unknown:
					k.host = fmt.Sprintf("n%d.fresh.bench.test", r.fresh.Add(1))
					authority = k.host + ":443"
				}
				a, err := v.askerAt(ctx, authority, roots, k, status)
				if err != nil {
					return err
				}
				return a.Close()
			})}, v.requests(max(8, r.requests/10)))
			if err != nil {
				return nil, err
			}
			return map[string]float64{
				p50ms: millis(quantile(l.took, 0.5)), p99ms: millis(quantile(l.took, 0.99)), proxyCPU: l.each(l.proxy), gateCPU: l.each(l.gate),
			}, nil
		}, func(v rivalry, values map[string]float64) { found[v.name] = values }); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		for _, v := range rivals {
			if v.name != straight {
				found[v.name][overMS] = found[v.name][p50ms] - found[straight][p50ms]
			}
			t.add(c, v.name, round, found[v.name])
		}
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
