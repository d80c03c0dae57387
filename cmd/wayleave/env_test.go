package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"wayleave/secret"
	"wayleave/worker"
)

// awkward is an environment with what forms differ in.
func awkward(t *testing.T) environment {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"ca.pem": "CA", "credentials/claude/.credentials.json": "{}"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return environment{
		set: []variable{
			{"HTTPS_PROXY", "http://id:to~ken@gate:3128"},
			{"JAVA_TOOL_OPTIONS", `-Da=b "-Dtrust=/x y"`},
			{"ODD", `$HOME #\ ` + "`id` = %41"},
		},
		unset:     []string{"ANTHROPIC_API_KEY", "WAYLEAVE_TOKEN", "npm_config_//npm.example.com/:_authToken"},
		enrolment: worker.Enrolment{Session: worker.Session{ID: "sid", Worker: "w", Expires: time.Unix(1900000000, 0).UTC()}, Password: secret.New("to~ken"), Credentials: []worker.Credential{{Grant: "claude", Placeholder: "ph"}}},
		dir:       dir, name: "agents", containers: []string{"main", "side"},
	}
}

func written(t *testing.T, format string, e environment) string {
	t.Helper()
	var b bytes.Buffer
	if err := envWriters[format](&b, e); err != nil {
		t.Fatalf("%s: %v", format, err)
	}
	return b.String()
}

// sees checks that lines of NAME=value are the environment's.
func sees(t *testing.T, e environment, env string) {
	t.Helper()
	lines := strings.Split(env, "\n")
	for _, v := range e.set {
		if !slices.Contains(lines, v.name+"="+v.value) {
			t.Errorf("%s is not %q in\n%s", v.name, v.value, env)
		}
	}
}

func TestEnvForShells(t *testing.T) {
	e := awkward(t)
	e.set = append(e.set, variable{"QUOTED", `it's`})
	c := exec.Command("sh", "-c", `eval "$1"; env`, "sh", written(t, "shell", e))
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "ANTHROPIC_API_KEY=inherited"}
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	sees(t, e, string(out))
	if strings.Contains(string(out), "inherited") {
		t.Errorf("a variable is still there:\n%s", out)
	}
}

