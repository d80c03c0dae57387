package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"wayleave/config"
)

// block is a fenced block of a page.
type block struct {
	page    string // its path in the repository
	line    int    // of its first line
	section string // the heading above it
	lang    string
	text    string // without the indentation of the fence
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

var (
	fenceLine = regexp.MustCompile("^( *)(```+|~~~+)(\\S*)")
	codeSpan  = regexp.MustCompile("`(wayleave [^`]*)`")
)

// blocksOf has the blocks of a page, and the commands that its sentences name.
func blocksOf(t *testing.T, page string) (blocks []block, named []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Fatal(err)
	}
	var open *block
	fence, indent, section, n := "", "", "", 0
	for line := range strings.Lines(string(text)) {
		n++
		m := fenceLine.FindStringSubmatch(line)
		switch {
		case open == nil && m != nil:
			open, fence, indent = &block{page: page, line: n + 1, section: section, lang: m[3]}, m[2], m[1]
		case open != nil && m != nil && m[2] == fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent)
		case strings.HasPrefix(line, "#"):
			section = strings.TrimSpace(strings.TrimLeft(line, "#"))
			fallthrough
		default:
			for _, m := range codeSpan.FindAllStringSubmatch(line, -1) {
				named = append(named, m[1])
			}
		}
	}
	if open != nil {
		t.Errorf("%s is not closed", open)
	}
	return blocks, named
}

// pagesShown are those of the documentation.
func pagesShown(t *testing.T) []string {
	t.Helper()
	pages := []string{"README.md", "CONTRIBUTING.md"}
	err := filepath.WalkDir("../../docs", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, filepath.ToSlash(strings.TrimPrefix(path, "../../")))
		}
		return err
	})
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	return pages
}

// Every block of the documentation is something that a test can tell right from wrong, and is right.
func TestEveryBlockShown(t *testing.T) {
	found := map[string]int{}
	for _, page := range pagesShown(t) {
		blocks, named := blocksOf(t, page)
		for _, b := range blocks {
			found[b.lang]++
			var err error
			switch b.lang {
			case "yaml":
				err = yamlShown(b.text)
			case "sh":
				err = scriptShown(t, b.text)
			case "json":
				err = jsonShown(b.text)
			case "http":
				_, err = http.ReadRequest(bufio.NewReader(strings.NewReader(strings.Replace(b.text, " HTTP/2\n", " HTTP/2.0\n", 1) + "\n")))
			case "hcl": // TestTerraformShown of deploy/tools/shapes
			case "xml": // TestMavenLogsIn of worker
			case "", "text": // what a program prints, what a person fills in, a drawing
				if strings.HasPrefix(b.text, "wayleave ") && !strings.HasPrefix(b.text, "wayleave: ") {
					err = errors.New("this is a command; call the block sh")
				}
			default:
				err = fmt.Errorf("no test reads blocks of %s", b.lang)
			}
			if err != nil {
				t.Errorf("%s: %v", b, err)
			}
		}
		for _, command := range named {
			if err := namedExists(command); err != nil {
				t.Errorf("%s names `%s`: %v", page, command, err)
			}
		}
		found["named"] += len(named)
	}
	for kind, least := range map[string]int{"yaml": 40, "sh": 100, "json": 4, "named": 100} {
		if found[kind] < least {
			t.Errorf("only %d of %s found: the test is not looking", found[kind], kind)
		}
	}
}

// notOurs are keys by which a block is known as another program's, and who tries it there.
var notOurs = map[string]string{
	"scrape_configs": "promtool",
	"steps":          "GitHub Actions: deploy/ci is checked by actionlint",
	"release":        "GitLab: deploy/ci is checked by shapes",
	"containers":     "Kubernetes: deploy/helm/worker.yaml is checked by shapes",
	"when":           "config: conditions, one a line",
}

// yamlShown holds a block to what reads it: a configuration may leave out only sections that it refers to.
func yamlShown(text string) error {
	var node yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&node); err != nil {
		return err
	}
	kind := ""
	for _, key := range node.Content[0].Content {
		if notOurs[key.Value] != "" {
			kind = key.Value
		}
	}
	switch kind {
	case "":
		return configurationShown(text)
	case "scrape_configs":
		return prometheusShown(text)
	case "when":
		for line := range strings.Lines(text) {
			rule := strings.TrimPrefix(strings.TrimSpace(line), "when: ")
			if err := configurationShown("profiles: {shown: {rules: [{name: shown, deny: shown, when: " + quoted(rule) + "}]}}\n"); err != nil {
				return err
			}
		}
		return nil
	default:
		return commandsIn(&node)
	}
}

// quoted is a scalar of YAML as one that may stand in a flow.
func quoted(scalar string) string {
	var s string
	if err := yaml.Unmarshal([]byte(scalar), &s); err != nil {
		return scalar
	}
	b, _ := json.Marshal(s)
	return string(b)
}

func configurationShown(text string) error {
	_, err := config.Parse("shown", []byte(text))
	var faults config.Faults
	if errors.As(err, &faults) {
		faults = slices.DeleteFunc(faults, func(f config.Fault) bool {
			return strings.HasSuffix(f.What, " is not declared") && f.Fix == "none is declared"
		})
		if len(faults) == 0 {
			return nil
		}
		return faults
	}
	return err
}

