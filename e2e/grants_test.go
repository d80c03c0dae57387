package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave/demo"
	"wayleave/grant"
)

// kind is one way in which a token endpoint answers a refresh. Each has a grant, a provider and a host of its own, named
// after it, at one gate; the provider's token_params tell the stand-in which it is.
type kind struct {
	name string
	json bool // the body sent is JSON
	// fail answers in place of the stand-in the first time, or always; edit changes, or loses, the first answer.
	fail   func(w http.ResponseWriter, params map[string]string)
	always bool
	edit   func(answer map[string]any)

	state  grant.State   // that the grant comes to
	says   string        // in the list's error or next step
	calls  int           // for a refresh there were exactly so many, or
	atMost int           // so many
	status int           // that a worker gets then, and
	reason string        // x-wayleave-reason
	lives  time.Duration // after the refresh, about; 0: for the hour that the stand-in says
}

func set(name string, value any) func(map[string]any) {
	return func(answer map[string]any) { answer[name] = value }
}

func without(name string) func(map[string]any) {
	return func(answer map[string]any) { delete(answer, name) }
}

// answers is a fixed answer, with the secrets that came with the call quoted in it.
func answers(status int, contentType, body string, header ...string) func(http.ResponseWriter, map[string]string) {
	return func(w http.ResponseWriter, params map[string]string) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		fmt.Fprint(w, strings.ReplaceAll(body, "{refresh_token}", params["refresh_token"]))
	}
}

const (
	asJSON = "application/json"
	asHTML = "text/html"
)

func kinds(elsewhere string) []kind {
	const ok = http.StatusOK
	return []kind{
		{name: "form", state: grant.Healthy, calls: 1, status: ok},
		{name: "json", json: true, state: grant.Healthy, calls: 1, status: ok},

		// What an answer may leave out.
		{name: "no-refresh-token", edit: without("refresh_token"), state: grant.Healthy, calls: 1, status: ok},
		{name: "empty-refresh-token", edit: set("refresh_token", ""), state: grant.Healthy, calls: 1, status: ok},
		{name: "no-scope", edit: without("scope"), state: grant.Healthy, calls: 1, status: ok},
		{name: "empty-scope", edit: set("scope", ""), state: grant.Healthy, calls: 1, status: ok},

		// How long a token lives.
		{name: "no-life", edit: without("expires_in"), state: grant.Healthy, calls: 1, status: ok, lives: 2 * time.Hour},
		{name: "life-in-text", edit: set("expires_in", "3600"), state: grant.Healthy, calls: 1, status: ok},
		{name: "life-with-fraction", edit: set("expires_in", 3600.5), state: grant.Healthy, calls: 1, status: ok},
		{name: "life-of-nothing", edit: set("expires_in", 0), state: grant.Healthy, atMost: 2, status: ok, lives: time.Minute},
		{name: "life-below-nothing", edit: set("expires_in", -1), state: grant.Healthy, atMost: 2, status: ok, lives: time.Minute},
		{name: "life-for-ever", edit: set("expires_in", 1e12), state: grant.Healthy, calls: 1, status: ok, lives: 365 * 24 * time.Hour},

		// Failures that say nothing about the grant: nothing is lost, and the next try mends it.
		{name: "unavailable", fail: answers(503, asHTML, "down {refresh_token}"), state: grant.Healthy, calls: 2, status: ok},
		{name: "page-about-invalid-grant", fail: answers(502, asHTML, "<html>invalid_grant {refresh_token}</html>"), state: grant.Healthy, calls: 2, status: ok},
		{name: "page-in-place-of-token", fail: answers(200, asHTML, `<html>{"error":"invalid_grant"} {refresh_token}</html>`), state: grant.Healthy, calls: 2, status: ok},
		{name: "server-error-with-code", fail: answers(500, asJSON, `{"error":"invalid_grant","error_description":"{refresh_token}"}`), state: grant.Healthy, calls: 2, status: ok},
		{name: "rate-limit", fail: answers(429, asJSON, `{"error":"slow_down","error_description":"{refresh_token}"}`, "Retry-After", "2"), state: grant.Healthy, calls: 2, status: ok},
		{name: "bad-access-token", edit: set("access_token", demo.AccessPrefix+"0123456789abcdef\r\nx-evil: 1"), state: grant.Healthy, calls: 2, status: ok},
		{name: "empty-access-token", edit: set("access_token", ""), state: grant.Healthy, calls: 2, status: ok},

		// Failures that last.
		{name: "rate-limit-for-long", fail: answers(429, asJSON, `{}`, "Retry-After", "600"), always: true,
			state: grant.RefreshUnavailable, says: "429", calls: 1, status: 503, reason: "refresh_unavailable"},
		{name: "redirect", fail: answers(307, asHTML, "", "Location", elsewhere), always: true,
			state: grant.RefreshUnavailable, says: "set token_url to the final address", atMost: 12, status: 503, reason: "refresh_unavailable"},
		{name: "error-with-200", fail: answers(200, asJSON, `{"error":"bad_refresh_token","error_description":"{refresh_token}"}`), always: true,
			state: grant.NeedsReconnect, says: "wayleave grant connect error-with-200", calls: 1, status: 403, reason: "needs_reconnect"},
		{name: "invalid-grant", fail: answers(400, asJSON, `{"error":"invalid_grant","error_description":"{refresh_token}"}`), always: true,
			state: grant.NeedsReconnect, says: "wayleave grant connect invalid-grant", calls: 1, status: 403, reason: "needs_reconnect"},

		// The answer is lost: before the token was spent, which one more try mends, and after, which nothing can.
		{name: "reset", fail: func(http.ResponseWriter, map[string]string) { panic(http.ErrAbortHandler) }, state: grant.Healthy, calls: 2, status: ok},
		{name: "answer-lost", edit: func(map[string]any) { panic(http.ErrAbortHandler) },
			state: grant.NeedsReconnect, says: "an earlier refresh got no answer", calls: 2, status: 403, reason: "needs_reconnect"},
	}
}

