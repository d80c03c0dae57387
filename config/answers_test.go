package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const answering = `
grants:
  codex: {provider: openai-codex}
  g: {provider: google}
  hub: {provider: github-token}
  claude: {provider: anthropic}
routes:
  - {hosts: [chatgpt.com], grant: codex}
  - {hosts: ["*.googleapis.com"], grant: g}
  - {hosts: ["*.github.com", "api.github.com:8443"], grant: hub}
  - {hosts: [api.anthropic.com], grant: claude}
providers:
  google: {client_id: x, auth_style: none}
profiles:
  default: {grants: [codex, g, hub, claude], claude_code: oauth_env, modes: {hub: git}}
`

func TestAnswers(t *testing.T) {
	c, err := Parse("wayleave.yaml", []byte(answering))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range c.Answers("default") {
		got = append(got, a.Grant+" "+a.Method+" "+a.Host+a.Path)
	}
	want := []string{
		"codex GET auth.openai.com/api/accounts/v1/user-auth-credential/whoami", "codex GET chatgpt.com/backend-api/wham/accounts/check",
		"g POST oauth2.googleapis.com/token", "claude GET api.anthropic.com/api/hello", "claude GET platform.claude.com/v1/oauth/hello",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"auth.openai.com", "platform.claude.com"}, c.AnsweredHosts()); diff != "" {
		t.Error(diff)
	}
	c.Profiles["default"].Modes["g"] = "external_account"
	if a := c.Answers("default")[2]; a.Host+a.Path != "sts.googleapis.com/v1/token" {
		t.Errorf("in mode external_account %s%s is answered", a.Host, a.Path)
	}
	if mode, host := c.EnvMode("default", "hub"), c.HostOf("hub"); mode != "git" || host != "api.github.com:8443" {
		t.Errorf("mode %q, host %q", mode, host)
	}
	if host := c.HostOf("g"); host != "" {
		t.Errorf("host %q", host)
	}
}

func TestModesAndAnswersAreChecked(t *testing.T) {
	for fault, change := range map[string][2]string{
		`profiles.default.modes.hub: "svn" is no mode of the grant's provider; write one of: git`:                                              {"hub: git", "hub: svn"},
		`profiles.default.modes.other: is of no grant of the profile`:                                                                          {"hub: git", "other: git"},
		`"auth.openai.com", where the gate answers /api/accounts/v1/user-auth-credential/whoami for clients of grant "codex", is tunnelled by`: {"profiles:", "tunnel: [auth.openai.com]\nprofiles:"},
	} {
		if _, err := Parse("wayleave.yaml", []byte(strings.Replace(answering, change[0], change[1], 1))); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("got %v, want %s", err, fault)
		}
	}
}
