package shapes

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

func parseHCL(t *testing.T, path string) *hclsyntax.Body {
	t.Helper()
	file, diagnostics := hclparse.NewParser().ParseHCLFile(filepath.Join(root, path))
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	return file.Body.(*hclsyntax.Body)
}

// knownToNomad reports what of body is not in Nomad's own type of such a block.
func knownToNomad(t *testing.T, where string, body *hclsyntax.Body, kind reflect.Type) {
	t.Helper()
	for kind.Kind() == reflect.Pointer || kind.Kind() == reflect.Slice {
		kind = kind.Elem()
	}
	if kind.Kind() == reflect.Map {
		if kind.Elem().Kind() != reflect.Pointer {
			return // the driver's, or free
		}
		kind = kind.Elem().Elem()
	}
	attributes, blocks := map[string]reflect.Type{}, map[string]reflect.Type{}
	for field := range fields(kind) {
		name, how, _ := strings.Cut(field.Tag.Get("hcl"), ",")
		switch {
		case name == "":
		case how == "block":
			blocks[name] = field.Type
		case how != "label":
			attributes[name] = field.Type
		}
	}
	for name, attribute := range body.Attributes {
		want, known := attributes[name]
		if !known {
			t.Errorf("%s: Nomad has no %s.%s", attribute.SrcRange, where, name)
			continue
		}
		for want.Kind() == reflect.Pointer {
			want = want.Elem()
		}
		v, diagnostics := attribute.Expr.Value(nil)
		if diagnostics.HasErrors() {
			continue // has variables or functions
		}
		fits := true
		switch {
		case want == reflect.TypeFor[time.Duration]():
			_, err := time.ParseDuration(v.AsString())
			fits = err == nil
		case want.Kind() == reflect.Bool:
			fits = v.Type() == cty.Bool
		case want.Kind() == reflect.Int:
			fits = v.Type() == cty.Number
		case want.Kind() == reflect.String:
			fits = v.Type() == cty.String
		}
		if !fits {
			t.Errorf("%s: %s.%s is no %s", attribute.SrcRange, where, name, want)
		}
	}
	for _, block := range body.Blocks {
		inner, known := blocks[block.Type]
		if !known {
			t.Errorf("%s: Nomad has no block %s in %s", block.TypeRange, block.Type, where)
			continue
		}
		knownToNomad(t, where+"."+block.Type, block.Body, inner)
	}
}

// fields are those of a struct, with those of what is embedded in it.
func fields(kind reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for _, f := range reflect.VisibleFields(kind) {
			if !yield(f) {
				return
			}
		}
	}
}

func TestNomad(t *testing.T) {
	const path = "deploy/nomad/wayleave.nomad.hcl"
	checkConfig(t, "deploy/nomad/wayleave.yaml", read(t, "deploy/nomad/wayleave.yaml"))
	jobs, tasks := 0, 0
	for _, block := range parseHCL(t, path).Blocks {
		if block.Type == "variable" {
			continue
		}
		jobs++
		knownToNomad(t, block.Type, block.Body, reflect.TypeFor[nomad.Job]())
		for _, group := range block.Body.Blocks {
			for _, task := range group.Body.Blocks {
				if task.Type != "task" {
					continue
				}
				tasks++
				for _, config := range task.Body.Blocks {
					if config.Type != "config" {
						continue
					}
					v, diagnostics := config.Body.Attributes["args"].Expr.Value(nil)
					if diagnostics.HasErrors() {
						t.Fatal(diagnostics)
					}
					var args []string
					for _, a := range v.AsValueSlice() {
						args = append(args, a.AsString())
					}
					if out, err := output(t, wayleave, append([]string{args[0], "--help"}, args[1:]...)...); err != nil {
						t.Errorf("task %s: %v\n%s", task.Labels[0], err, out)
					}
				}
			}
		}
	}
	if jobs != 1 || tasks != 3 {
		t.Errorf("%d jobs with %d tasks: the test is not looking", jobs, tasks)
	}
}

// What the provider's documentation has for the resources that we use.
var vaultResources = map[string][]string{
	"vault_mount":                               {"path", "type", "description", "options", "max_lease_ttl_seconds"},
	"vault_kv_secret_backend_v2":                {"mount", "cas_required", "max_versions"},
	"vault_pki_secret_backend_config_auto_tidy": {"backend", "enabled", "tidy_cert_store", "interval_duration"},
	"vault_pki_secret_backend_root_cert":        {"backend", "type", "common_name", "key_type", "key_bits", "ttl", "max_path_length"},
	"vault_policy":                              {"name", "policy"},
	"vault_auth_backend":                        {"type", "path"},
	"vault_approle_auth_backend_role":           {"backend", "role_name", "token_policies", "token_period", "token_type", "bind_secret_id", "secret_id_num_uses", "token_num_uses"},
	"vault_kubernetes_auth_backend_config":      {"backend", "kubernetes_host", "kubernetes_ca_cert"},
	"vault_kubernetes_auth_backend_role":        {"backend", "role_name", "bound_service_account_names", "bound_service_account_namespaces", "audience", "token_policies", "token_period"},
	"vault_jwt_auth_backend":                    {"path", "jwks_url", "bound_issuer"},
	"vault_jwt_auth_backend_role":               {"backend", "role_name", "role_type", "user_claim", "bound_audiences", "bound_claims", "token_policies", "token_period"},
}

