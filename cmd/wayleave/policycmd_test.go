package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const policyConfig = `
providers: {p: {kind: static}}
grants: {github: {provider: p}}
routes: [{name: gh, hosts: [api.github.com], grant: github, paths: [{prefix: /admin, deny: administration is not for workers}]}]
tunnel: [pypi.org]
plain: [mirror.internal]
profiles:
  agents:
    grants: [github]
    default: deny
    rules:
      - {name: deletes, when: method == "DELETE", deny: agents delete nothing}
      - {name: test, when: 'headers[?"x-environment"].orValue("") == "test"', allow: true}
      - {name: own, when: 'path.startsWith("/repos/acme/") || host != "api.github.com"', allow: true}
workers:
  ci: {profile: agents}
`

const policyRecord = `{"time":"2026-03-01T12:00:00Z","facts":{"worker":"ci","profile":"agents","credential":"github","route":"gh","host":"api.github.com","port":443,"method":"DELETE","path":"/repos/acme/x","known":{"headers":[],"query":[]}},"verdict":"deny","rule":"deletes","reason":"policy_denied"}
{"time":"2026-03-01T12:00:01Z","facts":{"worker":"ci","profile":"agents","credential":"github","route":"gh","host":"api.github.com","port":443,"method":"GET","path":"/repos/acme/x","headers":{"x-environment":"test"},"known":{"headers":["x-environment"],"query":[]}},"verdict":"allow","rule":"test"}
{"time":"2026-03-01T12:00:02Z","facts":{"worker":"ci","profile":"agents","credential":"github","route":"gh","host":"api.github.com","port":443,"method":"DELETE","path":"/repos/acme/x","known":{"headers":[],"query":[]}},"verdict":"deny","rule":"deletes","reason":"policy_denied"}
{"time":"2026-03-01T12:00:03Z","dropped":17}
{"time":"2026-03-01T12:00:04Z","facts":{"worker":"ci","profile":"agents","host":"pypi.org","port":443,"method":"CONNECT","opaque":true},"verdict":"deny","rule":"deletes","reason":"policy_denied"}
`

// inPolicyDir runs a command beside the two files.
func inPolicyDir(t *testing.T) (dir string, command func(args ...string) (code int, stdout, stderr string)) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{"wayleave.yaml": policyConfig, "requests.jsonl": policyRecord} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("VAULT_ADDR", "https://192.0.2.1:8200") // nobody answers, and nobody asks
	return dir, func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(policyRecord), &out, &errs)
		return code, out.String(), errs.String()
	}
}

