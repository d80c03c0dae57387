package xds

import (
	"context"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// adsService is the gRPC service. Each stream is split in two: secrets to our own store, which answers every
// subscription and costs the same for any number of names, and all else to go-control-plane's snapshot cache.
//
//	Envoy ◀──▶ adsStream ──┬── Secret ────▶ subscriber
//	                       └── all else ──▶ go-control-plane
type adsService struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

// StreamAggregatedResources refuses the protocol that sends the state of the world: it cannot refuse or withdraw
// one certificate.
func (adsService) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "only delta ADS is served: set api_type DELTA_GRPC in Envoy's bootstrap")
}

// DeltaAggregatedResources serves one Envoy.
func (a adsService) DeltaAggregatedResources(inner discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := a.server
	stream := &adsStream{
		AggregatedDiscoveryService_DeltaAggregatedResourcesServer: inner,
		server:  s,
		node:    s.nodes.open(),
		secrets: s.secrets.join(),
	}
	defer stream.node.close()
	defer s.secrets.leave(stream.secrets)

	ctx, stop := context.WithCancel(inner.Context())
	var secretsDone sync.WaitGroup
	defer secretsDone.Wait()
	defer stop()
	secretsDone.Go(func() { _ = stream.secrets.serve(ctx, stream.Send) }) // a failed send ends Recv too
	return s.config.DeltaStreamHandler(stream, resource.AnyType)
}

// adsStream is one stream as go-control-plane sees it: without secrets.
type adsStream struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	server  *Server
	node    *nodeStream
	secrets *subscriber
	first   *corev3.Node // Envoy tells its node once; used by Recv only

	sending sync.Mutex // held while sending, which is its only use: gRPC allows one sender at a time
}

// Send is called by both halves.
func (a *adsStream) Send(resp *discovery.DeltaDiscoveryResponse) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	a.node.sending(resp)
	return a.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(resp)
}

// Recv returns the next request that is not about secrets.
func (a *adsStream) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	for {
		req, err := a.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv()
		if err != nil {
			return nil, err
		}
		if req.GetNode() != nil {
			if a.first == nil && a.server.joined != nil {
				a.server.joined(a.node.describe(req.GetNode()))
			}
			a.first = req.GetNode()
		}
		kind, reason := a.node.received(req)
		if req.GetTypeUrl() == resource.SecretType {
			if refused := a.secrets.receive(req); refused != "" {
				a.server.secrets.logRefused(a.node.id(), refused, reason)
			}
			continue
		}
		if kind != "" {
			a.server.log.Error("envoy refused a configuration and keeps its old one", "node", a.node.id(), "type", kind, "reason", reason)
		}
		req.Node = a.first
		return req, nil
	}
}