// What Terraform makes is what `wayleave vault setup` makes: the same mounts, limits and policies.
func TestTerraform(t *testing.T) {
	resources := map[string]*hclsyntax.Body{}
	variables := map[string]cty.Value{}
	var policies hclsyntax.Expression
	for _, path := range tracked(t, "deploy/terraform/*.tf") {
		for _, block := range parseHCL(t, path).Blocks {
			switch block.Type {
			case "resource":
				resources[strings.Join(block.Labels, ".")] = block.Body
				for name, attribute := range block.Body.Attributes {
					if known := vaultResources[block.Labels[0]]; !slices.Contains(append([]string{"count", "for_each"}, known...), name) {
						t.Errorf("%s: no %s in %s", attribute.SrcRange, name, block.Labels[0])
					}
				}
			case "variable":
				if v, diagnostics := block.Body.Attributes["default"].Expr.Value(nil); !diagnostics.HasErrors() {
					variables[block.Labels[0]] = v
				}
			case "locals":
				policies = block.Body.Attributes["policies"].Expr
			}
		}
	}
	known := &hcl.EvalContext{
		Variables: map[string]cty.Value{
			"var":   cty.ObjectVal(variables),
			"path":  cty.ObjectVal(map[string]cty.Value{"module": cty.StringVal(filepath.Join(root, "deploy/terraform"))}),
			"local": cty.ObjectVal(map[string]cty.Value{"ten_years": cty.NumberIntVal(10 * 365 * 24 * 3600)}),
		},
		Functions: map[string]function.Function{
			"replace": stdlib.ReplaceFunc,
			"file": function.New(&function.Spec{
				Params: []function.Parameter{{Name: "path", Type: cty.String}},
				Type:   function.StaticReturnType(cty.String),
				Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
					path, err := filepath.Rel(root, filepath.Clean(args[0].AsString()))
					return cty.StringVal(read(t, path)), err
				},
			}),
		},
	}
	value := func(resource, attribute string) cty.Value {
		t.Helper()
		body := resources[resource]
		if body == nil || body.Attributes[attribute] == nil {
			t.Fatalf("no %s of %s", attribute, resource)
		}
		v, diagnostics := body.Attributes[attribute].Expr.Value(known)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		return v
	}

	// As vault/setup.go has them.
	for _, c := range []struct {
		resource, attribute string
		want                cty.Value
	}{
		{"vault_mount.documents", "path", cty.StringVal("wayleave")},
		{"vault_mount.documents", "type", cty.StringVal("kv")},
		{"vault_kv_secret_backend_v2.documents", "cas_required", cty.True},
		{"vault_kv_secret_backend_v2.documents", "max_versions", cty.NumberIntVal(1)},
		{"vault_mount.pki", "path", cty.StringVal("wayleave-pki")},
		{"vault_mount.pki", "max_lease_ttl_seconds", cty.NumberIntVal(10 * 365 * 24 * 3600)},
		{"vault_pki_secret_backend_root_cert.root", "type", cty.StringVal("internal")},
		{"vault_pki_secret_backend_root_cert.root", "key_type", cty.StringVal("ec")},
		{"vault_pki_secret_backend_root_cert.root", "max_path_length", cty.NumberIntVal(1)},
		{"vault_approle_auth_backend_role.gateway", "token_period", cty.NumberIntVal(900)},
	} {
		if got := value(c.resource, c.attribute); !got.RawEquals(c.want) {
			t.Errorf("%s.%s is %#v, want %#v", c.resource, c.attribute, got, c.want)
		}
	}
	if name := value("vault_pki_secret_backend_root_cert.root", "common_name").AsString(); !strings.Contains(read(t, "vault/sign.go"), `"`+name+`"`) {
		t.Errorf("the root is called %q, which wayleave does not call it", name)
	}

	texts, diagnostics := policies.Value(known)
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	for role, text := range texts.AsValueMap() {
		if text.AsString() != read(t, "deploy/vault/"+role+".hcl") {
			t.Errorf("the policy %s is not that of deploy/vault", role)
		}
	}
	variables["mount"], variables["pki_mount"], variables["approle_mount"] = cty.StringVal("a"), cty.StringVal("b"), cty.StringVal("c")
	known.Variables["var"] = cty.ObjectVal(variables)
	texts, _ = policies.Value(known)
	moved := texts.AsValueMap()["gateway"].AsString()
	for _, want := range []string{`path "a/data/grants/*"`, `path "b/cert/ca"`, `path "auth/c/role/wayleave-gateway/`} {
		if !strings.Contains(moved, want) {
			t.Errorf("with other mounts the policy has no %s", want)
		}
	}
}

// The module as docs/deploy.md calls it is the one that is there.
func TestTerraformShown(t *testing.T) {
	variables := map[string]bool{}
	for _, block := range parseHCL(t, "deploy/terraform/variables.tf").Blocks {
		variables[block.Labels[0]] = true
	}
	found := blocks(t, "docs/deploy.md", "hcl")
	for _, text := range found {
		file, diagnostics := hclparse.NewParser().ParseHCL([]byte(text), "docs/deploy.md")
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		module := file.Body.(*hclsyntax.Body).Blocks[0]
		source, _ := module.Body.Attributes["source"].Expr.Value(nil)
		if module.Type != "module" || source.AsString() != "./deploy/terraform" {
			t.Errorf("this is %s of %s", module.Type, source.AsString())
		}
		for name := range module.Body.Attributes {
			if name != "source" && !variables[name] {
				t.Errorf("the module has no variable %s", name)
			}
		}
	}
	if len(found) != 1 {
		t.Errorf("%d found: the test is not looking", len(found))
	}
}
