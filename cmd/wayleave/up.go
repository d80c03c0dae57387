package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/envoy"
	"wayleave/program"
	"wayleave/supervise"
	"wayleave/vault/embedded"
	"wayleave/worker"
	"wayleave/xds"
)

func newUp() *cobra.Command {
	var configPath string
	c := &cobra.Command{
		Use:        "up -c wayleave.yaml",
		SuggestFor: []string{"start", "init"},
		Short:      "Run everything on this machine: OpenBao, the gate and Envoy",
		Long: `Up starts an OpenBao of its own (unless the configuration or VAULT_ADDR names a Vault), the gate, and Envoy, keeps
them running, and stops them with Ctrl-C, or when its terminal is closed. What it makes is kept in --state; the next start resumes it.

Standard error has warnings and errors only; gate.log in the state directory has everything the gate logs.`,
		Example: `  wayleave up -c wayleave.yaml
  wayleave up -c wayleave.yaml --state ./state`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	addConfigFlag(c, &configPath)
	c.RunE = func(c *cobra.Command, _ []string) error {
		outliveReaders()
		cfg, err := loadConfig(c, configPath)
		if err != nil {
			return err
		}
		ctx, stop := untilHangup(c.Context())
		defer stop()
		return upper{cfg: cfg, configPath: absolute(configPath), state: *st, out: c.OutOrStdout(), errs: c.ErrOrStderr()}.up(ctx)
	}
	return c
}

// untilHangup ends the context when the terminal is closed, unless it was started to outlive that, as by nohup.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// upper is one `wayleave up`.
type upper struct {
	cfg        *config.Config
	configPath string // absolute
	state      state
	out, errs  io.Writer
	log        *slog.Logger // made by up
}

// up runs the three parts until ctx ends or one of them gives up. Each starts when the one it needs is ready, and they
// stop in reverse: no request is cut by a gate that left first, and no rotated token by a store that did.
func (u upper) up(ctx context.Context) error {
	u.cfg.Listen.Replicas = nil // one gate is all there is
	binary, err := findEnvoy(ctx, u.cfg.Envoy.Binary)
	if err != nil {
		return err
	}
	release, err := u.state.lock()
	if err != nil {
		return err
	}
	defer release()
	logFile, err := supervise.OpenLog(u.state.path("gate.log"), maxLog)
	if err != nil {
		return fmt.Errorf("opening the gate's log: %w", err)
	}
	defer func() { _ = logFile.Close() }()
	levels, err := newLevels(u.cfg, os.Getenv)
	if err != nil {
		return err
	}
	u.log = slog.New(levels.Handler(slog.NewMultiHandler(newLog(logFile, slog.LevelDebug).Handler(), newLog(u.errs, slog.LevelWarn).Handler())))
	sockets, removeSockets, err := u.state.socketDir()
	if err != nil {
		return err
	}
	defer removeSockets()
	workers := func(cfg *config.Config) ([]worker.Worker, error) { return configuredWorkers(cfg, &u.state) }
	if _, err := workers(u.cfg); err != nil {
		return err
	}

	identity := vaultConfig(u.cfg)
	if identity.Address == "" {
		bao, err := findBao(ctx)
		if err != nil {
			return err
		}
		u.say("starting OpenBao %s (%s); its data is in %s", bao.Version, bao.Path, u.state.path("vault"))
		server, err := embedded.Start(ctx, embedded.Config{StateDir: u.state.dir, Binary: bao.Path, Log: u.log})
		if err != nil {
			return err
		}
		defer server.Stop()
		identity = server.Gateway()
	}

	u.say("starting the gate")
	served := make(chan serving, 1) // buffered: the gate does not wait for us
	g := gate{cfg: u.cfg, file: u.configPath, vault: identity, workers: workers, sockets: sockets, spool: u.state.path("spool"), caFile: u.state.path("ca.pem"), console: u.consolePlace(), audit: u.state.auditFile(u.cfg), accessLog: u.state.path("envoy", "access.log"), metricsStrict: true, levels: levels, log: u.log}
	gatePart := start(ctx, func(ctx context.Context) error { return g.serve(ctx, func(s serving) { served <- s }) })
	defer u.stopped("the gate", gatePart.stop)
	var now serving
	select {
	case now = <-served:
	case <-gatePart.done:
		return gatePart.err()
	case <-ctx.Done():
		return nil
	}

	for _, address := range u.cfg.Listen.Addresses() {
		if err := portFree(ctx, address, portPatience); err != nil {
			return err
		}
	}
	u.say("starting Envoy %s (%s)", binary.Version, binary.Path)
	if against := envoy.Known(binary.Version); against != "" {
		u.say("%s", against)
	}
	ready := make(chan struct{}, 1)
	envoyPart := start(ctx, func(ctx context.Context) error {
		process, err := u.envoyProcess(ctx, g, binary, now.envoys, ready)
		if err != nil {
			return err
		}
		go envoy.RotateLog(ctx, g.accessLog, maxLog, filepath.Join(g.sockets, adminSocket)) // ends with ctx
		return supervise.Run(ctx, process)
	})
	defer u.stopped("Envoy", envoyPart.stop)

	look := time.NewTicker(time.Second)
	defer look.Stop()
	for announced := false; ; {
		select {
		case <-ready:
			if announced {
				u.say("ready again")
				continue
			}
			if err := u.state.writeGate(gateFile{Proxy: u.proxy(), Config: u.configPath}); err != nil {
				return fmt.Errorf("writing down where the gate is: %w", err)
			}
			u.announce(now.live.summaries(), now.console.link())
			announced = true
		case <-look.C:
			// Before the first success a refusal is a mistake of ours or the configuration's, and waiting mends neither, unless
			// the configuration goes back to the one before.
			if err := refused(now.envoys); err != nil && !announced && !now.live.underWay() {
				return err
			}
		case <-gatePart.done:
			return fmt.Errorf("the gate ended: %w", gatePart.err())
		case <-envoyPart.done:
			return fmt.Errorf("Envoy ended: %w", envoyPart.err()) //nolint:staticcheck,revive // a name
		case <-ctx.Done():
			u.say("stopping")
			return nil
		}
	}
}

func (u upper) say(format string, a ...any) { fmt.Fprintf(u.out, "wayleave: "+format+"\n", a...) }

func (u upper) stopped(name string, stop func() error) {
	if err := stop(); err != nil && !errors.Is(err, context.Canceled) {
		u.say("%s did not stop cleanly: %v", name, err)
	}
}

// part is something that runs in the background until it is stopped or fails.
type part struct {
	cancel context.CancelFunc
	done   chan struct{}
	failed error // of f; once done is closed
	told   bool  // err has returned it: it is somebody's to report
}

// ended is a part that is over.
func ended() *part {
	p := &part{cancel: func() {}, done: make(chan struct{})}
	close(p.done)
	return p
}

// start runs f with a context that keeps ctx's values but ends only with stop.
func start(ctx context.Context, f func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &part{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.failed = f(ctx)
	}()
	return p
}

// err waits for the end and returns how it ended.
func (p *part) err() error {
	<-p.done
	p.told = true
	return p.failed
}

// failure waits for the end, which ctx's end spares, and returns how it ended.
func (p *part) failure(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err()
	case <-ctx.Done():
		return nil
	}
}

