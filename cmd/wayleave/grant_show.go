package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantShow() *cobra.Command {
	var wait string
	var timeout time.Duration
	c := operatorCommand(vault.Viewer, func(ctx context.Context, d operator, args []string) error {
		return d.showGrant(ctx, args[0], grant.State(wait), timeout)
	})
	c.Use = "show NAME"
	c.Short = "Show one grant: account, scopes and why any are missing, expiry, last error, next step, last refreshes"
	c.Long = `Show tells everything that is known of one grant, but for its tokens. With --wait it waits until the grant is in a state:
healthy, or the one that is named as --wait=STATE.

` + exitsByState() + `
When the awaited state does not come in time, the code is that of the state it is in, and 1 where that would be 0.`
	c.Example = `  wayleave grant show claude -c wayleave.yaml
  wayleave grant show claude -c wayleave.yaml --wait --timeout 2m
  wayleave grant show claude -c wayleave.yaml --wait=needs_reconnect --json`
	c.Args = exactArgs("NAME")
	c.Flags().StringVar(&wait, "wait", "", "wait for a state (--wait alone: healthy)")
	c.Flags().Lookup("wait").NoOptDefVal = string(grant.Healthy)
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	_ = c.RegisterFlagCompletionFunc("wait", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return stateNames(), cobra.ShellCompDirectiveNoFileComp
	})
	return c
}

// stateNames are all states, the best first.
func stateNames() []string {
	var names []string
	for _, e := range stateExits {
		for _, s := range e.states {
			names = append(names, string(s))
		}
	}
	return names
}

func (d operator) showGrant(ctx context.Context, name string, wait grant.State, timeout time.Duration) error {
	s, err := d.Find(ctx, name)
	if err != nil {
		return err
	}
	show := func(s grant.Summary) error {
		if err := d.show(s); err != nil || d.json {
			return err
		}
		return printLast(d.out, s)
	}
	if wait == "" {
		if err := show(s); err != nil {
			return err
		}
		return exitOf(s.State).asError()
	}
	if !slices.Contains(stateNames(), string(wait)) {
		return usageError{fmt.Errorf("there is no state %q; there are: %s", wait, strings.Join(stateNames(), ", "))}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, operate.ErrNotInTime)
	defer cancel()
	last, late := d.Watch(ctx, name, func(s grant.Summary) bool {
		// Who waits for a healthy grant need not mind that it is being refreshed.
		return s.State == wait || wait == grant.Healthy && s.State == grant.Refreshing
	})
	switch {
	case late != nil && !errors.Is(late, operate.ErrNotInTime):
		return late
	case last.Name != "": // else nothing was seen since
		s = last
	}
	if err := show(s); err != nil {
		return err
	}
	if late == nil {
		return exitOf(s.State).asError()
	}
	d.say("wayleave: %s is %s, and not %s after %v", name, s.State, wait, timeout)
	return max(exitOf(s.State), exitFailure)
}
