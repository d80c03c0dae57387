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

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"wayleave/ca"
	"wayleave/config"
	"wayleave/extproc"
	"wayleave/grant"
	"wayleave/spool"
	"wayleave/vault"
	"wayleave/worker"
	"wayleave/xds"
)

func newServe() *cobra.Command {
	var configPath, runDir, spoolDir string
	c := &cobra.Command{
		Use:   "serve -c wayleave.yaml --run-dir DIR",
		Short: "Serve the gate for a given Vault and Envoy (the production form)",
		Long: `Serve answers Envoy: its configuration (xDS), who may connect (ext_authz), and the swap (ext_proc).
It starts no other process. Vault is the one in the configuration or VAULT_ADDR; Envoy is started by you with
the bootstrap that 'wayleave config render --bootstrap' prints, and reaches the gate over a unix socket in --run-dir.`,
		Example: `  wayleave serve -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave
  envoy -c <(wayleave config render --bootstrap -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave)`,
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
			runDir = absolute(runDir) // Envoy is started elsewhere
			if err := privateDir(runDir); err != nil {
				return err
			}
			workers, err := configuredWorkers(cfg, nil)
			if err != nil {
				return err
			}
			if spoolDir == "" {
				spoolDir = filepath.Join(runDir, "spool")
			}
			log := newLog(c.ErrOrStderr(), slog.LevelInfo)
			return gate{cfg: cfg, vault: identity, workers: workers, sockets: runDir, spool: absolute(spoolDir), caFile: filepath.Join(runDir, "ca.pem"), accessLog: "/dev/stdout", log: log}.serve(c.Context(), func(serving) {
				log.Info("serving", "sockets", runDir, "proxy", cfg.Listen.Proxy)
			})
		},
	}
	addConfigFlag(c, &configPath)
	c.Flags().StringVar(&runDir, "run-dir", "/run/wayleave", "directory of the sockets that Envoy connects to")
	c.Flags().StringVar(&spoolDir, "spool-dir", "", "directory that keeps new tokens, encrypted, until Vault has them; on a disk it survives a reboot too (default spool/ in --run-dir)")
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
	spool   string // private directory of the tokens that Vault does not have yet
	caFile  string // where the root that workers trust is written down

	accessLog string // where Envoy writes one line per request
	log       *slog.Logger
}

// serving is a gate that Envoy can connect to, for whoever wants to look.
type serving struct {
	fleet  *xds.Server
	grants *grant.Keeper
}

// serve runs the gate until ctx ends or a part of it fails. It calls ready once Envoy can connect.
//
// Read it as the architecture: what is stored, who may come, what they get, what Envoy is told, where it listens.
func (g gate) serve(ctx context.Context, ready func(serving)) error {
	// What is stored: grants, session keys and the root CA live in Vault.
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
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(g.caFile, authority.RootPEM(), 0o644); err != nil { //nolint:gosec // it is public
		return fmt.Errorf("writing down the root that workers trust: %w", err)
	}
	key, err := spool.LoadKey(ctx, store)
	if err != nil {
		return err
	}
	spooled, err := spool.Open(g.spool, key)
	if err != nil {
		return err
	}
	defer spooled.Close()
	grants := grant.NewKeeper(store, grantSpecs(g.cfg), grant.Options{Holder: holder(spooled.ID()), Spool: spooled, Log: g.log})

	// Who may come: worker tokens become sessions, sessions carry placeholders.
	keyring, err := worker.LoadKeyring(ctx, store)
	if err != nil {
		return err
	}
	registry, err := worker.NewRegistry(g.workers)
	if err != nil {
		return err
	}
	enrolment := worker.NewAPI(worker.APIConfig{
		Workers: registry, Keyring: keyring, CA: authority.RootPEM, Log: g.log,
		Credentials: credentials(g.cfg, keyring, grants),
	})

	// What they get: the decision on each tunnel and each request.
	swap := extproc.New(swapConfig(g.cfg), keyring, grant.NewExchanger(grants, exchanges(g.cfg)), extproc.Options{Deadline: swapDeadline, Log: g.log})

	// What Envoy is told.
	fleet = xds.NewServer(mint(authority), xds.Options{Log: g.log})
	told, err := envoyConfig(g.cfg, g.socket(apiSocket), g.accessLog)
	if err != nil {
		return err
	}
	resources, err := xds.Build(told)
	if err != nil {
		return err
	}
	if err := fleet.Publish(resources); err != nil {
		return err
	}

	// Where it listens: only on unix sockets, and only Envoy connects to them.
	gateListener, err := g.listen(ctx, gateSocket)
	if err != nil {
		return err
	}
	apiListener, err := g.listen(ctx, apiSocket)
	if err != nil {
		return err
	}
	rpc := grpc.NewServer(grpcOptions()...)
	fleet.Register(rpc)
	swap.Register(rpc)
	health := health.NewServer()
	healthpb.RegisterHealthServer(rpc, health)
	api := &http.Server{Handler: enrolment, ReadHeaderTimeout: 10 * time.Second}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return authority.Run(ctx) })
	group.Go(func() error { return grants.Run(ctx) })
	group.Go(func() error { keepKeys(ctx, keyring, g.log); return nil })
	group.Go(func() error { fleet.Run(ctx); return nil })
	group.Go(func() error { return rpc.Serve(gateListener) })
	group.Go(func() error { return ignoreClosed(api.Serve(apiListener)) })
	group.Go(func() error {
		<-ctx.Done()
		health.Shutdown()
		rpc.Stop() // Envoy holds its xDS stream for ever: a graceful stop would not end
		return api.Close()
	})
	ready(serving{fleet, grants})
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

// Names of the sockets in the run directory.
const (
	gateSocket  = "gate.sock"
	apiSocket   = "api.sock"
	adminSocket = "admin.sock"
)

func (g gate) socket(name string) string { return filepath.Join(g.sockets, name) }

// listen opens a unix socket that only this user may connect to, in place of one that an earlier run left behind.
func (g gate) listen(ctx context.Context, name string) (net.Listener, error) {
	path := g.socket(name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier run: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for Envoy: %w; is %s writable, and its path shorter than %d bytes?", err, g.sockets, maxSocketPath())
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("closing %s to others: %w", path, err)
	}
	return l, nil
}

// keepKeys reads the session keys again each minute, so that a rotation by another replica is seen before the sessions
// made with the new key arrive.
func keepKeys(ctx context.Context, keyring *worker.Keyring, log *slog.Logger) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := keyring.Reload(ctx); err != nil && ctx.Err() == nil {
				log.Warn("session keys not read again; those known serve on", "err", err)
			}
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
