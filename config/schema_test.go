package config_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"wayleave/config"
	"wayleave/provider"
)

const namePattern = `^[a-z0-9][a-z0-9._-]{0,62}$`

// generateSchema makes the schema from the structs and the comments in their source.
func generateSchema(t *testing.T) []byte {
	t.Helper()
	t.Chdir("..") // comments are found by package path relative to the module
	r := &jsonschema.Reflector{
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		ExpandedStruct:             true,
		Anonymous:                  true,
		Namer: func(t reflect.Type) string {
			if t == reflect.TypeFor[provider.Header]() { // not the one of a route
				return "provider_header"
			}
			return strings.ToLower(t.Name())
		},
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[time.Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
			case reflect.TypeFor[netip.Prefix]():
				return &jsonschema.Schema{Type: "string", Pattern: `^[0-9a-fA-F.:]+/[0-9]{1,3}$`}
			case reflect.TypeFor[netip.AddrPort]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9.]+|\[[0-9a-fA-F.:]+\]):[0-9]{1,5}$`}
			}
			return nil
		},
	}
	for _, dir := range []string{"config", "oauth", "provider"} {
		if err := r.AddGoComments("wayleave", dir, jsonschema.WithFullComment()); err != nil {
			t.Fatal(err)
		}
	}
	s := r.Reflect(&config.Config{})
	s.Title = "Wayleave configuration"
	for _, section := range []string{"providers", "grants", "profiles", "issuers", "workers"} {
		property, _ := s.Properties.Get(section)
		property.PropertyNames = &jsonschema.Schema{Pattern: namePattern}
	}
	preset, _ := s.Definitions["provider"].Properties.Get("preset")
	for _, name := range provider.Presets() {
		preset.Enum = append(preset.Enum, name)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	// encoding/json writes < > & as escapes for HTML's sake.
	text := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(data))
	return []byte(text + "\n")
}

func TestSchemaIsCurrent(t *testing.T) {
	want := generateSchema(t)
	if *update {
		if err := os.WriteFile("config/schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(config.Schema())); diff != "" {
		t.Errorf("schema.json is not made from the structs as they are; run go generate ./config\n-want +got:\n%s", diff)
	}
}

// Everything a reader can write has a description: the manual has no gaps.
func TestSchemaDescribesEveryKey(t *testing.T) {
	var root any
	if err := json.Unmarshal(config.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, node any)
	walk = func(path string, node any) {
		object, ok := node.(map[string]any)
		if !ok {
			return
		}
		properties, _ := object["properties"].(map[string]any)
		for key, property := range properties {
			p := property.(map[string]any)
			if text, _ := p["description"].(string); text == "" {
				t.Errorf("%s.%s has no description", path, key)
			}
		}
		if len(properties) > 0 && object["additionalProperties"] != false {
			t.Errorf("%s allows unknown keys", path)
		}
		for key, child := range object {
			walk(path+"."+key, child)
		}
	}
	walk("", root)
}

// The schema accepts every file that is accepted, and refuses those whose faults it can know.
func TestSchemaJudgesFiles(t *testing.T) {
	document, err := validator.UnmarshalJSON(bytes.NewReader(config.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := validator.NewCompiler()
	if err := compiler.AddResource("wayleave.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("wayleave.json")
	if err != nil {
		t.Fatal(err)
	}
	// Keys without a value are accepted in YAML and are nulls in JSON, which the schema does not describe.
	skipped := []string{"empty", "null-values"}
	refused := []string{"bad-headers", "bad-hosts", "bad-kinds", "bad-methods-and-paths", "bad-names", "bad-not-a-map", "bad-providers",
		"bad-secrets", "bad-types", "bad-unknown-keys", "bad-values", "bad-vault-method", "bad-workers"}
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		bad := strings.HasPrefix(name, "bad-")
		if slices.Contains(skipped, name) || bad && !slices.Contains(refused, name) {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		asJSON, err := yaml.YAMLToJSON(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		value, err := validator.UnmarshalJSON(bytes.NewReader(asJSON))
		if err != nil {
			t.Fatal(err)
		}
		if err := compiled.Validate(value); (err != nil) != bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}