func TestEnvForDotenv(t *testing.T) {
	e := awkward(t)
	e.set = append(e.set, variable{"GIT_CONFIG_PARAMETERS", "'a=b' 'c=d #'"})
	text := written(t, "dotenv", e)
	out, err := exec.Command("sh", "-c", `set -a; eval "$1"; env`, "sh", text).Output() // shells read the common form too
	if err != nil {
		t.Fatal(err)
	}
	sees(t, e, string(out))
	if _, err := exec.LookPath("node"); err == nil {
		file := filepath.Join(t.TempDir(), ".env")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("node", "--env-file="+file, "-e", `for (const [k, v] of Object.entries(process.env)) console.log(k + "=" + v)`).CombinedOutput()
		if err != nil {
			t.Fatalf("node: %v\n%s", err, out)
		}
		sees(t, e, string(out))
	}
	for _, value := range []string{`it's $HOME`, `it's "so"`, "it's `id`", `it's \`, "a\nb"} {
		e.set = []variable{{"QUOTED", value}}
		if err := writeDotenv(&bytes.Buffer{}, e); err == nil {
			t.Errorf("%s, which has no common form, was written", value)
		}
	}
}

func TestEnvForDocker(t *testing.T) {
	e := awkward(t)
	sees(t, e, written(t, "docker", e))
	e.set = append(e.set, variable{"LINES", "a\nb"})
	if err := writeDocker(&bytes.Buffer{}, e); err == nil {
		t.Error("a value with a line break was written")
	}
}

func TestEnvForGitHub(t *testing.T) {
	e := awkward(t)
	t.Setenv("GITHUB_ENV", "")
	if err := writeGitHub(&bytes.Buffer{}, e); err == nil {
		t.Error("there is no file, and no error")
	}
	file := filepath.Join(t.TempDir(), "env")
	t.Setenv("GITHUB_ENV", file)
	out := written(t, "github", e)
	if out != "::add-mask::to~ken\n::add-mask::ph\n" {
		t.Errorf("the log says %q", out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range e.set {
		if !strings.Contains(string(text), v.name+"<<wayleave_end_of_value\n"+v.value+"\nwayleave_end_of_value\n") {
			t.Errorf("no %s in\n%s", v.name, text)
		}
	}
	if !strings.Contains(string(text), "ANTHROPIC_API_KEY=\n") {
		t.Errorf("a variable is left as it was:\n%s", text)
	}
}

func TestEnvAsJSON(t *testing.T) {
	e := awkward(t)
	var got struct {
		Environment             map[string]string
		Unset                   []string
		Files, Session, Expires string
	}
	if err := json.Unmarshal([]byte(written(t, "json", e)), &got); err != nil {
		t.Fatal(err)
	}
	for _, v := range e.set {
		if got.Environment[v.name] != v.value {
			t.Errorf("%s is %q", v.name, got.Environment[v.name])
		}
	}
	if !slices.Equal(got.Unset, e.unset) || got.Files != e.dir || got.Session != "sid" || got.Expires != "2030-03-17T17:46:40Z" {
		t.Errorf("got %+v", got)
	}
}

func TestEnvForKubernetes(t *testing.T) {
	e := awkward(t)
	e.at = "/var/run/wayleave"
	documents := strings.Split(written(t, "kubernetes", e), "---\n")
	if len(documents) != 2 {
		t.Fatalf("%d documents", len(documents))
	}
	type manifest struct {
		Kind, APIVersion string
		Metadata         struct{ Name string }
		Data             map[string][]byte
	}
	var variables, files manifest
	for i, into := range []*manifest{&variables, &files} {
		if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(documents[i], "  annotations:\n    wayleave/expires: \"2030-03-17T17:46:40Z\"\n", "")), into, yaml.DisallowUnknownFields); err != nil && !strings.Contains(err.Error(), `unknown field "type"`) {
			t.Fatal(err)
		}
	}
	for _, v := range e.set {
		if string(variables.Data[v.name]) != v.value {
			t.Errorf("%s is %q", v.name, variables.Data[v.name])
		}
	}
	if variables.Metadata.Name != "agents" || files.Metadata.Name != "agents-files" || files.Kind != "Secret" {
		t.Errorf("got %+v and %+v", variables.Metadata, files)
	}
	if string(files.Data["credentials_claude_.credentials.json"]) != "{}" {
		t.Errorf("the files are %v", files.Data)
	}

	var patch struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Name         string
						Env          []struct{ Name string }
						VolumeMounts []struct{ Name, MountPath string }
					}
					Volumes []struct {
						Name   string
						Secret struct {
							SecretName string
							Items      []struct {
								Key, Path string
								Mode      int
							}
						}
					}
				}
			}
		}
	}
	if err := os.Chmod(filepath.Join(e.dir, "ca.pem"), 0o700); err != nil { // as if it were a program
		t.Fatal(err)
	}
	text := written(t, "kubernetes-patch", e)
	if err := yaml.Unmarshal([]byte(text), &patch); err != nil {
		t.Fatal(err)
	}
	var whole any
	if err := yaml.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	golden(t, "kubernetes-patch.json", whole) // deploy/tools/shapes patches a workload with it
	pod := patch.Spec.Template.Spec
	if len(pod.Containers) != 2 || pod.Containers[1].Name != "side" || len(pod.Containers[0].Env) != len(e.set)+len(e.unset) || pod.Containers[0].VolumeMounts[0].MountPath != "/var/run/wayleave" {
		t.Errorf("containers: %+v", pod.Containers)
	}
	items := pod.Volumes[0].Secret.Items
	if len(items) != 2 || items[0].Mode != 0o555 || items[1].Mode != 0 || items[1].Key != "credentials_claude_.credentials.json" || items[1].Path != "credentials/claude/.credentials.json" {
		t.Errorf("items: %+v", items)
	}
}
