package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"wayleave/config"
	"wayleave/extproc"
	"wayleave/provider"
)

var update = flag.Bool("update", false, "rewrite the generated pages")

// Pages that describe what the code knows are made from it.
func TestGeneratedPagesAreCurrent(t *testing.T) {
	for name, page := range map[string]string{
		"refusals.md":      refusalsPage(),
		"configuration.md": configurationPage(t),
		"cli.md":           cliPage(),
	} {
		path := filepath.Join("..", "..", "docs", name)
		if *update {
			if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != page {
			t.Errorf("docs/%s is not what the code says (%v); run 'go test ./cmd/wayleave -update'", name, err)
		}
	}
}

func refusalsPage() string {
	var b strings.Builder
	b.WriteString(`# Refusals

What a worker sees when the gate does not forward its request. The body is JSON in the error shape of the provider's own API, so that its clients
show the text; the headers are

- ` + "`x-wayleave-reason`" + `: the reason below. An answer without this header is the provider's own.
- ` + "`x-request-id`" + `: the same id is in the gate's log.
- ` + "`x-should-retry: false`" + ` where trying again cannot help, ` + "`retry-after`" + ` where it can.

The status is the provider's to choose, because clients differ in which they show and which they retry; the presets that choose another are named.
` + "`providers.<name>.refusal_status`" + ` changes it.

| reason | status | retry | what it says |
|---|---|---|---|
`)
	for _, r := range extproc.Reasons() {
		status := fmt.Sprint(r.Status)
		for _, name := range provider.Presets() {
			if p, _ := provider.Preset(name); p.RefusalStatus[r.Name] != 0 && p.RefusalStatus[r.Name] != r.Status {
				status += fmt.Sprintf(", %s: %d", name, p.RefusalStatus[r.Name])
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.Name, status, yesNo(r.Retry), cell(r.Words))
	}
	b.WriteString(`
` + "`{detail}`" + ` and the like stand for what the case is about; ` + "`policy_denied`" + ` gives the reason that the configuration or the rule states.

A host that may not be reached, and a worker that is not known, are refused when the tunnel is opened, with 403 and 407; most clients show only the
status of that. Everything else is refused inside the tunnel, where clients show the text.

Envoy answers by itself when the gate cannot, in one shape for every provider:

| reason | status | retry | what happened |
|---|---|---|---|
| ` + "`gate_unavailable`" + ` | 503, or 504 when it hangs | yes | the gate did not answer Envoy; nothing was forwarded |
| ` + "`upstream_unreachable`" + ` | 503 | yes | the provider could not be reached, its certificate is not for this name, or its name resolves to an address that is not allowed |
| ` + "`barrier`" + ` | 403 | no | a request without a verdict, or with a placeholder left in it, was stopped; this is a fault of ours: report it |
| ` + "`misdirected`" + ` | 421 | no | the host is not served on this connection |
| ` + "`use_connect`" + ` | 403 | no | plain http was sent to the proxy; only https is proxied |
`)
	return b.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func configurationPage(t *testing.T) string {
	var s jsonschema.Schema
	if err := json.Unmarshal(config.Schema(), &s); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.Parse("example.yaml", example); err != nil {
		t.Fatalf("the example of docs/configuration.md: %v", err)
	}
	var b strings.Builder
	b.WriteString("# Configuration\n\nOne YAML file, read strictly: unknown keys, ambiguities and missing references are all reported at once, each with its line and its fix.\n\n" +
		"```sh\nwayleave config check -c wayleave.yaml\nwayleave config schema > wayleave.schema.json   # for editors\n```\n\n" +
		"```yaml\n" + string(example) + "```\n\n" + paragraph(s.Description) + "\n")
	sections(&b, &s, "", &s, 2)
	return b.String()
}

// sections writes the keys of one object, then a section for each object among them.
func sections(b *strings.Builder, root *jsonschema.Schema, path string, s *jsonschema.Schema, depth int) {
	type child struct {
		path   string
		schema *jsonschema.Schema
	}
	var children []child
	b.WriteString("\n| key | meaning |\n|---|---|\n")
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		at, target := p.Key, resolve(root, p.Value)
		switch {
		case target.Items != nil && resolve(root, target.Items).Properties != nil:
			children = append(children, child{join(path, at+"[]"), resolve(root, target.Items)})
		case target.AdditionalProperties != nil && resolve(root, target.AdditionalProperties).Properties != nil:
			children = append(children, child{join(path, at+".<name>"), resolve(root, target.AdditionalProperties)})
		case target.Properties != nil:
			children = append(children, child{join(path, at), target})
		}
		text := cell(p.Value.Description)
		if p.Value.Description == "" {
			text = cell(target.Description)
		}
		if len(target.Enum) > 0 {
			text += fmt.Sprintf(" One of: %s.", codes(target.Enum))
		}
		if d := p.Value.Default; d != nil {
			text += fmt.Sprintf(" Default: `%v`.", d)
		}
		if slices.Contains(s.Required, p.Key) {
			text += " **Required.**"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", p.Key, text)
	}
	for _, c := range children {
		fmt.Fprintf(b, "\n%s `%s`\n\n%s\n", strings.Repeat("#", min(depth, 4)), c.path, paragraph(c.schema.Description))
		sections(b, root, c.path, c.schema, depth+1)
	}
}

func resolve(root, s *jsonschema.Schema) *jsonschema.Schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
		return root.Definitions[name]
	}
	return s
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func codes(values []any) string {
	var all []string
	for _, v := range values {
		all = append(all, fmt.Sprintf("`%v`", v))
	}
	return strings.Join(all, ", ")
}

func paragraph(s string) string { return strings.TrimSpace(s) }

// cell makes text fit a table: one line, with line breaks kept where they separate sentences of their own.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(strings.TrimSpace(s))
}

func cliPage() string {
	var b strings.Builder
	b.WriteString("# Commands\n\nExit codes: 0 for success, 1 for a failure, 2 for a mistake on the command line. `wayleave run` ends with its command's own code.\n" +
		"`wayleave completion` makes completions for your shell.\n")
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() && c.Name() != "help" {
			fmt.Fprintf(&b, "\n## `%s`\n\n%s.\n\n", c.CommandPath(), c.Short)
			if c.Long != "" {
				fmt.Fprintf(&b, "%s\n\n", c.Long)
			}
			fmt.Fprintf(&b, "```sh\n%s\n```\n", unindent(c.Example))
			var flags bytes.Buffer
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && f.Name != "version" {
					fmt.Fprintf(&flags, "| `--%s` | %s |\n", f.Name, cell(f.Usage))
				}
			})
			if flags.Len() > 0 {
				fmt.Fprintf(&b, "\n| flag | meaning |\n|---|---|\n%s", flags.String())
			}
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

func unindent(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.TrimPrefix(strings.TrimRight(line, "\n"), "  "))
	}
	return strings.Join(lines, "\n")
}

