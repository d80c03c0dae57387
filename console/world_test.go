package console

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/api"
	"wayleave/approval"
	"wayleave/audit"
	"wayleave/config"
	"wayleave/demo"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/logs"
	"wayleave/notify"
	"wayleave/oauth"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

// hush is in every secret that operators of these tests import.
const hush = "hush-4f9aX"

const worldConfig = `
providers:
  acme:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    revoke_url: $PROVIDER/revoke
    device_url: $PROVIDER/device
    client_id: $CLIENT
    allow_insecure: true
    env: {ACME_TOKEN: "{placeholder}"}
  pasted:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    redirect_url: $PROVIDER/code
    client_id: $CLIENT
    allow_insecure: true
  key:
    kind: static
    header: {in: x-key}
grants:
  acme: {provider: acme, scopes: [read, write], account: build@acme.example}
  pasted: {provider: pasted, scopes: [read]}
  key: {provider: key}
routes:
  - {hosts: [api.acme.example], grant: acme, required_scopes: [read]}
  - {hosts: [api.key.example], grant: key}
profiles:
  default: {grants: [acme, key]}
workers:
  ci: {profile: default}
tunnel: [pypi.org]
`

// world is a console with a gate, a provider and a store around it.
// auditRecords are what the audit of a world holds.
var auditRecords = []audit.Record{
	{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Kind: audit.Operator, Outcome: audit.Failed, Reason: "no <b>", Actor: "<script>maria</script>", Role: "operator", Via: "oidc", From: "192.0.2.9", Action: "grant.refresh", Target: "acme"},
	{Time: time.Date(2026, 1, 2, 3, 4, 4, 0, time.UTC), Kind: audit.Request, Outcome: audit.Swapped, Worker: "ci", Session: "s1", Grant: "acme", Host: "api.acme.example", Method: "GET", Path: "/v1/<i>", Request: "r-1", Source: "10.0.0.7", Status: 201, Received: 12, Sent: 345, DurationMS: 67.5, Fingerprint: "9f86d081884c7d65", Details: "via_<upstream>"},
	{Time: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC), Kind: audit.Gap, Dropped: 2, Cause: audit.Killed, Run: "<run>"},
}

