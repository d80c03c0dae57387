package notify

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"wayleave/approval"
	"wayleave/ca"
	"wayleave/grant"
	"wayleave/rollout"
)

func TestOfGrant(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pages := Pages(func(path string) string { return "https://gate.example.com" + path })
	for name, c := range map[string]struct {
		grant    grant.Summary
		severity Severity // empty: nothing is wrong
		wait     time.Duration
		title    string
		text     string // a part
	}{
		"healthy":                 {grant.Summary{State: grant.Healthy}, "", 0, "", ""},
		"refreshing":              {grant.Summary{State: grant.Refreshing}, "", 0, "", ""},
		"the vault":               {grant.Summary{State: grant.VaultUnavailable}, "", 0, "", ""},
		"a machine that waits":    {grant.Summary{State: grant.NeverConnected, Kind: grant.Machine}, "", 0, "", ""},
		"never connected":         {grant.Summary{State: grant.NeverConnected}, Warning, patience, "x has not been connected", "refused"},
		"scope":                   {grant.Summary{State: grant.ScopeMissing, Missing: []string{"a", "b"}, LastError: "old"}, Warning, 0, "x needs one reconnect", "It lacks a, b. What it has goes on working."},
		"reconnect, token serves": {grant.Summary{State: grant.NeedsReconnect, Expires: now.Add(time.Hour), LastError: "invalid_grant"}, Critical, 0, "x needs to be connected again", "2026-01-02 04:04 UTC. The last error: invalid_grant."},
		"reconnect, token over":   {grant.Summary{State: grant.NeedsReconnect, Expires: now.Add(-time.Hour)}, Critical, 0, "x needs to be connected again", "are refused"},
		"unavailable":             {grant.Summary{State: grant.RefreshUnavailable}, Critical, minute, "x has expired and cannot be refreshed at the moment", "are refused"},
		"degraded":                {grant.Summary{State: grant.Degraded, Expires: now.Add(time.Hour)}, Warning, patience, "x cannot be refreshed at the moment", "until its token ends"},
		"ambiguous":               {grant.Summary{State: grant.Ambiguous}, Warning, patience, "x got no answer to its last refresh", ""},
		"consent lasts":           {grant.Summary{State: grant.Healthy, ConsentEnds: now.Add(consentNotice + time.Hour)}, "", 0, "", ""},
		"consent ends":            {grant.Summary{State: grant.Healthy, ConsentEnds: now.Add(24 * time.Hour)}, Warning, 0, "x has to be connected again by 2026-01-03 03:04 UTC", "whatever"},
	} {
		c.grant.Name, c.grant.Next = "x", "do this"
		a, wrong := OfGrant(c.grant, now, pages)
		if wrong != (c.severity != "") {
			t.Errorf("%s: wrong is %v", name, wrong)
			continue
		}
		if !wrong {
			continue
		}
		if a.Severity != c.severity || a.Wait != c.wait || a.Title != c.title || !strings.Contains(a.Text, c.text) || a.URL != "https://gate.example.com/grants/x" || a.Next == "" || a.Key == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a, _ := OfGrant(grant.Summary{Name: "x", State: grant.NeedsReconnect}, now, nil); a.URL != "" {
		t.Errorf("without a console the address is %q", a.URL)
	}
}

func TestOfRoots(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	root := func(name string, left time.Duration) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: now.Add(left)}
	}
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		roots    []*x509.Certificate
		severity Severity
		next     string
	}{
		"none":                {nil, "", ""},
		"there is time":       {[]*x509.Certificate{root("a", ca.Notice+day)}, "", ""},
		"it ends":             {[]*x509.Certificate{root("a", ca.Notice-day)}, Warning, "wayleave ca prepare"},
		"it ends soon":        {[]*x509.Certificate{root("a", 13*day)}, Critical, "wayleave ca prepare"},
		"another is prepared": {[]*x509.Certificate{root("a", 13*day), root("b", 900*day)}, Critical, "wayleave ca activate"},
	} {
		a, wrong := OfRoots(c.roots, now, nil)
		if wrong != (c.severity != "") || a.Severity != c.severity || !strings.Contains(a.Next, c.next) {
			t.Errorf("%s: %v %+v", name, wrong, a)
		}
	}
}

