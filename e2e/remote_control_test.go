package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// claudeModes has the real name of Claude Code's API, since the client keeps remote control off at any other.
const claudeModes = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true}
grants:
  claude: {provider: anthropic}
routes:
  - hosts: [api.anthropic.com]
    grant: claude
    connect_to: "$CLAUDE_API"
    paths:
      - {prefix: /v1/code/sessions, required_scopes: [user:sessions:claude_code]}
      - {prefix: /v1/environments, required_scopes: [user:sessions:claude_code]}
      - {prefix: /v1/sessions, required_scopes: [user:sessions:claude_code]}
profiles:
  auth_token: {grants: [claude]}
  oauth_env: {grants: [claude], claude_code: oauth_env}
  login_file: {grants: [claude], claude_code: login_file}
workers:
  auth_token: {profile: auth_token}
  oauth_env: {profile: oauth_env}
  login_file: {profile: login_file}
`

// agent is the path of one of the programs that 'make tools' fetched.
func agent(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(toolsBin), "agents", name))
	if err != nil {
		t.Fatalf("%v; run 'make tools'", err)
	}
	return path
}

// newHome is a home of a person who has used nothing yet, with an empty project in it. What programs leave there is looked at for leaks.
func (w *world) newHome(t *testing.T) string {
	t.Helper()
	home, err := os.MkdirTemp(w.dir, "home-")
	if err == nil {
		err = os.Mkdir(filepath.Join(home, "project"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// claudeAPI is the demo's API under the name of Claude Code's, which notes what it answered.
type claudeAPI struct {
	*upstream
	mu  sync.Mutex
	got []answered

	shortBridges atomic.Bool // its sessions' own bearers last for a minute
}

type answered struct {
	path   string
	bearer string // the first characters of it
	status int
}

func newClaudeAPI(t *testing.T, w *world) *claudeAPI {
	t.Helper()
	api := &claudeAPI{}
	api.upstream = newUpstream(t, w.CA, "api.anthropic.com", func(rw http.ResponseWriter, r *http.Request) {
		_, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		a := answered{path: r.URL.Path, bearer: bearer[:min(len(bearer), len("demo-at-"))]}
		noted := &noting{rw, func(status int) {
			a.status = status
			api.mu.Lock()
			defer api.mu.Unlock()
			api.got = append(api.got, a)
		}}
		if !api.shortBridges.Load() || !strings.HasSuffix(r.URL.Path, "/bridge") {
			w.API.ServeHTTP(noted, r)
			return
		}
		answer := httptest.NewRecorder()
		w.API.ServeHTTP(answer, r)
		noted.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		noted.WriteHeader(answer.Code)
		_, _ = io.WriteString(noted, strings.Replace(answer.Body.String(), `"expires_in":3600`, `"expires_in":60`, 1))
	})
	w.env = append(w.env, "CLAUDE_API="+api.address)
	return api
}

// noting is a response whose status somebody wants to know.
type noting struct {
	http.ResponseWriter
	note func(status int)
}

func (n *noting) WriteHeader(status int) {
	n.note(status)
	n.ResponseWriter.WriteHeader(status)
}

func (n *noting) Unwrap() http.ResponseWriter { return n.ResponseWriter }

// accepted reports whether a request to a path that matches was accepted, by the kind of bearer it had.
func (api *claudeAPI) accepted(path, bearer string) bool {
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, a := range api.got {
		if a.status/100 == 2 && a.bearer == bearer && regexp.MustCompile(path).MatchString(a.path) {
			return true
		}
	}
	return false
}

// bridges are how many times a session was given a bearer of its own.
func (api *claudeAPI) bridges() (n int) {
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, a := range api.got {
		if a.status == http.StatusOK && a.bearer == "demo-at-" && strings.HasSuffix(a.path, "/bridge") {
			n++
		}
	}
	return n
}

// controlled reports what of remote control in one of the ways has not been seen yet: a session that is made with the real token, and its own
// bearer in use.
func (api *claudeAPI) controlled(way string) error {
	paths := map[string]string{`^/v1/code/sessions$`: "demo-at-", `/bridge$`: "demo-at-", `/worker/events$`: "demo-wt-", `/worker/events/stream$`: "demo-wt-"}
	if way == remoteControls[2] {
		paths = map[string]string{`^/v1/environments/bridge$`: "demo-at-", `^/v1/environments/env_`: "demo-wt-"}
	}
	for path, bearer := range paths {
		if !api.accepted(path, bearer) {
			return fmt.Errorf("no request to %s with %s… was accepted", path, bearer)
		}
	}
	return nil
}

// claude prepares a run of Claude Code as a worker, in a home of its own where its first questions are answered. It has
// asked one thing before, as a client that is in use has. Where it fails it starts once more at a person's word.
func (g *gate) claude(t *testing.T, worker string, args ...string) *command {
	t.Helper()
	seen, err := filepath.Abs("testdata/clients/seen.py")
	if err != nil {
		t.Fatal(err)
	}
	home := g.newHome(t)
	c := g.command("wayleave", append([]string{"run", "--worker", worker, "--", "sh", "-c", `"$CLAUDE" -p hi && "$PYTHON" "$0" && "$CLAUDE" "$@" || read again && exec "$CLAUDE" "$@"`, seen}, args...)...)
	c.Dir = filepath.Join(home, "project")
	c.Env = append(c.Env, "HOME="+home, "CLAUDE="+agent(t, "claude"), "DISABLE_AUTOUPDATER=1")
	return c
}

// ways to remote control, as the columns of the page have them.
var remoteControls = []string{"/remote-control", "claude --remote-control", "claude remote-control"}

// unencrypted is what the command of 2.1.197 shows, which asks the proxy for an https URL instead of a tunnel.
const unencrypted = "Registration: Access denied (403): wayleave proxies https only"

// shownOutcomes are what a screen can show of remote control.
var shownOutcomes = []*regexp.Regexp{
	regexp.MustCompile(`/remote-control is (active)|Connected · project`),
	regexp.MustCompile(`wayleave: the credential for claude lacks scopes this request needs \(user:sessions:claude_code\); an operator allows them with: wayleave grant connect claude`),
	regexp.MustCompile(`Session creation failed \(server \d+\)`),
	regexp.MustCompile(`Remote Control failed · [^—]* — see debug log`),
	regexp.MustCompile(regexp.QuoteMeta(unencrypted)),
	regexp.MustCompile(`/remote-control needs [^.]*\. [^.]*\.`),
	regexp.MustCompile(`Unknown command: /remote-control`),
	regexp.MustCompile(`You must be logged in to use Remote Control\.`),
	regexp.MustCompile(`Unable to determine your organization[^.]*\.`),
}

// outcome waits for what comes of remote control.
func (s *screen) outcome() (string, error) {
	var said string
	err := s.wait(func(shown string) bool {
		for _, o := range shownOutcomes {
			if said = o.FindString(shown); said != "" {
				return true
			}
		}
		return false
	})
	if shownOutcomes[0].MatchString(said) {
		said = "active"
	}
	return said, err
}

// remoteControl starts Claude Code as a worker and has it start remote control in one of the ways.
func (g *gate) remoteControl(t *testing.T, worker, way string) (*screen, error) {
	t.Helper()
	command, arg, _ := strings.Cut(way, " ")
	s := onScreen(t, g.claude(t, worker, strings.Fields(arg)...))
	if err := s.waitFor("The demo API received: "); err != nil || command == "claude" {
		return s, err
	}
	return s, s.enter("❯", "/remote-control")
}

// enter types a command after the prompt.
func (s *screen) enter(prompt, command string) error {
	if err := s.waitFor(prompt); err != nil {
		return err
	}
	if err := s.typed(command); err != nil {
		return err
	}
	if err := s.waitFor(prompt + " " + command); err != nil {
		return err
	}
	return s.typed("\r")
}

// Claude Code's remote control in each mode, with the real client and the real gate. The API demands the scope on the bearer that the gate
// puts in, and has bearers of its own, which the gate leaves alone. docs/remote-control.md says what each version does.
func TestRemoteControl(t *testing.T) {
	parallel(t)
	out, err := exec.Command(agent(t, "claude"), "--version").Output()
	version, _, _ := strings.Cut(string(out), " ")
	if err != nil {
		t.Fatal(err)
	}
	made := makeWorld(t)
	api := newClaudeAPI(t, made)
	g := startIn(t, made, claudeModes)
	connect := func() {
		t.Helper()
		if out, err := g.command("wayleave", "grant", "connect", "claude").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	page := readTable(t, "../docs/remote-control.md", "TestRemoteControl")
	defer page.write(t)
	record := func(mode string, row map[string]string) { page.record(t, version+", "+mode, row, nil) }

	// The grant lacks the scope: who starts a worker is told, whoever tries reads what to do, and when an operator has done it, the worker that
	// runs needs nothing but another try.
	made.Provider.AllowScopes("user:inference", "user:profile")
	connect()
	row := map[string]string{}
	for _, way := range []string{remoteControls[0], remoteControls[2]} {
		s, err := g.remoteControl(t, "oauth_env", way)
		if err != nil {
			t.Fatal(err)
		}
		if row[way], err = s.outcome(); err != nil {
			t.Fatal(err)
		}
		if err := s.contains("mode oauth_env works fully only with scopes the grant does not hold (user:sessions:claude_code): ask an operator to reconnect it"); err != nil {
			t.Error(err)
		}
		if err := g.waitOutput("reason=scope_missing worker=oauth_env"); err != nil {
			t.Error(err)
		}
		if way != remoteControls[0] {
			made.Provider.AllowScopes()
			connect()
		}
		if strings.HasPrefix(row[way], "wayleave: the credential for claude lacks scopes") {
			if err := errors.Join(s.typed("\r"), s.waitFor("Connected · project")); err != nil {
				t.Error(err)
			}
		}
		s.end()
	}
	record("oauth_env, a grant without the scope", row)

	modes := []string{"auth_token", "oauth_env", "login_file"}
	said := make([][3]string, len(modes))
	var wg errgroup.Group
	wg.SetLimit(3)
	for i, mode := range modes {
		for j, way := range remoteControls {
			wg.Go(func() error {
				s, err := g.remoteControl(t, mode, way)
				silent := mode == "auth_token" && way == remoteControls[1]
				if err == nil && silent {
					err = s.enter("❯", "/remote-control")
				}
				if err == nil {
					said[i][j], err = s.outcome()
				}
				if silent {
					said[i][j] = "stays off without a word"
				}
				if err == nil && said[i][j] == "active" {
					err = eventually(func() error { return api.controlled(way) })
				}
				if err != nil {
					t.Errorf("%s, %s: %v", mode, way, err)
				}
				s.end()
				return nil
			})
		}
	}
	_ = wg.Wait()
	for i, mode := range modes {
		row := map[string]string{}
		for j, way := range remoteControls {
			row[way] = said[i][j]
			allowed := said[i][j] == "active" || said[i][j] == unencrypted // which the client's mode did not keep from trying
			if allowed == (mode == "auth_token") {
				t.Errorf("%s, %s: %s", mode, way, said[i][j])
			}
		}
		record(mode, row)
	}

	if api.sawText(placeholderMarker) {
		t.Error("a placeholder arrived")
	}
}

// Remote control goes on when the real token behind its placeholder is replaced, as it is every few hours: the next bearer of the session is asked for
// with the new one.
func TestRemoteControlGoesOn(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	api := newClaudeAPI(t, made)
	api.shortBridges.Store(true)
	g := startIn(t, made, claudeModes, "claude")
	s, err := g.remoteControl(t, "oauth_env", remoteControls[0])
	if err != nil {
		t.Fatal(err)
	}
	defer s.end()
	if said, err := s.outcome(); err != nil || said != "active" {
		t.Fatalf("%s, %v", said, err)
	}
	if err := eventually(func() error { return api.controlled(remoteControls[0]) }); err != nil {
		t.Fatal(err)
	}
	made.Provider.ExpireAccess()
	if out, err := g.command("wayleave", "grant", "refresh", "claude").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := api.bridges()
	if err := eventually(func() error { // the client asks every half minute
		if n := api.bridges(); n <= before {
			return fmt.Errorf("%d times a bearer was given, none of them with the new token", n)
		}
		return nil
	}); err != nil {
		t.Errorf("%v\n%s", err, s)
	}
}

// A home that has never seen Claude Code: its first look around is answered, and its questions lead to the prompt.
func TestClaudeCodeBeginsAnew(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	api := newClaudeAPI(t, made)
	g := startIn(t, made, claudeModes, "claude")
	for _, mode := range []string{"auth_token", "oauth_env", "login_file"} {
		home := g.newHome(t)
		c := g.command("wayleave", "run", "--worker", mode, "--", agent(t, "claude"))
		c.Dir = filepath.Join(home, "project")
		c.Env = append(c.Env, "HOME="+home, "DISABLE_AUTOUPDATER=1")
		s := onScreen(t, c)
		var seen string
		if err := s.wait(func(shown string) bool {
			for _, seen = range []string{"Choose the text style", "I trust this folder", "Unable to connect"} {
				if strings.Contains(shown, seen) {
					return true
				}
			}
			return false
		}); err != nil || seen == "Unable to connect" {
			t.Errorf("%s: %v\n%s", mode, err, s)
		}
		s.end()
	}
	if api.accepted("/api/hello", "") {
		t.Error("the first look reached the provider")
	}
}
