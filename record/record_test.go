package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/policy"
)

func judged(n int) policy.Judged {
	return policy.Judged{
		Time:    time.Date(2026, 3, 1, 12, 0, 0, n, time.UTC),
		Facts:   policy.Facts{Worker: "ci", Profile: "agents", Host: "api.example.com", Port: 443, Method: "GET", Reading: policy.Reading{Path: fmt.Sprintf("/%d?<&>", n)}, Known: map[string][]string{"headers": {}}},
		Verdict: policy.Deny, Rule: "r", Reason: "policy_denied",
	}
}

func TestRead(t *testing.T) {
	var text strings.Builder
	for i := range 3 {
		line, err := json.Marshal(judged(i))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s\n{\"time\":\"2026-03-01T12:00:00Z\",\"dropped\":%d}\n", line, i+1)
	}
	var all []policy.Judged
	missing, err := Read(strings.NewReader(text.String()), func(j policy.Judged) { all = append(all, j) })
	if err != nil || missing != 6 {
		t.Fatalf("%d missing, %v", missing, err)
	}
	if diff := cmp.Diff([]policy.Judged{judged(0), judged(1), judged(2)}, all); diff != "" {
		t.Error(diff)
	}
}

func TestReadNamesTheLine(t *testing.T) {
	good, err := json.Marshal(judged(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{}", "x", `{"time":"2026-03-01T12:00:00Z"}`, string(good) + "{}", `{"unknown":1}`, string(good[:40]), strings.Repeat("x", maxLine+1)} {
		_, err := Read(strings.NewReader(string(good)+"\n"+bad+"\n"), func(policy.Judged) {})
		if err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%.40s: %v", bad, err)
		}
	}
}

// What is read is what would be written, and what cannot be read is said with its line.
func FuzzRead(f *testing.F) {
	for _, s := range []string{`{"time":"2026-03-01T12:00:00Z","facts":{"worker":"ci","host":"h","port":1,"known":{"headers":null}},"verdict":"other"}`, `{"time":"2026-03-01T12:00:00Z","dropped":1}`, "\n", "{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, err := Read(strings.NewReader(text), func(j policy.Judged) {
			line, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Read(bytes.NewReader(line), func(policy.Judged) {}); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		})
		if err != nil && !strings.Contains(err.Error(), "line ") {
			t.Error(err)
		}
	})
}
