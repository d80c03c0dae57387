package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wayleave/api"
	"wayleave/approval"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/worker"
)

// operator is where a command for grants, sessions, approvals or rollouts works: at Vault or at a gate, and at the terminal.
type operator struct {
	operations
	stdio
	now    func() time.Time
	config string // path of the configuration by which it works at Vault; empty at a gate
}

// operations are what an operator has done: at Vault by [operate.Desk], or at a gate by [api.Client].
type operations interface {
	List(ctx context.Context) ([]grant.Summary, error)
	Find(ctx context.Context, name string) (grant.Summary, error)
	Watch(ctx context.Context, name string, done func(grant.Summary) bool) (grant.Summary, error)
	AskRefresh(ctx context.Context, name string) (id string, err error)
	Disconnect(ctx context.Context, s grant.Summary, revoke bool, timeout time.Duration, waits func()) (operate.Revocation, error)
	Import(ctx context.Context, name string, data []byte) (operate.Imported, error)
	Sessions(ctx context.Context) ([]worker.Live, error)
	EndSessions(ctx context.Context, q operate.SessionsToEnd) (operate.SessionsEnded, error)
	Approvals(ctx context.Context) (approval.Held, error)
	Approval(ctx context.Context, id string) (approval.Approval, error)
	Rule(ctx context.Context, id string, r operate.Ruling) (approval.Approval, error)
	Forget(ctx context.Context, id string) (approval.Kept, error)

	Rollouts(ctx context.Context) (operate.Rollouts, error)
	StartRollout(ctx context.Context, q operate.RolloutRequest) (operate.Started, error)
	PauseRollout(ctx context.Context, by, note string) (rollout.State, error)
	ResumeRollout(ctx context.Context, by, note string) (rollout.State, error)
	PromoteRollout(ctx context.Context, by, note string) (rollout.State, error)
	AbortRollout(ctx context.Context, by, note string) (rollout.State, error)
	Revision(ctx context.Context, id string) (fleet.Revision, error)
	Envoys(ctx context.Context) (operate.Fleet, error)
	Envoy(ctx context.Context, id string) (operate.EnvoyStatus, error)
	Drain(ctx context.Context, q operate.DrainRequest) (rollout.State, error)

	// passes reports whether an error may be over before long.
	passes(err error) bool
	// Ways are those a grant can be connected by, and whose account is meant.
	Ways(ctx context.Context, name string) (ways []operate.Way, account string, err error)
	// AskPage and AskDevice begin to connect a grant.
	AskPage(ctx context.Context, name, redirect string) (pageConsent, error)
	AskDevice(ctx context.Context, name string) (deviceConsent, error)
}

const completionTime = 2 * time.Second // that somebody waits who pressed the tab key

// show prints a grant as the command's result.
func (d operator) show(s grant.Summary) error {
	if d.json {
		return printJSON(d.out, s)
	}
	return printGrant(d.out, s, d.now())
}

