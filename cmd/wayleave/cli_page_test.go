package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func cliPage() string {
	var b strings.Builder
	b.WriteString("# Commands\n\n" + generated + `
| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it failed; the last line on standard error says why and what to do |
| 2 | the command line is wrong, or names what does not exist |
| 3 | refused: nothing was changed, because it is too early or something else comes first; the last line on standard error says what |
| 10 to 14 | the state of a grant; see [grants.md](grants.md) |
| 20, 21 | a rollout is under way; it was halted; see [rollouts.md](rollouts.md) |
| other | ` + "`wayleave run` ends as its command does: with its code, or by INT, TERM or HUP where one ended it; 128+n with another signal and as process 1, 127 when there is no such command, 126 when it cannot be started" + ` |

Results go to standard output; warnings, prompts and errors to standard error. ` + "`--json`" + ` is for programs.

Completion of commands, flags and grant names: put this in your shell's start-up file (zsh and fish likewise).

` + "```sh\nsource <(wayleave completion bash)\n```" + `

Variables: ` + "`WAYLEAVE_CONFIG`, `WAYLEAVE_STATE`, `WAYLEAVE_GATE`, `WAYLEAVE_GATE_CA`, `WAYLEAVE_TOKEN`, `WAYLEAVE_TOKEN_FILE`, `WAYLEAVE_CERT`, `WAYLEAVE_KEY`, `WAYLEAVE_AUDIENCE`, `WAYLEAVE_API`, `WAYLEAVE_API_TOKEN_FILE` and `WAYLEAVE_API_CA_FILE`" + ` stand for the flags and files of the same name, ` +
		"`WAYLEAVE_API_TOKEN`" + ` is an API token itself, ` + "`WAYLEAVE_ENVOY` and `WAYLEAVE_BAO`" + ` name executables, ` + "`VAULT_ADDR` and `VAULT_TOKEN`" + ` a Vault and the operator's log-in, ` + "`BROWSER`" + ` what opens a consent page.
`)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() && c.Name() != "help" {
			describe(&b, c)
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "completion" {
				walk(sub)
			}
		}
	}
	walk(newRoot())
	return b.String()
}

func describe(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n## `%s`\n\n%s.\n\n", c.CommandPath(), c.Short)
	if c.Long != "" {
		fmt.Fprintf(b, "%s\n\n", c.Long)
	}
	fmt.Fprintf(b, "```sh\n%s\n```\n", unindent(c.Example))
	var flags strings.Builder
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		names := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			names = "`-" + f.Shorthand + "`, " + names
		}
		usage := cell(f.Usage)
		if f.DefValue != "" && f.DefValue != "false" {
			usage += fmt.Sprintf(" (default `%s`)", f.DefValue)
		}
		fmt.Fprintf(&flags, "| %s | %s |\n", names, usage)
	})
	if flags.Len() > 0 {
		fmt.Fprintf(b, "\n| flag | meaning |\n|---|---|\n%s", flags.String())
	}
}

func unindent(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.TrimPrefix(strings.TrimRight(line, "\n"), "  "))
	}
	return strings.Join(lines, "\n")
}
