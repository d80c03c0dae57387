package xds

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"wayleave/envoy"
	"wayleave/envoy/envoytest"
)

var update = flag.Bool("update", false, "rewrite testdata/*.out")

// Each testdata/<name>.in.yaml builds what testdata/<name>.out holds, and Envoy itself accepts it.
func TestGolden(t *testing.T) {
	binary := envoytest.Binary(t)
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no golden inputs", err)
	}
	var wanted []string
	for _, input := range inputs {
		out := strings.TrimSuffix(input, ".in.yaml") + ".out"
		wanted = append(wanted, out)
		t.Run(filepath.Base(input), func(t *testing.T) {
			r, err := Build(readConfig(t, input))
			if err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{
				"listeners.yaml":  toYAML(t, appendMessages(nil, r.Listeners)),
				"routes.yaml":     toYAML(t, appendMessages(nil, r.Routes)),
				"clusters.yaml":   toYAML(t, appendMessages(nil, r.Clusters)),
				"extensions.yaml": toYAML(t, appendMessages(nil, r.Extensions)),
			}
			golden(t, out, files)

			b := envoy.Bootstrap{NodeID: "golden", GateSockets: []string{"/run/gate.sock"}, AdminSocket: "/run/admin.sock"}
			whole, err := envoy.Static(b, r.All())
			if err != nil {
				t.Fatal(err)
			}
			if err := envoy.Validate(t.Context(), binary, whole); err != nil {
				t.Error(err)
			}
		})
	}
	outs, err := filepath.Glob("testdata/*.out")
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range outs {
		if !slices.Contains(wanted, out) {
			stale(t, out)
		}
	}
}

// Every setting is in some golden input, so that Envoy has judged what becomes of it.
func TestGoldenHasEverySetting(t *testing.T) {
	elsewhere := []string{ // read by Envoy itself: TestProxyOverTLSWithOwnCertificate, TestClientCertificatesWithOwnCertificate
		"ProxyTLS.CertFile", "ProxyTLS.KeyFile", "ProxyTLS.ClientCAFile",
	}
	all, set := map[string]bool{}, map[string]bool{}
	var list func(reflect.Type)
	list = func(of reflect.Type) {
		switch {
		case of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice:
			list(of.Elem())
		case of.Kind() == reflect.Struct && of.PkgPath() == reflect.TypeFor[Config]().PkgPath():
			for f := range of.Fields() {
				all[of.Name()+"."+f.Name] = true
				list(f.Type)
			}
		}
	}
	list(reflect.TypeFor[Config]())
	var look func(reflect.Value)
	look = func(v reflect.Value) {
		switch {
		case v.Kind() == reflect.Pointer && !v.IsNil():
			look(v.Elem())
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				look(v.Index(i))
			}
		case v.Kind() == reflect.Struct && v.Type().PkgPath() == reflect.TypeFor[Config]().PkgPath():
			for f, value := range v.Fields() {
				if !value.IsZero() {
					set[v.Type().Name()+"."+f.Name] = true
					look(value)
				}
			}
		}
	}
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range inputs {
		look(reflect.ValueOf(readConfig(t, input)))
	}
	for _, name := range sortedKeys(all) {
		if set[name] == slices.Contains(elsewhere, name) {
			t.Errorf("%s: set in a golden input: %v", name, set[name])
		}
	}
}

// golden compares files with those in dir, or with -update replaces them.
func golden(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if *update {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	for name, content := range files {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v; run: go test ./xds -update", err)
			continue
		}
		if diff := cmp.Diff(string(want), string(content)); diff != "" {
			t.Errorf("%s/%s changed (-want +got); if that is meant, run: go test ./xds -update\n%s", dir, name, diff)
		}
	}
}

// stale removes the output of an input that is gone, or complains.
func stale(t *testing.T, out string) {
	t.Helper()
	if !*update {
		t.Errorf("%s has no input any more; run: go test ./xds -update", out)
		return
	}
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
}

// readConfig reads a Config in YAML; what it leaves out is as in testConfig.
func readConfig(t *testing.T, path string) Config {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := testConfig(t)
	alone := c.GateSockets
	c.GateSockets = nil // or those of the file would be added to it
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		t.Fatal(err)
	}
	if c.GateSockets == nil {
		c.GateSockets = alone
	}
	return c
}

func testConfig(t testing.TB) Config {
	t.Helper()
	ca, err := os.ReadFile("testdata/upstream_ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		ProxyAddress: "127.0.0.1:3128",
		UpstreamCA:   ca,
		APISockets:   []string{"/run/wayleave/api.sock"},
		GateSockets:  map[string]string{"": "/run/wayleave/gate.sock"},
		Marker:       "wlplaceholder",
	}
}

// toYAML goes by JSON values, because the text of protojson is deliberately unstable.
func toYAML(t *testing.T, messages []proto.Message) []byte {
	t.Helper()
	list := []any{}
	for _, m := range messages {
		j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(j, &v); err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	y, err := yaml.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return y
}
