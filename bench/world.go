package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wayleave/envoy"
	"wayleave/extproc"
	"wayleave/freeport"
	"wayleave/supervise"
	"wayleave/worker"
	"wayleave/xds"
)

// world is one gate and one Envoy in front of an upstream.
type world struct {
	gate     *gate
	envoy    int // its process
	admin    string
	proxy    string
	upstream *upstream
	roots    *x509.CertPool // whom a worker trusts
	stop     func()
}

// setup is what is different between worlds.
type setup struct {
	hosts   []string // that are intercepted, a route for each
	live    int      // sessions of other workers; see gateHello.Others
	leaves  int      // how many leaf certificates are kept; 0: as many as in the product
	variant string

	collector string    // of spans; empty: there is none
	h2        *upstream // behind apiHostH2; nil: there is none
	tcp       bool      // whether Envoy asks the gate about requests over TCP
	dns       string    // ip:port of a resolver that knows where the hosts are; empty: each route has the upstream's address
}

// newWorld starts one and returns when Envoy has its configuration. It lasts until stop.
func newWorld(ctx context.Context, up *upstream, s setup) (_ *world, err error) {
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		return nil, err
	}
	w := &world{upstream: up, admin: filepath.Join(dir, "admin.sock"), stop: func() { os.RemoveAll(dir) }}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	if w.proxy, err = freeport.Address(); err != nil {
		return nil, err
	}
	spec := gateSpec{
		Socket: filepath.Join(dir, "gate.sock"), Leaves: s.leaves, Live: s.live, Variant: s.variant, Collector: s.collector,
		Envoy: xds.Config{
			ProxyAddress: w.proxy, UpstreamCA: up.ca, APISockets: []string{filepath.Join(dir, "api.sock")}, GateSockets: map[string]string{"": filepath.Join(dir, "gate.sock")},
			Tunnel: []string{up.tunnelled()}, AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
			Marker: worker.Marker, MessageTimeout: 25 * time.Second, AccessLogPath: "/dev/null",
			CredentialHeaders: []string{"x-goog-api-key", "api-key", "private-token", "cookie"}, EnsureHeaders: []string{"anthropic-beta"},
		},
		Swap: extproc.Config{
			Tunnel: []string{up.tunnelled()}, Replayable: xds.Replayable,
			Profiles: map[string]extproc.Profile{profileName: {Grants: []string{grantName}}}, Workers: map[string]string{workerName: profileName},
		},
	}
	at := up.address
	if s.dns != "" {
		at, spec.Envoy.DNSResolvers = "", []string{s.dns}
	}
	for i, h := range s.hosts {
		name := fmt.Sprintf("route%d", i)
		spec.Envoy.Routes = append(spec.Envoy.Routes, xds.Route{Name: name, Hosts: []string{h}, ConnectTo: at})
		spec.Swap.Routes = append(spec.Swap.Routes, extproc.Route{
			Name: name, Hosts: []string{h}, Credential: grantName, PlaceholderPrefix: placeholder, EnsureHeaders: map[string]string{"anthropic-beta": "oauth-2025-04-20"},
		})
	}
	if variantNamed(s.variant).fast {
		spec.takeLanes()
	}
	if s.h2 != nil {
		spec.Envoy.UpstreamCA = slices.Concat(up.ca, s.h2.ca)
		for i, r := range spec.Envoy.Routes {
			if slices.Contains(r.Hosts, apiHostH2) {
				spec.Envoy.Routes[i].ConnectTo = s.h2.address
			}
		}
	}
	if s.tcp {
		if spec.TCP, err = freeport.Address(); err != nil {
			return nil, err
		}
	}
	if w.gate, err = startGate(ctx, spec); err != nil {
		return nil, err
	}
	w.stop = after(w.gate.stop, w.stop)
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(w.gate.Root)
	stopEnvoy, err := w.startEnvoy(ctx, dir, spec.Socket)
	if err != nil {
		return nil, err
	}
	w.stop = after(stopEnvoy, w.stop)
	return w, nil
}

// as is the world as another worker sees it.
func (w *world) as(who carried) *world {
	other, g := *w, *w.gate
	g.carried = who
	other.gate = &g
	return &other
}

func after(first, then func()) func() { return func() { first(); then() } }

// startEnvoy returns when Envoy listens for workers. It is run as the product runs it.
func (w *world) startEnvoy(ctx context.Context, dir, gateSocket string) (stop func(), err error) {
	binary, err := findEnvoy(ctx)
	if err != nil {
		return nil, err
	}
	boot := envoy.Bootstrap{NodeID: "bench", GateSockets: []string{gateSocket}, AdminSocket: w.admin}
	text, err := boot.YAML()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	pid, stop, err := start(ctx, supervise.Process{
		Name:    "envoy",
		Command: func() *exec.Cmd { return exec.Command(binary.Path, boot.Args(file)...) }, //nolint:noctx // supervise ends it
		Ready: func(ctx context.Context) error {
			if err := envoy.Ready(ctx, w.admin); err != nil {
				return err
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", w.proxy)
			if err == nil {
				c.Close()
			}
			return err
		},
	})
	w.envoy = pid
	return stop, err
}

// start returns when the process is ready. It is not started again.
func start(ctx context.Context, p supervise.Process) (pid int, stop func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ready, done := make(chan int, 1), make(chan error, 1)
	p.OnEvent = func(e supervise.Event) {
		if e.Kind == supervise.Ready {
			ready <- e.PID
		}
		if e.Kind == supervise.Exited && e.Err != nil { // why connections were lost
			fmt.Fprintf(os.Stderr, "%s ended: %v\n%s\n", p.Name, e.Err, strings.Join(e.Tail, "\n"))
		}
		if e.Kind == supervise.Exited {
			cancel(fmt.Errorf("%s ended: %s", p.Name, strings.Join(e.Tail, "\n")))
		}
	}
	go func() {
		defer close(done)
		done <- supervise.Run(ctx, p)
	}()
	select {
	case pid = <-ready:
		return pid, func() {
			cancel(nil)
			for range done { // it ends as it was told
			}
		}, nil
	case err := <-done:
		return 0, nil, errors.Join(err, context.Cause(ctx))
	}
}
