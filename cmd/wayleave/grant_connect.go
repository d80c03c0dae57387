package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/operate"
	"wayleave/vault"
)

func newGrantConnect() *cobra.Command {
	var o connectOptions
	c := grantCommand(vault.Operator, func(ctx context.Context, d desk, args []string) error { return d.connect(ctx, args[0], o) })
	c.Use = "connect NAME"
	c.Short = "Connect or reconnect a grant through the provider's consent page"
	c.Long = `Connect sends you to the provider's consent page with the scopes of the configuration and stores what it grants. The answer
comes back to a page on loopback, or you paste it. With --device, and for providers whose grant_type is device_code, it shows
a code that you enter in a browser on any machine. Workers notice nothing but that more works.

Grants of client_credentials and jwt_bearer need no connect: the gate gets their tokens by itself. Keys and passwords come
with 'wayleave grant import'.`
	c.Example = `  wayleave grant connect claude -c wayleave.yaml
  wayleave grant connect claude -c wayleave.yaml --no-browser
  wayleave grant connect github -c wayleave.yaml --device --wait`
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

func (d desk) connect(ctx context.Context, name string, o connectOptions) error {
	spec, err := d.Spec(name)
	if err != nil {
		return err
	}
	if spec.Kind == grant.Machine {
		return d.connectMachine(ctx, name, o)
	}
	ways, err := d.Ways(name)
	switch {
	case err != nil:
		return err
	case o.timeout <= 0:
		return usageError{fmt.Errorf("--timeout %v leaves no time for the consent; leave it out for ten minutes", o.timeout)}
	case o.device && !slices.Contains(ways, operate.ByDevice):
		return usageError{fmt.Errorf("provider %s has no device flow: set its device_url, or leave --device out", spec.Provider)}
	}
	// Of all secrets only the client's own is needed here.
	if err := d.Config.LoadClient(d.Config.Grants[name].Provider, os.Getenv); err != nil {
		return err
	}
	client := d.Client(name)
	open := browser()
	if o.noBrowser {
		open = nil
	}
	if account := d.Config.Grants[name].Account; account != "" {
		d.say("Connect the account %s.", account)
	}
	consent, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no consent within %v", o.timeout))
	defer cancel()
	var token oauth.Token
	if o.device || ways[0] == operate.ByDevice {
		token, err = deviceLogin{client: client, scopes: spec.Scopes, now: d.Now, out: d.err, open: open}.run(consent)
	} else {
		token, err = authorization{client: client, redirect: d.FixedRedirect(name), scopes: spec.Scopes, in: d.in, out: d.err, open: open}.run(consent)
	}
	if err != nil {
		return fmt.Errorf("connecting %s: %w", name, err)
	}
	return d.store(ctx, name, token, o.wait)
}

// store stores a token as a new consent and prints the grant.
func (d desk) store(ctx context.Context, name string, token oauth.Token, wait bool) error {
	s, err := d.Connect(ctx, name, token)
	if err != nil {
		return err
	}
	if wait {
		if s, err = d.takenOver(ctx, s, token); err != nil {
			return err
		}
	}
	return d.show(s)
}

// takenOver waits until a gate has refreshed a grant that was just stored: then it holds it.
func (d desk) takenOver(ctx context.Context, s grant.Summary, token oauth.Token) (grant.Summary, error) {
	if token.Refresh.IsZero() {
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
func (d desk) connectMachine(ctx context.Context, name string, o connectOptions) error {
	d.say("%s needs no connect: the gate gets its tokens by itself.", name)
	if o.wait {
		return d.showGrant(ctx, name, grant.Healthy, operate.AnswerTime)
	}
	return d.showGrant(ctx, name, "", 0)
}
