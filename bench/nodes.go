package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"wayleave/worker"
	"wayleave/xds"
)

// nodes: how soon a change of the configuration is everywhere, and what it costs, by how many Envoys there are. They are
// simulated in this process: each has a connection and a stream of its own, asks and acknowledges as Envoy does, and reads no more of a
// resource than its name and version. So memory and CPU time are of both ends.

const (
	medianMS = "median ms"
	worstMS  = "worst ms"
	cpuMS    = "CPU ms each"
	kbEach   = "kB each"
	wireKB   = "received kB each"

	oneHost   = "one host changes"
	firstTime = "all come for the first time"
	again     = "all come back at once"
	connected = "connected"
)

type nodesRun struct {
	*report
	nodes, routes, rounds, changes int
}

func nodesFlags(f *flag.FlagSet) func(context.Context, *report) error {
	r := &nodesRun{}
	f.IntVar(&r.nodes, "nodes", 1000, "how many Envoys are connected")
	f.IntVar(&r.routes, "routes", 1000, "how many routes the configuration has")
	f.IntVar(&r.rounds, "rounds", 5, "how often everything is started anew and measured")
	f.IntVar(&r.changes, "changes", 5, "of one host, in each round")
	return func(ctx context.Context, rep *report) error {
		r.report = rep
		if r.nodes < 2 || r.routes < 1 || r.rounds < 1 || r.changes < 1 {
			return errors.New("nodes is at least 2, routes, rounds and changes at least 1")
		}
		return r.run(ctx)
	}
}

func (r *nodesRun) run(ctx context.Context) error {
	spread := r.table("Until Envoys have acknowledged all, by how many there are", oneLive, metric{Name: medianMS}, metric{Name: worstMS}, metric{Name: cpuMS}, metric{Name: wireKB})
	memory := r.table("Memory, by how many Envoys there are", oneLive, metric{Name: kbEach})
	for round := range r.rounds {
		for _, n := range []int{1, r.nodes} {
			r.say("round %d of %d: %s Envoys", round+1, r.rounds, grouped(n))
			if err := r.round(ctx, round, n, spread, memory); err != nil {
				return err
			}
		}
	}
	return nil
}

// config is the configuration after so many changes of one host.
func (r *nodesRun) config(change int) xds.Config {
	c := xds.Config{
		Revision: fmt.Sprintf("r%d", change), ProxyAddress: "127.0.0.1:3128", UpstreamCA: []byte("-----BEGIN CERTIFICATE-----"),
		APISockets: []string{"/run/wayleave/api.sock"}, GateSockets: map[string]string{"": "/run/wayleave/gate.sock"}, Marker: worker.Marker,
	}
	for i := range r.routes {
		c.Routes = append(c.Routes, xds.Route{Name: fmt.Sprintf("route%d", i), Hosts: []string{fmt.Sprintf("api%d.bench.test", i)}})
	}
	c.Routes[0].Hosts = append(c.Routes[0].Hosts, fmt.Sprintf("changed%d.bench.test", change))
	return c
}