// operatorCommand makes a command that works at Vault with the rights of role, or at the gate that --api names.
func operatorCommand(role vault.Role, f func(context.Context, operator, []string) error) *cobra.Command {
	c := &cobra.Command{}
	flags := addDeskFlags(c)
	gate := addAPIFlags(c)
	c.ValidArgsFunction = func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		at, err := gate.open(c, stdio{err: io.Discard})
		if err != nil || at == nil || len(args) > 0 {
			return flags.completeGrants(c, args, prefix)
		}
		defer at.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		all, _ := at.List(ctx)
		var names []string
		for _, g := range all {
			names = append(names, g.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		o, leave, err := openOperator(c, flags, gate, role)
		if err != nil {
			return err
		}
		defer leave()
		return f(c.Context(), o, args)
	}
	return c
}

// openOperator is where a command works, by its flags.
func openOperator(c *cobra.Command, flags *deskFlags, gate *apiFlags, role vault.Role) (o operator, leave func(), err error) {
	o = operator{stdio: flags.stdio(c), now: time.Now}
	at, err := gate.open(c, o.stdio)
	switch {
	case err != nil:
		return o, nil, err
	case at != nil:
		o.operations = atGate{at}
		return o, at.Close, nil
	}
	d, leave, err := flags.open(c, role)
	if err != nil {
		return o, nil, err
	}
	d.Validate = validator("/run/wayleave", newLog(o.err, slog.LevelWarn))
	o.operations, o.config = atVault{d}, flags.config()
	return o, leave, nil
}

// apiFlags say which gate's API to use.
type apiFlags struct{ address, tokenFile, caFile string }

func addAPIFlags(c *cobra.Command) *apiFlags {
	f := &apiFlags{}
	c.Flags().StringVar(&f.address, "api", os.Getenv("WAYLEAVE_API"), "address of a gate's console, such as https://gate.example.com, to work there with a token and not at Vault (default $WAYLEAVE_API)")
	c.Flags().StringVar(&f.tokenFile, "api-token-file", os.Getenv("WAYLEAVE_API_TOKEN_FILE"), "file of the API token (default $WAYLEAVE_API_TOKEN_FILE; or the token itself in WAYLEAVE_API_TOKEN)")
	c.Flags().StringVar(&f.caFile, "api-ca-file", os.Getenv("WAYLEAVE_API_CA_FILE"), "PEM file of the authority of the console's certificate (default $WAYLEAVE_API_CA_FILE, else the system's)")
	for _, name := range []string{"api", "api-token-file", "api-ca-file"} {
		sayDefaultInWords(c, name)
	}
	return f
}

// open is a client of the gate; nil: none is named, or the command line names a Vault by its configuration.
func (f *apiFlags) open(c *cobra.Command, s stdio) (*api.Client, error) {
	said := c.Flags().Changed
	for _, name := range []string{"config", "state"} {
		switch {
		case said(name) && said("api"):
			return nil, usageError{fmt.Errorf("--api is the gate's own business, and --%s is for working at Vault; leave one of them out", name)}
		case said(name):
			return nil, nil
		}
	}
	if f.address == "" {
		if said("api-token-file") || said("api-ca-file") {
			return nil, usageError{errors.New("no gate: name its console with --api or WAYLEAVE_API")}
		}
		return nil, nil
	}
	at, err := api.ParseURL(f.address)
	if err != nil {
		return nil, usageError{fmt.Errorf("--api (or WAYLEAVE_API): %w", err)}
	}
	token, err := f.token(at)
	if err != nil {
		return nil, err
	}
	roots, err := rootsAnd(f.caFile)
	if err != nil {
		return nil, fmt.Errorf("--api-ca-file: %w", err)
	}
	return api.New(at, token, api.Options{Roots: roots, Warn: func(text string) { s.say("warning: %s", text) }}), nil
}

func (f *apiFlags) token(at *url.URL) (secret.Text, error) {
	if f.tokenFile != "" {
		return readSecretFile(f.tokenFile)
	}
	if token := secret.New(os.Getenv("WAYLEAVE_API_TOKEN")); !token.IsZero() {
		return token, nil
	}
	return secret.Text{}, usageError{fmt.Errorf("no token for %s: make one on the console's page Access; put it into WAYLEAVE_API_TOKEN, or name its file with --api-token-file", at.Host)}
}

// atVault works at Vault.
type atVault struct{ operate.Desk }

func (v atVault) passes(err error) bool { return errors.Is(err, vault.ErrUnavailable) }

func (v atVault) Ways(_ context.Context, name string) ([]operate.Way, string, error) {
	ways, err := v.Desk.Ways(name)
	return ways, v.Config.Grants[name].Account, err
}

// client speaks to a grant's provider. Of all secrets only the client's own is needed here.
func (v atVault) client(name string) (*oauth.Client, grant.Spec, error) {
	spec, err := v.Spec(name)
	if err == nil {
		err = v.Config.LoadClient(v.Config.Grants[name].Provider, os.Getenv)
	}
	return v.Client(name), spec, err
}

func (v atVault) AskPage(_ context.Context, name, redirect string) (pageConsent, error) {
	client, spec, err := v.client(name)
	if err != nil {
		return pageConsent{}, err
	}
	fixed := v.FixedRedirect(name)
	if fixed != "" {
		redirect = fixed
	}
	return askPage(client, redirect, spec.Scopes, fixed != "", v.keep(name)), nil
}

// askPage begins a consent here.
func askPage(client *oauth.Client, redirect string, scopes []string, pasted bool, keep func(context.Context, oauth.Token) (operate.Stored, error)) pageConsent {
	consent := operate.NewConsent(client, redirect, scopes)
	return pageConsent{url: consent.URL(), pasted: pasted, answer: func(answer string) (finisher, error) {
		code, err := consent.Parse(answer)
		return func(ctx context.Context) (operate.Stored, error) {
			token, err := consent.Exchange(ctx, code)
			if err != nil {
				return operate.Stored{}, err
			}
			return keep(ctx, token)
		}, err
	}}
}

func (v atVault) AskDevice(ctx context.Context, name string) (deviceConsent, error) {
	client, spec, err := v.client(name)
	if err != nil {
		return deviceConsent{}, err
	}
	d, err := client.StartDevice(ctx, spec.Scopes)
	return deviceConsent{d, func(ctx context.Context) (operate.Stored, error) {
		token, err := client.AwaitDevice(ctx, d)
		if err != nil {
			return operate.Stored{}, err
		}
		return v.keep(name)(ctx, token)
	}}, err
}

// keep stores tokens. A code that is spent is not lost because time is up.
func (v atVault) keep(name string) func(context.Context, oauth.Token) (operate.Stored, error) {
	return func(ctx context.Context, t oauth.Token) (operate.Stored, error) {
		return v.Connect(context.WithoutCancel(ctx), name, t)
	}
}

// atGate works at a gate's console.
type atGate struct{ *api.Client }

func (g atGate) passes(err error) bool { return api.Passes(err) }

func (g atGate) Ways(ctx context.Context, name string) ([]operate.Way, string, error) {
	d, err := g.Detail(ctx, name)
	return d.Ways, d.Account, err
}

func (g atGate) AskPage(ctx context.Context, name, redirect string) (pageConsent, error) {
	f, err := g.Connect(ctx, name, api.ConnectRequest{Way: operate.ByCode, Redirect: redirect})
	if err != nil {
		return pageConsent{}, err
	}
	return pageConsent{
		url: f.URL, pasted: f.Pasted,
		answer: func(answer string) (finisher, error) {
			f, err := g.Answer(ctx, f.ID, answer)
			if err == nil && f.State == api.FlowWaiting {
				err = errors.New(f.Error)
			}
			return g.finish(f), err
		},
		end: g.finish(f),
	}, nil
}

func (g atGate) AskDevice(ctx context.Context, name string) (deviceConsent, error) {
	f, err := g.Connect(ctx, name, api.ConnectRequest{Way: operate.ByDevice})
	d := oauth.Device{UserCode: f.Code, VerificationURL: f.URL, Expires: f.Ends}
	if f.EnterAt != "" {
		d.VerificationURL, d.VerificationURLComplete = f.EnterAt, f.URL
	}
	return deviceConsent{d, g.finish(f)}, err
}

// finish waits for what comes of a connect.
func (g atGate) finish(f api.Flow) finisher {
	return func(ctx context.Context) (operate.Stored, error) {
		f, err := g.Await(ctx, f.ID)
		switch {
		case err != nil:
			return operate.Stored{}, err
		case f.Stored == nil:
			return operate.Stored{}, errors.New(f.Error)
		}
		return *f.Stored, nil
	}
}