type world struct {
	t        *testing.T
	demo     *demo.Demo
	docs     *vaulttest.Memory
	cfg      *config.Config
	console  *Server
	address  string // of the console
	stop     func() // the gate; the console's pages still answer
	sessions *worker.Sessions
	board    *approval.Board
	reports  []fleet.Report // of gates; not changed once the console runs
	alerts   []notify.Alert // beside those of what is in the world; likewise

	mu    sync.Mutex
	link  string
	audit []Event
	skew  time.Duration // the console's clock is ahead by this
	still time.Time     // the time is this, whatever the machine does meanwhile; zero: it goes on
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	d, err := demo.Start(demo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	w := &world{t: t, demo: d, docs: vaulttest.NewMemory()}
	text := strings.NewReplacer("$PROVIDER", d.ProviderURL, "$CLIENT", d.Provider.ClientID()).Replace(worldConfig)
	file := filepath.Join(t.TempDir(), "wayleave.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.cfg, err = config.Parse(file, []byte(text)); err != nil {
		t.Fatal(err)
	}
	w.reports = []fleet.Report{{Gate: "gate-1", At: time.Now(), Envoys: []fleet.Envoy{
		{ID: "envoy-1", Version: "1.40.0", Gate: "gate-1", Since: time.Now(), Revision: w.cfg.Hash(), Has: w.cfg.Hash(), Listening: true},
	}}}
	if _, err := w.docs.Put(t.Context(), "fleet/gates/gate-1", vault.Packed{Value: w.reports[0]}, 0); err != nil {
		t.Fatal(err)
	}
	specs := operate.Specs(w.cfg)
	keeper := grant.NewKeeper(w.docs, specs, grant.Options{Holder: "gate-1", Reread: 20 * time.Millisecond})
	if w.sessions, err = worker.OpenSessions(t.Context(), w.docs, worker.LedgerOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = keeper.Run(ctx) })
	running.Go(func() { w.sessions.Run(ctx) })
	w.board = approval.NewBoard(w.docs, approval.Options{Gate: "gate-1"})
	running.Go(func() { w.board.Run(ctx) })

	front := httptest.NewUnstartedServer(nil)
	w.address = "http://" + front.Listener.Addr().String()
	at, _ := url.Parse(w.address)
	c := Config{
		Desk: func() operate.Desk {
			return operate.Desk{Config: w.cfg, Specs: specs, Docs: w.docs, Now: time.Now, Every: 5 * time.Millisecond}
		},
		Source: func() []byte { return []byte(text) },
		Grants: keeper, Sessions: w.sessions, Decisions: NewDecisions(100), File: file, URL: at,
		Alias: func(host string) bool { return host == "localhost:"+at.Port() },
		Fleet: func() fleet.View {
			state, _, err := fleet.ReadState(context.Background(), w.docs)
			if err != nil || state.Stable == "" {
				state = rollout.State{Stable: w.cfg.Hash()}
			}
			return fleet.View{State: state, Reports: w.reports}
		},
		Needs: func() (all []notify.Alert) {
			var grants []grant.Summary
			add := func(a notify.Alert, wrong bool) {
				if wrong {
					all = append(all, a)
				}
			}
			at := func(path string) string { return path }
			for _, spec := range specs {
				g := keeper.Summary(spec.Name)
				grants = append(grants, g)
				add(notify.OfGrant(g, w.now(), at))
			}
			add(notify.OfVault(grants, at))
			for _, r := range w.reports {
				for _, e := range r.Envoys {
					add(notify.OfEnvoy(e.ID, e.Refused, r.Gate, at))
				}
			}
			for _, a := range w.board.Waiting() {
				add(notify.OfApproval(a, at), true)
			}
			return append(all, w.alerts...)
		},
		NewLink: func(l string) { w.mu.Lock(); defer w.mu.Unlock(); w.link = l },
		Idle:    30 * time.Minute, Life: 12 * time.Hour, Version: "v0",
		SearchAudit: func(_ context.Context, f audit.Filter, limit int) (audit.Found, error) {
			found := audit.Found{Records: []audit.Record{}}
			for _, r := range auditRecords {
				if f.Match(&r) && len(found.Records) < limit {
					found.Records = append(found.Records, r)
				}
			}
			return found, nil
		},
		Audit:  func(e Event) { w.mu.Lock(); defer w.mu.Unlock(); w.audit = append(w.audit, e) },
		Levels: logs.New(slog.LevelInfo, w.now), Now: w.now,
	}
	if change != nil {
		change(&c)
	}
	if w.console, err = New(c); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	running.Go(func() { defer close(gone); w.console.Run(ctx) })
	w.stop = func() { stop(); <-gone }
	front.Config.Handler = w.console
	front.Start()
	t.Cleanup(func() { stop(); running.Wait(); front.Close() })
	return w
}

// hold has a request wait for an operator until the test ends, and returns the id of its approval.
func (w *world) hold(r approval.Request) (id string) {
	before := len(w.board.Waiting())
	go w.board.Hold(w.t.Context(), r, time.Minute)
	eventually(w.t, "a request waits", func() bool { return len(w.board.Waiting()) > before })
	all := w.board.Waiting()
	slices.SortFunc(all, func(a, b approval.Approval) int { return a.Since.Compare(b.Since) })
	return all[len(all)-1].ID
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.still.IsZero() {
		return w.still
	}
	return time.Now().Add(w.skew)
}

// stopClock has the console's time stand still.
func (w *world) stopClock() {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.still = now
}

// later lets time pass, for the console.
func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.skew += d
}

// once is the token of the one-time link as it is now.
func (w *world) once() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, err := url.Parse(w.link)
	if err != nil {
		w.t.Fatal(err)
	}
	return u.Query().Get("token")
}

// events are what the audit was told, as action and outcome.
func (w *world) events() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, e := range w.audit {
		fmt.Fprintf(&b, "%s %s by %s via %s from %s: %v\n", e.Action, e.Target, e.Actor, e.Via, e.From, e.Err)
	}
	return b.String()
}

