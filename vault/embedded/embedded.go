// Package embedded owns the Vault of an installation that has none: an OpenBao of our own, kept running by supervise,
// reachable only through a unix socket, with its data, its unseal key and its root token in the state directory. Who may
// read that directory may read everything, which is what "no Vault of your own" means; an operator who needs more gives
// the product a Vault.
//
// What happens at a start: the process comes up; the store is initialised if it is new, and its keys are written and
// synced before anything is stored that depends on them; it is unsealed, now and after each restart; mounts, root CA and
// policies are set up; the operator's token and a fresh secret id for the gateway are made.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wayleave/program"
	"wayleave/secret"
	"wayleave/supervise"
	"wayleave/vault"
)

// Config is what an embedded Vault needs.
type Config struct {
	StateDir string       // everything lives in its folder "vault" (0700)
	Binary   string       // path of the bao executable, of a version Program supports; empty: the one in $PATH
	Log      *slog.Logger // starts, stops and what was set up; never key material. Nil: nothing
}

// Server is a running embedded Vault.
type Server struct {
	dir     dir
	address string
	gateway vault.Auth
	log     *slog.Logger

	events   chan supervise.Event
	stop     context.CancelFunc
	wasReady bool       // only event's
	ended    chan error // Run's result, once
}

// Start returns once the Vault is unsealed and set up. It then runs until Stop: it must outlive whoever still has
// something to store, so ctx bounds the start only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	bao, err := program.Find(ctx, Program, cfg.Binary, "")
	if err != nil {
		return nil, err
	}
	d, err := openDir(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("preparing the embedded vault's directory: %w", err)
	}
	socket, err := d.socket()
	if err != nil {
		return nil, fmt.Errorf("choosing the embedded vault's socket: %w", err)
	}
	output, err := d.openLog()
	if err != nil {
		return nil, err
	}
	config, err := d.writeConfig(socket)
	if err != nil {
		_ = output.Close()
		return nil, err
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{
		dir: d, address: "unix://" + socket, log: log,
		events: make(chan supervise.Event, 16), stop: stop, ended: make(chan error, 1),
	}
	keys := &unsealer{dir: d, address: s.address, log: log, hopeless: make(chan struct{})}
	go func() {
		err := supervise.Run(running, supervise.Process{
			Name: "openbao",
			Command: func() *exec.Cmd {
				os.Remove(socket) // a killed process leaves it, and the next cannot listen on it
				cmd := exec.Command(bao.Path, "server", "-config="+config)
				cmd.Env = environment(os.Environ())
				return cmd
			},
			Ready:   keys.unsealed,
			Log:     output,
			PIDFile: filepath.Join(d.path, "openbao.pid"),
			OnEvent: func(e supervise.Event) { s.event(running, e) },
			// The keys of a new store exist once, in the answer we wait for.
			Drain:       keys.settled,
			StopTimeout: stopTimeout,
		})
		_ = output.Close()
		d.removeTemporary(socket)
		s.ended <- err
		close(s.events)
	}()
	err = s.firstReady(ctx, keys)
	if err == nil {
		err = s.setUp(ctx)
	}
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("starting the embedded vault: %w", err)
	}
	return s, nil
}

// Stop ends the process and returns when it has ended.
func (s *Server) Stop() {
	s.stop()
	if err := <-s.ended; err != nil {
		s.log.Warn("embedded vault", "err", err)
	}
	s.ended <- nil // so that a second Stop returns
}

// Gateway returns how the gateway connects. The secret id is new with each start, and the only one that works.
func (s *Server) Gateway() vault.Config { return vault.Config{Address: s.address, Auth: s.gateway} }

// Operator returns how the operator's commands connect.
func (s *Server) Operator() (vault.Config, error) { return s.dir.operator() }

// Root returns how an administrator connects.
func (s *Server) Root() (vault.Config, error) { return s.dir.root(s.address) }

// Operator returns how the operator's commands connect to the embedded Vault that another process keeps running with
// this state directory. The error is [os.ErrNotExist] when none ever ran.
func Operator(stateDir string) (vault.Config, error) {
	return dir{filepath.Join(stateDir, "vault")}.operator()
}

