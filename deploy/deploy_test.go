package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wayleave/grant"
	"wayleave/metrics"
)

// promtool returns the tool to test with: the one of `make tools`, else one in $PATH. It fails the test when there is none, because rules
// that nobody tried have shown nothing.
func promtool(t *testing.T) string {
	t.Helper()
	tools, err := filepath.Abs("../.tools/bin/promtool")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tools); err == nil {
		return tools
	}
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("no promtool to test with: run `make tools`")
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// figure is what docs/metrics.md says of a metric, which the test of package metrics holds to the code.
type figure struct {
	histogram bool
	labels    []string
}

var row = regexp.MustCompile("(?m)^\\| `(wayleave_[a-z_]+)` \\| ([a-z]+) \\| (.*?) \\|")

func figures(t *testing.T) map[string]figure {
	t.Helper()
	all := map[string]figure{}
	for _, m := range row.FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		f := figure{histogram: m[2] == "histogram"}
		for _, label := range strings.Split(m[3], ", ") {
			f.labels = append(f.labels, strings.Trim(label, "`"))
		}
		all[m[1]] = f
	}
	if len(all) < 20 {
		t.Fatalf("only %d metrics found: the test is not looking", len(all))
	}
	return all
}

// values are those that a label can have, where they are a fixed list.
func values() map[string][]string {
	v := map[string][]string{
		"wayleave_refreshes_total outcome":           {string(grant.Refreshed), string(grant.Failed), string(grant.Ended), string(grant.GivenUp), string(grant.Declined)},
		"wayleave_requests_total outcome":            {metrics.Swapped, metrics.Passed, metrics.Answered, metrics.Refused},
		"wayleave_decision_duration_seconds outcome": {metrics.Swapped, metrics.Passed, metrics.Answered, metrics.Refused},
		"wayleave_vault_calls_total outcome":         {"ok", "canceled", "not_found", "conflict", "denied", "unavailable", "error"},
		"wayleave_envoys state":                      {"current", "behind", "refusing"},
		"wayleave_leaf_mints_total outcome":          {"minted", metrics.Refused},
		"wayleave_xds_answers_total outcome":         {"ack", "nack"},
		"wayleave_tokens_total source":               {"memory", "wait"},
	}
	for _, s := range grant.States() {
		v["wayleave_grant_state state"] = append(v["wayleave_grant_state state"], string(s))
	}
	return v
}

var (
	selector = regexp.MustCompile(`\b(wayleave_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring|group_left|group_right) ?\(([^)]*)\)`)
)

// check reports what an expression names that is not there.
func check(t *testing.T, where, expression string, known map[string]figure) {
	t.Helper()
	labels := []string{"instance", "job", "le", ""}
	for _, m := range selector.FindAllStringSubmatch(expression, -1) {
		name := m[1]
		f, ok := known[name]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, has := strings.CutSuffix(name, suffix); has && known[base].histogram {
				name, f, ok = base, known[base], true
			}
		}
		if !ok {
			t.Errorf("%s: %s is no metric of docs/metrics.md", where, name)
			continue
		}
		labels = append(labels, f.labels...)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(f.labels, l[1]) && l[1] != "instance" && l[1] != "job" {
				t.Errorf("%s: %s has no label %s", where, name, l[1])
			}
			if can := values()[name+" "+l[1]]; can != nil {
				for _, v := range strings.Split(l[3], "|") {
					if !slices.Contains(can, v) {
						t.Errorf("%s: the label %s of %s is never %q", where, l[1], name, v)
					}
				}
			}
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(expression, -1) {
		for _, l := range strings.Split(m[1], ",") {
			if !slices.Contains(labels, strings.TrimSpace(l)) {
				t.Errorf("%s: nothing in it has the label %s: %s", where, l, expression)
			}
		}
	}
}
