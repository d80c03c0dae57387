package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/vault"
	"wayleave/vault/embedded"
)

func newGrant() *cobra.Command {
	return group(&cobra.Command{
		Use:   "grant",
		Short: "Connect, list, show and disconnect grants",
		Long: `A grant is one operator's consent at one provider. These commands talk to Vault as the operator: with VAULT_TOKEN
for the Vault in the configuration, or with the token that 'wayleave up' keeps in --state. They never read a token.`,
	}, newGrantConnect(), newGrantList(), newGrantShow(), newGrantDisconnect())
}

func newGrantConnect() *cobra.Command {
	var noBrowser bool
	var timeout time.Duration
	c := operatorCommand(func(c *cobra.Command, o operator, args []string) error {
		spec, err := o.spec(args[0])
		if err != nil {
			return err
		}
		if timeout <= 0 {
			return usageError{fmt.Errorf("--timeout %v leaves no time for the consent; leave it out for ten minutes", timeout)}
		}
		store, err := o.open(c.Context(), vault.Operator)
		if err != nil {
			return err
		}
		defer store.Close()
		provider, _ := o.cfg.ProviderOf(spec.Name)
		a := authorization{
			client: oauth.NewClient(provider.Config, nil, nil), redirect: provider.RedirectURL, scopes: spec.Scopes,
			in: c.InOrStdin(), out: c.ErrOrStderr(), open: browser(),
		}
		if noBrowser {
			a.open = nil
		}
		if account := o.cfg.Grants[spec.Name].Account; account != "" {
			fmt.Fprintf(c.ErrOrStderr(), "Connect the account %s.\n", account)
		}
		ctx, cancel := context.WithTimeoutCause(c.Context(), timeout, fmt.Errorf("no consent within %v", timeout))
		defer cancel()
		token, err := a.run(ctx)
		if err != nil {
			return fmt.Errorf("connecting %s: %w", spec.Name, err)
		}
		summary, err := grant.Connect(c.Context(), store, spec, token, time.Now())
		if err != nil {
			return fmt.Errorf("storing %s: %w", spec.Name, err)
		}
		return printSummary(c.OutOrStdout(), summary, o.json)
	})
	c.Use = "connect NAME"
	c.Short = "Connect or reconnect a grant through the provider's consent page"
	c.Long = `Connect sends you to the provider's consent page with the scopes of the configuration and stores what it grants.
The answer comes back to a page on loopback, or you paste it. Workers notice nothing but that more works.`
	c.Example = `  wayleave grant connect claude -c wayleave.yaml
  wayleave grant connect claude -c wayleave.yaml --no-browser`
	c.Args = exactArgs("NAME")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the page's address")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for the consent")
	return c
}

func newGrantList() *cobra.Command {
	c := operatorCommand(func(c *cobra.Command, o operator, _ []string) error {
		store, err := o.open(c.Context(), vault.Viewer)
		if err != nil {
			return err
		}
		defer store.Close()
		summaries, err := grant.List(c.Context(), store, o.specs)
		if err != nil {
			return err
		}
		if o.json {
			return printJSON(c.OutOrStdout(), summaries)
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "GRANT\tPROVIDER\tACCOUNT\tSTATE\tEXPIRES\tMISSING SCOPES\tNEXT STEP")
		for _, s := range summaries {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Provider, orDash(s.Account), s.State,
				orDash(when(s.Expires)), orDash(strings.Join(s.Missing, " ")), orDash(s.Next))
		}
		return w.Flush()
	})
	c.Use = "list"
	c.Short = "List every grant, configured or stored, with its state and next step"
	c.Example = `  wayleave grant list -c wayleave.yaml
  wayleave grant list -c wayleave.yaml --json`
	c.Args = exactArgs()
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func newGrantShow() *cobra.Command {
	c := operatorCommand(func(c *cobra.Command, o operator, args []string) error {
		store, err := o.open(c.Context(), vault.Viewer)
		if err != nil {
			return err
		}
		defer store.Close()
		summary, err := o.find(c.Context(), store, args[0])
		if err != nil {
			return err
		}
		return printSummary(c.OutOrStdout(), summary, o.json)
	})
	c.Use = "show NAME"
	c.Short = "Show one grant: account, scopes held and missing, expiry, last error, next step"
	c.Example = `  wayleave grant show claude -c wayleave.yaml`
	c.Args = exactArgs("NAME")
	return c
}

