package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// refusing is the configuration of a gate that refuses what its workers ask for, with the status that their names end with: 503 because a
// provider does not answer, the others because nobody has connected the grant or, since Claude Code asks for nothing without a scope, because
// a grant lacks another. Of these only the status differs.
func refusing() string {
	var providers, grants, routes, profiles, workers strings.Builder
	for _, family := range []struct {
		name, preset, hosts, to string
		modes                   []string // of a profile for each; "" has none
		dead                    string   // what makes it a provider of tokens of the gate's own, which cannot be reached
	}{
		{"claude", "anthropic", "api.anthropic.com", "$CLAUDE_API", []string{"auth_token", "oauth_env", "login_file"}, ""},
		{"codex", "openai-codex", "chatgpt.com", "$CHATGPT", []string{""}, "device_flow: rfc8628, device_url: \"\", device_verification_url: \"\", device_redirect_url: \"\","},
		{"openai", "openai-api", "api.openai.com", "$OPENAI", []string{""}, "kind: oauth, placeholder_prefix: sk-,"},
		{"hub", "github-token", "github.com, api.github.com", "$GIT", []string{"git"}, "kind: oauth,"},
	} {
		for _, status := range refusalStatuses {
			name := fmt.Sprintf("%s%d", family.name, status)
			how := fmt.Sprintf("refusal_status: {never_connected: %d, scope_missing: %d}", status, status)
			more := ""
			if family.name == "claude" {
				how += `, authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true`
				more = ", paths: [{prefix: /v1/messages, required_scopes: [user:sessions:claude_code]}]"
			}
			if status == http.StatusServiceUnavailable {
				how = family.dead + ` grant_type: client_credentials, auth_style: client_secret_post, client_id: x, client_secret_env: NO_SECRET, redirect_url: "", authorize_url: "", revoke_url: "", scopes: [], token_url: "http://127.0.0.1:1/token", allow_insecure: true`
				more = ""
			}
			fmt.Fprintf(&providers, "  %s: {preset: %s, %s}\n", name, family.preset, how)
			fmt.Fprintf(&grants, "  %s: {provider: %s}\n", name, name)
			fmt.Fprintf(&routes, "  - {name: %s, hosts: [%s], grant: %s, connect_to: \"%s\"%s}\n", name, family.hosts, name, family.to, more)
			for _, mode := range family.modes {
				worker, modes := name, ""
				if mode != "" {
					worker, modes = family.name+"-"+mode+"-"+strconv.Itoa(status), fmt.Sprintf(", modes: {%s: %s}", name, mode)
				}
				fmt.Fprintf(&profiles, "  %s: {grants: [%s]%s}\n", worker, name, modes)
				fmt.Fprintf(&workers, "  %s: {profile: %s}\n", worker, worker)
			}
		}
	}
	return "listen: {proxy: $PROXY}\nupstream: {ca_files: [api-ca.pem]}\nproviders:\n" + providers.String() + "grants:\n" + grants.String() +
		"routes:\n" + routes.String() + "profiles:\n" + profiles.String() + "workers:\n" + workers.String()
}

var refusalStatuses = []int{400, 401, 403, 429, 503}

// patienceOfAPerson is how long a client may try before its user is taken to have seen nothing. That is for what is recorded: a client that is known
// to end may take its time on a busy machine, and one that is known to go on is looked at briefly.
const (
	patienceOfAPerson = 45 * time.Second
	briefly           = 15 * time.Second
	goesOn            = "goes on"
)

