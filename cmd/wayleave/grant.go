package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	c := operatorCommand(vault.Operator, func(c *cobra.Command, o operator, args []string) error {
		spec, err := o.spec(args[0])
		if err != nil {
			return err
		}
		provider, _ := o.cfg.ProviderOf(args[0])
		a := authorization{
			client: oauth.NewClient(provider.Config, nil, nil), redirect: provider.RedirectURL, scopes: spec.Scopes,
			in: c.InOrStdin(), out: c.OutOrStdout(), open: browser(),
		}
		if noBrowser {
			a.open = nil
		}
		ctx, cancel := context.WithTimeout(c.Context(), timeout)
		defer cancel()
		token, err := a.run(ctx)
		if err != nil {
			return fmt.Errorf("connecting %s: %w", spec.Name, err)
		}
		summary, err := grant.Connect(c.Context(), o.store, spec, token, time.Now())
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
	c := operatorCommand(vault.Viewer, func(c *cobra.Command, o operator, _ []string) error {
		summaries, err := grant.List(c.Context(), o.store, o.specs)
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
	c.Short = "List every configured grant with its state and next step"
	c.Example = `  wayleave grant list -c wayleave.yaml
  wayleave grant list -c wayleave.yaml --json`
	c.Args = exactArgs()
	return c
}

func newGrantShow() *cobra.Command {
	c := operatorCommand(vault.Viewer, func(c *cobra.Command, o operator, args []string) error {
		spec, err := o.spec(args[0])
		if err != nil {
			return err
		}
		summaries, err := grant.List(c.Context(), o.store, []grant.Spec{spec})
		if err != nil {
			return err
		}
		return printSummary(c.OutOrStdout(), summaries[0], o.json)
	})
	c.Use = "show NAME"
	c.Short = "Show one grant: account, scopes held and missing, expiry, last error, next step"
	c.Example = `  wayleave grant show claude -c wayleave.yaml`
	c.Args = exactArgs("NAME")
	return c
}

func newGrantDisconnect() *cobra.Command {
	c := operatorCommand(vault.Operator, func(c *cobra.Command, o operator, args []string) error {
		if err := grant.Disconnect(c.Context(), o.store, args[0]); err != nil {
			return fmt.Errorf("disconnecting %s: %w", args[0], err)
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is disconnected: its tokens are gone from Vault. Revoke the access at the provider too if it should end there.\n", args[0])
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
	cfg   *config.Config
	specs []grant.Spec
	store *vault.Client
	json  bool
}

func (o operator) spec(name string) (grant.Spec, error) {
	var names []string
	for _, s := range o.specs {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return grant.Spec{}, usageError{fmt.Errorf("no grant %q in the configuration; there are: %s", name, strings.Join(names, ", "))}
}

// operatorCommand makes a command that opens the configuration and Vault, checks that the role's capabilities are there, and calls f.
func operatorCommand(role vault.Role, f func(*cobra.Command, operator, []string) error) *cobra.Command {
	var configPath string
	var asJSON bool
	c := &cobra.Command{}
	st := addStateFlag(c)
	addConfigFlag(c, &configPath)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(configPath)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Sorted(maps.Keys(cfg.Grants)), cobra.ShellCompDirectiveNoFileComp
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := checkConfig(c, configPath)
		if err != nil {
			return err
		}
		// The gate's log-in and the workers' tokens are not the operator's.
		cfg.Vault.Auth, cfg.Workers = config.Auth{Method: "token"}, nil
		if err := cfg.LoadSecrets(os.Getenv); err != nil {
			return err
		}
		identity := vaultConfig(cfg)
		if identity.Address == "" {
			if identity, err = embedded.Operator(st.dir); err != nil {
				return err
			}
		}
		store, err := vault.Open(c.Context(), identity, newLog(c.ErrOrStderr(), slog.LevelWarn))
		if err != nil {
			return err
		}
		defer store.Close()
		if err := store.Preflight(c.Context(), role); err != nil {
			return err
		}
		return f(c, operator{cfg, grantSpecs(cfg), store, asJSON}, args)
	}
	return c
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
