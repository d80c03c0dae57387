package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"wayleave/envoy"
)

// How long a gate that is told to end takes for what.
const (
	noticeTime    = envoy.HealthNotice // for Envoy to see that it should go to the other gates
	successorTime = 5 * time.Second    // for the gate that waits for our spool directory to listen in our place
	finishTime    = swapDeadline       // for requests that wait for a token
)

// doors are the sockets where Envoy comes to the gate, and what answers there.
type doors struct {
	rpc    *grpc.Server
	api    *http.Server
	health *health.Server
	log    *slog.Logger
	shared bool // Envoy has other gates too

	gateListener, apiListener net.Listener
	path                      string        // of gateListener
	own                       os.FileInfo   // what path was when we made it
	leaving                   chan struct{} // closed when streams without an end are to end
}

// openDoors listens. Who connects is served from serveRPC and serveAPI on.
func (g gate) openDoors(ctx context.Context) (*doors, error) {
	d := &doors{shared: len(g.cfg.Listen.Replicas) > 1, log: g.log, path: g.socket(gateSocket), leaving: make(chan struct{})}
	var err error
	if d.gateListener, err = listenUnix(ctx, d.path); err != nil {
		return nil, err
	}
	if d.own, err = os.Lstat(d.path); err != nil {
		return nil, err
	}
	if d.apiListener, err = listenUnix(ctx, g.socket(apiSocket)); err != nil {
		return nil, err
	}
	d.rpc = grpc.NewServer(append(grpcOptions(), grpc.StreamInterceptor(d.endless))...)
	d.health = health.NewServer()
	healthpb.RegisterHealthServer(d.rpc, d.health)
	d.api = &http.Server{ReadHeaderTimeout: 10 * time.Second}
	return d, nil
}

func (d *doors) serveRPC() error {
	if err := d.rpc.Serve(d.gateListener); !errors.Is(err, grpc.ErrServerStopped) { // which it says if it was told to stop before it began
		return err
	}
	return nil
}

func (d *doors) serveAPI(enrolment http.Handler) error {
	d.api.Handler = enrolment
	if err := d.api.Serve(d.apiListener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// endless ends the streams that Envoy holds for as long as it runs, which a graceful stop would wait for.
func (d *doors) endless(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	switch info.FullMethod {
	case discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName:
	default:
		return handler(server, stream)
	}
	ended := make(chan error, 1)
	go func() { ended <- handler(server, stream) }() // it ends with the stream's context, and that with our return
	select {
	case err := <-ended:
		return err
	case <-d.leaving:
		return status.Error(grpccodes.Unavailable, "this gate is being stopped")
	}
}

// sendAway makes Envoy bring what is new to the other gates, if it has any.
func (d *doors) sendAway() {
	d.health.Shutdown()
	if d.shared {
		<-time.After(noticeTime) // Envoy asks; nothing says that it has
	}
}

// awaitSuccessor returns when another gate listens in our place, or has not come in time.
func (d *doors) awaitSuccessor() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(successorTime); ; {
		if now, err := os.Lstat(d.path); err == nil && !os.SameFile(now, d.own) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			d.log.Warn("the gate that was to take over has not; requests fail until it has", "socket", d.path)
			return
		}
	}
}

// finish lets Envoy go: it answers what is under way, and takes nothing new.
func (d *doors) finish() error {
	close(d.leaving)
	ctx, cancel := context.WithTimeout(context.Background(), finishTime)
	defer cancel()
	stop := context.AfterFunc(ctx, d.shut)
	defer stop()
	d.rpc.GracefulStop()
	err := d.api.Shutdown(ctx)
	if ctx.Err() != nil {
		d.log.Warn("requests were cut that were not answered in time", "after", finishTime)
		return nil
	}
	return err
}

// shut cuts what is under way.
func (d *doors) shut() {
	d.rpc.Stop()
	_ = d.api.Close()
}

// addressRetry is how often a gate looks whether the one before it has let go of an address.
const addressRetry = time.Second

// awaitAddress listens as soon as nobody else does. It returns nil when ctx ends before.
func awaitAddress(ctx context.Context, listen func(context.Context) (net.Listener, error)) net.Listener {
	again := time.NewTicker(addressRetry)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			if l, err := listen(ctx); err == nil {
				return l
			}
		}
	}
}

// listenUnix opens a unix socket that only this user may connect to, in place of one that an earlier gate left behind, or
// still listens on: that one keeps the connections it has. At no time is there none.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	unnamed := path + "~"
	if err := os.Remove(unnamed); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier run: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", unnamed)
	if err != nil {
		return nil, fmt.Errorf("listening for Envoy: %w; is %s writable, and its path shorter than %d bytes?", err, filepath.Dir(path), maxSocketPath())
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by then the path may be our successor's
	if err := os.Chmod(unnamed, 0o600); err != nil {
		return nil, fmt.Errorf("closing %s to others: %w", path, err)
	}
	if err := os.Rename(unnamed, path); err != nil {
		return nil, fmt.Errorf("listening for Envoy: %w", err)
	}
	return l, nil
}
