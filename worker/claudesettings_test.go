package worker

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClaudeSettings(t *testing.T) {
	claude := Credential{Grant: "claude", Env: map[string]string{"ANTHROPIC_AUTH_TOKEN": "ph"}, Unset: []string{"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"}}
	github := Credential{Grant: "hub", Env: map[string]string{"GH_TOKEN": "ph"}}
	const user, project = "/home/me/.claude/settings.json", "/work/.claude/settings.json"
	for name, c := range map[string]struct {
		env         []string
		credentials []Credential
		files       map[string]string
		want        []string
	}{
		"no files": {credentials: []Credential{claude}},
		"nothing of ours": {credentials: []Credential{claude}, files: map[string]string{
			user: `{"env":{"ANTHROPIC_MODEL":"value-1","ANTHROPIC_API_KEY":"","ANTHROPIC_AUTH_TOKEN":"` + Marker + `"},"theme":"dark"}`, project: "no JSON",
		}},
		"the user's": {credentials: []Credential{claude, github}, files: map[string]string{user: `{"env":{"MAX":1,"ANTHROPIC_BASE_URL":"value-1","ANTHROPIC_AUTH_TOKEN":"value-2","GH_TOKEN":"value-3"}}`}, want: []string{
			user + " has env.ANTHROPIC_AUTH_TOKEN, env.ANTHROPIC_BASE_URL, which Claude Code prefers to the placeholder for claude: take that out of the file",
			user + " has env.GH_TOKEN, which Claude Code prefers to the placeholder for hub: take that out of the file",
		}},
		"a helper": {credentials: []Credential{github, claude}, files: map[string]string{project: `{"apiKeyHelper":"value-1"}`}, want: []string{
			project + " has apiKeyHelper, which Claude Code prefers to the placeholder for claude: take that out of the file",
		}},
		"a directory of its own": {env: []string{"CLAUDE_CONFIG_DIR=/own"}, credentials: []Credential{claude}, files: map[string]string{user: `{"apiKeyHelper":"value-1"}`}},
		"an organization's and a person's in the project": {credentials: []Credential{claude}, files: map[string]string{
			"/etc/claude-code/managed-settings.json": `{"apiKeyHelper":"value-1"}`, "/work/.claude/settings.local.json": `{"env":{"ANTHROPIC_API_KEY":"value-2"}}`,
		}, want: []string{
			"/etc/claude-code/managed-settings.json has apiKeyHelper, which Claude Code prefers to the placeholder for claude: take that out of the file",
			"/work/.claude/settings.local.json has env.ANTHROPIC_API_KEY, which Claude Code prefers to the placeholder for claude: take that out of the file",
		}},
	} {
		got := ClaudeSettings(append(c.env, "HOME=/home/me"), "/work", c.credentials, func(path string) ([]byte, error) {
			if text, has := c.files[path]; has {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		})
		if diff := cmp.Diff(c.want, got); diff != "" || strings.Contains(strings.Join(got, "\n"), "value-") {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