func newGrantDisconnect() *cobra.Command {
	c := operatorCommand(func(c *cobra.Command, o operator, args []string) error {
		store, err := o.open(c.Context(), vault.Operator)
		if err != nil {
			return err
		}
		defer store.Close()
		summary, err := o.find(c.Context(), store, args[0])
		if err != nil {
			return err
		}
		// Even one whose status says it was never connected: the status document may be what is missing.
		if err := grant.Disconnect(c.Context(), store, summary.Name); err != nil {
			return fmt.Errorf("disconnecting %s: %w", summary.Name, err)
		}
		summary = grant.Summary{Name: summary.Name, Provider: summary.Provider, State: grant.NeverConnected, Requested: summary.Requested}
		if o.json {
			return printJSON(c.OutOrStdout(), summary)
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is disconnected: its tokens are gone from Vault. Revoke the access at the provider too if it should end there.\n", summary.Name)
		return nil
	})
	c.Use = "disconnect NAME"
	c.Short = "Forget a grant's tokens"
	c.Example = `  wayleave grant disconnect claude -c wayleave.yaml`
	c.Args = exactArgs("NAME")
	return c
}

// operator is what a grant command works with.
type operator struct {
	cfg      *config.Config
	specs    []grant.Spec
	identity vault.Config
	log      *slog.Logger
	json     bool
}

// operatorCommand makes a command that reads the configuration and calls f as the operator.
func operatorCommand(f func(*cobra.Command, operator, []string) error) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{}
	st := addStateFlag(c)
	configPath := addConfigOrGateFlag(c, st)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(configPath())
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Sorted(maps.Keys(cfg.Grants)), cobra.ShellCompDirectiveNoFileComp
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := checkConfig(c, configPath())
		if err != nil {
			return err
		}
		// The gate's log-in and the workers' tokens are not the operator's.
		cfg.Vault.Auth, cfg.Workers = config.Auth{Method: "token"}, nil
		if err := cfg.LoadSecrets(os.Getenv); err != nil {
			return err
		}
		identity, err := operatorVault(cfg, *st)
		if err != nil {
			return err
		}
		return f(c, operator{cfg, grantSpecs(cfg), identity, newLog(c.ErrOrStderr(), slog.LevelWarn), asJSON}, args)
	}
	return c
}

// operatorVault is the Vault that the configuration or the environment names, or the one of a `wayleave up`.
func operatorVault(cfg *config.Config, st state) (vault.Config, error) {
	identity := vaultConfig(cfg)
	if identity.Address != "" {
		return identity, nil
	}
	identity, err := embedded.Operator(st.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return identity, fmt.Errorf("no gate was started in %s, and no Vault is named; start one with 'wayleave up', or set VAULT_ADDR and VAULT_TOKEN", st.dir)
	case err != nil:
		return identity, fmt.Errorf("finding the Vault of the gate in --state: %w; run this as the user who runs 'wayleave up'", err)
	}
	return identity, nil
}

// open connects to Vault and checks that the role's capabilities are there.
func (o operator) open(ctx context.Context, role vault.Role) (*vault.Client, error) {
	store, err := vault.Open(ctx, o.identity, o.log)
	if errors.Is(err, vault.ErrUnavailable) && vaultConfig(o.cfg).Address == "" {
		return nil, errors.New("the gate in --state does not run, and its OpenBao runs with it; start it with 'wayleave up'")
	}
	if err != nil {
		return nil, err
	}
	if err := store.Preflight(ctx, role); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// spec is a grant of the configuration.
func (o operator) spec(name string) (grant.Spec, error) {
	var names []string
	for _, s := range o.specs {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return grant.Spec{}, noSuchGrant(name, names)
}

// find is a grant that is configured, or was and is still stored.
func (o operator) find(ctx context.Context, store *vault.Client, name string) (grant.Summary, error) {
	summaries, err := grant.List(ctx, store, o.specs)
	if err != nil {
		return grant.Summary{}, err
	}
	var names []string
	for _, s := range summaries {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return grant.Summary{}, noSuchGrant(name, names)
}

func noSuchGrant(name string, names []string) error {
	if len(names) == 0 {
		return usageError{fmt.Errorf("no grant %q: the configuration has none; add it to grants", name)}
	}
	return usageError{fmt.Errorf("no grant %q; there are: %s", name, strings.Join(names, ", "))}
}

func printSummary(w io.Writer, s grant.Summary, asJSON bool) error {
	if asJSON {
		return printJSON(w, s)
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	row("grant", s.Name)
	row("provider", s.Provider)
	row("account", s.Account)
	row("state", string(s.State))
	row("scopes held", strings.Join(s.Granted, " "))
	row("scopes missing", strings.Join(s.Missing, " "))
	row("token expires", when(s.Expires))
	row("last error", s.LastError)
	row("next step", s.Next)
	return t.Flush()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