// Every wayleave command in the documentation and in the help exists, with the flags shown.
func TestEveryCommandShownExists(t *testing.T) {
	shown := map[string]string{} // line → where
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		inside := false
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "```") {
				inside = strings.HasPrefix(line, "```sh")
			} else if inside {
				shown[strings.TrimSpace(line)] = page
			}
		}
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() && c.Example == "" && c.Name() != "help" && c.Parent().Name() != "completion" {
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
	if i := slices.IndexFunc(args, func(a string) bool { return a == ">" || a == "|" }); i >= 0 {
		args = args[:i]
	}
	c, rest, err := newRoot().Find(args)
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

// What the gate refuses with is what the configuration lets an operator choose a status for.
func TestEveryReasonMayHaveAStatus(t *testing.T) {
	var b strings.Builder
	for _, r := range extproc.Reasons() {
		fmt.Fprintf(&b, "      %s: 418\n", r.Name)
	}
	text := "providers:\n  mine:\n    preset: anthropic\n    refusal_status:\n" + b.String() + `
grants: {g: {provider: mine}}
routes: [{hosts: [api.example.com], grant: g}]
profiles: {p: {grants: [g]}}
workers: {w: {profile: p}}
`
	if _, err := config.Parse("wayleave.yaml", []byte(text)); err != nil {
		t.Error(err)
	}
}
