package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/operate"
	"wayleave/vault"
	"wayleave/vault/embedded"
)

func newGrant() *cobra.Command {
	return group(&cobra.Command{
		Use:   "grant",
		Short: "Connect, import, list, show, refresh and disconnect grants",
		Long: `A grant is one operator's consent at one provider, or a key that an operator imported. These commands talk to Vault as the
operator: with VAULT_TOKEN for the Vault in the configuration, or with the token that 'wayleave up' keeps in --state. With
--api they have a gate do the same, for who has an API token of its console and no rights at Vault. They never read a token.`,
	}, newGrantConnect(), newGrantImport(), newGrantList(), newGrantShow(), newGrantHistory(), newGrantRefresh(), newGrantDisconnect())
}

// desk is where a command works that needs Vault itself: an operator's desk, and the terminal.
type desk struct {
	operate.Desk
	stdio
}

// stdio is the terminal, or what stands for it.
type stdio struct {
	in   io.Reader
	out  io.Writer // results
	err  io.Writer // all else
	json bool
}

// deskFlags say where an operator's desk is.
type deskFlags struct {
	state  *state
	config func() string
	json   bool
}

func addDeskFlags(c *cobra.Command) *deskFlags {
	f := &deskFlags{state: addStateFlag(c)}
	f.config = addConfigOrGateFlag(c, f.state)
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return f
}

func (f *deskFlags) stdio(c *cobra.Command) stdio {
	return stdio{in: c.InOrStdin(), out: c.OutOrStdout(), err: c.ErrOrStderr(), json: f.json}
}

// open opens the desk at Vault, with the rights of role.
func (f *deskFlags) open(c *cobra.Command, role vault.Role) (d operate.Desk, leave func(), err error) {
	cfg, err := checkConfig(c, f.config())
	if err != nil {
		return d, nil, err
	}
	// The gate's log-in, the workers' tokens and the clients' secrets are not the operator's.
	cfg.Vault.Auth = operatorAuth()
	identity, err := operatorVault(cfg, *f.state)
	if err != nil {
		return d, nil, err
	}
	store, err := openAs(c.Context(), cfg, identity, role, newLog(c.ErrOrStderr(), slog.LevelWarn))
	if err != nil {
		return d, nil, err
	}
	return operate.Desk{Config: cfg, Specs: operate.Specs(cfg), Docs: store, Now: time.Now, Every: deskEvery}, func() { store.Close() }, nil
}

// completeGrants completes the names of the configuration's grants.
func (f *deskFlags) completeGrants(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	cfg, err := config.Load(f.config())
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.Sorted(maps.Keys(cfg.Grants)), cobra.ShellCompDirectiveNoFileComp
}

// deskCommand makes a command that works as the operator at Vault, with the rights of role.
func deskCommand(role vault.Role, f func(context.Context, desk, []string) error) *cobra.Command {
	c := &cobra.Command{}
	flags := addDeskFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		d, leave, err := flags.open(c, role)
		if err != nil {
			return err
		}
		defer leave()
		return f(c.Context(), desk{d, flags.stdio(c)}, args)
	}
	return c
}

// operatorVault is the Vault that the configuration or the environment names, or the one of a `wayleave up`.
func operatorVault(cfg *config.Config, st state) (vault.Config, error) {
	return vaultOrEmbedded(cfg, st, embedded.Operator)
}

// vaultOrEmbedded is the Vault that the configuration or the environment names, or the one of a `wayleave up`, with whose
// log-in there.
func vaultOrEmbedded(cfg *config.Config, st state, whose func(stateDir string) (vault.Config, error)) (vault.Config, error) {
	identity := vaultConfig(cfg)
	if identity.Address != "" {
		return identity, nil
	}
	identity, err := whose(st.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return identity, fmt.Errorf("no gate was started in %s, and no Vault is named; start one with 'wayleave up', or set VAULT_ADDR and VAULT_TOKEN", st.dir)
	case err != nil:
		return identity, fmt.Errorf("finding the Vault of the gate in --state: %w; run this as the user who runs 'wayleave up'", err)
	}
	return identity, nil
}

// openAs connects to Vault and checks that the role's capabilities are there.
func openAs(ctx context.Context, cfg *config.Config, identity vault.Config, role vault.Role, log *slog.Logger) (*vault.Client, error) {
	store, err := openVault(ctx, cfg, identity, log)
	if err != nil {
		return nil, err
	}
	if err := store.Preflight(ctx, role); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// openVault connects to Vault.
func openVault(ctx context.Context, cfg *config.Config, identity vault.Config, log *slog.Logger) (*vault.Client, error) {
	store, err := vault.Open(ctx, identity, log)
	if errors.Is(err, vault.ErrUnavailable) && vaultConfig(cfg).Address == "" {
		return nil, errors.New("the gate in --state does not run, and its OpenBao runs with it; start it with 'wayleave up'")
	}
	return store, err
}

// say prints a line for the operator, which is no result.
func (d stdio) say(format string, args ...any) { fmt.Fprintf(d.err, format+"\n", args...) }
