package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command in the help and in alerts exists, with the flags shown.
func TestEveryCommandShownExists(t *testing.T) {
	shown := map[string]string{} // line → where
	const alerts = "../../deploy/prometheus/wayleave.rules.yaml"
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range codeSpan.FindAllStringSubmatch(regexp.MustCompile(`{{[^}]*}}`).ReplaceAllString(string(text), "x"), -1) {
		shown[m[1]] = alerts
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() && !c.Hidden && c.Example == "" && c.Name() != "help" && c.Parent().Name() != "completion" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			shown[strings.TrimSpace(line)] = c.CommandPath() + " --help"
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	for line, where := range shown {
		if err := scriptShown(t, line); err != nil {
			t.Errorf("%s shows %q: %v", where, line, err)
		}
	}
	if len(shown) < 20 {
		t.Errorf("only %d commands found: the test is not looking", len(shown))
	}
}

// parses reports whether a command line names a command and flags that exist.
func parses(args []string) error {
	if i := slices.IndexFunc(args, func(a string) bool { return a == ">" || a == "<" || a == "|" }); i >= 0 {
		args = args[:i]
	}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if c.HasSubCommands() {
		return fmt.Errorf("%s is no command by itself", c.CommandPath())
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}

// The exit codes in docs/grants.md are those of the program.
func TestExitCodesShown(t *testing.T) {
	text, err := os.ReadFile("../../docs/grants.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range stateExits {
		for _, s := range e.states {
			row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| [^|]*`%s`[^|]*\\| %d \\|", s, e.code))
			if !row.Match(text) {
				t.Errorf("docs/grants.md has no row for %s with exit code %d", s, e.code)
			}
		}
	}
}
