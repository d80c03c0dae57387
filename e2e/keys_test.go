package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const keys = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
grants:
  console: {provider: anthropic-api}
  key: {provider: openai-api}
routes:
  - {hosts: [api.anthropic.com], grant: console, connect_to: "$CLAUDE_API"}
  - {hosts: [api.openai.com], grant: key, connect_to: "$OPENAI"}
profiles:
  plain: {grants: [console, key]}
  own: {grants: [console, key], modes: {console: claude_home, key: codex_home}}
workers:
  plain: {profile: plain}
  own: {profile: own}
`

// At a terminal Claude Code and Codex use no key in their environment without asking, and a log-in of the person's before it. In a directory of their own they
// use the placeholder, and nothing of the person's leaves.
func TestKeysAtATerminal(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	var carried watch
	made.env = append(made.env, "CLAUDE_API="+carried.claudeAt(t, made), "OPENAI="+carried.openAIAt(t, made, "api.openai.com"))
	g := startIn(t, made, keys)
	importKeys(t, g)
	home := g.newHome(t)
	for path, text := range map[string]string{
		".claude/.credentials.json": `{"claudeAiOauth":{"accessToken":"sk-ant-oat01-` + theirs + `","expiresAt":4102444800000,"scopes":["user:inference","user:profile"]}}`,
		".codex/auth.json":          `{"auth_mode":"apikey","OPENAI_API_KEY":"sk-` + theirs + `"}`,
	} {
		path = filepath.Join(home, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(worker string, command ...string) *command {
		c := g.command("wayleave", append([]string{"run", "--worker", worker, "--"}, command...)...)
		c.Dir = filepath.Join(home, "project")
		c.Env = append(c.Env, "HOME="+home, "CLAUDE_SECURESTORAGE_CONFIG_DIR="+filepath.Join(home, ".claude"), "DISABLE_AUTOUPDATER=1")
		return c
	}
	// Whether the folder is trusted is another question of Claude Code's, answered before.
	const trusted = `sed -i "s|^{|{\"projects\":{\"$PWD\":{\"hasTrustDialogAccepted\":true}},|" "$CLAUDE_CONFIG_DIR/.claude.json" && exec "$0"`
	for _, c := range []struct {
		command       []string
		ready, prompt string
		says          string
	}{
		{[]string{"sh", "-c", trusted, agent(t, "claude")}, "API Usage Billing", "❯", "The demo API received"},
		{[]string{agent(t, "codex"), "--disable", "daemon_auto_start"}, "Ask Codex to do anything", "›", heard},
	} {
		s := onScreen(t, run("own", c.command...))
		err := s.waitFor(c.ready)
		if err == nil {
			err = s.enter(c.prompt, "hello there")
		}
		if err == nil {
			err = s.waitFor(c.says)
		}
		if err != nil {
			t.Errorf("%s: %v", c.command, err)
		}
		s.end()
	}
	for _, seen := range carried.all() {
		t.Errorf("something of the person's arrived at %s", seen)
	}
	out, err := run("plain", "true").CombinedOutput()
	if err != nil || !strings.Contains(string(out), ".claude/.credentials.json has a log-in") || !strings.Contains(string(out), ".codex/auth.json has a log-in") {
		t.Errorf("whoever starts a worker where log-ins count is told %s, %v", out, err)
	}
}
