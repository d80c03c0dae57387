package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"wayleave/approval"
	"wayleave/audit"
	"wayleave/ca"
	"wayleave/config"
	"wayleave/console"
	"wayleave/durable"
	"wayleave/envoy"
	"wayleave/extproc"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/logs"
	"wayleave/metrics"
	"wayleave/rollout"
	"wayleave/spool"
	"wayleave/telemetry"
	"wayleave/vault"
	"wayleave/worker"
	"wayleave/xds"
)

func newServe() *cobra.Command {
	var configPath, runDir, spoolDir, replica string
	c := &cobra.Command{
		Use:   "serve -c wayleave.yaml --run-dir DIR",
		Short: "Serve the gate for a given Vault and Envoy (the production form)",
		Long: `Serve answers Envoy: its configuration (xDS), who may connect (ext_authz), and the swap (ext_proc).
It starts no other process. Vault is the one in the configuration or VAULT_ADDR; Envoy is run by 'wayleave envoy', or by you
with the bootstrap that 'wayleave config render --bootstrap' prints, and reaches the gate over a unix socket in --run-dir.

SIGTERM ends it without failing a request: what is under way is answered first. Where listen.replicas names several gates,
the others take over; alone, a gate hands over to a second one that was started with the same --run-dir beforehand.
SIGHUP does nothing: a change of the configuration file is seen without it.`,
		Example: `  wayleave serve -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave
  wayleave envoy -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			outliveReaders()
			cfg, err := loadConfig(c, configPath)
			if err != nil {
				return err
			}
			identity := vaultConfig(cfg)
			if identity.Address == "" {
				return usageError{errors.New("serve needs a Vault: write vault.address or set VAULT_ADDR ('wayleave up' brings one of its own)")}
			}
			if err := checkReplica(cfg, replica); err != nil {
				return err
			}
			runDir = absolute(runDir) // Envoy is started elsewhere
			if err := privateDir(runDir); err != nil {
				return err
			}
			workers := func(cfg *config.Config) ([]worker.Worker, error) { return configuredWorkers(cfg, nil) }
			if _, err := workers(cfg); err != nil {
				return err
			}
			if spoolDir == "" {
				spoolDir = filepath.Join(runDir, ofReplica(replica, "spool"))
			}
			levels, err := newLevels(cfg, os.Getenv)
			if err != nil {
				return err
			}
			log := slog.New(levels.Handler(newLog(c.ErrOrStderr(), slog.LevelDebug).Handler()))
			defer noteHangups(log)()
			return gate{cfg: cfg, file: absolute(configPath), vault: identity, workers: workers, sockets: runDir, replica: replica, spool: absolute(spoolDir), caFile: filepath.Join(runDir, "ca.pem"), console: consolePlace{listen: cfg.Console.Listen, link: filepath.Join(runDir, consoleLink)}, audit: auditOf(cfg), accessLog: "/dev/stdout", levels: levels, log: log}.serve(c.Context(), func(serving) {
				log.Info("serving", "sockets", runDir, "proxy", cfg.Listen.Proxy)
			})
		},
	}
	addConfigFlag(c, &configPath)
	c.Flags().StringVar(&runDir, "run-dir", "/run/wayleave", "directory of the sockets that Envoy connects to")
	c.Flags().StringVar(&replica, "replica", "", "which of listen.replicas this gate is; required where there are some")
	c.Flags().StringVar(&spoolDir, "spool-dir", "", "directory that keeps new tokens, encrypted, until Vault has them; on a disk it survives a reboot too (default spool/ in --run-dir, or spool.REPLICA/)")
	return c
}

// noteHangups keeps a SIGHUP, which other servers reload their configuration at, from ending the gate in the middle of everything, until stop.
func noteHangups(log *slog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		for range hangups {
			log.Info("a SIGHUP changes nothing: the gate sees by itself when its configuration file changes, and SIGTERM ends it")
		}
	}()
	return func() { signal.Stop(hangups); close(hangups) }
}

// privateDir makes the directory, or sees that nobody else could put a socket of their own in place of ours.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s, so they could pose as the gate; make it private: chmod 700 %s", dir, dir)
	}
	return nil
}

// gate is what runs in our own process. Vault and Envoy are given.
type gate struct {
	// cfg is this machine's file, as it was at the start. What all gates share of it is served only as a revision.
	cfg     *config.Config
	file    string // that cfg was read from
	vault   vault.Config
	workers func(*config.Config) ([]worker.Worker, error)
	sockets string // private directory of the unix sockets
	replica string // which of the configuration's replicas; empty where there are none
	spool   string // private directory of the tokens that Vault does not have yet
	caFile  string // where the roots that workers trust are written down

	console   consolePlace
	audit     string     // file of the audit; empty: there is none
	auditLogs audit.Sink // takes the audit to the collector of telemetry
	accessLog string     // where Envoy writes one line per request

	metricsStrict bool         // fail when another program has the address of the figures; else wait until it has not
	levels        *logs.Levels // of log; nil: they stay as they are
	log           *slog.Logger
}

// serving is a gate that Envoy can connect to, for whoever wants to look.
type serving struct {
	envoys  *xds.Server
	live    *revisions
	console *consoleDoor // nil: there is none, or another gate has it
}

// serve runs the gate until ctx ends or a part of it fails. It calls ready once Envoy can connect.
//
// Read it as the architecture: what is stored, what is served, who may come, what Envoy is told, what they get, where it
// listens.
func (g gate) serve(ctx context.Context, ready func(serving)) (err error) {
	defer func() {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) { // told to stop, while it started or later: no failure
			err = nil
		}
	}()
	collectSeldom()

	// Who looks how it is.
	figured := newMeasured()
	shown, err := g.openMetrics(ctx, figured)
	if err != nil {
		return err
	}
	defer func() { _ = shown.stop() }()
	g.vault.Called = figured.vaultCalled
	told, err := g.openTelemetry(figured)
	if err != nil {
		return err
	}
	defer told.Close() // after all who tell it something
	g.log = slog.New(telemetry.WithTrace(g.log.Handler()))
	g.vault.Tracer = told.Tracer("wayleave/vault")
	g.auditLogs = auditLogs{told}

	// What is stored: the configuration's revisions, grants, session keys and the root CAs live in Vault.
	store, err := g.awaitVault(ctx, &figured.health)
	if err != nil {
		return err
	}
	defer store.Close()
	key, err := spool.LoadKey(ctx, store)
	if err != nil {
		return err
	}
	patience, done := context.WithTimeout(ctx, 2*time.Minute) // more than that one takes for what providers have not answered yet
	defer done()
	spooled, err := spool.OpenNext(patience, g.spool, key, func() {
		g.log.Warn("another gate has the spool directory; this one takes over as soon as that one is told to stop", "spool", g.spool)
	})
	if err != nil {
		return err
	}
	defer spooled.Close()
	self := holder(spooled.ID())
	name := memberName(g.replica, spooled.ID())

	// What is served: the revision that all Envoys have, and one that some of them get first. It changes while the gate runs.
	live := &revisions{gate: g, docs: store}
	source := newSource(g, store, live)
	state, err := source.enter(ctx, name)
	if err != nil {
		return err
	}
	now, unable, err := live.load(ctx, state)
	if err != nil {
		return err
	}
	for id, why := range unable {
		g.log.Error("a revision cannot be served here", "revision", rollout.Short(id), "err", why)
	}
	live.now.Store(now)

	var envoys *xds.Server // made below, before the authority runs
	live.authority, err = ca.New(ctx, store, ca.Config{
		Domains: now.domains(), Roots: now.roots(), Log: g.log, OnRotate: func() { envoys.RotateLeaves() },
		OnRoots: func(rootPEM []byte) {
			if err := durable.ReplacePublic(g.caFile, rootPEM); err != nil {
				g.log.Warn("the roots that workers trust were not written down; the next start does it", "err", err)
			}
		},
	})
	if err != nil {
		return err
	}
	if err := durable.ReplacePublic(g.caFile, live.authority.RootPEM()); err != nil {
		return fmt.Errorf("writing down the roots that workers trust: %w", err)
	}
	prints, err := vault.LoadKey(ctx, store, auditKey)
	if err != nil {
		return fmt.Errorf("loading the key of the audit's fingerprints: %w", err)
	}
	live.grants = grant.NewKeeper(store, now.specs(live.wanted()), grant.Options{Holder: self, Spool: spooled, Fingerprint: fingerprints(prints), Watch: figured.grants(), Tracer: told.Tracer("wayleave/grant"), Log: g.log})
	live.exchanger = grant.NewExchanger(live.grants, now.exchanges())

	// Who may come: worker tokens, and those of their platforms, become sessions, sessions carry placeholders.
	live.sessions, err = worker.OpenSessions(ctx, store, worker.LedgerOptions{Log: g.log})
	if err != nil {
		return err
	}

	// What Envoy is told, without the hosts that have a fault.
	var member *fleet.Member // made below, before an Envoy can come
	envoys = xds.NewServer(figured.mint(mint(live.authority)), xds.Options{Joined: g.joined, Changed: func() { member.Wake() }, Sent: figured.Pushed, Answered: figured.PushAnswered, Log: g.log})
	live.envoys = envoys

	// What they get: the decision on each tunnel and each request.
	decisions := console.NewDecisions(rememberedDecisions)
	account, err := g.openAudit(ctx, figured)
	if err != nil {
		return err
	}
	recorder, err := g.openRecord()
	if err != nil {
		return err
	}
	ask, err := asking(g.cfg, g.log)
	if err != nil {
		return err
	}
	board := approval.NewBoard(store, approval.Options{Gate: gateName(g.replica), Ask: ask, Log: g.log})
	fast := g.newLanes(live)
	live.swap = extproc.New(now.stable.policy, live.sessions, live.exchanger, extproc.Options{Deadline: swapDeadline, Approvals: board, Decided: watched(decisions, account, figured, g.log), Ended: account.ended(), Gate: g.replica, Shown: g.accessLog != "", Leases: g.leases(), OpenFor: xds.OpenFor, Settled: fast.settled, Recording: g.recording(recorder), Tracer: told.Tracer("wayleave/extproc"), Log: g.log})
	if err := live.serve(now); err != nil {
		return err
	}

	figured.Look(grantStates(), refreshOutcomes(), time.Now, figures(live, time.Now))

	// What all gates know together of their Envoys, and how far a rollout is.
	member = fleet.Join(fleet.Options{
		Docs: store, Gate: name, Log: g.log,
		Look: func() []fleet.Envoy { return connected(envoys, name) }, Counted: func() []fleet.Traffic { return traffic(live.swap.Counted(), envoys.Nodes(), live.now.Load().state) },
		Apply: live.apply,
	})
	if _, err := member.Open(ctx); err != nil {
		return err
	}
	source.wake = member.Wake

	// Where operators look, which workers cannot reach.
	needs := g.needs(self, name, live, member, board)
	pages, err := g.openConsole(ctx, store, live, member, decisions, account, needs.shown)
	if err != nil {
		return err
	}
	defer pages.close()

	// Who is told when something needs an operator.
	telling, err := g.notifier(self, store, needs.told(pages.pages()))
	if err != nil {
		return err
	}

	// Where it listens: only on unix sockets, and only Envoy connects to them.
	doors, err := g.openDoors(ctx)
	if err != nil {
		return err
	}
	envoys.Register(doors.rpc)
	live.swap.Register(doors.rpc)
	told.Register(doors.rpc)

	// What runs, until one part fails or there is no more to serve.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, work := errgroup.WithContext(work)
	keep, letGo := context.WithCancel(work)
	kept := make(chan struct{})
	hold, release := context.WithCancel(work)
	seen, endPages := context.WithCancel(work)
	defer endPages()
	group.Go(func() error { return live.authority.Run(work) })
	group.Go(func() error { defer close(kept); return live.grants.Run(keep) })
	group.Go(func() error { live.sessions.Run(work); return nil })
	group.Go(func() error { board.Run(hold); return nil })
	group.Go(func() error { envoys.Run(work); return nil })
	group.Go(func() error { fast.run(work, func() []config.Route { return live.now.Load().laned() }); return nil })
	group.Go(func() error { member.Run(work); return nil })
	group.Go(func() error { source.follow(work); return nil })
	operators := make(chan struct{})
	group.Go(func() error { account.run(work, operators); return nil })
	if recorder != nil {
		group.Go(func() error { recorder.Run(work); return nil })
	}
	group.Go(func() error { defer close(operators); return pages.serve(seen) })
	group.Go(func() error { return shown.failure(work) })
	group.Go(func() error { telling.Run(work); return nil })
	group.Go(func() error { told.Run(work); return nil })
	group.Go(doors.serveRPC)
	group.Go(func() error { return doors.serveAPI(live) })

	// How it ends. A gate that waits for our spool directory gets it first, and then our place at the doors.
	group.Go(func() error {
		defer stop()
		select {
		case <-work.Done():
			doors.shut()
			return nil
		case <-ctx.Done():
		}
		figured.health.Set(readyProcess, "has been told to stop")
		doors.sendAway()
		endPages() // what is agreed to there is stored meanwhile
		release()  // whoever waits for an operator asks again, at another gate or the next
		if spooled.Awaited() {
			letGo()
			<-kept
			spooled.Close()
			doors.awaitSuccessor()
		}
		live.swap.Leave() // which it holds for as long as requests are under way
		return doors.finish()
	})
	figured.health.Set(readyProcess, "")
	ready(serving{envoys, live, pages})
	return group.Wait()
}

// vaultPause is how long a gate that starts lets a Vault alone, at most, that could not answer.
const vaultPause = 5 * time.Second

// awaitVault logs in, and sees that the gate may do there what it has to. A Vault that cannot answer is waited for: it may be starting too, and
// a gate that ended would be away until its supervisor's back-off is over, long after the Vault is there.
func (g gate) awaitVault(ctx context.Context, health *metrics.Health) (*vault.Client, error) {
	for pause := vaultPause / 32; ; pause = min(2*pause, vaultPause) {
		store, err := vault.Open(ctx, g.vault, g.log)
		if err == nil {
			if err = store.Preflight(ctx, vault.Gateway); err == nil {
				health.Set(readyProcess, starting)
				return store, nil
			}
			store.Close()
		}
		if !errors.Is(err, vault.ErrUnavailable) {
			return nil, err
		}
		health.Set(readyProcess, "waits for vault, which cannot answer; see its log")
		g.log.Warn("the gate starts as soon as vault answers", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// holder names this gate in leases: a copy of its spool directory on another machine is another gate.
func holder(spool string) string {
	host, err := os.Hostname()
	if err != nil {
		return spool
	}
	return host + "-" + spool
}

// memberName names this gate in its fleet: as operators know it, with enough of its spool's to be no other's.
func memberName(replica, spool string) string {
	return strings.ReplaceAll(gateName(replica), "/", "-") + "-" + strings.ToLower(spool[:min(len(spool), 6)])
}

// gateName names this gate for operators.
func gateName(replica string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "wayleave"
	}
	return strings.TrimSuffix(host+"/"+replica, "/")
}

func (g gate) socket(name string) string { return filepath.Join(g.sockets, ofReplica(g.replica, name)) }

// joined looks at an Envoy that has connected.
func (g gate) joined(n xds.Node) {
	g.log.Info("an Envoy has connected", "node", n.ID, "version", n.Version)
	if against := envoy.Known(n.Version); against != "" {
		g.log.Warn("this Envoy should be replaced", "node", n.ID, "reason", against)
	}
}

// collectSeldom lets garbage grow to four times what is kept: a gate keeps little, and each request makes some. GOGC says otherwise.
func collectSeldom() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}

const garbagePercent = 400
