package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/api"
	"wayleave/config"
	"wayleave/console"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/operate"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
	"wayleave/worker"
)

const deskConfig = `
providers:
  acme:
    authorize_url: https://login.acme.example/authorize
    token_url: https://login.acme.example/token
    revoke_url: https://login.acme.example/revoke
    client_id: wayleave
  bare:
    authorize_url: https://login.bare.example/authorize
    token_url: https://login.bare.example/token
    client_id: wayleave
  robot:
    token_url: https://login.acme.example/token
    client_id: wayleave
    grant_type: client_credentials
    auth_style: private_key_jwt
    client_key_file: client.pem
grants:
  acme: {provider: acme, scopes: [read, write]}
  bare: {provider: bare, scopes: [read]}
  claude: {provider: anthropic}
  codex: {provider: openai-codex}
  key: {provider: anthropic-api}
  robot: {provider: robot, scopes: [read]}
`

// Secrets of these tests; none may be printed.
var deskSecret = regexp.MustCompile(`(?:at|rt|sk)-[a-z0-9-]*hush[a-z0-9-]*|wlop_\S*`)

// office is a store, what the configuration says, and a provider that gates talk to.
type office struct {
	t    *testing.T
	cfg  *config.Config
	docs *vaulttest.Memory
	out  bytes.Buffer
	err  bytes.Buffer

	reconfigured bool        // the configuration has no grants any more
	client       *api.Client // at a gate; nil: commands work at Vault
	at           string      // address of the gate's console

	mu       sync.Mutex
	scopes   []string // granted by the next answer; nil: unchanged
	fail     error    // of the next refresh
	failsRev error    // of the next revocation
	calls    int
	revoked  []string
}

func newOffice(t *testing.T) *office {
	t.Helper()
	cfg, err := config.Parse(filepath.Join(t.TempDir(), "wayleave.yaml"), []byte(deskConfig))
	if err != nil {
		t.Fatal(err)
	}
	o := &office{t: t, cfg: cfg, docs: vaulttest.NewMemory()}
	t.Cleanup(func() {
		if leak := deskSecret.FindString(o.out.String() + o.err.String()); leak != "" {
			t.Errorf("a secret was printed: %.9s…", leak)
		}
	})
	return o
}

// inEveryForm runs a test with commands that work at Vault, and with commands that work at a gate's console.
func inEveryForm(t *testing.T, test func(t *testing.T, o *office)) {
	t.Helper()
	t.Run("at Vault", func(t *testing.T) { test(t, newOffice(t)) })
	t.Run("at a gate", func(t *testing.T) {
		o := newOffice(t)
		o.useAPI()
		test(t, o)
	})
}

// everyForm is inEveryForm for tests that make offices of their own.
func everyForm(t *testing.T, test func(t *testing.T, newOffice func(*testing.T) *office)) {
	t.Helper()
	t.Run("at Vault", func(t *testing.T) { test(t, newOffice) })
	t.Run("at a gate", func(t *testing.T) {
		test(t, func(t *testing.T) *office {
			o := newOffice(t)
			o.useAPI()
			return o
		})
	})
}

// useAPI makes commands work at the console of a gate.
func (o *office) useAPI() {
	o.t.Helper()
	const token = "wlop_hush"
	all := map[string]any{}
	for text, role := range map[string]string{token: "admin", "wlop_viewer-hush": "viewer"} {
		sum := sha256.Sum256([]byte(text))
		all[role] = map[string]any{"name": role, "role": role, "sha256": hex.EncodeToString(sum[:]), "owner": "link", "by": "local operator", "expires": time.Now().Add(24 * time.Hour)}
	}
	doc := map[string]any{"tokens": all, "owners": map[string]any{"link": map[string]any{}}}
	if _, err := o.docs.Put(o.t.Context(), "operators/tokens", vault.Packed{Value: doc}, 0); err != nil {
		o.t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(nil)
	at := &url.URL{Scheme: "http", Host: front.Listener.Addr().String()}
	sessions, err := worker.OpenLedger(o.t.Context(), o.docs, worker.LedgerOptions{})
	if err != nil {
		o.t.Fatal(err)
	}
	// A console as the office is when the request comes; connects go on from one to the next.
	var consoles sync.Map
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served, ok := consoles.Load(o.reconfigured)
		if !ok {
			keeper := grant.NewKeeper(o.docs, operate.Specs(o.cfg), grant.Options{Holder: "console"})
			c, err := console.New(console.Config{Desk: o.vaultDesk, Grants: keeper, Sessions: sessions, URL: at, NewLink: func(string) {}, Idle: time.Hour, Life: time.Hour, Fleet: func() fleet.View {
				v, _ := fleet.Read(context.Background(), o.docs, time.Now())
				return v
			}})
			if err != nil {
				o.t.Error(err)
				return
			}
			served, _ = consoles.LoadOrStore(o.reconfigured, c)
		}
		served.(*console.Server).ServeHTTP(w, r)
	})
	front.Start()
	o.t.Cleanup(front.Close)
	client := api.New(at, secret.New(token), api.Options{Every: 5 * time.Millisecond, Warn: func(text string) { fmt.Fprintln(&o.err, "warning: "+text) }})
	o.t.Cleanup(client.Close)
	o.client, o.at = client, at.String()
}