// What the user of each client sees of a refusal, by its status, after how many tries and when: docs/clients.md says why ours are what they are. Each
// client is tested with each status, but its further forms only with the one that our presets have; the rest is recorded.
func TestRefusalsShown(t *testing.T) {
	parallel(t)
	made := makeWorld(t)
	newClaudeAPI(t, made)
	challenge := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Basic")
		http.Error(w, "who are you?", http.StatusUnauthorized)
	}
	made.env = append(made.env, "CHATGPT="+newOpenAI(t, made, "chatgpt.com").address, "OPENAI="+newOpenAI(t, made, "api.openai.com").address,
		"GIT="+newUpstream(t, made.CA, "github.com", challenge).address, "NO_SECRET=none")
	made.Provider.AllowScopes("user:inference", "user:profile")
	g := startIn(t, made, refusing(), "claude400", "claude401", "claude403", "claude429")

	path := func(name string) string {
		p, err := filepath.Abs(filepath.Join("testdata/clients", name))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	node := "node"
	if _, err := os.Stat(filepath.Join(filepath.Dir(toolsBin), "agents", "node")); err == nil {
		node = agent(t, "node")
	}
	clients := []struct {
		name, worker string // the worker's name, without its status
		path         string // of what it asks
		command      []string
		further      bool // form of the client above
	}{
		{"Claude Code, auth_token", "claude-auth_token-", "/v1/messages", []string{agent(t, "claude"), "-p", "hi"}, false},
		{"Claude Code, oauth_env", "claude-oauth_env-", "/v1/messages", []string{agent(t, "claude"), "-p", "hi"}, true},
		{"Claude Code, login_file", "claude-login_file-", "/v1/messages", []string{agent(t, "claude"), "-p", "hi"}, true},
		{"Codex, CODEX_ACCESS_TOKEN", "codex", "/backend-api/codex/responses", []string{agent(t, "codex"), "exec", "--skip-git-repo-check", "hi"}, false},
		{"Codex, CODEX_API_KEY", "openai", "/v1/responses", []string{agent(t, "codex"), "exec", "--skip-git-repo-check", "hi"}, true},
		{"Python anthropic", "claude-auth_token-", "/v1/messages", []string{python, path("sdk.py"), "anthropic"}, false},
		{"Python openai", "openai", "/v1/chat/completions", []string{python, path("sdk.py"), "openai"}, false},
		{"Node.js anthropic", "claude-auth_token-", "/v1/messages", []string{node, path("sdk.cjs"), "anthropic"}, false},
		{"Node.js openai", "openai", "/v1/chat/completions", []string{node, path("sdk.cjs"), "openai"}, false},
		{"git", "hub-git-", "/repo.git/info/refs", []string{"git", "ls-remote", "https://github.com/repo.git"}, false},
		{"gh", "hub-git-", "/user", []string{"gh", "api", "user", "--silent"}, false},
	}
	page := readTable(t, "../docs/clients.md", "TestRefusalsShown")
	type run struct {
		name, worker, path, status string
		command                    []string
		session, shown             string
		ended                      time.Time // zero: it was ended
	}
	var runs []*run
	for _, client := range clients {
		for _, n := range refusalStatuses {
			if status := strconv.Itoa(n); *update || !client.further || n == http.StatusBadRequest {
				runs = append(runs, &run{name: client.name + ", " + status, worker: client.worker + status, path: client.path, status: status, command: client.command})
			}
		}
	}
	allowed := func(r *run) time.Duration {
		switch known := page.cells[r.name]["tries"]; {
		case *update || known == "":
			return patienceOfAPerson
		case known == goesOn:
			return briefly
		default:
			return 5 * patience // two pauses of up to a minute each, as Retry-After has them, on a machine that is busy
		}
	}
	slices.SortStableFunc(runs, func(a, b *run) int { return cmp.Compare(allowed(a), allowed(b)) }) // those that wait the most wait beside the others
	var wg errgroup.Group
	wg.SetLimit(8)
	for _, r := range runs {
		wg.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), allowed(r)+patience)
			defer cancel()
			home := g.newHome(t)
			// The session's id is what the access log knows it by.
			c := g.command("wayleave", append([]string{"run", "--worker", r.worker, "--", "sh", "-c",
				`printf %s "$HTTPS_PROXY" >"$HOME/proxy"; exec timeout ` + strconv.Itoa(int(allowed(r).Seconds())) + ` "$@"`, "sh"}, r.command...)...)
			c = g.searched(exec.CommandContext(ctx, c.Path, c.Args[1:]...))
			c.Dir, c.Env = home, append(append([]string{}, g.env...), "HOME="+home, "CODEX_HOME="+home, "NODE_PATH="+g.getenv("NODE_CLIENTS"), "DISABLE_AUTOUPDATER=1")
			out, err := c.CombinedOutput()
			if c.ProcessState.ExitCode() != 124 {
				r.ended = time.Now()
			}
			if err == nil {
				t.Errorf("%s did not fail:\n%s", r.name, out)
			}
			t.Logf("%s: %v\n%s", r.name, err, out)
			r.shown = shownOf(string(out), r.status)
			proxy, err := os.ReadFile(filepath.Join(home, "proxy"))
			if u, _, ok := strings.Cut(strings.TrimPrefix(string(proxy), "http://"), ":"); ok && err == nil {
				r.session = u
			} else {
				t.Errorf("%s: its session is not known: %q, %v", r.name, proxy, err)
			}
			return nil
		})
	}
	_ = wg.Wait()
	if err := g.stop(); err != nil { // Envoy writes the rest of its log
		t.Fatal(err)
	}
	for _, r := range runs {
		times, err := g.refusedAt(r.session, r.path)
		if err != nil {
			t.Fatal(err)
		}
		row := map[string]string{"shown": r.shown, "tries": strconv.Itoa(len(times)), "after": since(times, r.ended)}
		if r.ended.IsZero() {
			row["tries"] = goesOn
			if allowed(r) == briefly { // before it showed all
				delete(row, "shown")
			}
		}
		page.record(t, r.name, row, nil)
	}
	page.write(t)
}