func (r *nodesRun) round(ctx context.Context, round, n int, spread, memory *table) error {
	dir, err := os.MkdirTemp("", "wayleave-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server := xds.NewServer(nil, xds.Options{Log: slog.New(slog.DiscardHandler)})
	running, end := context.WithCancel(ctx)
	defer end()
	go server.Run(running)
	serve := func(change int) error {
		resources, err := xds.Build(r.config(change))
		if err != nil {
			return err
		}
		id := fmt.Sprintf("r%d", change)
		return server.Serve(map[string]*xds.Resources{id: resources}, func(xds.Node) xds.Assignment { return xds.Assignment{Revision: id} })
	}
	if err := serve(0); err != nil {
		return err
	}
	socket := filepath.Join(dir, "gate.sock")
	g, err := listenADS(ctx, server, socket)
	if err != nil {
		return err
	}
	defer func() { g.Stop() }()

	before := heap()
	c := &convoy{known: map[step]versions{}}
	defer c.stop()
	if err := c.measure(n, spread, round, firstTime, func() error { return c.connect(ctx, socket, n) }); err != nil {
		return err
	}
	memory.add(connected, grouped(n), round, map[string]float64{kbEach: float64(heap()-before) / 1e3 / float64(n)})
	for change := range r.changes {
		if err := c.measure(n, spread, round*r.changes+change, oneHost, func() error { return serve(change + 1) }); err != nil {
			return err
		}
	}
	g.Stop()
	c.stop()
	if g, err = listenADS(ctx, server, socket); err != nil {
		return err
	}
	return c.measure(n, spread, round, again, func() error { return c.connect(ctx, socket, n) })
}

func listenADS(ctx context.Context, server *xds.Server, socket string) (*grpc.Server, error) {
	var listening net.ListenConfig
	l, err := listening.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer()
	server.Register(g)
	go func() { _ = g.Serve(l) }() // until Stop
	return g, nil
}

// versions are those of the resources that an Envoy has of one type. They are not changed once made: Envoys with the same share them.
type versions map[string]string

// step is a response to an Envoy that has these versions.
type step struct {
	from uintptr
	by   *content
}

// convoy is all simulated Envoys.
type convoy struct {
	answers rawAnswers
	streams *errgroup.Group
	hangUp  context.CancelFunc

	mu       sync.Mutex
	known    map[step]versions // what an Envoy has after
	last     [len(subscriptions)]versions
	took     []time.Duration // since began, of each Envoy that has all
	began    time.Time
	received int
	want     int
	all      chan struct{} // closed when as many as wanted have all
}

// subscriptions are what Envoy asks for, in its order; names are told for those it knows by name.
var subscriptions = [...]struct {
	url   string
	names []string
}{
	{resource.ClusterType, nil},
	{resource.ListenerType, nil},
	{resource.ExtensionConfigType, []string{"wayleave.ext_proc"}},
	{resource.RouteType, []string{"intercept", "proxy"}},
	{resource.VirtualHostType, nil},
}

// measure does something and waits until all Envoys have acknowledged what came of it.
func (c *convoy) measure(n int, t *table, round int, what string, do func() error) error {
	runtime.GC()
	cpu, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.took, c.received, c.want, c.began, c.all = nil, 0, n, time.Now(), make(chan struct{})
	c.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	select {
	case <-c.all:
	case <-time.After(2 * time.Minute):
		return fmt.Errorf("%s: not all of %d Envoys have all after two minutes", what, n)
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	const ms, kB = float64(time.Millisecond), 1e3
	t.add(what, grouped(n), round, map[string]float64{
		medianMS: float64(quantile(c.took, 0.5)) / ms, worstMS: float64(quantile(c.took, 1)) / ms,
		cpuMS: float64(after-cpu) / ms / float64(n), wireKB: float64(c.received) / kB / float64(n),
	})
	return nil
}

// connect starts the Envoys. Those that come back tell what they have.
func (c *convoy) connect(ctx context.Context, socket string, n int) error {
	ctx, c.hangUp = context.WithCancel(ctx)
	c.streams = &errgroup.Group{}
	for i := range n {
		c.streams.Go(func() error {
			conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			return c.follow(ctx, conn, fmt.Sprintf("envoy-%d", i))
		})
	}
	return nil
}

// stop ends the Envoys.
func (c *convoy) stop() {
	if c.hangUp != nil {
		c.hangUp()
		_ = c.streams.Wait() // which fail, as they are ended
	}
}

// follow is one Envoy.
func (c *convoy) follow(ctx context.Context, conn *grpc.ClientConn, id string) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", grpc.ForceCodecV2(&c.answers), grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return err
	}
	c.mu.Lock()
	has := c.last
	c.mu.Unlock()
	node := &corev3.Node{Id: id}
	for i, s := range subscriptions {
		if err := stream.SendMsg(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: s.url, ResourceNamesSubscribe: s.names, InitialResourceVersions: has[i]}); err != nil {
			return err
		}
		node = nil // it is told once
	}
	first, complete := map[string]bool{}, false
	for {
		var resp answer
		if err := stream.RecvMsg(&resp); err != nil {
			return err
		}
		if err := stream.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.url, ResponseNonce: resp.nonce}); err != nil {
			return err
		}
		// It has all when it has been answered about each type, and then with each change of the listeners, which come last.
		first[resp.url] = true
		done := complete && resp.url == resource.ListenerType || !complete && len(first) == len(subscriptions)
		complete = complete || done
		c.note(&has, resp, done)
	}
}

