package config_test

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/rollout"
)

func TestPlan(t *testing.T) {
	text, err := os.ReadFile("testdata/good-rollout.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want rollout.Plan
	}{
		"by default": {valid, rollout.Plan{Steps: []rollout.Step{{Share: 100, Dwell: 10 * time.Second}}, MinRequests: 200, TakeTime: 30 * time.Second}},
		"in steps": {string(text), rollout.Plan{Steps: []rollout.Step{
			{Group: "canary", Dwell: 5 * time.Minute}, {Share: 30}, {Share: 100, Dwell: 10 * time.Second},
		}, MinRequests: 200, TakeTime: 30 * time.Second}},
	} {
		if diff := cmp.Diff(c.want, parse(t, c.text).Plan()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
