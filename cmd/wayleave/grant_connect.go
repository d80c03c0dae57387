package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantConnect() *cobra.Command {
	var o connectOptions
	c := operatorCommand(vault.Operator, func(ctx context.Context, d operator, args []string) error { return d.connect(ctx, args[0], o) })
	c.Use = "connect NAME"
	c.Short = "Connect or reconnect a grant through the provider's consent page"
	c.Long = `Connect sends you to the provider's consent page with the scopes of the configuration and stores what it grants. The answer
comes back to a page on loopback, or you paste it. With --device, and for providers whose grant_type is device_code, it shows
a code that you enter in a browser on any machine. Workers notice nothing but that more works.

Grants of client_credentials and jwt_bearer need no connect: the gate gets their tokens by itself. Keys and passwords come
with 'wayleave grant import'.`
	c.Example = `  wayleave grant connect claude -c wayleave.yaml
  wayleave grant connect claude -c wayleave.yaml --no-browser
  wayleave grant connect github -c wayleave.yaml --device --wait
  wayleave grant connect claude --api https://gate.example.com --api-token-file api.token`
	c.Args = exactArgs("NAME")
	c.Flags().BoolVar(&o.device, "device", false, "use the provider's device flow: a code instead of a callback")
	c.Flags().BoolVar(&o.noBrowser, "no-browser", false, "only print the page's address")
	c.Flags().DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long to wait for the consent")
	c.Flags().BoolVar(&o.wait, "wait", false, "then wait until a running gate has taken the grant over, which it proves by refreshing it once")
	return c
}

type connectOptions struct {
	device, noBrowser, wait bool
	timeout                 time.Duration
}

func (d operator) connect(ctx context.Context, name string, o connectOptions) error {
	g, err := d.Find(ctx, name)
	if err != nil {
		return err
	}
	if g.Kind == grant.Machine {
		return d.connectMachine(ctx, name, o)
	}
	if err := operate.CheckConnect(name, g.Provider, g.Kind); err != nil {
		return err
	}
	ways, account, err := d.Ways(ctx, name)
	switch {
	case err != nil:
		return err
	case o.timeout <= 0:
		return usageError{fmt.Errorf("--timeout %v leaves no time for the consent; leave it out for ten minutes", o.timeout)}
	case o.device && !slices.Contains(ways, operate.ByDevice):
		return usageError{fmt.Errorf("provider %s has no device flow: set its device_url, or leave --device out", g.Provider)}
	}
	open := browser()
	if o.noBrowser {
		open = nil
	}
	if account != "" {
		d.say("Connect the account %s.", account)
	}
	consent, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no consent within %v", o.timeout))
	defer cancel()
	var got operate.Stored
	if o.device || len(ways) > 0 && ways[0] == operate.ByDevice {
		begin := func(ctx context.Context) (deviceConsent, error) { return d.AskDevice(ctx, name) }
		got, err = deviceLogin{begin: begin, now: d.now, out: d.err, open: open}.run(consent)
	} else {
		begin := func(ctx context.Context, redirect string) (pageConsent, error) { return d.AskPage(ctx, name, redirect) }
		got, err = authorization{begin: begin, in: d.in, out: d.err, open: open}.run(consent)
	}
	if err != nil {
		return fmt.Errorf("connecting %s: %w", name, err)
	}
	return d.stored(ctx, got, o.wait)
}

// stored prints a grant that was just stored, when a gate has taken it over if that is to be waited for.
func (d operator) stored(ctx context.Context, got operate.Stored, wait bool) error {
	s := got.Grant
	if note := got.Note(); note != "" {
		d.say("warning: %s", note)
	}
	if wait {
		var err error
		if s, err = d.takenOver(ctx, got); err != nil {
			return err
		}
	}
	return d.show(s)
}

// takenOver waits until a gate has refreshed a grant that was just stored: then it holds it.
func (d operator) takenOver(ctx context.Context, got operate.Stored) (grant.Summary, error) {
	s := got.Grant
	if !got.Refreshes {
		d.say("There is no refresh token, so there is nothing to wait for; running gates see the grant within seconds.")
		return s, nil
	}
	id, err := d.AskRefresh(ctx, s.Name)
	if err != nil {
		return s, err
	}
	now, err := d.answer(ctx, s.Name, id, operate.AnswerTime)
	if errors.Is(err, operate.ErrNotInTime) {
		return s, fmt.Errorf("%s is stored, but no gate has taken it over within %v; see `wayleave doctor`", s.Name, operate.AnswerTime)
	}
	return now, err
}

// connectMachine says how a grant is that nobody connects.
func (d operator) connectMachine(ctx context.Context, name string, o connectOptions) error {
	d.say("%s needs no connect: the gate gets its tokens by itself.", name)
	if o.wait {
		return d.showGrant(ctx, name, grant.Healthy, operate.AnswerTime)
	}
	return d.showGrant(ctx, name, "", 0)
}
