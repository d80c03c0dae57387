package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/vault"
)

// errNotInTime is the cause of a wait's end when nothing else ended it.
var errNotInTime = errors.New("not in time")

// answerTime is how long a gate is given to do what it is asked for: it looks for requests every few seconds, and few providers
// take longer than that to answer.
const answerTime = 45 * time.Second

func newGrantRefresh() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := grantCommand(vault.Operator, func(ctx context.Context, d desk, args []string) error {
		return d.refresh(ctx, args[0], wait, timeout)
	})
	c.Use = "refresh NAME"
	c.Short = "Ask a running gate for a new token now"
	c.Long = `Refresh asks the running gates for a new token of a grant, whatever the life of the present one and whatever failed before:
after something at the provider was mended, or to see whether it works. One gate does it, once. Nothing is refreshed without
a gate: only gates read tokens.

When it fails, what failed is printed. ` + exitsByState() + `
A failure that leaves the grant healthy, and no answer in time, are 1.`
	c.Example = `  wayleave grant refresh claude -c wayleave.yaml
  wayleave grant refresh claude -c wayleave.yaml --wait=false`
	c.Args = exactArgs("NAME")
	c.Flags().BoolVar(&wait, "wait", true, "wait for the outcome")
	c.Flags().DurationVar(&timeout, "timeout", answerTime, "how long to wait")
	return c
}

func (d desk) refresh(ctx context.Context, name string, wait bool, timeout time.Duration) error {
	s, err := d.find(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case d.index(name) < 0:
		return fmt.Errorf("%s is not in the configuration any more, so no gate keeps it; add it, or run `wayleave grant disconnect %s`", name, name)
	case s.Kind == grant.Static:
		return fmt.Errorf("%s is an imported value, which nothing refreshes; replace it with `wayleave grant import %s`", name, name)
	case s.State == grant.NeverConnected && s.Kind == grant.Machine:
		return fmt.Errorf("no gate has asked for a token of %s yet: it gets one by itself within seconds of its start; look at `wayleave doctor`", name)
	case s.State == grant.NeverConnected || s.State == grant.NeedsReconnect:
		d.say("wayleave: %s cannot be refreshed, it is %s: %s", name, s.State, s.Next)
		return exitOf(s.State)
	}
	id, err := grant.Ask(ctx, d.docs, name, grant.AskRefresh, d.now())
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
	if errors.Is(err, errNotInTime) {
		return fmt.Errorf("no gate has refreshed %s within %v: either none runs (see `wayleave doctor`), or the provider gave no refresh token; the request stands for ten minutes", name, timeout)
	}
	if err != nil {
		return err
	}
	if err := d.show(s); err != nil {
		return err
	}
	if e := lastEvent(s, grant.Refreshed, grant.Failed, grant.Ended, grant.GivenUp); e.What != grant.Refreshed {
		d.say("wayleave: %s was not refreshed: %s", name, e.Error)
		return max(exitOf(s.State), exitFailure)
	}
	return exitOf(s.State).asError()
}

// answer waits until a gate has carried out the request with the id; errNotInTime is that none did.
func (d desk) answer(ctx context.Context, name, id string, timeout time.Duration) (grant.Summary, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNotInTime)
	defer cancel()
	if !d.json {
		d.say("Waiting for a gate…")
	}
	return d.watch(ctx, name, func(s grant.Summary) bool { return s.Request == id })
}

// lastEvent is the newest of a grant's events that is one of these.
func lastEvent(s grant.Summary, among ...grant.What) grant.Event {
	for i := len(s.History) - 1; i >= 0; i-- {
		for _, what := range among {
			if s.History[i].What == what {
				return s.History[i]
			}
		}
	}
	return grant.Event{}
}