// browser is an operator's. It does not follow redirects.
type browser struct {
	*world
	http *http.Client
	csrf string // of the last page
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &browser{world: w, http: &http.Client{
		Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// answer is one.
type answer struct {
	status int
	body   string
	header http.Header
}

func (a answer) to() string { return a.header.Get("Location") }

var csrfField = regexp.MustCompile(`name="csrf" value="([A-Z0-9]+)"`)

func (b *browser) do(r *http.Request) answer {
	b.t.Helper()
	resp, err := b.http.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if m := csrfField.FindStringSubmatch(string(body)); m != nil {
		b.csrf = m[1]
	}
	if strings.Contains(string(body), demo.AccessPrefix) || strings.Contains(string(body), demo.RefreshPrefix) || strings.Contains(string(body), hush) {
		b.t.Errorf("%s %s: the answer has a real token in it", r.Method, r.URL.Path)
	}
	return answer{resp.StatusCode, string(body), resp.Header}
}

func (b *browser) request(method, path, body string) *http.Request {
	b.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = b.address + path
	}
	r, err := http.NewRequestWithContext(b.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if method != http.MethodGet {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return r
}

func (b *browser) get(path string) answer {
	b.t.Helper()
	return b.do(b.request(http.MethodGet, path, ""))
}

// post sends a form with the token of the last page.
func (b *browser) post(path string, fields ...string) answer {
	b.t.Helper()
	form := url.Values{"csrf": {b.csrf}}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return b.do(b.request(http.MethodPost, path, form.Encode()))
}

var leaving = regexp.MustCompile(`<meta http-equiv="refresh" content="0; url=([^"]+)">`)

// leaves is where the page leads to that answers a form, once the browser shows it.
func (b *browser) leaves(a answer) string {
	b.t.Helper()
	page := b.get(a.to())
	m := leaving.FindStringSubmatch(page.body)
	if m == nil {
		b.t.Fatalf("%s leads nowhere: %d %.2000s", a.to(), page.status, page.body)
	}
	to := html.UnescapeString(m[1])
	if !strings.Contains(html.UnescapeString(page.body), `href="`+to+`"`) {
		b.t.Errorf("%s has no link to %s for browsers that do not go by themselves", a.to(), to)
	}
	return to
}

// loggedIn is a browser that used the link.
func (w *world) loggedIn() *browser {
	w.t.Helper()
	b := w.browser()
	if a := b.post("/login", "token", w.once()); a.status != http.StatusSeeOther {
		w.t.Fatalf("log-in: %d %s", a.status, a.body)
	}
	b.get("/")
	return b
}

// as is a program with a token of the role.
func (w *world) as(role Role) *program {
	w.t.Helper()
	name := string(role) + "-script"
	_, text, err := w.console.tokens.create(w.t.Context(), actor{Name: "local operator", Role: Admin, Via: "link", id: byLink}, name, role, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return &program{w.browser(), text.Reveal()}
}

// program uses the API.
type program struct {
	*browser
	token string
}

func (p *program) call(method, path, body string, into any) int {
	p.t.Helper()
	r := p.request(method, api.Root+path, body)
	r.Header.Del("Sec-Fetch-Site")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+p.token)
	a := p.do(r)
	if into != nil {
		if err := json.Unmarshal([]byte(a.body), into); err != nil {
			p.t.Fatalf("%s %s: %v: %s", method, path, err, a.body)
		}
	}
	return a.status
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

// wants checks an answer's status and text.
func (b *browser) wants(what string, a answer, status int, texts ...string) {
	b.t.Helper()
	if a.status != status {
		b.t.Errorf("%s: %d, want %d: %.400s", what, a.status, status, a.body)
	}
	for _, text := range texts {
		if !strings.Contains(a.body, text) {
			b.t.Errorf("%s: no %q in:\n%.3000s", what, text, a.body)
		}
	}
}

// store connects a grant with tokens that the provider gave out.
func (w *world) store(name, access, refresh string, scopes []string) {
	w.t.Helper()
	t := oauth.Token{Access: secret.New(access), Refresh: secret.New(refresh), Scopes: scopes, Expiry: time.Now().Add(time.Hour)}
	if _, err := w.console.Desk().Connect(w.t.Context(), name, t); err != nil {
		w.t.Fatal(err)
	}
}

// startRequest asks to roll the world's configuration out, with something replaced in it.
func (w *world) startRequest(before, after string) string {
	w.t.Helper()
	text, err := os.ReadFile(w.console.File)
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := json.Marshal(api.StartRequest{Text: strings.Replace(string(text), before, after, 1), Note: "ticket 7"})
	if err != nil {
		w.t.Fatal(err)
	}
	return string(body)
}

// breakStore makes the store not answer any more.
func (w *world) breakStore() {
	w.docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
}

// rewrite changes the file of the configuration.
func (w *world) rewrite(before, after string) {
	w.t.Helper()
	text, err := os.ReadFile(w.console.File)
	if err == nil {
		err = os.WriteFile(w.console.File, []byte(strings.Replace(string(text), before, after, 1)), 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
