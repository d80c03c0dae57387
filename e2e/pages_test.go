package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wayleave/freeport"
)

const pagesConfig = `
listen: {proxy: $PROXY, proxy_tls: $PROXY_TLS, tls_names: [localhost]}
console: {listen: $CONSOLE}
metrics: {listen: $METRICS}
audit: {chain: true}
record: {file: requests.jsonl}
notify: {targets: {oncall: {type: webhook, url: "$HOOK", secret_file: hook.key}}}
upstream: {ca_files: [api-ca.pem]}
rollout: {automatic: false, steps: [{share: 100, dwell: $DWELL}]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
  acme: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, device_url: $PROVIDER/device, client_id: $CLIENT_ID, allow_insecure: true}
  weather: {kind: static, header: {in: x-key}}
grants:
  claude: {provider: anthropic}
  acme: {provider: acme, scopes: [user:inference]}
  github: {provider: acme, scopes: [user:inference]}
  codex: {provider: acme, scopes: [user:inference]}
  weather: {provider: weather}
  claude-key: {provider: anthropic-api}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
profiles:
  default: {grants: [claude]}
workers:
  ci: {profile: default}
tunnel: [$TUNNEL]
`

// runElsewhere has commands of pages that another test runs, by how they begin.
var runElsewhere = map[string]string{
	"wayleave approval":           "approvals_test.go",
	"wayleave ca activate 3f2a9c": "testdata/ca.txtar",
	"wayleave ca retire 3f2a9c":   "testdata/ca.txtar",
	"make demo":                   "testdata/demo.txtar",
	"sudo wayleave ca install":    "../cmd/wayleave/ca_install_test.go",
	"wayleave envoy":              "envoylog_test.go",
	"wayleave grant show claude -c wayleave.yaml --wait=needs_reconnect": "testdata/grants.txtar",
	"wayleave run --isolate":     "testdata/isolate.txtar",
	"wayleave run --transparent": "transparent_linux_test.go",
	"wayleave serve":             "testdata/production.txtar",
	"wayleave up":                "gate_test.go",
	"VAULT_ADDR=https://vault.internal:8200 VAULT_TOKEN=… wayleave vault setup": "testdata/production.txtar",
}

// Exit codes that say how things are, where they are as a page has them or not yet.
var pageExits = map[string][]int{
	"wayleave ca prepare":  {3}, // there is one already
	"wayleave ca activate": {3}, // too early: somebody may not trust it yet
	"wayleave ca retire":   {3}, // likewise
	"wayleave config diff wayleave.yaml new.yaml --exit-code": {1},
	"wayleave fleet drain":    {3},                  // the only one
	"wayleave grant list":     {10, 11, 12, 13, 14}, // some are not connected
	"wayleave policy test":    {1},                  // decided differently
	"wayleave rollout status": {20, 21},             // one is under way, or was aborted
}

// pageLine is a command as a page shows it.
type pageLine struct{ page, text string }

var shellBlock = regexp.MustCompile("(?ms)^ *```sh\n(.*?)^ *```$")

// pageLines are the commands of pages, without remarks.
func pageLines(t *testing.T, pages ...string) (lines []pageLine) {
	t.Helper()
	for _, page := range pages {
		text, err := os.ReadFile("../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range shellBlock.FindAllStringSubmatch(string(text), -1) {
			for line := range strings.Lines(m[1]) {
				line, _, _ = strings.Cut(line, " #")
				if line = strings.TrimSpace(line); line != "" && !slices.ContainsFunc(lines, func(l pageLine) bool { return l.text == line }) {
					lines = append(lines, pageLine{page, line})
				}
			}
		}
	}
	return lines
}

// reader is somebody who does what the pages say, on a gate of their own.
type reader struct {
	*world
	t       *testing.T
	changes int // of the configuration
}

// sh runs a script, which may end with some codes besides 0.
func (r *reader) sh(script, stdin string, also ...int) (string, error) {
	c := r.command("timeout", fmt.Sprint(patience.Seconds()), "bash", "-ec", script) // which ends all that it started
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && slices.Contains(also, exit.ExitCode()) {
		err = nil
	}
	return strings.TrimSpace(string(out)), err
}

