package deploy_test

import (
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type rules struct {
	Groups []struct {
		Rules []struct {
			Alert               string
			Expr                string
			Labels, Annotations map[string]string
		}
	}
}

// Prometheus takes the rules, and each does in the tests of the rules what they say.
func TestRules(t *testing.T) {
	tool := promtool(t)
	for _, args := range [][]string{{"check", "rules", "wayleave.rules.yaml"}, {"test", "rules", "wayleave.rules.test.yaml"}} {
		c := exec.CommandContext(t.Context(), tool, args...)
		c.Dir = "prometheus"
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

var command = regexp.MustCompile("`wayleave [a-z]")

// Each alert is of figures that there are, says what to do and where that is explained, and is tested as it fires and as it does not.
func TestAlerts(t *testing.T) {
	var r rules
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/wayleave.rules.yaml")), &r); err != nil {
		t.Fatal(err)
	}
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/wayleave.rules.test.yaml")), &tests); err != nil {
		t.Fatal(err)
	}
	fires, rests := map[string]bool{}, map[string]bool{}
	for _, group := range tests.Tests {
		for _, a := range group.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Want) > 0
			rests[a.Name] = rests[a.Name] || len(a.Want) == 0
		}
	}
	page, known := read(t, "../docs/alerts.md"), figures(t)
	names := map[string]bool{}
	for _, g := range r.Groups {
		for _, a := range g.Rules {
			names[a.Alert] = true
			check(t, a.Alert, a.Expr, known)
			if !fires[a.Alert] || !rests[a.Alert] {
				t.Errorf("%s is not tested as it fires and as it does not", a.Alert)
			}
			if a.Labels["severity"] == "" || a.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or no summary", a.Alert)
			}
			if !command.MatchString(a.Annotations["description"]) {
				t.Errorf("%s names no command: %s", a.Alert, a.Annotations["description"])
			}
			if a.Annotations["runbook"] != "docs/alerts.md#"+strings.ToLower(a.Alert) || !strings.Contains(page, "\n### "+a.Alert+"\n") {
				t.Errorf("%s has no place in docs/alerts.md, or does not lead there", a.Alert)
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(page, -1) {
		if !names[m[1]] {
			t.Errorf("docs/alerts.md tells of %s, which is none of %v", m[1], slices.Sorted(maps.Keys(names)))
		}
	}
}