// note takes in what an Envoy was sent, and whether it has all now.
func (c *convoy) note(has *[len(subscriptions)]versions, resp answer, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received += resp.size
	for i, s := range subscriptions {
		if s.url == resp.url {
			key := step{reflect.ValueOf(has[i]).Pointer(), resp.content}
			next, ok := c.known[key]
			if !ok {
				next = resp.after(has[i])
				c.known[key] = next
			}
			has[i] = next
		}
	}
	if done {
		if c.took = append(c.took, time.Since(c.began)); len(c.took) == c.want {
			c.last = *has
			close(c.all)
		}
	}
}

// answer is a response, of which a simulated Envoy reads this.
type answer struct {
	url, version, nonce string
	size                int
	*content
}

// content is the same for all that are sent the same.
type content struct {
	put     versions
	removed []string
}

func (c *content) after(has versions) versions {
	next := versions{}
	maps.Copy(next, has)
	maps.Copy(next, c.put)
	for _, name := range c.removed {
		delete(next, name)
	}
	return next
}

// rawAnswers is a codec that reads an answer without its resources, and those once for all.
type rawAnswers struct{ read sync.Map }

// sameAnswer is the key of a content.
type sameAnswer struct {
	url, version string
	size         int
}

func (*rawAnswers) Name() string { return "proto" }

func (*rawAnswers) Marshal(v any) (mem.BufferSlice, error) {
	wire, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(wire)}, err
}

func (a *rawAnswers) Unmarshal(data mem.BufferSlice, v any) error {
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	wire, out := whole.ReadOnlyData(), v.(*answer)
	out.size = len(wire)
	fields(wire, func(n int, value []byte) {
		switch n { // of DeltaDiscoveryResponse
		case 1:
			out.version = string(value)
		case 4:
			out.url = string(value)
		case 5:
			out.nonce = string(value)
		}
	})
	key := sameAnswer{out.url, out.version, out.size - len(out.nonce)}
	known, ok := a.read.Load(key)
	if !ok {
		known, _ = a.read.LoadOrStore(key, readContent(wire))
	}
	out.content = known.(*content)
	return nil
}

func readContent(wire []byte) *content {
	c := &content{put: versions{}}
	fields(wire, func(n int, value []byte) {
		switch n {
		case 2:
			var name, version string
			fields(value, func(n int, value []byte) {
				switch n { // of Resource
				case 1:
					version = string(value)
				case 3:
					name = string(value)
				}
			})
			c.put[name] = version
		case 6:
			c.removed = append(c.removed, string(value))
		}
	})
	return c
}

// fields goes through the fields of a message that have a length; the messages read here have no other that matters.
func fields(wire []byte, each func(int, []byte)) {
	for len(wire) > 0 {
		n, kind, length := protowire.ConsumeTag(wire)
		if length < 0 {
			return
		}
		wire = wire[length:]
		if kind == protowire.BytesType {
			if value, _ := protowire.ConsumeBytes(wire); value != nil {
				each(int(n), value)
			}
		}
		if length = protowire.ConsumeFieldValue(n, kind, wire); length < 0 {
			return
		}
		wire = wire[length:]
	}
}