// says is what a script prints, once it succeeds.
func (r *reader) says(script string) (out string) {
	r.t.Helper()
	if err := eventually(func() (err error) {
		if out, err = r.sh(script, ""); err != nil {
			err = fmt.Errorf("%s: %w\n%s", script, err, out)
		}
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// change writes a configuration that no Envoy has yet.
func (r *reader) change(name, dwell string) {
	r.t.Helper()
	r.changes++
	set := map[string]string{"TUNNEL": fmt.Sprintf("n%d.example", r.changes), "DWELL": dwell}
	text := os.Expand(pagesConfig, func(name string) string {
		if v := set[name]; v != "" {
			return v
		}
		return r.getenv(name)
	})
	r.put(name, text)
}

func (r *reader) put(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.saved(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// prepare makes things such as they are when somebody needs the command, and returns it with our names in place of the page's.
func (r *reader) prepare(line string) string {
	r.t.Helper()
	about := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) })
	}
	if about("rollout") && about("start", "abort", "pause", "promote", "resume", "--watch") { // --watch would watch one to its end
		_, _ = r.sh("wayleave rollout abort", "")
	}
	if about("rollout start", "rollout abort", "rollout pause", "rollout promote", "rollout resume") {
		dwell := "10m"
		if about("--watch") {
			dwell = "1s"
		}
		r.change("wayleave.yaml", dwell)
		r.change("new.yaml", dwell)
		if !about("rollout start") {
			r.says("wayleave rollout start")
		}
		if about("rollout resume") {
			r.says("wayleave rollout pause")
		}
	}
	if about("nyrpqmtk2vsxuaz5kd7gjb3e", "$SESSION") {
		var s struct{ Session, Token string }
		if err := json.Unmarshal([]byte(r.says("wayleave session create --json 2>/dev/null")), &s); err != nil || s.Session == "" {
			r.t.Fatalf("%v: %+v", err, s)
		}
		line = strings.NewReplacer("nyrpqmtk2vsxuaz5kd7gjb3e", s.Session, "$SESSION:$TOKEN", s.Session+":"+s.Token).Replace(line)
	}
	if about("3f2a9c01d4e5") {
		line = strings.ReplaceAll(line, "3f2a9c01d4e5", regexp.MustCompile(`revision ([0-9a-f]{12})`).FindStringSubmatch(r.says("wayleave config check"))[1])
	}
	if about("--head") {
		head := regexp.MustCompile(`[0-9a-f]{64}`).FindString(r.says("wayleave audit verify"))
		line = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(line, head)
	}
	if about("envoy-1", "envoy-7") {
		fields := strings.Fields(r.says("wayleave fleet list 2>/dev/null | sed -n 2p"))
		line = strings.NewReplacer("envoy-1", fields[0], "envoy-7", fields[0]).Replace(line)
		if about("undrain") {
			_, _ = r.sh("wayleave fleet drain --force "+fields[0], "")
		}
	}
	if about("WAYLEAVE_GATE_CA=") { // pages about the CA have been there
		r.says("wayleave ca print >ca.pem")
	}
	if about("ca activate", "ca retire") {
		_, _ = r.sh("wayleave ca prepare", "", 3)
	}
	if about("grant show claude", "grant refresh claude", "grant history claude") { // it was imported, or disconnected
		r.says("wayleave grant connect claude")
	}
	if about("--no-browser") && about("grant connect") { // the page is opened elsewhere
		line += " >printed 2>&1 & connect=$!\nuntil grep -o 'http.*authorize.*' printed >page; do kill -0 $connect; sleep 0.1; done; demo approve $(cat page); wait $connect"
	}
	if about("audit tail") { // until there is something
		line += " >tail & tail=$!\nuntil test -s tail; do wayleave run -- curl -sS -o /dev/null https://nowhere.example || true; done; kill $tail"
	}
	return line
}

// Every command of these pages is run, on a gate that is like theirs, and does not fail.
func TestPages(t *testing.T) {
	t.Parallel()
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(hook.Close)
	r := &reader{world: makeWorld(t), t: t}
	for _, name := range []string{"CONSOLE", "METRICS"} {
		address, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		r.env = append(r.env, name+"="+address)
	}
	r.env = append(r.env, "HOOK="+hook.URL, "TUNNEL=n.example", "DWELL=10m", "GITHUB_ENV="+r.saved("github.env"))
	r.put("hook.key", "whsec_"+strings.Repeat("c2VjcmV0", 4))
	startIn(t, r.world, pagesConfig, "claude")
	r.put("found.txt", "some-token\n")
	r.put("key.txt", "a-key-4f9aXq\n")
	r.put("weather.key", "a-key-4f9aXq\n")
	r.put("requests.jsonl.1", "")
	r.put("token-response.json", `{"access_token": "demo-at-of-another-life", "refresh_token": "demo-rt-of-another-life", "expires_in": 3600}`)
	r.change("new.yaml", "10m")
	r.says("wayleave ca print >ca.pem; wayleave run -- curl -sS https://api.demo.test/public")
	r.says(accessToken)
	r.env = append(r.env, "WAYLEAVE_API_TOKEN_FILE="+r.saved("api.token"))
	ours := strings.NewReplacer(
		"~/.claude/.credentials.json", "token-response.json", "~/.codex/auth.json", "token-response.json",
		"https://gate.example.com:3129", "https://localhost:"+r.getenv("PROXY_TLS_PORT"), "https://gate.internal:3129", "https://localhost:"+r.getenv("PROXY_TLS_PORT"),
		"https://gate.example.com", "http://"+r.getenv("CONSOLE"), "~/.config/wayleave/", "",
		"https://mcp.example.com/mcp", r.getenv("PROVIDER")+" --allow-insecure", "https://login.example.com", r.getenv("PROVIDER")+" --allow-insecure",
		"http://127.0.0.1:9180", "http://"+r.getenv("METRICS"), "http://gate.internal:3128", "http://"+r.proxy,
		"WAYLEAVE_TOKEN=…", `WAYLEAVE_TOKEN="$(cat state/workers/ci.token)"`,
		"/etc/wayleave/wayleave.yaml", "wayleave.yaml", "--run-dir /run/wayleave", "",
		"-- claude -p", "-- echo", "-- make release", "-- true", "-- python worker.py", "-- true",
		"https://api.example.com/v1/items", "https://api.demo.test/public",
		"| kubectl apply --server-side -f -", "| cat", "&& docker run --env-file wl.env -v ./wl:/wayleave:ro image", "", "reports --wait", "claude --wait",
	)

	ran, used := 0, map[string]bool{}
	for _, line := range pageLines(t, "start.md", "cli.md", "grants.md", "audit.md", "ca.md", "configuration.md", "console.md", "doctor.md", "logs.md", "metrics.md", "notifications.md", "policy.md", "rollouts.md", "workers.md", "ways-in.md") {
		if strings.HasPrefix(line.text, "export ") {
			continue // it is set here otherwise
		}
		where := ""
		for begins, file := range runElsewhere {
			if strings.HasPrefix(line.text, begins) {
				where, used[begins] = file, true
			}
		}
		if where != "" {
			continue
		}
		var also []int
		for begins, codes := range pageExits {
			if strings.HasPrefix(line.text, begins) {
				also, used[begins] = codes, true
			}
		}
		stdin := ""
		if strings.Contains(line.text, "grant import") {
			stdin = "a-key-4f9aXq\n"
		}
		t.Logf("%s: %s", line.page, line.text)
		script := ours.Replace(r.prepare(line.text))
		if out, err := r.sh(script, stdin, also...); err != nil {
			t.Errorf("%s shows %s, and %s: %v\n%s", line.page, line.text, script, err, out)
		}
		if strings.Contains(line.text, "undrain") {
			r.says("wayleave run -- true") // once Envoy listens again
		}
		ran++
	}
	if err := os.Remove(r.saved("reports.pem")); err != nil { // a private key, which the leak check would find
		t.Error(err)
	}
	if ran < 110 {
		t.Errorf("only %d commands were run: the test is not looking", ran)
	}
	for begins, file := range runElsewhere {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(begins[strings.Index(begins, "wayleave ")+len("wayleave "):])
		if words = words[:min(len(words), 2)]; !used[begins] || !strings.Contains(string(text), words[len(words)-1]) {
			t.Errorf("%s: shown on no page, or not run in %s", begins, file)
		}
	}
	for begins := range pageExits {
		if !used[begins] {
			t.Errorf("%s: shown on no page", begins)
		}
	}
}

// accessToken plays an admin at a browser, who makes a token for an operator.
const accessToken = `
link=$(wayleave console --no-browser | head -1)
at=${link%%/login*}
curl -sS -c jar -o page --data-urlencode "token=${link##*token=}" "$at/login"
page=$(curl -sS -b jar -c jar "$at/access" | grep -o 'name="csrf" value="[A-Z0-9]*"' | head -1 | cut -d'"' -f4)
curl -sS -b jar -H "X-Csrf-Token: $page" -H 'Content-Type: application/json' -d '{"name":"deploy","role":"admin"}' "$at/api/v1/tokens" |
  grep -o 'wlop_[A-Z0-9]*' >api.token`
