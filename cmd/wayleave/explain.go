package main

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wayleave/extproc"
	"wayleave/worker"
)

// What people wrote about each reason, in Markdown whose links are those of docs/errors, which has it with what the code knows.
//
//go:embed explain/*.txt
var explanations embed.FS

func newExplain() *cobra.Command {
	c := &cobra.Command{
		Use:   "explain [reason]",
		Short: "Say what a refusal means and what to do about it",
		Long: `Print the page of a reason: what it means, what the worker sees, why it comes and what to do. The reason is the value of the header
x-wayleave-reason, and at the end of the message of each refusal. Without one, all are listed. Nothing is asked: the pages are in the program.`,
		Example: `  wayleave explain
  wayleave explain scope_missing`,
		ValidArgs: reasonNames(),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%s wants one reason at most; see '%s --help'", c.CommandPath(), c.CommandPath())}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listReasons(c.OutOrStdout())
			}
			page, known := reasonPage(args[0])
			if !known {
				return usageError{fmt.Errorf("no refusal has the reason %q; '%s' lists those there are", args[0], c.CommandPath())}
			}
			_, err := io.WriteString(c.OutOrStdout(), page)
			return err
		},
	}
	return c
}

// reasonNames are all values of x-wayleave-reason, sorted.
func reasonNames() (names []string) {
	for _, r := range extproc.Reasons() {
		names = append(names, r.Name)
	}
	for _, r := range ofEnvoy {
		names = append(names, r.reason)
	}
	for _, r := range worker.Refusals() {
		names = append(names, r.Reason)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func listReasons(w io.Writer) error {
	var b bytes.Buffer
	for _, name := range reasonNames() {
		text, _ := about(name)
		first, _, _ := strings.Cut(strings.Join(strings.Fields(text), " "), ". ")
		fmt.Fprintf(&b, "%-24s %s\n", name, strings.TrimSuffix(first, "."))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// about is what was written about a reason: what it means, and why it comes and what to do.
func about(name string) (meaning, rest string) {
	text, _ := explanations.ReadFile("explain/" + name + ".txt")
	meaning, rest, _ = strings.Cut(string(text), "\n## ")
	return strings.TrimSpace(meaning), "## " + strings.TrimSpace(rest)
}

// reasonPage is all that there is to say about a reason, in Markdown.
func reasonPage(name string) (page string, known bool) {
	if !slices.Contains(reasonNames(), name) {
		return "", false
	}
	meaning, rest := about(name)
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n## What the worker sees\n", name, meaning)
	for _, r := range extproc.Reasons() {
		if r.Name == name {
			fmt.Fprintf(&b, "\nFrom the gate, with status %d%s; %s:\n\n> wayleave: %s (more: wayleave explain %s)\n", r.Status, presetsWith(r), retryWords(r.Retry), r.Words, name)
		}
	}
	for _, r := range ofEnvoy {
		if r.reason == name {
			fmt.Fprintf(&b, "\nFrom Envoy, with status %s; retry: %s. It means: %s.\n", r.status, r.retry, r.what)
		}
	}
	for _, r := range worker.Refusals() {
		if r.Reason == name {
			fmt.Fprintf(&b, "\nWhen it enrols, with status %d; %s. It means: %s.\n", r.Status, retryWords(r.Retry), r.What)
		}
	}
	fmt.Fprintf(&b, "\nThe header `x-wayleave-reason` is `%s`; `x-request-id` finds the request in the gate's log and in Envoy's access log.\n\n%s\n", name, rest)
	b.WriteString("\nEvery other reason is in [refusals](../refusals.md).\n")
	return b.String(), true
}

// presetsWith names the presets whose clients get another status for the reason.
func presetsWith(r extproc.Reason) string {
	if _, others, ok := strings.Cut(statuses(r), "; "); ok {
		return " (of presets, " + strings.ReplaceAll(others, ";", ",") + ")"
	}
	return ""
}

func retryWords(retry bool) string {
	if retry {
		return "the same request may succeed later (`retry-after`)"
	}
	return "the same request will not succeed later"
}
