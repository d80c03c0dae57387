package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"wayleave/worker"
)

// environment is what a worker is to be given.
type environment struct {
	set       []variable // by name
	unset     []string   // by name
	enrolment worker.Enrolment
	dir, at   string // where its files are, and where it finds them if not there

	// For Kubernetes.
	name       string
	containers []string
}

// envWriters write an environment, by format.
var envWriters = map[string]func(io.Writer, environment) error{
	"shell": writeShell, "dotenv": writeDotenv, "json": writeEnvJSON, "docker": writeDocker, "github": writeGitHub,
	"kubernetes": writeSecrets, "kubernetes-patch": writePatch,
}

var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// unremovable are the names of variables that stay in the environment of a shell and of what it starts, since no shell can unset them and bash, other
// than dash, passes them on: npm_config_//registry/:_authToken, say.
func unremovable(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), shellName.MatchString)
}

// writeShell writes POSIX shell.
func writeShell(w io.Writer, e environment) error {
	var b strings.Builder
	for _, name := range e.unset {
		if shellName.MatchString(name) { // no shell can unset another, see unremovable
			fmt.Fprintf(&b, "unset %s\n", name)
		}
	}
	for _, v := range e.set {
		fmt.Fprintf(&b, "export %s=%s\n", v.name, worker.ShellQuoted(v.value))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeDotenv writes what the dotenv libraries of Node.js, Python and Ruby read alike.
func writeDotenv(w io.Writer, e environment) error {
	var b strings.Builder
	for _, v := range e.set {
		quote := "'" // in single quotes nothing is expanded
		if strings.Contains(v.value, quote) {
			quote = `"`
		}
		if strings.Contains(v.value, "\n") || quote == `"` && strings.ContainsAny(v.value, `"$`+"`"+`\`) {
			return fmt.Errorf("the value of %s has characters that .env files have no common form for: use another --dir", v.name)
		}
		fmt.Fprintf(&b, "%s=%s%s%s\n", v.name, quote, v.value, quote)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeEnvJSON(w io.Writer, e environment) error {
	out := struct {
		Environment map[string]string `json:"environment"`
		Unset       []string          `json:"unset"`
		Files       string            `json:"files"`
		Worker      string            `json:"worker"`
		Session     string            `json:"session"`
		Expires     time.Time         `json:"expires"`
	}{map[string]string{}, append([]string{}, e.unset...), e.filesAt(), e.enrolment.Session.Worker, e.enrolment.Session.ID, e.enrolment.Session.Expires}
	for _, v := range e.set {
		out.Environment[v.name] = v.value
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// writeDocker writes an --env-file: everything after the = is the value, as it is.
func writeDocker(w io.Writer, e environment) error {
	var b strings.Builder
	for _, v := range e.set {
		if strings.ContainsRune(v.value, '\n') {
			return fmt.Errorf("the value of %s has a line break, which an --env-file cannot hold: use another --dir", v.name)
		}
		fmt.Fprintf(&b, "%s=%s\n", v.name, v.value)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeGitHub has a job's later steps run in the environment, and its log show no password.
func writeGitHub(w io.Writer, e environment) error {
	path := os.Getenv("GITHUB_ENV")
	if path == "" {
		return errors.New("$GITHUB_ENV names no file: this format is for a step of a GitHub Actions job")
	}
	masks := []string{e.enrolment.Password.Reveal()}
	for _, c := range e.enrolment.Credentials {
		masks = append(masks, c.Placeholder)
	}
	for _, m := range masks {
		if _, err := fmt.Fprintf(w, "::add-mask::%s\n", m); err != nil {
			return err
		}
	}
	var b strings.Builder
	for _, name := range e.unset { // a variable cannot be removed there; an empty one is none to most programs
		fmt.Fprintf(&b, "%s=\n", name)
	}
	for _, v := range e.set {
		const end = "wayleave_end_of_value"
		fmt.Fprintf(&b, "%s<<%s\n%s\n%s\n", v.name, end, v.value, end)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("writing to $GITHUB_ENV: %w", err)
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// filesAt is where the worker finds its files.
func (e environment) filesAt() string {
	if e.at != "" {
		return e.at
	}
	return e.dir
}

type object = map[string]any

// writeSecrets writes the Secret of the variables, called name, and that of the files.
func writeSecrets(w io.Writer, e environment) error {
	variables, files := map[string][]byte{}, map[string][]byte{}
	for _, v := range e.set {
		variables[v.name] = []byte(v.value)
	}
	paths, err := e.files()
	if err != nil {
		return err
	}
	for key, path := range paths {
		if files[key], err = os.ReadFile(filepath.Join(e.dir, path)); err != nil {
			return err
		}
	}
	secret := func(name string, data map[string][]byte) object { // not stringData: from that, what is applied by the server loses no key
		return object{
			"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
			"metadata": object{"name": name, "annotations": object{"wayleave/expires": e.enrolment.Session.Expires.Format(time.RFC3339)}},
		}
	}
	return writeYAML(w, secret(e.name, variables), secret(e.name+"-files", files))
}

// writePatch writes a strategic merge patch of a workload with a pod template.
func writePatch(w io.Writer, e environment) error {
	const volume = "wayleave"
	paths, err := e.files()
	if err != nil {
		return err
	}
	var items, variables, containers []object
	for _, key := range slices.Sorted(maps.Keys(paths)) {
		item := object{"key": key, "path": paths[key]}
		if info, err := os.Stat(filepath.Join(e.dir, paths[key])); err == nil && info.Mode()&0o100 != 0 {
			item["mode"] = 0o555 // a program
		}
		items = append(items, item)
	}
	// One by one: what a container has in env counts before all envFrom, real keys too, and a patch takes the place of the whole of envFrom.
	for _, v := range e.set {
		from := object{"secretKeyRef": object{"name": e.name, "key": v.name}, "configMapKeyRef": nil, "fieldRef": nil, "resourceFieldRef": nil}
		variables = append(variables, object{"name": v.name, "value": nil, "valueFrom": from})
	}
	for _, name := range e.unset {
		variables = append(variables, object{"name": name, "$patch": "delete"})
	}
	for _, c := range e.containers {
		containers = append(containers, object{
			"name": c, "env": variables,
			"volumeMounts": []object{{"name": volume, "mountPath": e.filesAt(), "readOnly": true}},
		})
	}
	return writeYAML(w, object{"spec": object{"template": object{"spec": object{
		"containers": containers,
		"volumes":    []object{{"name": volume, "secret": object{"secretName": e.name + "-files", "items": items}}},
	}}}})
}

// files are the worker's files: key in a Secret, which has no slashes, to slash-separated path.
func (e environment) files() (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(e.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(e.dir, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		out[strings.ReplaceAll(rel, "/", "_")] = rel
		return nil
	})
	return out, err
}

func writeYAML(w io.Writer, documents ...object) error {
	for i, d := range documents {
		text, err := yaml.Marshal(d)
		if err != nil {
			return err
		}
		if i > 0 {
			text = append([]byte("---\n"), text...)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}
