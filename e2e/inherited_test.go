package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// inherited is the environment that a worker is started in when whoever starts it has something else in every variable that docs/environment.md
// names, in every case and for these kinds of credentials.
func inherited(t *testing.T, kinds ...string) (env []string) {
	t.Helper()
	page, err := os.ReadFile("../docs/environment.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for section := range strings.SplitSeq(string(page), "\n##") {
		title, text, _ := strings.Cut(section, "\n")
		sections[strings.ReplaceAll(strings.TrimLeft(title, "# "), "`", "")] = text
	}
	for _, kind := range append(kinds, "In every case") {
		text, known := sections[kind]
		if !known {
			t.Fatalf("docs/environment.md has no %q", kind)
		}
		for line := range strings.Lines(text) {
			names := regexp.MustCompile("^(?:\\| |- )`([A-Za-z_]+)`").FindStringSubmatch(line)
			if removed := strings.ToLower(line); strings.HasPrefix(removed, "removed: ") || strings.HasPrefix(removed, "- removed: ") {
				names = regexp.MustCompile("`([A-Za-z_]+)`").FindAllString(line, -1)
			} else if len(names) > 0 {
				names = names[1:]
			}
			for _, name := range names {
				name = strings.Trim(name, "`")
				if strings.HasPrefix(name, "WAYLEAVE_") || name == "JAVA_TOOL_OPTIONS" || name == "SSL_CERT_FILE" || name == "NIX_SSL_CERT_FILE" || strings.HasPrefix(name, "GIT_CONFIG_") {
					continue // ours, added to, read, and given below
				}
				env = append(env, name+"="+someValue(name))
			}
		}
	}
	slices.Sort(env)
	return append(slices.Compact(env), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=acme.setting", "GIT_CONFIG_VALUE_0=kept")
}

// theirs is in all that was inherited, and nothing with it may leave.
const theirs = "inherited"

func someValue(name string) string {
	switch {
	case strings.Contains(name, "_USE_") || strings.Contains(name, "DISABLE_"):
		return "1"
	case strings.HasSuffix(name, "_CUSTOM_HEADERS"):
		return "Authorization: Bearer " + theirs + "\nx-api-key: " + theirs + "\nx-note: " + theirs
	case strings.HasSuffix(name, "_HOST"):
		return theirs + ".invalid"
	case strings.HasSuffix(strings.ToLower(name), "_proxy") || strings.HasSuffix(name, "_URL") || strings.HasSuffix(name, "registry"):
		return "http://" + theirs + ".invalid:9/"
	}
	return theirs + "-" + name
}

// leadAway leads Claude Code away by itself, as was tried with 2.1.331: whatever the page says, these have to go.
var leadAway = []string{
	"CLAUDE_CODE_USE_MANTLE=1", "CLAUDE_CODE_USE_ANTHROPIC_AWS=1", "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD=1", "ANTHROPIC_UNIX_SOCKET=/" + theirs, "ANTHROPIC_PROFILE=" + theirs,
	"ANTHROPIC_IDENTITY_TOKEN=" + theirs, "ANTHROPIC_FEDERATION_RULE_ID=fdrl_" + theirs, "ANTHROPIC_ORGANIZATION_ID=11111111-1111-1111-1111-111111111111",
}

// watch notes which requests carry something inherited.
type watch struct {
	mu   sync.Mutex
	seen []string
}

func (w *watch) over(next http.HandlerFunc) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, "\n"), theirs) {
				w.mu.Lock()
				w.seen = append(w.seen, r.Host+r.URL.Path+" in "+name)
				w.mu.Unlock()
			}
		}
		next(rw, r)
	}
}

func (w *watch) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// claudeAt is the address of a watched api.anthropic.com, which takes keys too.
func (w *watch) claudeAt(t *testing.T, made *world) string {
	t.Helper()
	return newUpstream(t, made.CA, "api.anthropic.com", w.over(func(rw http.ResponseWriter, r *http.Request) {
		if key := r.Header.Get("X-Api-Key"); key != "" { // the demo's API has tokens only
			r.Header.Set("Authorization", "Bearer "+key)
		}
		made.API.ServeHTTP(rw, r)
	})).address
}

// openAIAt is the address of a watched API of OpenAI's.
func (w *watch) openAIAt(t *testing.T, made *world, host string) string {
	t.Helper()
	api := &openAI{}
	return newUpstream(t, made.CA, host, w.over(func(rw http.ResponseWriter, r *http.Request) { api.serve(made, rw, r) })).address
}

// importKeys imports what the grants console and key hold.
func importKeys(t *testing.T, g *gate) {
	t.Helper()
	for grant, scope := range map[string]string{"console": "user:inference", "key": "openid"} {
		token, _ := g.Provider.Issue(scope)
		g.importValue(t, grant, token)
	}
}

const manyKinds = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true}
  openai-codex: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, device_flow: rfc8628, device_url: "", client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true}
