package xds

import (
	"context"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// adsService is the gRPC service. Each stream is split in two: secrets, which are answered by name and made when they are asked
// for, and the configuration, which is sent as it changes.
//
//	Envoy ◀──▶ stream ──┬── Secret ────▶ subscriber
//	                    └── all else ──▶ follower
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
	secrets := s.secrets.join()
	defer s.secrets.leave(secrets)
	config := newFollower(&s.shared, secrets)
	node := s.nodes.open(config)
	defer s.leave(node)

	ctx, stop := context.WithCancel(inner.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	defer stop()
	var one sync.Mutex // held while sending, which is its only use: gRPC allows one sender at a time
	send := func(resp *discovery.DeltaDiscoveryResponse) error {
		one.Lock()
		defer one.Unlock()
		node.sending(resp)
		s.sent(shortType(resp.GetTypeUrl()))
		return inner.Send(resp)
	}
	sending.Go(func() { _ = secrets.serve(ctx, send) }) // a failed send ends receiving too
	sending.Go(func() { _ = config.serve(ctx, send) })

	received := make(chan error, 1)
	go func() { received <- a.receive(inner, node, secrets, config) }() // ends with the stream
	select {
	case <-s.ctx.Done():
		return status.Error(codes.Unavailable, "the gate ends")
	case err := <-received:
		return err
	}
}

// receive takes requests in until the stream ends.
func (a adsService) receive(inner discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, node *nodeStream, secrets *subscriber, config *follower) error {
	s := a.server
	for known := false; ; known = true {
		req, err := inner.Recv()
		if err != nil {
			return err
		}
		kind, reason, answered := node.received(req)
		if !known {
			s.join(node)
		}
		if req.GetTypeUrl() == resource.SecretType {
			if refused := secrets.receive(req); refused != "" {
				s.secrets.logRefused(node.id(), refused, reason)
			}
			config.secretAnswered()
		} else {
			config.receive(req)
			if kind != "" {
				s.log.Error("envoy refused a configuration and keeps its old one", "node", node.id(), "type", kind, "reason", reason)
			}
		}
		if answered {
			s.answered(shortType(req.GetTypeUrl()), kind != "")
			s.changed()
		}
	}
}