// desk is an operator's, with nobody at the keyboard who types more than in.
func (o *office) desk(in string) operator {
	d := operator{operations: atVault{o.vaultDesk()}, stdio: o.stdio(in), now: time.Now}
	if o.client != nil {
		d.operations = atGate{o.client}
	}
	return d
}

func (o *office) stdio(in string) stdio {
	return stdio{in: strings.NewReader(in), out: &o.out, err: &o.err}
}

func (o *office) vaultDesk() operate.Desk {
	d := operate.Desk{Config: o.cfg, Specs: operate.Specs(o.cfg), Docs: o.docs, Now: time.Now, Every: 5 * time.Millisecond}
	if o.reconfigured {
		d.Specs = nil
	}
	return d
}

func (o *office) Refresh(_ context.Context, _ secret.Text, granted, requested []string) (oauth.Token, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	if o.fail != nil {
		return oauth.Token{}, o.fail
	}
	return oauth.Token{
		Access: secret.New(fmt.Sprintf("at-hush-%d", o.calls)), Refresh: secret.New(fmt.Sprintf("rt-hush-%d", o.calls)),
		Scopes: o.scopes, Expiry: time.Now().Add(time.Hour),
	}, nil
}

func (o *office) Revoke(_ context.Context, token secret.Text) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.revoked = append(o.revoked, token.Reveal())
	return o.failsRev
}

// gate runs a gate until the test ends.
func (o *office) gate() {
	specs := operate.Specs(o.cfg)
	for i := range specs {
		if specs[i].Kind != grant.Static {
			specs[i].OAuth = o
		}
	}
	o.keep(specs)
}

// realGate runs a gate that talks to the configuration's providers.
func (o *office) realGate() { o.keep(operate.Specs(o.cfg)) }

func (o *office) keep(specs []grant.Spec) {
	k := grant.NewKeeper(o.docs, specs, grant.Options{Holder: "gate-1", Reread: 20 * time.Millisecond})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	o.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			o.t.Error(err)
		}
	})
}

// connect stores a consent of these scopes.
func (o *office) connect(name string, scopes ...string) {
	o.t.Helper()
	spec, err := o.vaultDesk().Spec(name)
	if err != nil {
		o.t.Fatal(err)
	}
	token := oauth.Token{Access: secret.New("at-hush-0"), Refresh: secret.New("rt-hush-0"), Scopes: scopes, Expiry: time.Now().Add(time.Hour), Account: "operator@acme.example"}
	if _, err := grant.Connect(o.t.Context(), o.docs, spec, token, time.Now()); err != nil {
		o.t.Fatal(err)
	}
}

// breakStore makes the store not answer any more.
func (o *office) breakStore() {
	o.docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
}

// disconnect forgets a grant.
func (o *office) disconnect(name string) {
	o.t.Helper()
	if err := grant.Disconnect(o.t.Context(), o.docs, name); err != nil {
		o.t.Fatal(err)
	}
}

// state is what status/<name> says.
func (o *office) state(name string) grant.State {
	o.t.Helper()
	s, err := o.vaultDesk().Find(o.t.Context(), name)
	if err != nil {
		o.t.Fatal(err)
	}
	return s.State
}

// wants checks an error against an exit code and what was printed.
func (o *office) wants(err error, code int, says ...string) {
	o.t.Helper()
	got := codeOf(err)
	text := o.out.String() + o.err.String() + fmt.Sprint(err)
	if got != code {
		o.t.Errorf("exit code %d, want %d; %s", got, code, text)
	}
	for _, s := range says {
		if !strings.Contains(text, s) {
			o.t.Errorf("%q is not in:\n%s", s, text)
		}
	}
	o.out.Reset()
	o.err.Reset()
}