// Administrator is Operator for who may change the Vault itself: whoever may read the state directory.
func Administrator(stateDir string) (vault.Config, error) {
	d := dir{filepath.Join(stateDir, "vault")}
	address, err := d.read("address")
	if err != nil {
		return vault.Config{}, err
	}
	return d.root(address)
}

// event passes on what the start waits for, and logs. Before the first success the start's error says it all, and with
// the end of running a process that ends does as it should.
func (s *Server) event(running context.Context, e supervise.Event) {
	attrs := []any{"event", e.Kind, "pid", e.PID}
	if e.Err != nil {
		attrs = append(attrs, "err", e.Err)
	}
	level := slog.LevelDebug
	switch {
	case e.Kind == supervise.Ready:
		s.wasReady = true
	case e.Kind == supervise.Orphan, e.Kind == supervise.Waiting:
		level = slog.LevelWarn
	case running.Err() != nil, !s.wasReady:
	case e.Kind == supervise.Restart:
		attrs = append(attrs, "after", e.Delay)
		level = slog.LevelWarn
	case e.Kind == supervise.Exited:
		if n := len(e.Tail); n > 0 {
			attrs = append(attrs, "last_words", e.Tail[n-1])
		}
		attrs = append(attrs, "see", filepath.Join(s.dir.path, logName))
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "embedded vault", attrs...)
	select {
	case s.events <- e:
	default: // nobody waits any longer
	}
}

// firstReady waits until the process is unsealed. One that ends before has a configuration or a store it cannot use, and
// starting it again would not help.
func (s *Server) firstReady(ctx context.Context, keys *unsealer) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not become ready: %w", errors.Join(ctx.Err(), keys.last()))
		case e, ok := <-s.events:
			switch {
			case !ok:
				err := <-s.ended
				s.ended <- nil
				return err
			case e.Kind == supervise.Ready:
				return nil
			case e.Kind == supervise.Exited:
				return fmt.Errorf("openbao ended (%w); its last words:\n%s", cmp.Or(e.Err, errors.New("without an error")), strings.Join(e.Tail, "\n"))
			}
		case <-keys.hopeless:
			return keys.last()
		}
	}
}

// stopTimeout is how long the process has to close its store, which takes it some milliseconds.
const stopTimeout = 5 * time.Second

// operatorPeriod is how long the operator's token lives unused; using it renews it, and so does each start.
const operatorPeriod = 30 * 24 * time.Hour

// setUp prepares the store and makes the credentials.
func (s *Server) setUp(ctx context.Context) error {
	config, err := s.Root()
	if err != nil {
		return err
	}
	root, err := vault.Open(ctx, config, s.log)
	if err != nil {
		return err
	}
	defer root.Close()
	note := func(step string) { s.log.Info("embedded vault set up", "step", step) }
	if err := vault.Setup(ctx, root, vault.SetupOptions{Note: note}); err != nil {
		return err
	}
	if s.gateway, _, err = vault.IssueAppRole(ctx, root, "", true); err != nil {
		return err
	}
	if err := s.dir.write("address", s.address); err != nil {
		return err
	}
	return s.operatorToken(ctx, root)
}

// operatorToken makes the operator's token unless the one there still works: commands may be holding it.
func (s *Server) operatorToken(ctx context.Context, root *vault.Client) error {
	if config, err := s.dir.operator(); err == nil {
		if c, err := vault.Open(ctx, config, s.log); err == nil {
			defer c.Close()
			return c.Preflight(ctx, vault.Operator)
		} else if !errors.Is(err, vault.ErrDenied) {
			return err
		}
	}
	token, err := vault.IssueToken(ctx, root, vault.Operator, operatorPeriod)
	if err != nil {
		return err
	}
	return s.dir.write(operatorFile, token.Reveal())
}

// environment is ours without what would change the server's configuration behind our back.
func environment(ours []string) (env []string) {
	for _, v := range ours {
		if !strings.HasPrefix(v, "VAULT_") && !strings.HasPrefix(v, "BAO_") {
			env = append(env, v)
		}
	}
	return env
}

// keys are what opens the store.
type keys struct{ unseal, root secret.Text }