var (
	ourWords = regexp.MustCompile(`wayleave: the (gate has no credential|credential for) [^"'\n]*`)
	noise    = regexp.MustCompile(`^(wayleave: (Claude|mode)|\d{4}-\d\d-\d\dT|(WARNING|warning): |Reading additional input)`) // of the launcher and of logs
	counted  = regexp.MustCompile(` \d/\d$|, request id: \S+$`)                                                               // what differs each time
)

// shownOf is the last line that a person reads with our words, for which … stands, or else with the status, or else at all.
func shownOf(out, status string) string {
	var words, number, last string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		at := ourWords.FindStringIndex(line)
		switch {
		case line == "" || noise.MatchString(line):
		case at != nil:
			words = line[:at[0]] + "…"
		case strings.Contains(line, status):
			number = counted.ReplaceAllString(line, "")
		default:
			last = counted.ReplaceAllString(line, "")
		}
	}
	return cell(cmp.Or(words, number, last))
}

func cell(text string) string {
	if text == "" {
		return "nothing"
	}
	return "`" + strings.NewReplacer("`", "'", "|", "/").Replace(strings.TrimSpace(text)) + "`"
}

// since is roughly how long a person waits, from the first refusal on.
func since(refusals []time.Time, ended time.Time) string {
	switch {
	case ended.IsZero():
		return fmt.Sprintf("later than %v", patienceOfAPerson)
	case len(refusals) == 0 || ended.Sub(refusals[0]) < 5*time.Second:
		return "at once"
	default:
		return fmt.Sprintf("within %v", patienceOfAPerson)
	}
}

// refusedAt is when requests of a session to a path were refused, in order, by the access log.
func (g *gate) refusedAt(session, path string) ([]time.Time, error) {
	b, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), "envoy", "access.log"))
	if err != nil {
		return nil, err
	}
	var times []time.Time
	for line := range bytes.Lines(b) {
		var l struct {
			Kind, Identity, Path, Reason string
			Time                         time.Time
		}
		if json.Unmarshal(line, &l) == nil && l.Kind == "request" && strings.Contains(l.Identity, session) && l.Path == path && l.Reason != "" {
			times = append(times, l.Time)
		}
	}
	return times, nil
}