var clientFailure = &oauth.Error{Outcome: oauth.Refused, Status: 401, Code: "invalid_client"}

func TestShowAndList(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		ctx := t.Context()
		d := o.desk("")
		o.wants(d.showGrant(ctx, "acme", "", 0), 14, "never_connected", "wayleave grant connect acme")
		o.wants(d.showGrant(ctx, "key", "", 0), 14, "wayleave grant import key")
		o.wants(d.showGrant(ctx, "nobody", "", 0), exitUsage, `no grant "nobody"`, "acme")

		o.connect("acme", "read")
		o.wants(d.showGrant(ctx, "acme", "", 0), 10, "operator@acme.example", "scope_missing", "write: requested and not granted", "in 59m", "What happened last")
		o.wants(d.list(ctx, false), 0, "1 of 2", "missing: write: requested and not granted", "never_connected", "next: ")
		o.wants(d.list(ctx, true), 14)

		o.connect("acme", "read", "write")
		o.wants(d.showGrant(ctx, "acme", "", 0), 0, "healthy")
		o.wants(d.showGrant(ctx, "acme", grant.Healthy, time.Minute), 0, "healthy")
		o.wants(d.showGrant(ctx, "acme", grant.NeedsReconnect, 20*time.Millisecond), 1, "is healthy, and not needs_reconnect after 20ms")
		o.wants(d.showGrant(ctx, "bare", grant.Healthy, 20*time.Millisecond), 14, "is never_connected, and not healthy")
		o.wants(d.showGrant(ctx, "acme", "well", time.Minute), exitUsage, `no state "well"`, "healthy, refreshing")

		// A grant that the configuration has no more is shown as long as it is stored.
		o.wants(d.history(ctx, "acme"), 0, "connected", "an operator")
		o.reconfigured = true
		d = o.desk("")
		o.wants(d.showGrant(ctx, "acme", "", 0), 0, "not in the configuration")
		o.wants(d.list(ctx, false), 0, "not in the configuration")

		o.reconfigured = false
		d = o.desk("")
		d.json = true
		if err := d.list(ctx, false); err != nil {
			t.Fatal(err)
		}
		var all []grant.Summary
		if err := json.Unmarshal(o.out.Bytes(), &all); err != nil || len(all) != 6 || all[0].State != grant.Healthy || len(all[0].History) != 2 {
			t.Errorf("%v, %+v", err, all)
		}
		o.reconfigured = true
		d = o.desk("")
		d.json = true
		o.disconnect("acme")
		o.wants(d.list(ctx, true), 0, "[]")
		d.json = false
		o.wants(d.list(ctx, true), 0, "There are no grants")
		o.wants(d.showGrant(ctx, "acme", "", 0), exitUsage, "the configuration has none")
	})
}

// A state that is awaited is seen when it comes.
func TestShowWaits(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		done := make(chan error, 1)
		go func() { done <- o.desk("").showGrant(t.Context(), "robot", grant.Healthy, time.Minute) }()
		o.gate()
		o.wants(<-done, 0, "the gate gets its tokens by itself", "healthy")
	})
}

func TestRefresh(t *testing.T) {
	inEveryForm(t, func(t *testing.T, o *office) {
		ctx, d := t.Context(), o.desk("")
		o.wants(d.refresh(ctx, "key", true, time.Minute), exitRefused, "imported value", "wayleave grant import key")
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 14, "cannot be refreshed", "wayleave grant connect acme")
		o.wants(d.refresh(ctx, "robot", true, time.Minute), exitRefused, "no gate has asked")

		o.connect("acme")
		o.wants(d.refresh(ctx, "acme", true, 30*time.Millisecond), 1, "no gate has refreshed acme within 30ms", "wayleave doctor")
		o.wants(d.refresh(ctx, "acme", false, time.Minute), 0, "Asked for a refresh")

		o.gate()
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 0, "Waiting for a gate", "healthy", "refreshes")
		o.scopes = []string{"read"}
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 10, "write: granted once and withdrawn since")
		o.mu.Lock()
		o.fail = clientFailure
		o.mu.Unlock()
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 10, "was not refreshed", "invalid_client")
		o.wants(d.history(ctx, "acme"), 0, "connected", "refreshed", "gate-1", "no longer granted: write", "failed", "invalid_client: ")

		// What the provider calls invalid can be tried again.
		o.mu.Lock()
		o.fail = &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
		o.mu.Unlock()
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 13, "was not refreshed", "invalid_grant")
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 13, "was not refreshed", "invalid_grant")
		o.mu.Lock()
		o.fail, o.scopes = nil, []string{"read", "write"}
		o.mu.Unlock()
		o.wants(d.refresh(ctx, "acme", true, time.Minute), 0, "healthy")
		o.reconfigured = true
		o.wants(o.desk("").refresh(ctx, "acme", true, time.Minute), exitRefused, "not in the configuration any more")
	})
}

