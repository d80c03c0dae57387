package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"wayleave/secret"
	"wayleave/xds"
)

// The fast lane, as the product has it: a connection's first request is asked about, and one in each second after that. Where it is not
// said that a variant is in it, the gate is asked about every request.

const (
	fast         = "Wayleave, fast lane"
	fastNoEnds   = "fast lane, no account of the end"
	fastNoSearch = "fast lane, no search of the answer"
	fastNeither  = "fast lane, neither, nor barriers"

	leaseLasts     = time.Second // as in the product
	laneCredential = grantName + " Bearer"
)

// fastLadder is all of it, and ever less.
var fastLadder = []string{onlyTLS, fast, fastNoEnds, fastNoSearch, fastNeither}

func inFastLane(envoy func(*xds.Resources) error) variant {
	return variant{status: http.StatusOK, envoy: envoy, fast: true}
}

// withoutUpstream takes all filters from between the router and an upstream.
func withoutUpstream(r *xds.Resources) error {
	return upstreamFilters(r, func(f *hcmv3.HttpFilter) bool { return f.GetName() != "envoy.filters.http.upstream_codec" })
}

func withoutEither(r *xds.Resources) error {
	return errors.Join(withoutBarriers(r), withoutUpstream(r), withoutEnds(r))
}

func laneOf() *xds.Lane { return &xds.Lane{Credential: laneCredential, Header: "authorization"} }

// takeLanes lets Envoy set the credential of all routes by itself.
func (s *gateSpec) takeLanes() {
	s.Leases = leaseLasts
	for i, r := range s.Envoy.Routes {
		l := laneOf()
		s.Envoy.Routes[i].Lane = l
		of := &s.Swap.Routes[i]
		of.Lane, of.HeaderIn, of.HeaderOut, of.SchemeIn, of.SchemeOut = l.Key(r.Name), l.Header, l.Header, "Bearer", "Bearer"
	}
}

// credentials are what Envoys send by themselves.
func credentials() map[string]xds.Credential {
	return map[string]xds.Credential{laneCredential: {Version: "1", Value: secret.New("Bearer " + realToken)}}
}

// awaitLane returns when requests have taken the fast lane, which a benchmark is to have measured. Of an end the gate is told later.
func (w *world) awaitLane(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		state, err := w.gate.settle()
		if err != nil || state.Leased > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return errors.New("no request has taken the fast lane")
}
