package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/config"
	"wayleave/envoy/envoytest"
	"wayleave/oauth"
	"wayleave/worker"
)

// configured is a configuration of these lines.
func configured(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("wayleave.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// says are findings as lines.
func says(findings []finding) string {
	var b strings.Builder
	for _, f := range findings {
		if f.Status != "ok" && f.Fix == "" {
			fmt.Fprintf(&b, "no fix: ")
		}
		fmt.Fprintf(&b, "%s %s: %s\n", f.Status, f.What, f.Detail)
	}
	return b.String()
}

func TestExamineNames(t *testing.T) {
	cfg := configured(t, `
upstream: {allow_private: [10.9.0.0/16]}
providers: {acme: {preset: oauth2, authorize_url: "https://login.example/a", token_url: "https://login.example/t", client_id: x, env: {A: "{placeholder}"}}}
grants: {acme: {provider: acme, scopes: [read]}}
routes:
  - {hosts: [api.example, "*.wild.example", "ported.example:8443"], grant: acme}
  - {hosts: [moved.example], grant: acme, connect_to: "inner.example:443"}
tunnel: [gone.example, inside.example, allowed.example]
profiles: {p: {grants: [acme]}}
workers: {w: {profile: p}}
`)
	want := map[string]bool{"api.example": true, "ported.example": true, "inner.example": false, "login.example": false, "gone.example": true, "inside.example": true, "allowed.example": true}
	if diff := cmp.Diff(want, names(cfg)); diff != "" {
		t.Error(diff)
	}
	answers := map[string]string{"gone.example": "", "inside.example": "10.0.0.1", "allowed.example": "10.9.0.1", "inner.example": "192.168.0.1"}
	a := around{lookup: func(_ context.Context, _ *config.Config, host string) ([]netip.Addr, error) {
		answer, special := answers[host]
		switch {
		case special && answer == "":
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		case special:
			return []netip.Addr{netip.MustParseAddr(answer)}, nil
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
	}}
	if diff := cmp.Diff("warn dns: gone.example has no address\nwarn dns: inside.example has the private address 10.0.0.1, and requests for it are refused\n", says(examineNames(t.Context(), cfg, a))); diff != "" {
		t.Error(diff)
	}
	answers = nil
	if got := says(examineNames(t.Context(), cfg, a)); got != "ok dns: all 7 names of the configuration have an address\n" {
		t.Error(got)
	}
	a.lookup = func(context.Context, *config.Config, string) ([]netip.Addr, error) {
		return nil, errors.New("servers do not answer")
	}
	if got := examineNames(t.Context(), cfg, a); len(got) != 7 || !strings.Contains(got[0].Fix, "dns_resolvers") {
		t.Errorf("%+v", got)
	}
}

func TestExamineEndpoints(t *testing.T) {
	status, date := http.StatusMethodNotAllowed, time.Now()
	var sent http.Header
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = r.Header
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		w.WriteHeader(status)
	})
	plain, overTLS := httptest.NewServer(answer), httptest.NewUnstartedServer(answer)
	overTLS.Config.ErrorLog = log.New(io.Discard, "", 0)
	overTLS.StartTLS()
	defer plain.Close()
	defer overTLS.Close()
	of := func(address string) string {
		cfg := configured(t, `
providers: {acme: {preset: oauth2, authorize_url: "`+address+`/a", token_url: "`+address+`/t", client_id: x, allow_insecure: true, env: {A: "{placeholder}"}}}
grants: {acme: {provider: acme, scopes: [read]}}
routes: [{hosts: [api.example], grant: acme}]
profiles: {p: {grants: [acme]}}
workers: {w: {profile: p}}
`)
		u, _ := url.Parse(address)
		return strings.ReplaceAll(says(examineEndpoints(t.Context(), cfg, around{http: oauth.NewHTTPClient(nil), now: time.Now})), u.Host, "HOST")
	}
	if got := of(plain.URL); got != "ok token endpoint: HOST answers\n" || sent.Get("Authorization") != "" {
		t.Errorf("%s, sent %v", got, sent)
	}
	status, date = http.StatusBadGateway, date.Add(time.Hour)
	if got := of(plain.URL); !strings.HasPrefix(got, "warn token endpoint: HOST answers with status 502\nwarn clock: HOST's is ") {
		t.Error(got)
	}
	if got := of(overTLS.URL); !strings.Contains(got, "of an authority that this machine does not know") {
		t.Error(got)
	}
	plain.Close()
	if got := of(plain.URL); !strings.Contains(got, "refused") {
		t.Error(got)
	}
}

// What a shell holds is told by name, and so is what has become of a worker's environment.
func TestExamineEnvironment(t *testing.T) {
	cfg := configured(t, `
grants: {claude: {provider: anthropic}}
routes: [{hosts: [api.anthropic.com, "*.claude.ai"], grant: claude}]
profiles: {p: {grants: [claude]}}
workers: {w: {profile: p}}
`)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := worker.Enrolment{Gate: &url.URL{Scheme: "http", Host: "gate:3128"}, Session: worker.Session{ID: "s"}, Credentials: possibleCredentials(cfg)}
	workers, _ := worker.Environment(e, []string{"PATH=/bin"}, worker.Files{CA: file, Bundle: file, WgetRC: file, TrustStore: file, Credentials: map[string]string{}})
	workers = slices.Clip(workers) // what is appended for one case is no other's
	const settings, netrc = "home/me/.claude/settings.json", "home/me/.netrc"
	for name, c := range map[string]struct {
		environ []string
		want    []string // parts of the findings; none: it is well
		files   map[string]string
	}{
		"a shell":                {[]string{"PATH=/bin"}, nil, nil},
		"an empty variable":      {[]string{"ANTHROPIC_API_KEY="}, nil, nil},
		"a shell with a key":     {[]string{"ANTHROPIC_API_KEY=hush"}, []string{"warn environment: ANTHROPIC_API_KEY: programs would otherwise not use the placeholder for claude"}, nil},
		"a shell with a proxy":   {[]string{"HTTPS_PROXY=http://me:hush@proxy:1", "npm_config_proxy=http://hush"}, []string{"HTTPS_PROXY, npm_config_proxy: programs would go around the gate"}, nil},
		"a shell with a base":    {[]string{"ANTHROPIC_BASE_URL=https://hush.example"}, []string{"ANTHROPIC_BASE_URL"}, nil},
		"a worker":               {workers, nil, nil},
		"another proxy":          {append(workers, "https_proxy=http://hush"), []string{"https_proxy is not what HTTPS_PROXY is"}, nil},
		"no proxy":               {append(workers, "NO_PROXY=localhost, anthropic.com"), []string{"NO_PROXY has anthropic.com, so programs go around the gate for api.anthropic.com"}, nil},
		"no proxy for anything":  {append(workers, "no_proxy=*"), []string{"no_proxy has *, so"}, nil},
		"no Node.js":             {append(workers, "NODE_USE_ENV_PROXY=0"), []string{"NODE_USE_ENV_PROXY is not 1"}, nil},
		"no CA":                  {append(workers, "NODE_EXTRA_CA_CERTS="), []string{"NODE_EXTRA_CA_CERTS names no file"}, nil},
		"another CA":             {append(workers, "CURL_CA_BUNDLE="+os.DevNull), []string{"CURL_CA_BUNDLE names another file than SSL_CERT_FILE"}, nil},
		"no verification":        {append(workers, "NODE_TLS_REJECT_UNAUTHORIZED=0"), []string{"trusts whoever answers"}, nil},
		"a credential":           {append(workers, "ANTHROPIC_AUTH_TOKEN=hush"), []string{"ANTHROPIC_AUTH_TOKEN is not the placeholder for claude"}, nil},
		"a preferred credential": {append(workers, "ANTHROPIC_API_KEY=hush"), []string{"ANTHROPIC_API_KEY is set, and programs prefer it"}, nil},
		"a shell, with a key in Claude Code's settings": {[]string{"HOME=/home/me"}, []string{"warn environment: /home/me/.claude/settings.json has env.ANTHROPIC_API_KEY, which Claude Code prefers to the placeholder for claude"}, map[string]string{settings: `{"env":{"ANTHROPIC_API_KEY":"hush"}}`}},
		"a worker, with a helper there":                 {append(workers, "HOME=/home/me"), []string{"warn environment: /home/me/.claude/settings.json has apiKeyHelper"}, map[string]string{settings: `{"apiKeyHelper":"hush"}`}},
		"a shell, with a .netrc":                        {[]string{"HOME=/home/me"}, []string{"warn environment: /home/me/.netrc has an entry for api.anthropic.com"}, map[string]string{netrc: "machine api.anthropic.com password hush"}},
		"a worker, with a .netrc":                       {append(workers, "HOME=/home/me", "NETRC=/dev/null"), nil, map[string]string{netrc: "machine api.anthropic.com password hush"}},
	} {
		files := fstest.MapFS{}
		for path, text := range c.files {
			files[path] = &fstest.MapFile{Data: []byte(text)}
		}
		noGit := func([]string, ...string) ([]byte, error) { return nil, exec.ErrNotFound }
		got := says(examineEnvironment(cfg, around{environ: c.environ, machine: worker.Machine{Dir: "/", Files: files, Git: noGit}}))
		if strings.Contains(got, "hush") || strings.Contains(got, "no fix") || len(c.want) == 0 && (strings.Contains(got, "warn") || got == "") {
			t.Errorf("%s: %s", name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %s\nwant %q", name, got, want)
			}
		}
	}
}

func TestExempts(t *testing.T) {
	for _, c := range []struct{ noProxy, host, want string }{
		{"localhost,127.0.0.1,::1,0.0.0.0", "api.example.com", ""},
		{"*", "api.example.com", "*"},
		{"example.com", "api.example.com", "example.com"},
		{" .example.com ", "api.example.com", ".example.com"},
		{"*.example.com", "api.example.com", "*.example.com"},
		{"api.example.com", "api.example.com", "api.example.com"},
		{"ample.com", "api.example.com", ""},
		{"", "api.example.com", ""}, {",", "api.example.com", ""}, {".", "api.example.com", ""},
	} {
		if got := exempts(c.noProxy, c.host); got != c.want {
			t.Errorf("%q for %s: %q; want %q", c.noProxy, c.host, got, c.want)
		}
	}
}

// serveAdmin answers as Envoy's admin interface does.
func serveAdmin(t *testing.T, answers map[string]string) (socket string) {
	t.Helper()
	socket = filepath.Join(envoytest.Dir(t), adminSocket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answers[r.URL.Path]) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

func TestExamineProcess(t *testing.T) {
	answers := map[string]string{
		"/server_info": `{"version":"abc/1.40.0/Clean/RELEASE/BoringSSL","state":"LIVE","uptime_current_epoch":"65s"}`,
		"/stats":       "control_plane.connected_state: 1\n",
		"/listeners":   `{"listener_statuses":[{"local_address":{"socket_address":{"address":"127.0.0.1","port_value":3128}}}]}`,
		"/clusters":    `{}`,
	}
	socket := serveAdmin(t, answers)
	cfg := configured(t, "listen: {proxy: \"127.0.0.1:3128\"}\n")
	of := func(version string) string { return says(examineProcess(t.Context(), cfg, socket, version)) }
	if got := of("1.40.0"); got != "ok envoy process: 1.40.0, live for 1m5s, connected to the gate, listens on 127.0.0.1:3128\n" {
		t.Error(got)
	}
	if got := of("1.41.0"); !strings.Contains(got, "is 1.40.0, and 1.41.0 would be started now") {
		t.Error(got)
	}
	answers["/stats"] = "control_plane.connected_state: 0\nlistener_manager.lds.update_rejected: 2\n"
	answers["/listeners"] = `{}`
	answers["/server_info"] = strings.Replace(answers["/server_info"], "LIVE", "PRE_INITIALIZING", 1)
	answers["/clusters"] = `{"cluster_statuses":[{"name":"gate","host_statuses":[{"address":{"pipe":{"path":"/run/gate.a.sock"}},"health_status":{"failed_active_health_check":true}}]}]}`
	want := `fail envoy process: is connected to no gate, and goes on with what it has
warn envoy process: is pre initializing
fail envoy process: does not listen on 127.0.0.1:3128
warn envoy process: does not ask /run/gate.a.sock of gate: failed active health check
warn envoy process: has refused 2 updates of listener_manager.lds since its start
`
	if diff := cmp.Diff(want, of("1.40.0")); diff != "" {
		t.Error(diff)
	}
	answers["/clusters"] = "no"
	if got := of(""); !strings.HasPrefix(got, "warn envoy process: ") {
		t.Error(got)
	}
	if got := examineProcess(t.Context(), cfg, socket+".none", ""); got != nil {
		t.Errorf("where there is none: %v", got)
	}
}

func TestExamineMetrics(t *testing.T) {
	ready, figures := `{"ready":true,"reasons":[]}`, "wayleave_audit_dropped_total{sink=\"file\"} 0\n"
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			fmt.Fprint(w, figures)
			return
		}
		if !strings.Contains(ready, "true") {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, ready)
	}))
	defer gate.Close()
	cfg := configured(t, "metrics: {listen: \""+gate.Listener.Addr().String()+"\"}\n")
	of := func() string { return says(examineMetrics(t.Context(), cfg, true)) }
	if got := of(); !strings.HasPrefix(got, "ok gate health: ready") || strings.Contains(got, "warn") {
		t.Error(got)
	}
	ready = `{"ready":false,"reasons":[{"part":"vault","why":"does not answer"}]}`
	figures = "# HELP x\nwayleave_audit_dropped_total{sink=\"file\"} 2\nwayleave_audit_dropped_total{sink=\"webhook\"} 1\nwayleave_audit_lost_total{cause=\"killed\"} 4\n"
	if diff := cmp.Diff("warn gate health: not ready: vault does not answer\nwarn gate health: 3 records of the audit were dropped since its start\nwarn gate health: 4 decisions of gates that were killed are not in the audit\n", of()); diff != "" {
		t.Error(diff)
	}
	ready = "hello"
	if got := of(); !strings.Contains(got, "is another program's") {
		t.Error(got)
	}
	gate.Close()
	if got := of(); !strings.Contains(got, "nothing answers at") {
		t.Error(got)
	}
	if got := says(examineMetrics(t.Context(), cfg, false)); got != "" {
		t.Errorf("of a gate that does not run: %s", got)
	}
	if got := says(examineMetrics(t.Context(), configured(t, "tunnel: []\n"), true)); got != "" {
		t.Errorf("of one without figures: %s", got)
	}
}

