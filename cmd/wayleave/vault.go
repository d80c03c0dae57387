package main

import (
	"fmt"
	"log/slog"
	"os"

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
	return vault.Config{
		Address: address, Namespace: cfg.Vault.Namespace, CAFile: cfg.Path(cfg.Vault.CAFile),
		Mount: cfg.Vault.Mount, PKIMount: cfg.Vault.PKIMount,
		Auth: vault.Auth{
			Method: cfg.Vault.Auth.Method, Token: cfg.Vault.Auth.Token,
			RoleID: cfg.Vault.Auth.RoleID, SecretID: cfg.Vault.Auth.SecretID, AppRoleMount: cfg.Vault.Auth.Mount,
		},
	}
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
		Long: `Setup prepares the Vault of the configuration with the administrator's token in VAULT_TOKEN: a KV version 2 mount
that insists on check-and-set, a PKI mount with the root CA that workers trust, the policies wayleave-gateway,
wayleave-operator and wayleave-viewer, and an AppRole role for the gateway. What is there already is left as it is.`,
		Example: `  VAULT_ADDR=https://vault.internal:8200 VAULT_TOKEN=… wayleave vault setup -c wayleave.yaml`,
		Args:    exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := checkConfig(c, path)
			if err != nil {
				return err
			}
			identity := vaultConfig(cfg)
			if identity.Address == "" {
				return usageError{fmt.Errorf("no Vault is named: write vault.address in %s or set VAULT_ADDR", path)}
			}
			identity.Auth = vault.Auth{Method: "token", Token: secret.New(os.Getenv("VAULT_TOKEN"))}
			admin, err := vault.Open(c.Context(), identity, newLog(c.ErrOrStderr(), slog.LevelWarn))
			if err != nil {
				return err
			}
			defer admin.Close()
			return vault.Setup(c.Context(), admin, vault.SetupOptions{
				AppRoleMount: cfg.Vault.Auth.Mount,
				Note:         func(s string) { fmt.Fprintln(c.OutOrStdout(), s) },
			})
		},
	}
	addConfigFlag(c, &path)
	return c
}
