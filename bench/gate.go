package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"wayleave/ca"
	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
	"wayleave/xds"
)

// The gate is a process of its own, so that its memory and its CPU time are its own: xDS, the check and the swap as in the
// product, over a store in memory and a token that is always there.

const (
	gateCommand = "gate" // what bench starts itself with
	grantName   = "api"
	profileName = "default"
	workerName  = "bench"
	realToken   = "sk-ant-oat01-the-real-token-of-a-provider-which-is-about-as-long-as-this-one-is-0123456789"
	placeholder = "sk-ant-oat01-" // what placeholders start with
)

// gateSpec is what a gate is told, as its first line of input.
type gateSpec struct {
	Socket  string
	TCP     string // where it listens for ext_proc too; empty: nowhere
	Envoy   xds.Config
	Swap    extproc.Config
	Leaves  int           // xds.Options.MaxLeaves
	Live    int           // sessions of other workers, all live
	Variant string        // of what Envoy and the gate do; see variants and injections
	Leases  time.Duration // as in extproc.Options

	Collector string // of spans; empty: there is none
}

// gateHello is what it answers: with what a worker comes.
type gateHello struct {
	Root []byte // PEM
	carried
	Others []carried // the sessions of other workers, or manyOthers of them
}

// carried is what a worker has of its session.
type carried struct{ Session, Token, Placeholder string }

const manyOthers = 256

// gateState is what it answers to every further line.
type gateState struct {
	Minted int64 // leaf certificates so far
	Leased int64 // ends of requests that took the fast lane
}

// gate is such a process, as bench sees it.
type gate struct {
	gateHello
	pid  int
	ask  *json.Encoder
	tell *json.Decoder
	stop func()
}

// startGate starts one and returns when Envoy can connect. It ends with stop; or with us, as its input does.
func startGate(ctx context.Context, spec gateSpec) (*gate, error) {
	return startSelf(ctx, gateCommand, spec)
}

// startSelf starts this program with another command, which is told spec and answers as a gate does.
func startSelf(ctx context.Context, command string, spec any) (*gate, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, command)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g := &gate{pid: cmd.Process.Pid, ask: json.NewEncoder(in), tell: json.NewDecoder(out)}
	g.stop = func() {
		_ = cmd.Process.Kill() // it has told us all we asked
		_ = cmd.Wait()
	}
	if err := g.question(spec, &g.gateHello); err != nil {
		g.stop()
		return nil, fmt.Errorf("starting bench %s: %w", command, err)
	}
	return g, nil
}

func (g *gate) question(q, answer any) error {
	if err := g.ask.Encode(q); err != nil {
		return err
	}
	return g.tell.Decode(answer)
}

// settle has the gate collect its garbage and give memory back, and returns its state.
func (g *gate) settle() (s gateState, err error) { return s, g.question("settle", &s) }

// serveGate is that process. It serves until its input ends.
func serveGate(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	var spec gateSpec
	if err := questions.Decode(&spec); err != nil {
		return fmt.Errorf("%s is what a benchmark starts by itself: %w", gateCommand, err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	store := vaulttest.NewMemory()
	var domains []string
	for _, r := range spec.Envoy.Routes {
		for _, h := range r.Hosts {
			name, _, _ := strings.Cut(h, ":")
			domains = append(domains, name)
		}
	}
	authority, err := ca.New(ctx, store, ca.Config{Domains: domains, Log: log})
	if err != nil {
		return err
	}
	live, err := newCrowd(ctx, store, spec.Live)
	if err != nil {
		return err
	}
	sessions := live.gate
	hello := gateHello{Root: authority.RootPEM()}
	for i, h := range live.holders {
		spec.Swap.Workers[h.worker] = profileName
		if i < manyOthers {
			hello.Others = append(hello.Others, carried{h.id, h.token.Reveal(), h.placeholder})
		}
	}
	live.holders = nil
	session, token, err := sessions.Issue(workerName, profileName, 24*time.Hour, time.Now())
	if err != nil {
		return err
	}
	seen, err := observe(ctx, &spec, log)
	if err != nil {
		return err
	}
	defer seen.stop()
	var taken atomic.Int64
	if spec.Leases > 0 {
		seen.options.Leases = spec.Leases
		seen.options.Ended = func(e extproc.Ended) {
			if e.Leased {
				taken.Add(1)
			}
		}
	}
	resources, err := xds.Build(spec.Envoy)
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{ // as the product's
		grpc.MaxConcurrentStreams(1 << 20),
		grpc.NumStreamWorkers(128),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
	v := variantNamed(spec.Variant)
	options = append(options, v.gate...)
	if v.envoy != nil {
		if err := v.envoy(resources); err != nil {
			return err
		}
	}
	if spec.TCP != "" {
		if err := overTCP(resources, spec.TCP); err != nil {
			return err
		}
	}
	var minted atomic.Int64
	fleet := xds.NewServer(func(host, root string) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
		minted.Add(1)
		leaf, err := authority.Leaf(host, root)
		return leaf.CertificatePEM, leaf.KeyPEM, leaf.NotAfter, err
	}, xds.Options{MaxLeaves: spec.Leaves, Log: log})
	fleet.SetCredentials(credentials())
	if err := fleet.Serve(map[string]*xds.Resources{"": resources}, func(xds.Node) xds.Assignment { return xds.Assignment{} }); err != nil {
		return err
	}
	debug.SetGCPercent(400)
	server := grpc.NewServer(options...)
	fleet.Register(server)
	seen.register(server)
	extproc.New(spec.Swap, sessions, readyTokens{}, seen.options).Register(server)
	healthpb.RegisterHealthServer(server, health.NewServer())
	var listening net.ListenConfig
	l, err := listening.Listen(ctx, "unix", spec.Socket)
	if err != nil {
		return err
	}
	go fleet.Run(ctx)
	go sessions.Run(ctx)
	go func() { _ = server.Serve(l) }() // until Stop
	defer server.Stop()
	if spec.TCP != "" {
		l, err := listening.Listen(ctx, "tcp", spec.TCP)
		if err != nil {
			return err
		}
		go func() { _ = server.Serve(l) }()
	}

	hello.carried = carried{session.ID, token.Reveal(), sessions.Placeholder(session, grantName, placeholder)}
	if err := answers.Encode(hello); err != nil {
		return err
	}
	for {
		var question string
		if err := questions.Decode(&question); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		debug.FreeOSMemory()
		if err := answers.Encode(gateState{Minted: minted.Load(), Leased: taken.Load()}); err != nil {
			return err
		}
	}
}

// readyTokens has the token of every grant.
type readyTokens struct{}

func (readyTokens) Token(context.Context, string, string, []string) (grant.Token, error) {
	return grant.Token{Access: secret.New(realToken), Version: "1", Fingerprint: "0123456789abcdef", Replaceable: true}, nil
}

func (t readyTokens) Replace(ctx context.Context, name, worker, _ string, required []string) (grant.Token, error) {
	return t.Token(ctx, name, worker, required)
}

func (readyTokens) Reject(string, string, string) {}
