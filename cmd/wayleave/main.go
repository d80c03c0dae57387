// Command wayleave is the egress credential gateway: the operator's CLI, the worker's launcher and the server.
//
// This package owns the subcommands and the wiring; what each part does is in the package it is named after.
// Start reading at serve.go: it is the architecture, top to bottom.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	_ "time/tzdata" // conditions may name time zones, and containers may lack them

	"github.com/spf13/cobra"

	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/worker"
)

// Exit codes. `wayleave run` ends with its child's code instead.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitRefused = 3
)

// exitCode ends the process with a code and prints nothing more.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// commandEnd says how the command of `wayleave run` ended, which is how we end.
type commandEnd worker.End

func (e commandEnd) Error() string { return fmt.Sprintf("the command ended with %d", e.Code) }

// usageError marks a mistake in the command line rather than a failure of the work.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// refusal says that nothing is wrong and nothing was done: it is too early, or something else comes first.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

func main() { os.Exit(realMain()) }

// realMain is main without os.Exit, so that tests can run the command in a process of their own.
func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// outliveReaders keeps the process going when nobody reads its output any more, as when what collects the logs is restarted. By itself a Go
// program then ends at its next line: fine for a command in front of `head`, and not for a gate, or what an Envoy dies with.
func outliveReaders() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // which nobody reads: the write fails instead
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit exitCode
	var end commandEnd
	switch {
	case errors.As(err, &end):
		worker.End(end).Follow()
	case err != nil && !errors.As(err, &exit):
		fmt.Fprintf(stderr, "wayleave: %v\n", err)
	}
	return codeOf(err)
}

// codeOf is the exit code of a command that ended with err.
func codeOf(err error) int {
	var code exitCode
	var end commandEnd
	var usage usageError
	var refused refusal
	var misuse *operate.Refusal
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &end):
		return end.Code
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &misuse) && (misuse.Kind == operate.NoSuch || misuse.Kind == operate.Misused):
		return exitUsage
	case errors.As(err, &refused), errors.As(err, &misuse) && misuse.Kind == operate.NotNow, errors.Is(err, rollout.ErrUnderWay), errors.Is(err, rollout.ErrSame):
		return exitRefused
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "wayleave",
		Short: "Egress credential gateway: workers carry placeholders, the gate carries the credentials",
		Example: `  wayleave up -c wayleave.yaml                  # everything on this machine, for real providers
  wayleave grant connect claude -c wayleave.yaml  # an operator connects an account once
  wayleave run -- claude -p "hello"               # a worker with placeholders only
  wayleave doctor -c wayleave.yaml                # what is here, what is missing, and what to do`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	return group(root, newUp(), newServe(), newEnvoy(), newRun(), newIsolated(), newEnv(), newGrant(), newSession(), newApproval(), newRollout(), newFleet(), newConsole(), newNotify(), newAudit(), newLogCommand(), newProvider(), newConfig(), newPolicy(), newWorker(), newVault(), newCA(), newDoctor(), newExplain(), newVersion())
}

// group makes c a command that only holds others: alone it shows its help, with a name it does not know it says so.
func group(c *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	c.AddCommand(commands...)
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		hint := fmt.Sprintf("see '%s --help'", c.CommandPath())
		if near := meant(c, args[0]); len(near) > 0 && len(near) <= 3 {
			hint = fmt.Sprintf("did you mean '%s'?", strings.Join(near, "' or '"))
		}
		return usageError{fmt.Errorf("unknown command %q; %s", args[0], hint)}
	}
	return c
}

// meant are the commands below c that somebody may mean by a name: those of that name further down, or else those of nearly that name.
func meant(c *cobra.Command, name string) (paths []string) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && (sub.Name() == name || slices.Contains(sub.SuggestFor, name)) {
				paths = append(paths, sub.CommandPath())
			}
			look(sub)
		}
	}
	look(c)
	if len(paths) > 0 {
		return paths
	}
	c.SuggestionsMinimumDistance = min(2, len(name)/3) // else two letters are like any two
	for _, near := range c.SuggestionsFor(name) {
		paths = append(paths, c.CommandPath()+" "+near)
	}
	return paths
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version, as --version does",
		Example: `  wayleave version`,
		Args:    exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "wayleave version", version())
			return err
		},
	}
}

// version is the module's version as the Go toolchain recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// newLog logs to w as text, one line per event.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// exactArgs is cobra.ExactArgs with our usage exit code and a line that names what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) == len(names):
			return nil
		case len(names) == 0:
			return usageError{fmt.Errorf("%s takes no arguments; see '%s --help'", c.CommandPath(), c.CommandPath())}
		}
		return usageError{fmt.Errorf("%s wants %s and nothing else; see '%s --help'", c.CommandPath(), strings.Join(names, " "), c.CommandPath())}
	}
}
