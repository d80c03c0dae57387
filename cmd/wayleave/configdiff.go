package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"wayleave/config"
	"wayleave/fleet"
	"wayleave/operate"
	"wayleave/vault"
)

func newConfigDiff() *cobra.Command {
	var resources, code bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say what is different in another configuration",
		Long: `Diff compares two configurations by what they mean: which hosts come and go, what requests need, what grants are asked for and
which of them need a reconnect, what workers may. Comments, the order of keys, and defaults that are written out make no
difference. With --envoy it shows how what Envoy is told differs.

Each is a file, or a revision that was rolled out: the first digits of its id, or stable. Revisions are asked for at the
Vault of -c or --state, or at the gate of --api; they have no machine's own part, so that of a file does not count beside one.`,
		Example: `  wayleave config diff wayleave.yaml new.yaml
  wayleave config diff wayleave.yaml new.yaml --json
  wayleave config diff wayleave.yaml new.yaml --envoy
  wayleave config diff wayleave.yaml new.yaml --exit-code   # 1 when there is a difference
  wayleave config diff -c wayleave.yaml stable wayleave.yaml
  wayleave config diff --api https://gate.example.com 3f2a9c01d4e5 stable`,
		Args: exactArgs("OLD", "NEW"),
	}
	flags := addDeskFlags(c)
	gate := addAPIFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		asJSON := flags.json
		both, err := configurations(c, args, flags, gate)
		if err != nil {
			return err
		}
		changes := config.Compare(both[0], both[1])
		switch {
		case resources:
			err = printEnvoyDiff(c, args, both)
		case asJSON:
			err = printJSON(c.OutOrStdout(), append([]config.Change{}, changes...)) // [] and not null
		default:
			for _, change := range changes {
				fmt.Fprintln(c.OutOrStdout(), change)
			}
			if len(changes) == 0 {
				fmt.Fprintf(c.ErrOrStderr(), "They mean the same: revision %.12s\n", both[0].Hash())
			}
		}
		if err == nil && code && len(changes) > 0 {
			return exitCode(exitFailure)
		}
		return err
	}
	c.Flags().BoolVar(&resources, "envoy", false, "show how what Envoy is told differs")
	c.Flags().BoolVar(&code, "exit-code", false, "exit with 1 when there is a difference")
	c.MarkFlagsMutuallyExclusive("json", "envoy")
	return c
}

// configurations are those that are compared.
func configurations(c *cobra.Command, names []string, flags *deskFlags, gate *apiFlags) (both [2]*config.Config, err error) {
	if isRevision(names[0]) || isRevision(names[1]) {
		o, leave, err := openOperator(c, flags, gate, vault.Viewer)
		if err != nil {
			return both, err
		}
		defer leave()
		return o.compared(c.Context(), names)
	}
	for i, name := range names {
		if both[i], err = config.Load(name); err != nil {
			return both, counted(err)
		}
	}
	return both, nil
}

// compared are revisions, and files as far as gates share them.
func (d operator) compared(ctx context.Context, names []string) (both [2]*config.Config, err error) {
	for i, name := range names {
		if isRevision(name) {
			var r fleet.Revision
			if r, err = d.Revision(ctx, name); err == nil {
				both[i], err = operate.Parsed(&config.Config{}, r)
			}
		} else {
			var text []byte
			if text, err = os.ReadFile(name); err == nil {
				both[i], err = (&config.Config{Dir: filepath.Dir(name)}).With(name, text, nil)
			}
		}
		if err != nil {
			return both, counted(err)
		}
	}
	return both, nil
}

// isRevision reports whether a revision is meant and no file: one of that name is written ./stable.
func isRevision(name string) bool { return name == operate.Stable || revisionID.MatchString(name) }

var revisionID = regexp.MustCompile(`^[0-9a-f]{6,64}$`)

// printEnvoyDiff prints the difference of what Envoy is told, as a unified diff.
func printEnvoyDiff(c *cobra.Command, names []string, both [2]*config.Config) error {
	var text [2]bytes.Buffer
	for i, cfg := range both {
		r, err := envoyResources(cfg, cfg.Hash(), "/run/wayleave", "/dev/stdout")
		if err != nil {
			return err
		}
		if err := printResources(&text[i], r); err != nil {
			return err
		}
	}
	_, err := c.OutOrStdout().Write(diff.Diff(names[0], text[0].Bytes(), names[1], text[1].Bytes()))
	return err
}
