package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/grant"
	"wayleave/oauth"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

var shownGrants = []grant.Summary{
	{Name: "claude", Provider: "anthropic", Account: "build-machines-of-the-whole-company@example.com", State: grant.ScopeMissing, Epoch: "e",
		Requested: []string{"a", "b", "c", "d"}, Granted: []string{"a"}, Missing: []string{"b", "c", "d"},
		Gap:     grant.Gap{NotRequested: []string{"b"}, NotGranted: []string{"c"}, Withdrawn: []string{"d"}},
		Expires: noon.Add(3*time.Hour + 12*time.Minute), Next: "run `wayleave grant connect claude` and allow them"},
	{Name: "gh", Provider: "github", State: grant.Healthy, Epoch: "e", Requested: []string{"repo"}, Granted: []string{"repo"}},
	{Name: "key", Provider: "anthropic-api", Kind: grant.Static, State: grant.NeverConnected, Next: "run `wayleave grant import key`"},
	{Name: "robot", Provider: "acme", Kind: grant.Machine, State: grant.RefreshUnavailable, Epoch: "e", Requested: []string{"read"}, Granted: []string{"read"},
		Expires: noon.Add(-5 * time.Minute), UpdatedAt: noon.Add(-7 * time.Second), ErrorKind: oauth.KindInvalidClient, LastError: "the token endpoint at https://login.acme.example answered with status 401 (invalid_client)",
		Next: "check client_id, the client's secret or key and auth_style of the provider in the configuration, and start the gate again"},
}

func TestPrintGrants(t *testing.T) {
	const want = `
GRANT   PROVIDER       ACCOUNT                       STATE                EXPIRES            SCOPES
claude  anthropic      build-machines-of-the-whole…  scope_missing        in 3h12m           1 of 4
  missing: b: never requested: the configuration asks for it since the last connect
  missing: c: requested and not granted
  missing: d: granted once and withdrawn since
  next: run ` + "`wayleave grant connect claude`" + ` and allow them
gh      github         -                             healthy              never              1 of 1
key     anthropic-api  -                             never_connected      -                  -
  next: run ` + "`wayleave grant import key`" + `
robot   acme           -                             refresh_unavailable  expired 5m00s ago  1 of 1
  last error: invalid_client, 7s ago
  next: check client_id, the client's secret or key and auth_style of the provider in the
    configuration, and start the gate again
`
	var got strings.Builder
	if err := printGrants(&got, shownGrants, noon, 90); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPrintGrant(t *testing.T) {
	s := shownGrants[3]
	s.Generation = 2
	s.History = []grant.Event{
		{At: noon, What: grant.Connected},
		{At: noon.Add(time.Hour), What: grant.Refreshed, By: "gate-1", Generation: 1, Took: 1234567 * time.Microsecond, Lost: []string{"write"}},
		{At: noon.Add(2 * time.Hour), What: grant.Failed, By: "gate-1", Generation: 2, Took: 80 * time.Millisecond, ErrorKind: oauth.KindInvalidClient, Error: "status 401"},
	}
	want := `
grant          robot
provider       acme
kind           the gate gets its tokens by itself
state          refresh_unavailable
scopes held    read
token expires  expired 5m00s ago, at ` + when(s.Expires) + `
last change    7s ago
refreshes      2
last error     invalid_client: the token endpoint at https://login.acme.example answered with
               status 401 (invalid_client)
next step      check client_id, the client's secret or key and auth_style of the provider in the
               configuration, and start the gate again

What happened last ('wayleave grant history robot' has more):

WHEN                       WHAT       BY           GENERATION  TOOK
` + when(noon) + `  connected  an operator  0           -
` + when(noon.Add(time.Hour)) + `  refreshed  gate-1       1           1.235s
  no longer granted: write
` + when(noon.Add(2*time.Hour)) + `  failed     gate-1       2           80ms
  invalid_client: status 401
`
	var got strings.Builder
	if err := errors.Join(printGrant(&got, s, noon), printLast(&got, s)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A time says of which zone it is: the console shows the same one in UTC.
func TestWhen(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if got, err := time.Parse("2006-01-02 15:04:05 -0700", when(at)); err != nil || !got.Equal(at) {
		t.Errorf("%q, %v", when(at), err)
	}
	if got := when(time.Time{}); got != "" {
		t.Errorf("no time is %q", got)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m00s", 61 * time.Minute: "1h01m",
		3*time.Hour + 12*time.Minute + 59*time.Second: "3h12m", 47 * time.Hour: "47h00m", 50 * time.Hour: "2d2h", 400 * 24 * time.Hour: "400d0h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text  string
		width int
		want  string
	}{
		{"", 10, ""},
		{"one", 2, "one"},
		{"one two three", 7, "one two\n> three"},
		{"one two three", 100, "one two three"},
		{"a-very-long-word and more", 6, "a-very-long-word\n> and\n> more"},
		{"lines\nand   spaces", 100, "lines and spaces"},
	} {
		if got := wrap(tt.text, tt.width, "> "); got != tt.want {
			t.Errorf("%q at %d: %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}

// Every state has an exit code, and only what needs nobody has 0.
func TestEveryStateHasAnExitCode(t *testing.T) {
	seen := map[exitCode]bool{exitFailure: true, exitUsage: true}
	for _, e := range stateExits {
		if seen[e.code] {
			t.Errorf("code %d is used twice", e.code)
		}
		seen[e.code] = true
	}
	for _, s := range []grant.State{
		grant.NeverConnected, grant.Healthy, grant.Refreshing, grant.Degraded, grant.Ambiguous, grant.ScopeMissing, grant.NeedsReconnect,
		grant.RefreshUnavailable, grant.VaultUnavailable,
	} {
		if code := exitOf(s); code == exitFailure || (code == exitOK) != (s == grant.Healthy || s == grant.Refreshing) {
			t.Errorf("%s has exit code %d", s, code)
		}
	}
	if exitOf("of tomorrow") != exitFailure {
		t.Error("a state that nobody knows is not a failure")
	}
}