func TestExamineAudit(t *testing.T) {
	cfg := configured(t, "listen: {replicas: [a, b]}\n")
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.jsonl")
	if err := os.WriteFile(filepath.Join(dir, "audit.a.jsonl"), make([]byte, 3000), 0o600); err != nil {
		t.Fatal(err)
	}
	got := says(examineAudit(cfg, file))
	if !strings.Contains(got, "audit.a.jsonl, 3 KB in all, written last at ") || !strings.Contains(got, "audit.b.jsonl, not there yet") || strings.Contains(got, "warn") {
		t.Error(got)
	}
	if got := says(examineAudit(cfg, filepath.Join(dir, "none", "audit.jsonl"))); strings.Count(got, "cannot be made here") != 2 {
		t.Error(got)
	}
	if got := says(examineAudit(cfg, "")); !strings.HasPrefix(got, "warn audit: none is kept") {
		t.Error(got)
	}
	if got := says([]finding{examineFile("audit", []string{filepath.Join(dir, "audit.a.jsonl")}, 1<<62)}); !strings.Contains(got, "its disk has") {
		t.Error(got)
	}
}

func TestListens(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if !listens(socket) {
		t.Error("nobody listens where somebody does")
	}
	_ = l.Close()
	if listens(socket) {
		t.Error("a file that was left behind listens")
	}
}
