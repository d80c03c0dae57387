package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/vault"
)

func newGrantHistory() *cobra.Command {
	c := operatorCommand(vault.Viewer, func(ctx context.Context, d operator, args []string) error { return d.history(ctx, args[0]) })
	c.Use = "history NAME"
	c.Short = "Show what happened to a grant: connects, refreshes, failures and who made them"
	c.Long = `History shows the last 30 events of a grant, the oldest first: when, what, by which gate, the generation of the tokens after
it, how long the provider took, and what failed or which scopes an answer no longer granted. Connecting a grant again keeps
its history; disconnecting ends it.`
	c.Example = `  wayleave grant history claude -c wayleave.yaml
  wayleave grant history claude -c wayleave.yaml --json`
	c.Args = exactArgs("NAME")
	return c
}

func (d operator) history(ctx context.Context, name string) error {
	s, err := d.Find(ctx, name)
	if err != nil {
		return err
	}
	if d.json {
		return printJSON(d.out, append([]grant.Event{}, s.History...))
	}
	if len(s.History) == 0 {
		_, err := fmt.Fprintf(d.out, "Nothing has happened to %s yet.\n", name)
		return err
	}
	return printEvents(d.out, s.History, widthOf(d.out))
}