// stop ends the part and returns how it ended, unless that was said before.
func (p *part) stop() error {
	p.cancel()
	<-p.done
	if p.told {
		return nil
	}
	return p.failed
}

const (
	maxLog    = 16 << 20         // bytes of the gate's and of each of Envoy's logs, of which the one before is kept too
	drainTime = 10 * time.Second // for requests under way when we are stopped
)

// envoyProcess writes Envoy's bootstrap and says how the process is run. ready gets a value each time an Envoy, the
// first or a restarted one, has taken the whole configuration. With the end of ctx, an Envoy that ends does as it should.
func (u upper) envoyProcess(ctx context.Context, g gate, binary program.Binary, fleet *xds.Server, ready chan<- struct{}) (supervise.Process, error) {
	if err := os.MkdirAll(u.state.path("envoy"), 0o700); err != nil {
		return supervise.Process{}, fmt.Errorf("making Envoy's directory: %w", err)
	}
	boot, file := bootstrapHere(u.cfg, g.sockets), u.state.path("envoy", "bootstrap.yaml")
	process, err := envoyProcess(binary, boot, file, func() []string { return boot.Args(file) })
	if err != nil {
		return supervise.Process{}, err
	}
	if process.Log, err = supervise.OpenLog(u.state.path("envoy", "envoy.log"), maxLog); err != nil {
		return supervise.Process{}, fmt.Errorf("opening Envoy's log: %w", err)
	}
	process.Ready = func(ctx context.Context) error {
		if err := envoy.Ready(ctx, boot.AdminSocket); err != nil {
			return err
		}
		return converged(fleet)
	}
	process.PIDFile = u.state.path("envoy", "envoy.pid")
	process.OnEvent = func(e supervise.Event) { u.event(ctx, e, ready) }
	return process, nil
}

// cleanEnvironment is what a child that carries credentials gets of our environment: nothing that loads code or keys
// into it.
func cleanEnvironment() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// converged returns nil when an Envoy is connected and has taken everything it was sent. Its own word that it is live
// is not enough: with a configuration it refused it is live too.
func converged(fleet *xds.Server) error {
	nodes := fleet.Nodes()
	if len(nodes) == 0 {
		return errors.New("no Envoy is connected")
	}
	for _, n := range nodes {
		if !n.Current() {
			return fmt.Errorf("%s has not taken all of its configuration yet", n.ID)
		}
	}
	return nil
}

// refused returns what an Envoy said when it refused a part of its configuration.
func refused(fleet *xds.Server) error {
	for _, n := range fleet.Nodes() {
		for _, t := range n.Types {
			switch words := strings.TrimSpace(t.Error); {
			case strings.Contains(words, "cannot bind"):
				return fmt.Errorf("Envoy cannot listen where listen.proxy says; stop what listens there, or write another address: %s", words) //nolint:staticcheck,revive // a name
			case words != "":
				return fmt.Errorf("Envoy refused a %s; see what it was sent with 'wayleave config render': %s", t.Type, words) //nolint:staticcheck,revive // a name
			}
		}
	}
	return nil
}

// event reports what happened to Envoy. It runs in the supervisor's goroutine and must not block.
func (u upper) event(ctx context.Context, e supervise.Event, ready chan<- struct{}) {
	switch e.Kind {
	case supervise.Ready:
		select {
		case ready <- struct{}{}:
		default: // one that nobody has looked at yet says the same
		}
	case supervise.Orphan:
		u.say("ended the %s of an earlier run (process %d)", e.Process, e.PID)
	case supervise.Exited:
		if ctx.Err() != nil {
			return // it was asked to
		}
		var last string
		if len(e.Tail) > 0 {
			last = e.Tail[len(e.Tail)-1]
		}
		u.log.Error("a child ended", "process", e.Process, "pid", e.PID, "err", e.Err, "last_words", last, "see", u.state.path("envoy", "envoy.log"))
	case supervise.Restart:
		u.log.Warn("starting a child again", "process", e.Process, "after", e.Delay)
	case supervise.Waiting:
		u.say("%s is not ready yet: %v", e.Process, e.Err)
	case supervise.Started:
		u.log.Info("started a child", "process", e.Process, "pid", e.PID)
	}
}