func TestOfVaultAndEnvoy(t *testing.T) {
	if _, wrong := OfVault([]grant.Summary{{State: grant.Healthy}}, nil); wrong {
		t.Error("a vault that answers is in trouble")
	}
	if a, wrong := OfVault([]grant.Summary{{State: grant.Healthy}, {State: grant.VaultUnavailable}}, nil); !wrong || a.Key != "vault" || a.Severity != Critical {
		t.Errorf("vault: %+v", a)
	}
	if _, wrong := OfEnvoy("n", "", "gate", nil); wrong {
		t.Error("an Envoy that takes everything is in trouble")
	}
	if a, wrong := OfEnvoy("n", "bad listener", "gate", nil); !wrong || !a.Local || a.Key != "envoy/gate/n" || !strings.Contains(a.Text, "bad listener") {
		t.Errorf("envoy: %+v", a)
	}
}

func TestOfApproval(t *testing.T) {
	a := OfApproval(approval.Approval{ID: "abc", Until: time.Unix(0, 0), Request: approval.Request{Worker: "ci", Method: "DELETE", Host: "api.test:443", Path: "/x", Words: "why"}}, func(path string) string { return "https://gate.example.com" + path })
	want := Alert{
		Key: "approval/abc", Kind: Approval, Subject: "ci", Severity: Warning, Title: "a request of ci waits for an operator until 1970-01-01 00:00 UTC",
		Text: "`DELETE api.test:443/x`: why", Next: "run `wayleave approval allow abc` or `wayleave approval deny abc`", URL: "https://gate.example.com/approvals", Local: true,
	}
	if a != want {
		t.Errorf("%+v", a)
	}
}

// What a worker has in the path of a request calls nobody and leads nowhere, in whatever chat it is read.
func TestPathsInMessages(t *testing.T) {
	for path, want := range map[string]string{
		"/x/@channel/*all*":             "`GET api.test/x/@channel/*all*`: why",
		"/[here](https://evil.example)": "`GET api.test/[here](https://evil.example)`: why",
		"/`@here`":                      "`GET api.test/'@here'`: why",
		"/" + strings.Repeat("ä", 1000): "`GET api.test/" + strings.Repeat("ä", quoted-len("GET api.test/")) + "…`: why",
	} {
		a := OfApproval(approval.Approval{Request: approval.Request{Method: "GET", Host: "api.test", Path: path, Words: "why"}}, nil)
		if a.Text != want {
			t.Errorf("%.100s: %.400s", path, a.Text)
		}
		if text := slackText(Message{Firing: []Alert{a}}); strings.Count(text, "`")%2 != 0 {
			t.Errorf("%.100s: %.400s", path, text)
		}
	}
}

func TestOfRollout(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pages := Pages(func(path string) string { return "https://gate.example.com" + path })
	ended := func(phase rollout.Phase) rollout.Rollout {
		return rollout.Rollout{ID: "r-" + string(phase), From: "111111111111aa", To: "222222222222bb", Phase: phase, Reason: "the Envoy e refuses it: no.", Author: "maria", Ended: now.Add(-time.Hour)}
	}
	old := ended(rollout.RolledBack)
	old.Ended = now.Add(-25 * time.Hour)
	for name, c := range map[string]struct {
		state rollout.State
		wrong bool
	}{
		"nothing":                   {rollout.State{}, false},
		"completed":                 {rollout.State{History: []rollout.Rollout{ended(rollout.Succeeded), ended(rollout.RolledBack)}}, false},
		"rolled back":               {rollout.State{History: []rollout.Rollout{ended(rollout.RolledBack)}}, true},
		"another is under way":      {rollout.State{Current: &rollout.Rollout{}, History: []rollout.Rollout{ended(rollout.RolledBack)}}, true},
		"another was aborted":       {rollout.State{History: []rollout.Rollout{ended(rollout.Aborted), ended(rollout.RolledBack)}}, true},
		"aborted":                   {rollout.State{History: []rollout.Rollout{ended(rollout.Aborted)}}, false},
		"rolled back the other day": {rollout.State{History: []rollout.Rollout{old}}, false},
	} {
		a, wrong := OfRollout(c.state, now, pages)
		if wrong != c.wrong {
			t.Errorf("%s: wrong is %v", name, wrong)
		}
		if wrong && (a.Key != "rollout/r-rolled_back" || a.Kind != Rollout || a.Severity != Warning || a.Subject != "revision 222222222222" || a.Next == "" || a.URL != "https://gate.example.com/rollouts" ||
			a.Text != "It was started by maria. Every Envoy goes on with revision 111111111111. The reason: the Envoy e refuses it: no.") {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
