package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"

	"wayleave/config"
)

func configurationPage(t *testing.T) string {
	var s jsonschema.Schema
	if err := json.Unmarshal(config.Schema(), &s); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if cfg, err := config.Parse("example.yaml", example); err != nil || len(cfg.Warnings) > 0 {
		t.Fatalf("the example of docs/configuration.md: %v %v", err, cfg)
	}
	var b strings.Builder
	b.WriteString("# Configuration\n\n" + generated + "\nOne YAML file, read strictly: unknown keys, ambiguities and missing references are all reported at once, each with its line and its fix, and the\n" +
		"gate does not start. What is wrong with one host only once it is made into what Envoy is told takes out [that host alone](production.md#faults-in-the-configuration).\n\n" +
		"```sh\nwayleave config check -c wayleave.yaml\nwayleave config schema > wayleave.schema.json   # for editors\n```\n\n" +
		"```yaml\n" + string(example) + "```\n\n" + intro(s.Description) + "\n\n" + templates + "\n")
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
		text := cell(keysNotFields(s, p.Key, p.Value.Description))
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
		fmt.Fprintf(b, "\n%s `%s`\n\n%s\n", strings.Repeat("#", min(depth, 4)), c.path, strings.TrimSpace(c.schema.Description))
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

const templates = "In `env` and `files` of a provider, `{placeholder}` stands for the worker's placeholder, `{scopes}` for the scopes the grant holds, separated by\n" +
	"spaces, `{scopes_json}` for the same as a JSON array, and `{files}` for the directory of the files. In what git is to give to a shell (a value that\n" +
	"begins with `!`) it is quoted already where that is needed: write it without quotes."

// intro is the description of the whole file without what is about Go.
func intro(s string) string {
	_, s, _ = strings.Cut(s, "\n\n")
	return strings.TrimSpace(strings.Replace(s, "; Path resolves it", "", 1))
}

var (
	goName      = regexp.MustCompile(`\b[A-Z][a-z]*(?:[A-Z]+[a-z]*)+\b`)
	leadingName = regexp.MustCompile(`^[A-Z][A-Za-z]+ (?:(?:is|are) )?`)
	seeGo       = regexp.MustCompile(` \(see [A-Z][A-Za-z]+\)|; see [A-Z][A-Za-z]+`)
)

// keysNotFields makes the comment of a Go field, which may begin with the field's name, the description of its key.
func keysNotFields(s *jsonschema.Schema, key, text string) string {
	names := map[string]string{} // as Go writes them, without regard to case
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		names[strings.ReplaceAll(p.Key, "_", "")] = "`" + p.Key + "`"
	}
	text = seeGo.ReplaceAllString(text, "")
	first := leadingName.FindString(text)
	name, verb, _ := strings.Cut(strings.TrimSpace(first), " ")
	isField := strings.EqualFold(name, strings.ReplaceAll(key, "_", "")) && (verb != "" || goName.MatchString(name))
	if rest := text[len(first):]; isField && !strings.HasPrefix(rest, "of ") {
		text = strings.ToUpper(rest[:1]) + rest[1:]
	}
	return goName.ReplaceAllStringFunc(text, func(name string) string { return cmp.Or(names[strings.ToLower(name)], name) })
}
