package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/envoy"
	"wayleave/program"
	"wayleave/supervise"
)

func newEnvoy() *cobra.Command {
	var configPath, runDir, level, components string
	var drain time.Duration
	var credentials bool
	c := &cobra.Command{
		Use:   "envoy -c wayleave.yaml --run-dir DIR",
		Short: "Run Envoy for the gates of 'wayleave serve', and restart it without failing a request",
		Long: `Envoy finds the Envoy binary, checks it, writes its bootstrap into --run-dir and keeps it running. What Envoy logs, and
one line of JSON per request, go to standard output.

SIGHUP starts another Envoy beside the one that runs, with the binary and the configuration found then, for an upgrade. It
takes over the listening sockets, so that no connection is refused. The one before it tells its clients to go elsewhere with
their next answer, over the time of --drain, and ends half as long after that; what is then still open, such as a WebSocket,
is cut. SIGTERM ends Envoy when nothing is under way any longer, and after ten seconds at the latest.

At debug and trace the parts of Envoy that print requests stay at info: after the swap there are real credentials in them.`,
		Example: `  wayleave envoy -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave
  wayleave envoy --log-level debug -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			outliveReaders()
			if drain < time.Second {
				return usageError{errors.New("--drain is shorter than a second; give clients the time to go elsewhere")}
			}
			parts, err := envoy.Components(components)
			if err != nil {
				return usageError{fmt.Errorf("--component-log-level: %w", err)}
			}
			load := func() (*config.Config, envoy.Bootstrap, error) {
				cfg, err := checkConfig(c, configPath)
				if err != nil {
					return nil, envoy.Bootstrap{}, err
				}
				boot := bootstrapHere(cfg, absolute(runDir))
				boot.LogLevel, boot.Components, boot.LogCredentials = cmp.Or(level, boot.LogLevel), parts, credentials
				return cfg, boot, nil
			}
			runDir = absolute(runDir)
			if err := privateDir(runDir); err != nil {
				return err
			}
			release, err := lockFile(filepath.Join(runDir, "envoy.lock"), fmt.Sprintf("another 'wayleave envoy' is using %s; stop it, or send it SIGHUP for a restart", runDir))
			if err != nil {
				return err
			}
			defer release()
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGHUP)
			defer signal.Stop(again)
			log := newLog(c.ErrOrStderr(), slog.LevelInfo)
			if credentials {
				log.Warn("Envoy may log requests with their real credentials; keep its log from others, and remove it")
			}
			return carrier{load: load, dir: runDir, drain: drain, out: c.OutOrStdout(), log: log}.run(c.Context(), again)
		},
	}
	addConfigFlag(c, &configPath)
	c.Flags().StringVar(&runDir, "run-dir", "/run/wayleave", "directory of the sockets between Envoy and the gates")
	c.Flags().StringVar(&level, "log-level", "", "what Envoy logs, in place of envoy.log_level: "+strings.Join(envoy.LogLevels, ", "))
	c.Flags().StringVar(&components, "component-log-level", "", "levels of parts of Envoy, such as upstream:debug,connection:trace")
	c.Flags().BoolVar(&credentials, "log-credentials", false, "let every part of Envoy log what it wants, real credentials included")
	c.Flags().DurationVar(&drain, "drain", 10*time.Minute, "how long, at a restart, the Envoy before takes to send its clients elsewhere")
	return c
}

// envoyProcess writes the bootstrap down as file and says how an Envoy of it is run, with these arguments.
func envoyProcess(binary program.Binary, boot envoy.Bootstrap, file string, args func() []string) (supervise.Process, error) {
	text, err := boot.YAML()
	if err != nil {
		return supervise.Process{}, err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return supervise.Process{}, fmt.Errorf("writing Envoy's bootstrap: %w", err)
	}
	return supervise.Process{
		Name: "envoy",
		Command: func() *exec.Cmd {
			cmd := exec.Command(binary.Path, args()...) //nolint:noctx // supervise ends it
			cmd.Env = cleanEnvironment()
			return cmd
		},
		Drain: func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, drainTime)
			defer cancel()
			_ = envoy.Finish(ctx, boot.AdminSocket) // what is not finished by then is cut
		},
	}, nil
}

// carrier is one `wayleave envoy`: an Envoy, and for a while after a restart the one before it.
type carrier struct {
	load  func() (*config.Config, envoy.Bootstrap, error)
	dir   string // the run directory
	drain time.Duration
	out   io.Writer // what Envoy prints
	log   *slog.Logger
}

// generation is one Envoy of a carrier. An Envoy that dies is followed by another in the same generation.
type generation struct {
	*part
	epoch   atomic.Int64  // 0: it took over from nobody
	ready   chan struct{} // closed when it is live for the first time
	retired atomic.Bool   // another one has taken over
	end     chan struct{} // closed when everything is to end
}

// run keeps an Envoy running until ctx ends, and replaces it for each value in again.
func (c carrier) run(ctx context.Context, again <-chan os.Signal) error {
	end := make(chan struct{})
	current, err := c.begin(ctx, 0, end)
	if err != nil {
		return err
	}
	before := &generation{part: ended()}
	defer func() {
		close(end)
		current.cancel()
		for _, g := range []*generation{before, current} {
			if err := g.stop(); err != nil {
				c.log.Error("an Envoy did not stop cleanly", "err", err)
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-current.done:
			return fmt.Errorf("Envoy ended: %w", current.err()) //nolint:staticcheck,revive // a name
		case <-again:
		}
		select {
		case <-before.done:
		default:
			c.log.Warn("not restarted: the Envoy before this one still has connections; ask again when it has ended")
			continue
		}
		next, err := c.begin(ctx, int(current.epoch.Load())+1, end)
		if err != nil {
			c.log.Error("not restarted: this Envoy goes on", "err", err)
			continue
		}
		select {
		case <-next.ready:
			c.log.Info("the new Envoy has taken over", "drain", c.drain)
			current.retired.Store(true)
			current.cancel()
			before, current = current, next
		case <-next.done:
			c.log.Error("not restarted: the new Envoy did not start, and this one goes on", "err", next.err())
		case <-ctx.Done():
			_ = next.stop() // it has nothing yet
		}
	}
}

// begin starts an Envoy with the binary and the configuration of now. It takes over from the one before its epoch.
func (c carrier) begin(ctx context.Context, epoch int, end chan struct{}) (*generation, error) {
	cfg, boot, err := c.load()
	if err != nil {
		return nil, err
	}
	binary, err := findEnvoy(ctx, cfg.Envoy.Binary)
	if err != nil {
		return nil, err
	}
	text, err := boot.YAML()
	if err != nil {
		return nil, err
	}
	if err := envoy.Validate(ctx, binary.Path, text); err != nil {
		return nil, err
	}
	g := &generation{ready: make(chan struct{}), end: end}
	file := filepath.Join(c.dir, fmt.Sprintf("envoy.%d.yaml", epoch%2))
	started := false
	process, err := envoyProcess(binary, boot, file, func() []string {
		if started {
			epoch = 0 // it has died, and nobody is there to take over from
		}
		started = true
		g.epoch.Store(int64(epoch))
		return boot.HotArgs(file, envoy.Hot{Dir: c.dir, Epoch: epoch, Drain: c.drain})
	})
	if err != nil {
		return nil, err
	}
	finish := process.Drain
	process.Drain = func(ctx context.Context) {
		if !g.retired.Load() {
			finish(ctx)
			return
		}
		late := time.After(2 * c.drain)
		select {
		case <-ctx.Done(): // its successor has ended it
		case <-late:
		case <-g.end:
			select {
			case <-ctx.Done():
			case <-late:
			case <-time.After(drainTime):
			}
		}
	}
	process.Ready = func(ctx context.Context) error {
		info, err := envoy.ServerInfo(ctx, boot.AdminSocket)
		if err == nil && (info.State != "LIVE" || info.Epoch != int(g.epoch.Load())) {
			err = envoy.ErrNotReady
		}
		return err
	}
	process.Log = c.out
	process.PIDFile = filepath.Join(c.dir, fmt.Sprintf("envoy.%d.pid", epoch%2))
	if against := envoy.Known(binary.Version); against != "" {
		c.log.Warn("this Envoy should be replaced", "reason", against)
	}
	c.log.Info("starting Envoy", "version", binary.Version, "path", binary.Path, "epoch", epoch)
	g.part = start(ctx, func(ctx context.Context) error {
		ctx, giveUp := context.WithCancel(ctx)
		defer giveUp()
		process.OnEvent = func(e supervise.Event) { c.event(g, e, giveUp) }
		return supervise.Run(ctx, process)
	})
	return g, nil
}

// event reports what happened to an Envoy, and gives it up if it was to take over and cannot.
func (c carrier) event(g *generation, e supervise.Event, giveUp func()) {
	live := false
	select {
	case <-g.ready:
		live = true
	default:
	}
	switch e.Kind {
	case supervise.Ready:
		if !live {
			close(g.ready)
		}
		c.log.Info("Envoy is live", "pid", e.PID)
	case supervise.Exited:
		if !live && g.epoch.Load() > 0 {
			giveUp()
		}
		if g.retired.Load() {
			c.log.Info("the Envoy before has ended", "pid", e.PID)
		} else {
			c.log.Info("Envoy ended", "pid", e.PID, "err", e.Err)
		}
	case supervise.Waiting:
		c.log.Warn("Envoy is not live yet; does a gate run, and accept its configuration?", "pid", e.PID, "err", e.Err)
	case supervise.Restart:
		c.log.Warn("starting Envoy again", "after", e.Delay)
	case supervise.Orphan:
		c.log.Warn("ended the Envoy of an earlier run", "pid", e.PID)
	case supervise.Started:
	}
}
