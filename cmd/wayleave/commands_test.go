package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"wayleave/config"
)

// Every wayleave command in the documentation and in the help exists, with the flags shown.
func TestEveryCommandShownExists(t *testing.T) {
	shown := map[string]string{} // line → where
	inline := regexp.MustCompile("`(wayleave [^`]*)`")
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	errorPages, err := filepath.Glob("../../docs/errors/*.md")
	if err != nil || len(errorPages) < 5 {
		t.Fatalf("pages: %v, %v", errorPages, err)
	}
	for _, page := range append(append(pages, errorPages...), "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		inside := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line) // of a list's item too
			if strings.HasPrefix(line, "```") {
				inside = strings.HasPrefix(line, "```sh")
			} else if inside {
				shown[line] = page
			}
		}
		for _, m := range inline.FindAllStringSubmatch(string(text), -1) {
			if err := mentioned(strings.Fields(m[1])[1:]); err != nil {
				t.Errorf("%s speaks of %q: %v", page, m[1], err)
			}
		}
	}
	const alerts = "../../deploy/prometheus/wayleave.rules.yaml"
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range inline.FindAllStringSubmatch(regexp.MustCompile(`{{[^}]*}}`).ReplaceAllString(string(text), "x"), -1) {
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

	found := 0
	for line, where := range shown {
		for part := range strings.SplitSeq(line, "<(") { // a command inside a command
			words := strings.Fields(strings.TrimRight(strings.SplitN(part, " #", 2)[0], " )"))
			for len(words) > 0 && strings.Contains(words[0], "=") { // variables of the command
				words = words[1:]
			}
			if len(words) == 0 || words[0] != "wayleave" {
				continue
			}
			found++
			if err := parses(words[1:]); err != nil {
				t.Errorf("%s shows %q: %v", where, line, err)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands found: the test is not looking", found)
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

// mentioned reports whether what a sentence calls a command, mostly without what it wants, is one with these flags.
func mentioned(args []string) error {
	root := newRoot()
	root.InitDefaultCompletionCmd()
	root.InitDefaultVersionFlag()
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if c.HasSubCommands() && len(rest) > 0 && rest[0] == "…" { // several of them
		return nil
	}
	if c.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("%s has no command %s", c.CommandPath(), rest[0])
	}
	for _, arg := range rest {
		name, isFlag := strings.CutPrefix(arg, "--")
		if isFlag && name == "" { // what comes now is another program's
			break
		}
		if name, _, _ = strings.Cut(name, "="); isFlag && c.Flag(name) == nil && name != "help" {
			return fmt.Errorf("%s has no flag --%s", c.CommandPath(), name)
		}
	}
	return nil
}

// Every configuration in these pages is one.
func TestEveryConfigurationShownIsAccepted(t *testing.T) {
	for page, least := range map[string]int{
		"grants.md": 3, "notifications.md": 1, "audit.md": 1,
		"quickstart-provider.md": 3, "quickstart-claude-code.md": 1, "quickstart-ci.md": 1, "quickstart-kubernetes.md": 1,
	} {
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```yaml\n")[1:]
		for _, b := range blocks {
			b, _, _ = strings.Cut(b, "```")
			if _, err := config.Parse("docs/"+page, []byte(b)); err != nil {
				t.Errorf("%v\n%s", err, b)
			}
		}
		if len(blocks) < least {
			t.Errorf("only %d found in %s: the test is not looking", len(blocks), page)
		}
	}
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