grants:
  claude: {provider: anthropic}
  console: {provider: anthropic-api}
  codex: {provider: openai-codex, scopes: [openid]}
  key: {provider: openai-api}
routes:
  - {name: claude, hosts: [api.anthropic.com], grant: claude, connect_to: "$CLAUDE_API"}
  - {name: console, hosts: [api.anthropic.com], grant: console, connect_to: "$CLAUDE_API"}
  - {hosts: [chatgpt.com], grant: codex, connect_to: "$CHATGPT"}
  - {hosts: [api.openai.com], grant: key, connect_to: "$OPENAI"}
profiles:
  auth_token: {grants: [claude]}
  oauth_env: {grants: [claude], claude_code: oauth_env}
  login_file: {grants: [claude], claude_code: login_file}
  console: {grants: [console]}
  chatgpt: {grants: [codex]}
  key: {grants: [key]}
workers:
  auth_token: {profile: auth_token}
  oauth_env: {profile: oauth_env}
  login_file: {profile: login_file}
  console: {profile: console}
  chatgpt: {profile: chatgpt}
  key: {profile: key}
`

// Whatever the one who starts a worker has in the environment, the real clients go to the gate with their placeholder, and nothing of it leaves.
func TestInheritedEnvironment(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	var carried watch
	made.env = append(made.env, "CLAUDE_API="+carried.claudeAt(t, made), "CHATGPT="+carried.openAIAt(t, made, "chatgpt.com"), "OPENAI="+carried.openAIAt(t, made, "api.openai.com"))
	g := startIn(t, made, manyKinds, "claude", "codex")
	importKeys(t, g)
	script := func(name string) string {
		path, err := filepath.Abs(filepath.Join("testdata/clients", name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	claudeCode, codex := []string{agent(t, "claude"), "-p", "hi"}, []string{agent(t, "codex"), "exec", "--skip-git-repo-check", "hi"}
	sdks := func(name string) [][]string {
		return [][]string{{python, script("sdk.py"), name}, {agent(t, "node"), script("sdk.cjs"), name}}
	}
	for _, c := range []struct {
		worker, kind, says string
		commands           [][]string
	}{
		{"auth_token", "anthropic, auth_token", "The demo API received: ", append(sdks("anthropic"), claudeCode)},
		{"oauth_env", "anthropic, oauth_env", "The demo API received: ", [][]string{claudeCode}},
		{"login_file", "anthropic, login_file", "The demo API received: ", [][]string{claudeCode}},
		{"console", "anthropic-api", "The demo API received: ", append(sdks("anthropic"), claudeCode)},
		{"chatgpt", "openai-codex", heard, [][]string{codex}},
		{"key", "openai-api", heard, append(sdks("openai"), codex)},
	} {
		for _, command := range c.commands {
			home := g.newHome(t)
			run := g.command("wayleave", append([]string{"run", "--worker", c.worker, "--"}, command...)...)
			run.Dir = filepath.Join(home, "project")
			run.Env = append(append(append(run.Env, inherited(t, c.kind)...), leadAway...), "HOME="+home, "CODEX_HOME="+home, "NODE_PATH="+g.getenv("NODE_CLIENTS"), "DISABLE_AUTOUPDATER=1")
			if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), c.says) {
				t.Errorf("%s, %s: %v\n%s", c.kind, filepath.Base(command[0]), err, out)
			}
		}
	}
	for _, seen := range carried.all() {
		t.Errorf("something inherited arrived at %s", seen)
	}

	// Claude Code prefers its settings to its environment, which whoever starts it is told.
	home := g.newHome(t)
	settings := filepath.Join(home, "project", ".claude", "settings.json")
	if err := errors.Join(os.Mkdir(filepath.Dir(settings), 0o700), os.WriteFile(settings, []byte(`{"env":{"ANTHROPIC_API_KEY":"`+theirs+`"}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	const says = "settings.json has env.ANTHROPIC_API_KEY, which Claude Code prefers to the placeholder for claude"
	for _, c := range []struct {
		command []string
		says    string // beside that
		fails   bool
	}{
		{append([]string{"run", "--worker", "auth_token", "--"}, claudeCode...), "more than one credential", true},
		{[]string{"env", "--worker", "auth_token"}, "export ANTHROPIC_AUTH_TOKEN=", false},
		{[]string{"run", "--worker", "auth_token", "--", "wayleave", "doctor", "-c", g.saved("wayleave.yaml")}, "→ take that out of the file", false},
		{[]string{"doctor"}, "→ take that out of the file", false},
	} {
		run := g.command("wayleave", c.command...)
		run.Dir, run.Env = filepath.Join(home, "project"), append(run.Env, "HOME="+home, "DISABLE_AUTOUPDATER=1")
		out, err := run.CombinedOutput()
		if (err != nil) != c.fails || !strings.Contains(string(out), says) || !strings.Contains(string(out), c.says) || strings.Contains(string(out), theirs) {
			t.Errorf("with a key in its settings, %s: %v\n%s", c.command, err, out)
		}
	}
}