func TestDisconnect(t *testing.T) { everyForm(t, testDisconnect) }

func testDisconnect(t *testing.T, newOffice func(*testing.T) *office) {
	ctx := t.Context()
	t.Run("no gate", func(t *testing.T) {
		o := newOffice(t)
		o.connect("acme")
		o.wants(o.desk("").disconnect(ctx, "acme", true, true, time.Second), 0, "gone from Vault", "not revoked at the provider: no gate answered within 1s")
		if s := o.state("acme"); s != grant.NeverConnected {
			t.Error(s)
		}
	})
	t.Run("no endpoint", func(t *testing.T) {
		o := newOffice(t)
		o.connect("bare")
		o.wants(o.desk("").disconnect(ctx, "bare", true, true, time.Minute), 0, "revoke_url", "the provider's own page")
	})
	t.Run("not asked for", func(t *testing.T) {
		o := newOffice(t)
		o.connect("acme")
		o.wants(o.desk("").disconnect(ctx, "acme", true, false, time.Minute), 0, "--no-revoke")
	})
	t.Run("not there, and not refused", func(t *testing.T) {
		o := newOffice(t)
		o.wants(o.desk("").disconnect(ctx, "acme", true, true, time.Minute), 0, "there were none")
		o.wants(o.desk("").disconnect(ctx, "robot", true, true, time.Minute), 0, "there were none")
		o.wants(o.desk("").disconnect(ctx, "nobody", true, true, time.Minute), exitUsage, "no grant")
	})
	t.Run("a key", func(t *testing.T) {
		o := newOffice(t)
		o.wants(o.desk("sk-ant-api03-hush-1").importGrant(ctx, "key", "", false), 0, "healthy")
		o.wants(o.desk("").disconnect(ctx, "key", true, true, time.Minute), 0, "only who issued the key")
	})
	t.Run("a gate revokes", func(t *testing.T) {
		o := newOffice(t)
		o.connect("acme")
		o.gate()
		d := o.desk("")
		d.json = true
		if err := d.disconnect(ctx, "acme", true, true, time.Minute); err != nil {
			t.Fatal(err)
		}
		if want := `"revoked": true`; !strings.Contains(o.out.String(), want) {
			t.Errorf("no %s in %s", want, &o.out)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if got := strings.Join(o.revoked, " "); got != "rt-hush-0 at-hush-0" {
			t.Errorf("revoked %q", got)
		}
	})
	t.Run("the provider does not take it", func(t *testing.T) {
		o := newOffice(t)
		o.connect("acme")
		o.failsRev = &oauth.Error{Outcome: oauth.Refused, Status: 403, Code: "access_denied"}
		o.gate()
		o.wants(o.desk("").disconnect(ctx, "acme", true, true, time.Minute), 0, "gone from Vault", "They were not revoked at the provider:  (none): status 403, access_denied; end")
	})
}

func TestConfirm(t *testing.T) {
	o := newOffice(t)
	for line, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yesterday\n": false} {
		if got := o.desk(line).confirm(t.Context(), "Is it? "); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestConnectWithoutConsent(t *testing.T) { inEveryForm(t, testConnectWithoutConsent) }

func testConnectWithoutConsent(t *testing.T, o *office) {
	ctx, d := t.Context(), o.desk("")
	o.wants(d.connect(ctx, "key", connectOptions{timeout: time.Minute}), exitUsage, "wayleave grant import key")
	o.wants(d.connect(ctx, "nobody", connectOptions{timeout: time.Minute}), exitUsage, "no grant")
	o.wants(d.connect(ctx, "acme", connectOptions{}), exitUsage, "--timeout")
	o.wants(d.connect(ctx, "acme", connectOptions{device: true, timeout: time.Minute}), exitUsage, "device_url")
	o.wants(d.connect(ctx, "robot", connectOptions{}), 14, "the gate gets its tokens by itself")
	o.gate()
	o.wants(d.connect(ctx, "robot", connectOptions{wait: true}), 0, "healthy")
}

// A consent that is stored is taken over by a gate, which proves it.
func TestStoreWaits(t *testing.T) {
	o := newOffice(t)
	o.gate()
	token := oauth.Token{Access: secret.New("at-hush-0"), Refresh: secret.New("rt-hush-0"), Expiry: time.Now().Add(time.Hour)}
	store := func() error {
		got, err := o.vaultDesk().Connect(t.Context(), "acme", token)
		if err != nil {
			return err
		}
		return o.desk("").stored(t.Context(), got, true)
	}
	token.Account = "ops@acme.example"
	o.wants(store(), 0, "healthy", "refreshes")
	err := store()
	if strings.Contains(o.err.String(), "account") {
		t.Errorf("the same account is said to be another: %s", &o.err)
	}
	o.wants(err, 0, "healthy")
	token.Account = "eve@acme.example"
	o.wants(store(), 0, "its account was ops@acme.example before, and is eve@acme.example now")
	token.Refresh = secret.Text{}
	o.wants(store(), 0, "no refresh token")
}

// An import that waits for what a pipe brings can be interrupted, and changes nothing then.
func TestImportIsInterrupted(t *testing.T) {
	o := newOffice(t)
	in, hold := io.Pipe()
	defer hold.Close()
	d := o.desk("")
	d.in = in
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.importGrant(ctx, "key", "", false) }()
	if _, err := hold.Write([]byte("sk-ant-api03-hush")); err != nil { // by then it reads
		t.Fatal(err)
	}
	interrupt()
	o.wants(<-done, exitFailure, "nothing was changed")
	o.wants(o.desk("").showGrant(t.Context(), "key", "", 0), 14, "never_connected")
}

func TestImport(t *testing.T) { everyForm(t, testImport) }

func testImport(t *testing.T, newOffice func(*testing.T) *office) {
	ctx := t.Context()
	claude := fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"at-hush-1","refreshToken":"rt-hush-1","expiresAt":%d,"scopes":["user:inference","user:profile","user:sessions:claude_code"]}}`, time.Now().Add(time.Hour).UnixMilli())
	for _, tt := range []struct {
		name, grant, in string
		code            int
		says            []string
	}{
		{"a key", "key", "sk-ant-api03-hush-1\n", 0, []string{"healthy", "never", "a value that an operator imported"}},
		{"a key of another kind", "key", "at-hush-1", 0, []string{"usually begin with sk-ant-api03-", "healthy"}},
		{"a key of Windows", "key", "sk-ant-api03-hush-1\r\n", 0, []string{"healthy"}},
		{"an example", "key", "your-api-key", 1, []string{"an example", "nothing was changed"}},
		{"two lines", "key", "sk-hush-1\nsk-hush-2\n", 1, []string{"several lines"}},
		{"a placeholder", "key", "sk-" + worker.Marker + "-hush", 1, []string{"placeholder of ours"}},
		{"too much", "key", strings.Repeat("a", operate.MaxImport+1), 1, []string{"larger than any credential"}},
		{"a token response", "acme", `{"access_token":"at-hush-1","refresh_token":"rt-hush-1","expires_in":3600,"scope":"read write"}`, 0, []string{"only the gate may use this refresh token"}},
		{"a token alone", "acme", `{"access_token":"at-hush-1","expires_in":3600}`, 0, []string{"ends when its token does"}},
		{"a bare token", "acme", "at-hush-1", 1, []string{"not a JSON object"}},
		{"Claude Code's", "claude", claude, 0, []string{"healthy", "only the gate"}},
		{"Claude Code's elsewhere", "acme", claude, 1, []string{"Claude Code's log-in", "preset anthropic", "preset oauth2"}},
		{"a machine's", "robot", "x", exitUsage, []string{"by itself"}},
		{"nobody's", "nobody", "x", exitUsage, []string{"no grant"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOffice(t)
			err := o.desk(tt.in).importGrant(ctx, tt.grant, "", false)
			o.wants(err, tt.code, tt.says...)
		})
	}
	t.Run("a file", func(t *testing.T) {
		o := newOffice(t)
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte("sk-ant-api03-hush-1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o.wants(o.desk("not this").importGrant(ctx, "key", path, true), 0, "healthy", "nothing to wait for")
		o.wants(o.desk("not this").importGrant(ctx, "key", path+"2", false), 1, "no such file")
	})
	t.Run("a gate takes it over", func(t *testing.T) {
		o := newOffice(t)
		o.gate()
		o.wants(o.desk(`{"access_token":"at-hush-1","refresh_token":"rt-hush-1","scope":"read write"}`).importGrant(ctx, "acme", "", true), 0, "healthy", "in 59m")
	})
}
