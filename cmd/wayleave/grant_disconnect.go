package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantDisconnect() *cobra.Command {
	var yes, noRevoke bool
	var timeout time.Duration
	c := operatorCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		return d.disconnect(ctx, args[0], yes, !noRevoke, timeout)
	})
	c.Use = "disconnect NAME"
	c.Short = "Revoke a grant's tokens at the provider and forget them"
	c.Long = `Disconnect asks a running gate to revoke the tokens at the provider (RFC 7009), says what came of it, and removes them from
Vault, all versions of them: also when they were not revoked, because the provider has no revocation endpoint (revoke_url)
or because no gate runs. Workers lose the grant within seconds.`
	c.Example = `  wayleave grant disconnect claude -c wayleave.yaml
  wayleave grant disconnect claude -c wayleave.yaml --yes --no-revoke`
	c.Args = exactArgs("NAME")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask whether it is meant")
	c.Flags().BoolVar(&noRevoke, "no-revoke", false, "only forget the tokens, and leave them valid at the provider")
	c.Flags().DurationVar(&timeout, "timeout", operate.AnswerTime, "how long to wait for a gate to revoke them")
	return c
}

func (d operator) disconnect(ctx context.Context, name string, yes, revoke bool, timeout time.Duration) error {
	s, err := d.Find(ctx, name)
	if err != nil {
		return err
	}
	if !yes && terminalOf(d.in) != nil && !d.confirm(ctx, fmt.Sprintf("Workers lose %s within seconds. Disconnect it? [y/N] ", name)) {
		return errors.New("nothing was changed")
	}
	end, err := d.Disconnect(ctx, s, revoke, timeout, d.sayWaiting)
	if err != nil {
		return err
	}
	if end.Because == operate.NotAsked {
		end.Because += " (--no-revoke)"
	}
	if d.json {
		return printJSON(d.out, struct {
			Name  string      `json:"name"`
			State grant.State `json:"state"`
			operate.Revocation
		}{name, grant.NeverConnected, end})
	}
	fmt.Fprintf(d.out, "%s is disconnected: its tokens are gone from Vault.\n", name)
	if end.Revoked {
		_, err = fmt.Fprintln(d.out, "They were revoked at the provider.")
	} else {
		_, err = fmt.Fprintf(d.out, "They were not revoked at the provider: %s.\n", end.Because)
	}
	return err
}

// confirm asks the operator a question; no answer is no, and so is an interruption.
func (d stdio) confirm(ctx context.Context, question string) bool {
	fmt.Fprint(d.err, question)
	line, _ := until(ctx, func() ([]byte, error) { return bufio.NewReader(d.in).ReadBytes('\n') })
	answer := strings.ToLower(strings.TrimSpace(string(line)))
	return answer == "y" || answer == "yes"
}
