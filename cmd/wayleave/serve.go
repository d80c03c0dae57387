package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"wayleave/approval"
	"wayleave/ca"
	"wayleave/config"
	"wayleave/console"
	"wayleave/durable"
	"wayleave/envoy"
	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/spool"
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
the others take over; alone, a gate hands over to a second one that was started with the same --run-dir beforehand.`,
		Example: `  wayleave serve -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave
  wayleave envoy -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
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
			workers, err := configuredWorkers(cfg, nil)
			if err != nil {
				return err
			}
			if spoolDir == "" {
				spoolDir = filepath.Join(runDir, ofReplica(replica, "spool"))
			}
			log := newLog(c.ErrOrStderr(), slog.LevelInfo)
			return gate{cfg: cfg, vault: identity, workers: workers, sockets: runDir, replica: replica, spool: absolute(spoolDir), caFile: filepath.Join(runDir, "ca.pem"), console: consolePlace{listen: cfg.Console.Listen, link: filepath.Join(runDir, consoleLink), config: absolute(configPath)}, audit: auditOf(cfg), accessLog: "/dev/stdout", log: log}.serve(c.Context(), func(serving) {
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
	cfg     *config.Config
	vault   vault.Config
	workers []worker.Worker
	sockets string // private directory of the unix sockets
	replica string // which of the configuration's replicas; empty where there are none
	spool   string // private directory of the tokens that Vault does not have yet
	caFile  string // where the roots that workers trust are written down

	console   consolePlace
	audit     string // file of the audit; empty: there is none
	accessLog string // where Envoy writes one line per request
	log       *slog.Logger
}

// serving is a gate that Envoy can connect to, for whoever wants to look.
type serving struct {
	fleet   *xds.Server
	grants  *grant.Keeper
	console *consoleDoor // nil: there is none, or another gate has it
}

// serve runs the gate until ctx ends or a part of it fails. It calls ready once Envoy can connect.
//
// Read it as the architecture: what is stored, who may come, what Envoy is told, what they get, where it listens.
func (g gate) serve(ctx context.Context, ready func(serving)) error {
	// What is stored: grants, session keys and the root CAs live in Vault.
	store, err := vault.Open(ctx, g.vault, g.log)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.Preflight(ctx, vault.Gateway); err != nil {
		return err
	}
	var fleet *xds.Server // made below, before the authority runs
	authority, err := ca.New(ctx, store, ca.Config{
		Domains: g.cfg.CertifiedHosts(), Log: g.log, OnRotate: func() { fleet.RotateLeaves() },
		OnRoots: func(rootPEM []byte) {
			if err := durable.ReplacePublic(g.caFile, rootPEM); err != nil {
				g.log.Warn("the roots that workers trust were not written down; the next start does it", "err", err)
			}
		},
	})
	if err != nil {
		return err
	}
	if err := durable.ReplacePublic(g.caFile, authority.RootPEM()); err != nil {
		return fmt.Errorf("writing down the roots that workers trust: %w", err)
	}
	key, err := spool.LoadKey(ctx, store)
	if err != nil {
		return err
	}
	patience, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	spooled, err := spool.OpenNext(patience, g.spool, key, func() {
		g.log.Warn("another gate has the spool directory; this one takes over as soon as that one is told to stop", "spool", g.spool)
	})
	if err != nil {
		return err
	}
	defer spooled.Close()
	self := holder(spooled.ID())
	grants := grant.NewKeeper(store, operate.Specs(g.cfg), grant.Options{Holder: self, Spool: spooled, Log: g.log})

	// Who may come: worker tokens, and those of their platforms, become sessions, sessions carry placeholders.
	sessions, err := worker.OpenSessions(ctx, store, worker.LedgerOptions{Log: g.log})
	if err != nil {
		return err
	}
	registry, err := worker.NewRegistry(g.workers)
	if err != nil {
		return err
	}
	vouching, err := issuers(g.cfg, g.log)
	if err != nil {
		return err
	}
	enrolment := worker.NewAPI(worker.APIConfig{
		Workers: registry, Issuers: vouching, Sessions: sessions, CA: authority.RootPEM, Ports: ports(g.cfg), Log: g.log,
		Credentials: credentials(g.cfg, sessions, grants),
	})

	// What Envoy is told, without the hosts that have a fault.
	resources, err := envoyResources(g.cfg, g.sockets, g.accessLog)
	if err != nil {
		return err
	}
	for _, f := range hostFaults(g.cfg, resources.Quarantined) {
		g.log.Error("a host has a fault in the configuration and is refused; the others are served", "fault", f, "fix", "mend it, see that 'wayleave config check' finds no other, and restart the gate")
	}
	fleet = xds.NewServer(mint(authority), xds.Options{Joined: g.joined, Log: g.log})
	if err := fleet.Serve(map[string]*xds.Resources{"": resources}, func(xds.Node) xds.Assignment { return xds.Assignment{} }); err != nil {
		return err
	}

	// What they get: the decision on each tunnel and each request.
	decisions := console.NewDecisions(rememberedDecisions)
	account, err := g.openAudit()
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
	swap := extproc.New(swapConfig(g.cfg, resources.Quarantined), sessions, grant.NewExchanger(grants, exchanges(g.cfg)), extproc.Options{Deadline: swapDeadline, Approvals: board, Decided: watched(decisions, account), Recording: g.recording(recorder), Log: g.log})

	// Where operators look, which workers cannot reach.
	pages, err := g.openConsole(ctx, store, grants, fleet, decisions, account)
	if err != nil {
		return err
	}
	defer pages.close()

	// Who is told when something needs an operator.
	telling, err := g.notifier(self, store, g.alerts(self, grants, fleet, authority, board, resources.Quarantined, pages.pages()))
	if err != nil {
		return err
	}

	// Where it listens: only on unix sockets, and only Envoy connects to them.
	doors, err := g.openDoors(ctx)
	if err != nil {
		return err
	}
	fleet.Register(doors.rpc)
	swap.Register(doors.rpc)

	// What runs, until one part fails or there is no more to serve.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, work := errgroup.WithContext(work)
	keep, letGo := context.WithCancel(work)
	kept := make(chan struct{})
	hold, release := context.WithCancel(work)
	group.Go(func() error { return authority.Run(work) })
	group.Go(func() error { defer close(kept); return grants.Run(keep) })
	group.Go(func() error { sessions.Run(work); return nil })
	group.Go(func() error { board.Run(hold); return nil })
	group.Go(func() error { fleet.Run(work); return nil })
	if account.file != nil {
		group.Go(func() error { account.file.Run(work); return nil })
	}
	if recorder != nil {
		group.Go(func() error { recorder.Run(work); return nil })
	}
	group.Go(func() error { return pages.serve(work) })
	group.Go(func() error { telling.Run(work); return nil })
	group.Go(doors.serveRPC)
	group.Go(func() error { return doors.serveAPI(enrolment) })

	// How it ends. A gate that waits for our spool directory gets it first, and then our place at the doors.
	group.Go(func() error {
		defer stop()
		select {
		case <-work.Done():
			doors.shut()
			return nil
		case <-ctx.Done():
		}
		doors.sendAway()
		release() // whoever waits for an operator asks again, at another gate or the next
		if spooled.Awaited() {
			letGo()
			<-kept
			spooled.Close()
			doors.awaitSuccessor()
		}
		swap.Leave() // which it holds for as long as requests are under way
		return doors.finish()
	})
	ready(serving{fleet, grants, pages})
	return ignoreCanceled(group.Wait())
}

// holder names this gate in leases: a copy of its spool directory on another machine is another gate.
func holder(spool string) string {
	host, err := os.Hostname()
	if err != nil {
		return spool
	}
	return host + "-" + spool
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

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