func prometheusShown(text string) error {
	tool, err := filepath.Abs("../../.tools/bin/promtool")
	if err != nil {
		return err
	}
	if _, err := os.Stat(tool); err != nil {
		if tool, err = exec.LookPath("promtool"); err != nil {
			return fmt.Errorf("%w; run 'make tools'", err)
		}
	}
	f, err := os.CreateTemp("../../deploy/prometheus", "shown*.yaml") // beside the rules that it names
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if out, err := exec.Command(tool, "check", "config", f.Name()).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return f.Close()
}

// commandsIn reports what is wrong with the commands of ours in another program's YAML.
func commandsIn(node *yaml.Node) error {
	if node.Kind == yaml.SequenceNode && len(node.Content) > 0 && node.Content[0].Value == "wayleave" {
		var words []string
		if err := node.Decode(&words); err != nil {
			return err
		}
		return parses(words[1:])
	}
	if strings.HasPrefix(node.Value, "wayleave ") {
		return parses(strings.Fields(node.Value)[1:])
	}
	for _, child := range node.Content {
		if err := commandsIn(child); err != nil {
			return err
		}
	}
	return nil
}

// jsonShown takes a document, lines of them, or a member of one.
func jsonShown(text string) error {
	if !strings.HasPrefix(text, "{") {
		text = "{" + strings.TrimSuffix(strings.TrimSpace(text), ",") + "}"
	}
	dec := json.NewDecoder(strings.NewReader(text))
	for dec.More() {
		var v any
		if err := dec.Decode(&v); err != nil {
			return err
		}
	}
	return nil
}

// Programs that commands in pages call, beside ours, and where that is tried. What is tried nowhere says why.
var programs = map[string]string{
	"bao":       "TestVaultPage runs docs/vault.md",
	"cd":        "",
	"cp":        "",
	"curl":      "e2e: TestPages",
	"docker":    "shapes loads deploy/compose; no Docker engine here",
	"envoy":     "e2e: production.txtar runs it with what is rendered",
	"eval":      "",
	"export":    "",
	"grep":      "",
	"mkdir":     "",
	"ln":        "",
	"helm":      "shapes renders the chart; no cluster here",
	"iptables":  "the other way to write what nft does; no test",
	"kubectl":   "shapes reads what it is given; no cluster here",
	"nft":       "shapes: TestRedirectShown",
	"openssl":   "e2e: TestPages",
	"source":    "TestManual makes the completions",
	"systemctl": "shapes: the units, under a systemd of their own if that is asked for",
}

var (
	substitution = regexp.MustCompile(`&& |\| |<\(|\$\(`)
	makeTargets  = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):.*##`)
)

// scriptShown holds a script to the shell, and each command in it to the program that it calls.
func scriptShown(t *testing.T, text string) error {
	t.Helper()
	check := exec.CommandContext(t.Context(), "bash", "-n")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		for _, command := range commandsOf(line) {
			if err := commandShown(t, command); err != nil {
				return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
			}
		}
	}
	return nil
}

// commandsOf are the commands of a line, also those inside others, without what is before a program's name.
func commandsOf(line string) (commands [][]string) {
	line, _, _ = strings.Cut(" "+line, " #")
	for _, part := range substitution.Split(line, -1) {
		words := strings.Fields(strings.TrimRight(strings.TrimSpace(part), `)"`))
		for len(words) > 0 && (words[0] == "sudo" || strings.Contains(words[0], "=")) {
			words = words[1:]
		}
		if len(words) > 0 {
			commands = append(commands, words)
		}
	}
	return commands
}

func commandShown(t *testing.T, words []string) error {
	t.Helper()
	switch words[0] {
	case "wayleave":
		return parses(words[1:])
	case "make":
		text, err := os.ReadFile("../../Makefile")
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range words[1:] {
			name, _, variable := strings.Cut(word, "=")
			if variable && !bytes.Contains(text, []byte(name)) {
				return fmt.Errorf("the Makefile has nothing about %s", name)
			}
			if !variable && !slices.ContainsFunc(makeTargets.FindAllSubmatch(text, -1), func(m [][]byte) bool { return string(m[1]) == word }) {
				return fmt.Errorf("the Makefile has no target %s", word)
			}
		}
		return nil
	case "go":
		for _, word := range words[1:] {
			if _, err := os.Stat(filepath.Join("../..", word)); strings.HasPrefix(word, "./") && err != nil {
				return err
			}
		}
		return nil
	}
	if _, known := programs[words[0]]; !known {
		return fmt.Errorf("no test knows %s; add it to programs, with where it is tried", words[0])
	}
	return nil
}

// namedExists reports whether a command that a sentence names is one. Its arguments may be missing.
func namedExists(command string) error {
	args := strings.Fields(command)[1:]
	for i, a := range args {
		if a == "--" || strings.ContainsAny(a, "|…") {
			args = args[:i]
			break
		}
	}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	root.InitDefaultVersionFlag()
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if c.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("%s has no %s", c.CommandPath(), rest[0])
	}
	for _, a := range rest {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if strings.HasPrefix(a, "--") && c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil && name != "help" {
			return fmt.Errorf("%s has no flag --%s", c.CommandPath(), name)
		}
	}
	return nil
}
