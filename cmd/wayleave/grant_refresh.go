package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantRefresh() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := operatorCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error {
		return d.refresh(ctx, args[0], wait, timeout)
	})
	c.Use = "refresh NAME"
	c.Short = "Ask a running gate for a new token now"
	c.Long = `Refresh asks the running gates for a new token of a grant, whatever the life of the present one and whatever failed before:
after something at the provider was mended, or to see whether it works; also of a grant whose refresh token the provider has
called invalid. One gate does it, once. Nothing is refreshed without
a gate: only gates read tokens.

When it fails, what failed is printed. ` + exitsByState() + `
A failure that leaves the grant healthy, and no answer in time, are 1.`
	c.Example = `  wayleave grant refresh claude -c wayleave.yaml
  wayleave grant refresh claude -c wayleave.yaml --wait=false`
	c.Args = exactArgs("NAME")
	c.Flags().BoolVar(&wait, "wait", true, "wait for the outcome")
	c.Flags().DurationVar(&timeout, "timeout", operate.AnswerTime, "how long to wait")
	return c
}

func (d operator) refresh(ctx context.Context, name string, wait bool, timeout time.Duration) error {
	s, err := d.Find(ctx, name)
	if err != nil {
		return err
	}
	id, err := d.AskRefresh(ctx, name)
	var refused *operate.Refusal
	if errors.As(err, &refused) && refused.Kind == operate.NotNow && s.Kind == grant.Consent && operate.NeedsOperator(s) {
		d.say("wayleave: %v", err)
		return exitOf(s.State)
	}
	if err != nil {
		return err
	}
	if !wait {
		if d.json {
			return printJSON(d.out, map[string]string{"request": id})
		}
		_, err := fmt.Fprintf(d.out, "Asked for a refresh of %s; a running gate does it within seconds.\n", name)
		return err
	}
	s, err = d.answer(ctx, name, id, timeout)
	if errors.Is(err, operate.ErrNotInTime) {
		return fmt.Errorf("no gate has refreshed %s within %v: either none runs (see `wayleave doctor`), or the provider gave no refresh token; the request stands for ten minutes", name, timeout)
	}
	if err != nil {
		return err
	}
	if err := d.show(s); err != nil {
		return err
	}
	if e := operate.Last(s, grant.Refreshed, grant.Failed, grant.Ended, grant.GivenUp, grant.Declined); e.What != grant.Refreshed {
		d.say("wayleave: %s was not refreshed: %s", name, e.Error)
		return max(exitOf(s.State), exitFailure)
	}
	return exitOf(s.State).asError()
}

// answer waits until a gate has carried out the request with the id; the error is operate.ErrNotInTime when none did.
func (d operator) answer(ctx context.Context, name, id string, timeout time.Duration) (grant.Summary, error) {
	d.sayWaiting()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, operate.ErrNotInTime)
	defer cancel()
	return d.Watch(ctx, name, func(s grant.Summary) bool { return s.Request == id })
}

func (d stdio) sayWaiting() {
	if !d.json {
		d.say("Waiting for a gate…")
	}
}
