package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/secret"
	"wayleave/vault"
)

// vaultConfig is the Vault that the configuration or the environment names. Its address is empty when none does:
// that is the embedded one.
func vaultConfig(cfg *config.Config) vault.Config {
	address := cfg.Vault.Address
	if address == "" {
		address = os.Getenv("VAULT_ADDR")
	}
	a := cfg.Vault.Auth
	return vault.Config{
		Address: address, Nodes: cfg.Vault.Nodes, Namespace: cfg.Vault.Namespace, CAFile: cfg.Path(cfg.Vault.CAFile),
		Mount: cfg.Vault.Mount, PKIMount: cfg.Vault.PKIMount,
		Auth: vault.Auth{
			Method: a.Method, Mount: a.Mount, Role: a.Role,
			Token: a.Token, TokenFile: cfg.Path(a.TokenFile),
			RoleID: a.RoleID, SecretIDFile: cfg.Path(a.SecretIDFile),
			JWT: a.JWT, JWTFile: cfg.Path(a.JWTFile),
			CertFile: cfg.Path(a.CertFile), KeyFile: cfg.Path(a.KeyFile),
		},
	}
}

// operatorAuth is how a person logs in: with VAULT_TOKEN, or with the token that 'bao login' and 'vault login' leave in
// the home directory, by whatever method they were told to use.
func operatorAuth() config.Auth {
	a := config.Auth{Method: "token", Token: secret.New(os.Getenv("VAULT_TOKEN"))}
	if home, err := os.UserHomeDir(); err == nil && a.Token.IsZero() {
		file := filepath.Join(home, ".vault-token")
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			a.TokenFile = file
		}
	}
	return a
}

func newVault() *cobra.Command {
	return group(&cobra.Command{
		Use:   "vault",
		Short: "Prepare a Vault or OpenBao of your own",
	}, newVaultSetup())
}

func newVaultSetup() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "setup",
		Short: "Make the mounts, policies, root CA and AppRole role the product needs (safe to repeat)",
		Long: `Setup prepares the Vault of the configuration as the administrator, with the token in VAULT_TOKEN or the one that
'bao login' left: a KV version 2 mount that insists on check-and-set, a PKI mount with the root CA that workers trust,
the policies wayleave-gateway, wayleave-operator and wayleave-viewer, and an AppRole role for the gateway, unless the
configuration has it log in by kubernetes, jwt or cert. What is there already is left as it is, but for these policies, which
get the text of this version.`,
		Example: `  VAULT_ADDR=https://vault.internal:8200 VAULT_TOKEN=… wayleave vault setup -c wayleave.yaml`,
		Args:    exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := checkConfig(c, path)
			if err != nil {
				return err
			}
			gate := cfg.Vault.Auth
			cfg.Vault.Auth = operatorAuth()
			identity := vaultConfig(cfg)
			if identity.Address == "" {
				return usageError{fmt.Errorf("no Vault is named: write vault.address in %s or set VAULT_ADDR", path)}
			}
			admin, err := vault.Open(c.Context(), identity, newLog(c.ErrOrStderr(), slog.LevelWarn))
			if err != nil {
				return err
			}
			defer admin.Close()
			return vault.Setup(c.Context(), admin, setupOptions(gate, func(s string) { fmt.Fprintln(c.OutOrStdout(), s) }))
		},
	}
	addConfigFlag(c, &path)
	return c
}

// setupOptions say where the gate logs in. AppRole is the product's own way, so its role is made; the roles of the others
// depend on who vouches for the gate, which an administrator writes down (docs/vault.md).
func setupOptions(gate config.Auth, note func(string)) vault.SetupOptions {
	o := vault.SetupOptions{AppRoleMount: gate.Mount, Note: note}
	switch gate.Method {
	case "kubernetes", "jwt", "cert":
		o = vault.SetupOptions{NoAppRole: true, Note: note}
	}
	return o
}
