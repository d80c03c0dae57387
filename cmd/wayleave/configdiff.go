package main

import (
	"bytes"
	"fmt"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"wayleave/config"
)

func newConfigDiff() *cobra.Command {
	var asJSON, resources, code bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say what is different in another configuration",
		Long: `Diff compares two configurations by what they mean: which hosts come and go, what requests need, what grants are asked for and
which of them need a reconnect, what workers may. Comments, the order of keys, and defaults that are written out make no
difference. With --envoy it shows how what Envoy is told differs.`,
		Example: `  wayleave config diff wayleave.yaml new.yaml
  wayleave config diff wayleave.yaml new.yaml --json
  wayleave config diff wayleave.yaml new.yaml --envoy
  wayleave config diff wayleave.yaml new.yaml --exit-code   # 1 when there is a difference`,
		Args: exactArgs("OLD", "NEW"),
		RunE: func(c *cobra.Command, args []string) error {
			var both [2]*config.Config
			for i, path := range args {
				cfg, err := config.Load(path)
				if err != nil {
					return counted(err)
				}
				both[i] = cfg
			}
			changes := config.Compare(both[0], both[1])
			var err error
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
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&resources, "envoy", false, "show how what Envoy is told differs")
	c.Flags().BoolVar(&code, "exit-code", false, "exit with 1 when there is a difference")
	c.MarkFlagsMutuallyExclusive("json", "envoy")
	return c
}

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
