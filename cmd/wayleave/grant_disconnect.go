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
	"wayleave/vault"
)

func newGrantDisconnect() *cobra.Command {
	var yes, noRevoke bool
	var timeout time.Duration
	c := grantCommand(vault.Operator, func(ctx context.Context, d desk, args []string) error {
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
	c.Flags().DurationVar(&timeout, "timeout", answerTime, "how long to wait for a gate to revoke them")
	return c
}

func (d desk) disconnect(ctx context.Context, name string, yes, revoke bool, timeout time.Duration) error {
	s, err := d.find(ctx, name)
	if err != nil {
		return err
	}
	if !yes && terminalOf(d.in) != nil && !d.confirm(fmt.Sprintf("Workers lose %s within seconds. Disconnect it? [y/N] ", name)) {
		return errors.New("nothing was changed")
	}
	end := revocation{Revoked: false, Because: "it was not asked for (--no-revoke)"}
	if revoke {
		if end, err = d.revoke(ctx, s, timeout); err != nil {
			return err
		}
	}
	// Even one whose status says it was never connected: the status document may be what is missing.
	if err := grant.Disconnect(ctx, d.docs, name); err != nil {
		return err
	}
	if d.json {
		return printJSON(d.out, struct {
			Name  string      `json:"name"`
			State grant.State `json:"state"`
			revocation
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

// revocation is what came of the tokens at the provider.
type revocation struct {
	Revoked bool   `json:"revoked"`
	Because string `json:"not_revoked_because,omitempty"`
}

// revoke has a gate end a grant's tokens at the provider. What keeps it from doing so is no error: they are forgotten anyway.
func (d desk) revoke(ctx context.Context, s grant.Summary, timeout time.Duration) (revocation, error) {
	because := func(format string, args ...any) (revocation, error) {
		return revocation{Because: fmt.Sprintf(format, args...)}, nil
	}
	const page = "end the access on the provider's own page"
	provider, configured := d.cfg.ProviderOf(s.Name)
	switch {
	case s.State == grant.NeverConnected:
		return because("there were none")
	case s.Kind == grant.Static:
		return because("only who issued the key can end it")
	case s.Kind == grant.Machine:
		return because("a running gate gets others by itself as long as the configuration has the grant; remove it there")
	case !configured:
		return because("the configuration does not have the grant any more; %s", page)
	case provider.RevokeURL == "":
		return because("its configuration has no revocation endpoint (revoke_url); %s", page)
	}
	id, err := grant.Ask(ctx, d.docs, s.Name, grant.AskRevoke, d.now())
	if err != nil {
		return revocation{}, err
	}
	s, err = d.answer(ctx, s.Name, id, timeout)
	if errors.Is(err, errNotInTime) {
		return because("no gate answered within %v; %s", timeout, page)
	}
	if err != nil {
		return revocation{}, err
	}
	if e := lastEvent(s, grant.Revoked, grant.RevokeFails); e.What != grant.Revoked {
		return because("%s; %s", strings.TrimPrefix(e.Error, "not revoked at the provider: "), page)
	}
	return revocation{Revoked: true}, nil
}

// confirm asks the operator a question; no answer is no.
func (d desk) confirm(question string) bool {
	fmt.Fprint(d.err, question)
	line, _ := bufio.NewReader(d.in).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}