func TestPolicyTest(t *testing.T) {
	_, command := inPolicyDir(t)
	write := func(change ...string) {
		if err := os.WriteFile("new.yaml", []byte(strings.NewReplacer(change...).Replace(policyConfig)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, files := range [][]string{{"requests.jsonl"}, {"-"}} {
		code, out, errs := command(append([]string{"policy", "test", "-c", "wayleave.yaml"}, files...)...)
		if code != exitOK || out != "Requests: 4. Decided differently: 0. Cannot be told: 0.\nNot recorded, because they came too fast or the disk was full: 17.\n" {
			t.Errorf("%d %s%s", code, out, errs)
		}
	}

	write(`method == "DELETE", deny: agents delete nothing`, `method == "DELETE" && host == "pypi.org", deny: nothing`)
	code, out, errs := command("policy", "test", "requests.jsonl", "-c", "new.yaml")
	for _, want := range []string{
		"worker ci: DELETE https://api.github.com/repos/acme/x\n  before  refused by rule deletes\n  now     cannot be told: rule test depends on headers, which is not known of it\n  2 times, first at",
		"Requests: 4. Decided differently: 0. Cannot be told: 2.\n", "record.headers",
	} {
		if code != exitFailure || !strings.Contains(out, want) {
			t.Errorf("%d %s%s\nwant %s", code, out, errs, want)
		}
	}

	write(`method == "DELETE", deny: agents delete nothing`, `method == "GET", deny: nothing is read`, `headers[?"x-environment"].orValue("") == "test"`, `port == 1`)
	code, out, errs = command("policy", "test", "requests.jsonl", "-c", "new.yaml", "--json")
	var got replay
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitFailure {
		t.Fatalf("%d %v %s%s", code, err, out, errs)
	}
	if got.Requests != 4 || got.Different != 3 || got.Missing != 17 || len(got.Differences) != 2 {
		t.Fatalf("%+v", got)
	}
	first, second := got.Differences[0], got.Differences[1]
	if first.Count != 2 || first.Before.Rule != "deletes" || first.After.Verdict != "allow" || first.After.Rule != "own" || first.Request != "DELETE https://api.github.com/repos/acme/x" {
		t.Errorf("%+v", first)
	}
	if second.Before.Verdict != "allow" || second.After.Reason != "policy_denied" || second.After.Words != "nothing is read" {
		t.Errorf("%+v", second)
	}

	write("default: deny", "default: deny\n    dry_run: true")
	if code, out, _ := command("policy", "test", "requests.jsonl", "-c", "new.yaml"); code != exitFailure || !strings.Contains(out, "now     would be refused but for dry_run by rule deletes") {
		t.Errorf("%d %s", code, out)
	}

	for _, bad := range [][]string{{"requests.jsonl", "none.jsonl"}, {"wayleave.yaml"}, {"requests.jsonl", "-c", "none.yaml"}, {}} {
		if !strings.Contains(strings.Join(bad, " "), "-c") {
			bad = append(bad, "-c", "wayleave.yaml")
		}
		if code, out, errs := command(append([]string{"policy", "test"}, bad...)...); code != exitUsage || out != "" || errs == "" {
			t.Errorf("%v: %d %s%s", bad, code, out, errs)
		}
	}
	if _, _, errs := command("policy", "test", "wayleave.yaml", "-c", "wayleave.yaml"); !strings.Contains(errs, "wayleave.yaml: line 1 is not one of a record") {
		t.Error(errs)
	}
}

func TestPolicyExplain(t *testing.T) {
	_, command := inPolicyDir(t)
	explain := func(args ...string) (int, string, string) {
		return command(append([]string{"policy", "explain", "-c", "wayleave.yaml"}, args...)...)
	}
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--worker ci --method DELETE --url https://api.github.com/repos/acme/x", []string{"worker ci: DELETE https://api.github.com/repos/acme/x", "refused by rule deletes: agents delete nothing", "by route gh, with the credential github", "rule deletes holds"}},
		{"--worker ci --url https://api.github.com/repos/acme/x --header x-environment:test", []string{"let through by rule test", "rule deletes does not hold\n  rule test holds\n  so it is let through by rule test"}},
		{"--worker ci --url https://api.github.com/repos/acme/x", []string{"cannot be told: rule test depends on headers"}},
		{"--worker ci --url https://api.github.com/repos/acme/../x?a=1 --header x-environment:", []string{"more than one way", "read as /repos/acme/../x\n", "read as /repos/x\n", "so it is let through by rule own", "so it is refused"}},
		{"--worker ci --url https://api.github.com/admin", []string{"refused (policy_denied): administration is not for workers", "by route gh"}},
		{"--worker ci --url https://pypi.org/simple --method GET", []string{"refused by rule deletes: rule deletes depends on what is sent inside the tunnel", "as a tunnel"}},
		{"--worker ci --url http://mirror.internal/x --header x-environment:prod", []string{"let through by rule own", "without TLS"}},
		{"--worker ci --url https://elsewhere.example.com", []string{"refused (host_not_allowed)", "worker ci: GET https://elsewhere.example.com/"}},
	} {
		code, out, errs := explain(strings.Fields(c.args)...)
		for _, want := range c.want {
			if code != exitOK || !strings.Contains(out, want) {
				t.Errorf("%s: %d %s%s\nwant %s", c.args, code, out, errs, want)
			}
		}
	}
	_, out, _ := explain("--worker", "ci", "--url", "https://api.github.com/repos/acme/x?b=2&a=1", "--json", "--header", "x-environment: prod")
	var got struct {
		Verdict, Rule, Route, Credential, As string
		Readings                             []struct {
			Path  string
			Steps []struct{ Rule, Found string }
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Verdict != "allow" || got.Rule != "own" || got.Route != "gh" || got.As != "route" || len(got.Readings) != 1 || len(got.Readings[0].Steps) != 3 {
		t.Errorf("%v %s", err, out)
	}
	for _, bad := range []string{
		"", "--worker ci", "--worker none --url https://a.example.com", "--worker ci --url ftp://a", "--worker ci --url https://u@a.example.com/", "--worker ci --url https:///x",
		"--worker ci --url https://a.example.com:0/", "--worker ci --url https://a.example.com --header authorization:x", "--worker ci --url https://a.example.com --header x", "--worker ci --url https://a.example.com --at noon",
	} {
		if code, out, errs := explain(strings.Fields(bad)...); code != exitUsage || out != "" || errs == "" {
			t.Errorf("%q: %d %s%s", bad, code, out, errs)
		}
	}
}
