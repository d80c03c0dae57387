package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"wayleave/xds"
)

// swap: what a request costs on its way, as the product has it and with parts left out. Each variant has an Envoy and a gate
// of its own, which have nothing to do while the others are measured.

const (
	whole    = "all of it"
	allEnds  = "and an account of every end" // Envoy's log for a gate with an audit
	noSearch = "no search of the answer"     // upstream.lua
	onlyTLS  = "interception alone"          // the floor: CONNECT, TLS on both sides, routing, the access log
)

// variant is what is left out, of what Envoy is told or of what the gate does.
type variant struct {
	envoy  func(*xds.Resources) error
	gate   []grpc.ServerOption
	status int // what the upstream answers
	fast   bool
}

var variants = map[string]variant{
	whole:    {status: http.StatusOK},
	allEnds:  {status: http.StatusOK},
	noSearch: {status: http.StatusOK, envoy: withoutLua},
	onlyTLS:  {status: statusUnswapped, envoy: floor},

	fastNoEnds:   inFastLane(withoutEnds),
	fastNoSearch: inFastLane(withoutLua),
	fastNeither:  inFastLane(withoutEither),

	unseen:    observed(), // see observe.go
	figured:   observed(),
	audited:   observed(),
	traced:    observed(),
	tracedAll: observed(),
}

type swapRun struct {
	*report
	rounds, requests int
	collector        string // of spans; empty: there is none
}

func (r *swapRun) flags(f *flag.FlagSet) {
	f.IntVar(&r.rounds, "rounds", 21, "how often each variant is measured")
	f.IntVar(&r.requests, "requests", 2000, "for each number of connections, in each round")
}

// checkSizes is an error when there is not a request for each of the most connections, or no round.
func checkSizes(requests, rounds int) error {
	if requests < 64 || rounds < 1 {
		return errors.New("requests are at least 64, one for each connection, and rounds at least 1")
	}
	return nil
}

func swapFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &swapRun{}
	r.flags(f)
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if err := checkSizes(r.requests, r.rounds); err != nil {
			return err
		}
		return r.run(ctx)
	}
}

const (
	perSecond = "requests/s"
	p50us     = "p50 µs"
	p99us     = "p99 µs"
	envoyCPU  = "Envoy's CPU µs"
	gateCPU   = "gate's CPU µs"
)

// lane is a variant that runs.
type lane struct {
	*world
	variant string
}

func (r *swapRun) run(ctx context.Context) error {
	if err := r.compare(ctx, "A small GET over HTTP/1.1, asked about; CPU time is for one request", whole, []string{whole, allEnds, noSearch, onlyTLS}); err != nil {
		return err
	}
	return r.compare(ctx, "The same in the fast lane", onlyTLS, fastLadder)
}

// compare measures these variants in turn, and compares each with base.
func (r *swapRun) compare(ctx context.Context, title, base string, names []string) error {
	t := r.table(title, base,
		metric{Name: perSecond}, metric{Name: p50us}, metric{Name: p99us}, metric{Name: envoyCPU}, metric{Name: gateCPU})
	up, err := startUpstream()
	if err != nil {
		return err
	}
	defer up.Close()
	var lanes []*lane
	connections := []int{1, 16, 64}
	for _, name := range names {
		w, err := newWorld(ctx, up, setup{hosts: []string{apiHost}, variant: name, collector: r.collector})
		if err != nil {
			return err
		}
		defer w.stop()
		l := &lane{w, name}
		if _, err := l.measure(ctx, min(r.requests, 1000), slices.Max(connections)); err != nil { // so that everything is warm
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == fast {
			if err := w.awaitLane(ctx); err != nil {
				return err
			}
		}
		lanes = append(lanes, l)
	}
	for round := range r.rounds {
		r.say("round %d of %d", round+1, r.rounds)
		for _, c := range connections {
			values := make([]map[string]float64, len(lanes))
			for _, i := range rand.Perm(len(lanes)) { // the order makes a difference, too
				if values[i], err = lanes[i].measure(ctx, r.requests, c); err != nil {
					return fmt.Errorf("%s: %w", lanes[i].variant, err)
				}
			}
			for i, l := range lanes {
				t.add(fmt.Sprintf("%d at a time", c), l.variant, round, values[i])
			}
		}
	}
	return nil
}

// measure sends so many requests over so many connections. They are new ones: which of its threads Envoy gives each to is
// chance, and makes a difference.
func (l *lane) measure(ctx context.Context, requests, connections int) (map[string]float64, error) {
	var all []requester
	for range connections {
		a, err := l.requester(ctx, get, variantNamed(l.variant).status)
		if err != nil {
			return nil, err
		}
		defer a.Close()
		all = append(all, a)
	}
	m, err := l.load(all, requests)
	if err != nil {
		return nil, err
	}
	return map[string]float64{perSecond: m.perSecond(), p50us: m.p50(), p99us: m.p99(), envoyCPU: m.each(m.proxy), gateCPU: m.each(m.gate)}, nil
}

// withoutLua takes the Lua filter from between the router and the upstream.
func withoutLua(r *xds.Resources) error {
	return upstreamFilters(r, func(f *hcmv3.HttpFilter) bool { return f.GetName() == "envoy.filters.http.lua" })
}

// floor leaves of the filters those without which no request gets anywhere.
func floor(r *xds.Resources) error {
	if err := upstreamFilters(r, func(f *hcmv3.HttpFilter) bool { return f.GetName() != "envoy.filters.http.upstream_codec" }); err != nil {
		return err
	}
	r.Extensions = nil
	if err := managers(r, "intercept", func(m *hcmv3.HttpConnectionManager) {
		m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcmv3.HttpFilter) bool { return f.GetName() != "envoy.filters.http.router" })
	}); err != nil {
		return err
	}
	return withoutEnds(r)
}

// withoutEnds has the gate told of no ends.
func withoutEnds(r *xds.Resources) error {
	return managers(r, "", func(m *hcmv3.HttpConnectionManager) {
		m.AccessLog = slices.DeleteFunc(m.AccessLog, func(l *accesslogv3.AccessLog) bool { return l.GetName() != "envoy.access_loggers.file" })
	})
}

// managers edits what handles HTTP in the filter chains whose names begin so.
func managers(r *xds.Resources, chain string, change func(*hcmv3.HttpConnectionManager)) error {
	for _, l := range r.Listeners {
		for _, c := range l.GetFilterChains() {
			for _, f := range c.GetFilters() {
				if f.GetName() != "envoy.filters.network.http_connection_manager" || !strings.HasPrefix(c.GetName(), chain) {
					continue
				}
				if err := edit(f.GetTypedConfig(), change); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// upstreamFilters takes filters from between the router and each upstream.
func upstreamFilters(r *xds.Resources, unwanted func(*hcmv3.HttpFilter) bool) error {
	for i, c := range r.Clusters {
		r.Clusters[i] = proto.CloneOf[*clusterv3.Cluster](c)
		for _, options := range r.Clusters[i].GetTypedExtensionProtocolOptions() {
			if err := edit(options, func(m *upstreamhttpv3.HttpProtocolOptions) {
				m.HttpFilters = slices.DeleteFunc(m.HttpFilters, unwanted)
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// edit changes a packed message in place.
func edit[M any, P interface {
	*M
	proto.Message
}](packed *anypb.Any, change func(P)) error {
	m := P(new(M))
	if err := packed.UnmarshalTo(m); err != nil {
		return err
	}
	change(m)
	return packed.MarshalFrom(m)
}
