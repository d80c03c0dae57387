package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// finding is one line of `wayleave doctor`.
type finding struct {
	Status string `json:"status"` // ok, warn or fail
	What   string `json:"what"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func newDoctor() *cobra.Command {
	var asJSON bool
	var runDir string
	c := &cobra.Command{
		Use:        "doctor",
		SuggestFor: []string{"status", "health"},
		Short:      "Say what was found on this machine, what is missing and what to do",
		Long: `Doctor looks at the configuration, the Envoy and OpenBao that would run and why those, the gate and the Envoy that run, the
CA and a certificate that workers are shown, the workers' tokens, what in this environment would lead programs around the gate,
the audit, the names and token endpoints of the configuration, Vault and our rights in it, clocks, and the grants. Below what is not as
it should be it says what to do. It sends no credential to a provider, and changes nothing, but for a session of a worker that it begins and
ends. It exits with 1 when something would keep the gate from working.

Run it on the gate's machine, as the gate's user; and 'wayleave run -- wayleave doctor' where programs of a worker do not get through.`,
		Example: `  wayleave doctor -c wayleave.yaml
  wayleave doctor -c /etc/wayleave/wayleave.yaml --run-dir /run/wayleave
  wayleave run -- wayleave doctor -c wayleave.yaml
  wayleave doctor --json`,
		Args: exactArgs(),
	}
	st := addStateFlag(c)
	path := addConfigOrGateFlag(c, st)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&runDir, "run-dir", "/run/wayleave", "directory of the sockets of a 'wayleave serve'")
	c.RunE = func(c *cobra.Command, _ []string) error {
		findings := examine(c.Context(), path(), *st, runDir, newAround(os.Environ()))
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

// printFindings prints a line for each finding, with what to do below it.
func printFindings(w io.Writer, findings []finding) {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.What))
	}
	for _, f := range findings {
		// A configuration with faults has several lines.
		detail := strings.ReplaceAll(f.Detail, "\n", fmt.Sprintf("\n%-5s %-*s ", "", width, ""))
		fmt.Fprintf(w, "%-5s %-*s %s\n", f.Status, width, f.What, detail)
		if f.Fix != "" {
			fmt.Fprintf(w, "%-5s %-*s → %s\n", "", width, "", f.Fix)
		}
	}
}
