package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/grant"
	"wayleave/vault"
	"wayleave/vault/embedded"
)

// finding is one line of `wayleave doctor`.
type finding struct {
	Status string `json:"status"` // ok, warn or fail
	What   string `json:"what"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func newDoctor() *cobra.Command {
	var path string
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what was found on this machine, what is missing and what to do",
		Long: `Doctor looks at the configuration, the Envoy and OpenBao that would run and why those, Vault and our rights in it, and
the grants. It changes nothing. It exits with 1 when something would keep the gate from working.`,
		Example: `  wayleave doctor -c wayleave.yaml
  wayleave doctor --json`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	addConfigFlag(c, &path)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		findings := examine(c.Context(), path, *st)
		failed := false
		for _, f := range findings {
			failed = failed || f.Status == "fail"
		}
		if asJSON {
			if err := printJSON(c.OutOrStdout(), findings); err != nil {
				return err
			}
		} else {
			printFindings(c.OutOrStdout(), findings)
		}
		if failed {
			return exitCode(exitFailure)
		}
		return nil
	}
	return c
}

func printFindings(w io.Writer, findings []finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "%-5s %-14s %s\n", f.Status, f.What, f.Detail)
		if f.Fix != "" {
			fmt.Fprintf(w, "%-5s %-14s → %s\n", "", "", f.Fix)
		}
	}
}

// examine looks at everything in the order in which the gate would need it.
func examine(ctx context.Context, path string, st state) []finding {
	var out []finding
	add := func(status, what, detail, fix string) { out = append(out, finding{status, what, detail, fix}) }

	var cfg *config.Config
	if path == "" {
		add("warn", "configuration", "none was named", "name one with -c to have Vault and the grants looked at")
		cfg = new(config.Config)
	} else {
		var err error
		if cfg, err = config.Load(path); err != nil {
			add("fail", "configuration", err.Error(), "mend it; 'wayleave config check' shows the same")
			return out
		}
		add("ok", "configuration", fmt.Sprintf("%s, revision %.12s", path, cfg.Hash()), "")
		if err := cfg.LoadSecrets(os.Getenv); err != nil {
			add("fail", "secrets", err.Error(), "make the files and variables readable that the configuration names")
			return out
		}
	}

	if b, err := findEnvoy(ctx, cfg.Envoy.Binary); err != nil {
		add("fail", "envoy", err.Error(), "")
	} else {
		add("ok", "envoy", fmt.Sprintf("%s at %s: %s", b.Version, b.Path, b.Why), "")
	}

	identity := vaultConfig(cfg)
	if identity.Address == "" {
		b, err := findBao(ctx)
		if err != nil {
			add("fail", "openbao", err.Error(), "")
			return out
		}
		add("ok", "openbao", fmt.Sprintf("%s at %s: %s", b.Version, b.Path, b.Why), "")
		if vaultPath, err := exec.LookPath("vault"); err == nil {
			add("ok", "vault", vaultPath+" is not started by 'wayleave up', whose store is OpenBao's; set VAULT_ADDR to use one that runs", "")
		}
		gate := examineGate(ctx, st)
		out = append(out, gate)
		if path == "" || gate.Status != "ok" {
			return out // its OpenBao runs with it
		}
		if identity, err = embedded.Operator(st.dir); err != nil {
			add("warn", "vault", err.Error(), "start it with 'wayleave up'")
			return out
		}
	}
	if path == "" {
		return out
	}
	return append(out, examineVault(ctx, cfg, identity)...)
}

// examineGate looks for a gate started with `wayleave up` on this machine.
func examineGate(ctx context.Context, st state) finding {
	g, err := st.readGate()
	if err != nil {
		return finding{"warn", "gate", "none was started in " + st.dir, "start one with 'wayleave up'"}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.Proxy+"/.wayleave/livez", nil)
	if err != nil {
		return finding{"fail", "gate", err.Error(), "start it again with 'wayleave up'"}
	}
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return finding{"warn", "gate", "was at " + g.Proxy + " and does not answer", "start it again with 'wayleave up'"}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return finding{"fail", "gate", fmt.Sprintf("Envoy at %s answers, and the gate behind it does not: status %d", g.Proxy, resp.StatusCode), "look at what 'wayleave up' logs"}
	}
	return finding{"ok", "gate", "runs; workers connect to " + g.Proxy, ""}
}

// examineVault looks at Vault as whoever we can log in as, and at the grants.
func examineVault(ctx context.Context, cfg *config.Config, identity vault.Config) []finding {
	store, err := vault.Open(ctx, identity, slog.New(slog.DiscardHandler))
	if err != nil {
		return []finding{{"fail", "vault", err.Error(), "check vault.address and the log-in in the configuration"}}
	}
	defer store.Close()
	if err := store.Preflight(ctx, vault.Viewer); err != nil {
		return []finding{{"fail", "vault", err.Error(), ""}}
	}
	out := []finding{{"ok", "vault", "reachable at " + identity.Address, ""}}
	summaries, err := grant.List(ctx, store, grantSpecs(cfg))
	if err != nil {
		return append(out, finding{"fail", "grants", err.Error(), ""})
	}
	for _, s := range summaries {
		f := finding{Status: "ok", What: "grant " + s.Name, Detail: string(s.State)}
		if s.Next != "" {
			f.Status, f.Fix = "warn", s.Next
		}
		out = append(out, f)
	}
	return out
}
