package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/vault"
)

func newGrantList() *cobra.Command {
	var check bool
	c := operatorCommand(vault.Viewer, func(ctx context.Context, d operator, _ []string) error { return d.list(ctx, check) })
	c.Use = "list"
	c.Short = "List every grant, configured or stored, with its state and next step"
	c.Long = `List shows each grant's account, state, how long its token lives, how many of the scopes it asks for it holds, and below it
what is missing, what went wrong last and what to do. With --check it is for monitoring: it exits with the worst state's
code (see 'wayleave grant show --help').`
	c.Example = `  wayleave grant list -c wayleave.yaml
  wayleave grant list -c wayleave.yaml --json
  wayleave grant list -c wayleave.yaml --check
  wayleave grant list --api https://gate.example.com --api-token-file api.token`
	c.Args = exactArgs()
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Flags().BoolVar(&check, "check", false, "exit with the code of the worst state")
	return c
}

func (d operator) list(ctx context.Context, check bool) error {
	all, err := d.List(ctx)
	if err != nil {
		return err
	}
	switch {
	case d.json:
		err = printJSON(d.out, append([]grant.Summary{}, all...)) // [] and not null
	case len(all) == 0:
		_, err = fmt.Fprintln(d.out, "There are no grants. Add one to grants in the configuration; docs/grants.md shows how.")
	default:
		err = printGrants(d.out, all, d.now(), widthOf(d.out))
	}
	if err != nil || !check {
		return err
	}
	worst := exitCode(exitOK)
	for _, s := range all {
		worst = max(worst, exitOf(s.State))
	}
	return worst.asError()
}