// Every way in which a token endpoint may answer a refresh leaves the grant in the state that is true, with no more calls
// than that takes, and workers with a token or with the reason. What the answers quote of our secrets goes nowhere.
func TestRefreshAnswers(t *testing.T) {
	t.Parallel()
	var strayed atomic.Int64 // bytes, at a server that redirects point to
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { strayed.Add(1 + max(r.ContentLength, 0)) }))
	defer elsewhere.Close()
	all := kinds(elsewhere.URL)
	byName := map[string]kind{}
	for _, k := range all {
		byName[k.name] = k
	}

	w := makeWorld(t)
	var mu sync.Mutex
	calls := map[string]int{} // refreshes, by kind
	w.Provider.FailCalls(func(rw http.ResponseWriter, params map[string]string) bool {
		if params["grant_type"] != "refresh_token" {
			return false
		}
		k := byName[params["kind"]]
		mu.Lock()
		calls[k.name]++
		n := calls[k.name]
		mu.Unlock()
		if k.fail == nil || n > 1 && !k.always {
			return false
		}
		k.fail(rw, params)
		return true
	})
	w.Provider.EditAnswers(func(params map[string]string, answer map[string]any) {
		if params["grant_type"] != "refresh_token" {
			answer["expires_in"] = 2 // so that the first refresh comes soon
			return
		}
		k := byName[params["kind"]]
		mu.Lock()
		n := calls[k.name]
		mu.Unlock()
		if n == 1 && k.edit != nil {
			k.edit(answer)
		}
	})
	g := startIn(t, w, configOf(all))

	connectAll(t, g, all)
	var summaries map[string]grant.Summary
	if err := eventually(func() (err error) {
		summaries, err = w.listed()
		for _, k := range all {
			s := summaries[k.name]
			if s.State != k.state || k.state == grant.Healthy && s.Generation == 0 {
				err = errors.Join(err, fmt.Errorf("%s is %s (%s), want %s", k.name, s.State, s.LastError, k.state))
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	asked := w.ask(t, all)
	for _, k := range all {
		t.Run(k.name, func(t *testing.T) {
			mu.Lock()
			n := calls[k.name]
			mu.Unlock()
			if most := max(k.calls, k.atMost); n < k.calls || n > most {
				t.Errorf("%d calls, want %d to %d", n, k.calls, most)
			}
			s := summaries[k.name]
			if text := s.LastError + "; " + s.Next; !strings.Contains(text, k.says) {
				t.Errorf("the list says %q, and not %q", text, k.says)
			}
			if k.state == grant.Healthy && s.Generation == 1 { // later answers, to a token of a minute where the machine is slow, are not edited
				lives := cmp.Or(k.lives, time.Hour)
				if got := s.Expires.Sub(s.UpdatedAt); got < lives || got > lives+10*time.Second {
					t.Errorf("the token is taken to live for %v, want %v", got, lives)
				}
			}
			if want := strings.TrimSpace(fmt.Sprint(k.status, " ", k.reason)); asked[k.name] != want {
				t.Errorf("a worker got %q, want %q", asked[k.name], want)
			}
		})
	}
	if n := strayed.Load(); n != 0 {
		t.Errorf("%d bytes arrived where a redirect pointed", n)
	}
	for _, text := range []string{"x-evil", "0123456789abcdef"} {
		if w.API.Saw(text) {
			t.Errorf("%q arrived at the API", text)
		}
	}
	if s := w.Provider.Stats(); s.Reuses != 1 { // by the one answer that was lost
		t.Errorf("%d refresh tokens were presented after they were spent", s.Reuses)
	}
}

// ask makes one request per kind, from inside one worker, and returns the status and reason of each answer.
func (w *world) ask(t *testing.T, all []kind) map[string]string {
	t.Helper()
	var script strings.Builder
	for _, k := range all {
		fmt.Fprintf(&script, "curl -sS -o body.%[1]s -D headers.%[1]s -H \"Authorization: Bearer $%[2]s\" https://%[3]s/echo\n", k.name, k.variable(), k.host())
	}
	if out, err := w.command("wayleave", "run", "--", "sh", "-c", script.String()).CombinedOutput(); err != nil {
		t.Fatalf("asking: %v\n%s", err, out)
	}
	asked := map[string]string{}
	for _, k := range all {
		b, err := os.ReadFile(w.saved("headers." + k.name))
		if err != nil {
			t.Fatal(err)
		}
		// Of the answers that curl wrote down, that of the proxy comes first.
		head := string(b[bytes.LastIndex(bytes.TrimSpace(b), []byte("HTTP/")):])
		asked[k.name] = strings.Fields(head)[1]
		for line := range strings.Lines(head) {
			if v, ok := strings.CutPrefix(strings.ToLower(line), "x-wayleave-reason:"); ok {
				asked[k.name] += " " + strings.TrimSpace(v)
			}
		}
	}
	return asked
}

// configOf has a provider, a grant and a route for each kind.
func configOf(all []kind) string {
	var providers, grants, routes, names strings.Builder
	for _, k := range all {
		format := "form"
		if k.json {
			format = "json"
		}
		fmt.Fprintf(&providers, "  %s: {preset: oauth2, authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, allow_insecure: true, token_format: %s, default_ttl: 2h, scopes: [a, b], env: {%s: \"{placeholder}\"}, token_params: {kind: %s}, error_codes: {bad_refresh_token: invalid_grant}}\n", k.name, format, k.variable(), k.name)
		fmt.Fprintf(&grants, "  %s: {provider: %s}\n", k.name, k.name)
		fmt.Fprintf(&routes, "  - {hosts: [%s], grant: %s, connect_to: \"$API\"}\n", k.host(), k.name)
		fmt.Fprintf(&names, "%s, ", k.name)
	}
	return fmt.Sprintf("listen: {proxy: $PROXY}\nupstream: {ca_files: [api-ca.pem]}\nproviders:\n%sgrants:\n%sroutes:\n%sprofiles:\n  default: {grants: [%s]}\nworkers:\n  w: {profile: default}\n",
		&providers, &grants, &routes, &names)
}

func (k kind) variable() string {
	return "TOKEN_" + strings.ToUpper(strings.ReplaceAll(k.name, "-", "_"))
}

func (k kind) host() string { return k.name + ".wild.demo.test" }

func connectAll(t *testing.T, g *gate, all []kind) {
	t.Helper()
	var wg sync.WaitGroup
	turn := make(chan struct{}, 4)
	for _, k := range all {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if out, err := g.command("wayleave", "grant", "connect", k.name).CombinedOutput(); err != nil {
				t.Errorf("connecting %s: %v\n%s", k.name, err, out)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// listed is what `wayleave grant list` says, by name.
func (w *world) listed() (map[string]grant.Summary, error) {
	c := w.command("wayleave", "grant", "list", "--json")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("listing: %w: %s", err, stderr.String())
	}
	if err := os.WriteFile(w.saved("list.json"), out, 0o600); err != nil { // for the leak check
		return nil, err
	}
	var all []grant.Summary
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, err
	}
	byName := map[string]grant.Summary{}
	for _, s := range all {
		byName[s.Name] = s
	}
	return byName, nil
}

const sessionsNeedMore = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic, scopes: [user:inference, user:sessions:claude_code]}
routes:
  - hosts: [api.demo.test]
    grant: claude
    connect_to: "$API"
    paths: [{prefix: /v1/code/, required_scopes: [user:sessions:claude_code]}]
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
`

// What the operator, and later the provider, allow is what the grant serves; the rest is refused with the reason, and
// nothing is asked of the token endpoint for it.
func TestConsent(t *testing.T) {
	t.Parallel()
	g := start(t, sessionsNeedMore)
	connect := func() (string, error) {
		out, err := g.command("wayleave", "grant", "connect", "claude").CombinedOutput()
		return string(out), err
	}
	// wants checks what a worker gets for a path that any token opens, and for one that needs the scope.
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	client := w.client(t, true)
	wants := func(when, any, scoped string) {
		t.Helper()
		for path, want := range map[string]string{"/echo": any, "/v1/code/sessions": scoped} {
			got, err := do(client, w.request(http.MethodPost, "https://api.demo.test"+path, nil))
			if is := strings.TrimSpace(fmt.Sprint(got.status, " ", got.reason)); err != nil || is != want {
				t.Errorf("%s: %s got %v, %v; want %s", when, path, got, err, want)
			}
			if strings.HasSuffix(want, "scope_missing") && !strings.Contains(got.body, "user:sessions:claude_code") {
				t.Errorf("%s: the refusal does not name the scope: %v", when, got)
			}
		}
	}

	g.Provider.SetDenied(true)
	if out, err := connect(); err == nil || !strings.Contains(out, "access_denied") {
		t.Errorf("denied, and the command says %v:\n%s", err, out)
	}
	wants("after a denial", "400 never_connected", "400 never_connected")
	g.Provider.SetDenied(false)

	g.Provider.AllowScopes(demo.ScopeInference)
	if out, err := connect(); err != nil || !strings.Contains(out, "scope_missing") || !strings.Contains(out, "user:sessions:claude_code") {
		t.Errorf("fewer scopes than asked for, and the command says %v:\n%s", err, out)
	}
	wants("with fewer scopes", "200", "400 scope_missing")

	g.Provider.AllowScopes()
	g.Provider.SetAccessTTL(3 * time.Second)
	if out, err := connect(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wants("with all scopes", "200", "200")

	// The provider narrows. That the refresh after this one works too proves that the rotated token was kept.
	g.Provider.AllowScopes(demo.ScopeInference)
	before := g.Provider.Stats()
	if err := eventually(func() error {
		if n := g.Provider.Stats().Refreshes - before.Refreshes; n < 2 {
			return fmt.Errorf("%d refreshes", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	g.Provider.SetAccessTTL(time.Hour)
	if err := eventually(func() error {
		s, err := g.listed()
		if c := s["claude"]; err == nil && (c.State != grant.ScopeMissing || time.Until(c.Expires) < time.Minute) {
			err = fmt.Errorf("listed: %+v", c)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	refreshes := g.Provider.Stats().Refreshes
	wants("after the provider narrowed", "200", "400 scope_missing")
	s := g.Provider.Stats()
	if s.Refreshes != refreshes || s.TokenCalls != s.Exchanges+s.Refreshes || s.Reuses != 0 {
		t.Errorf("%+v, want one call for each refresh, and none for what is refused", s)
	}

	g.Provider.AllowScopes()
	if out, err := connect(); err != nil || !strings.Contains(out, "healthy") {
		t.Errorf("reconnected: %v\n%s", err, out)
	}
	wants("reconnected", "200", "200")
}
