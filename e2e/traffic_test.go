package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const oneTeam = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
profiles:
  default: {grants: [claude]}
workers:
  w: {profile: default}
`

// A token that expires while fifty connections use it, at a provider slower than the token's whole life: every request
// waits for the one refresh, and none fails.
func TestExpiryUnderLoad(t *testing.T) {
	t.Parallel()
	const connections = 50
	g := start(t, oneTeam)
	g.Provider.SetAccessTTL(2 * time.Second)
	if out, err := g.command("wayleave", "grant", "connect", "claude").CombinedOutput(); err != nil {
		t.Fatalf("connecting: %v\n%s", err, out)
	}
	g.Provider.SetAccessTTL(time.Hour)
	g.Provider.SetLatency(3*time.Second, 0)
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	var wg sync.WaitGroup
	var after atomic.Int64 // requests that began after the refresh
	failures := make(chan error, connections)
	for i := range connections {
		client := w.client(t, i%2 == 0)
		wg.Go(func() {
			for mine := 0; mine < 3; <-time.After(loadPause) {
				refreshed := g.Provider.Stats().Refreshes > 0
				if _, err := arrived(client, w); err != nil {
					failures <- err
					return
				}
				if refreshed {
					mine++
					after.Add(1)
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if s := g.Provider.Stats(); s.Refreshes != 1 || s.MaxPresented() != 1 || s.Reuses != 0 {
		t.Errorf("the token endpoint was asked %d times for a refresh and saw one refresh token %d times; want once each", s.Refreshes, s.MaxPresented())
	}
	if after.Load() < connections {
		t.Errorf("only %d requests came after the refresh", after.Load())
	}
}

const placeholderMarker = "wlplaceholder"

// Everything that is not the exact placeholder in its exact place is passed untouched or refused, as documented, and a
// placeholder never arrives anywhere.
func TestWhatIsNotSwapped(t *testing.T) {
	t.Parallel()
	g := start(t, twoTeams, "blue", "red")
	b, r := g.enrol(t, "b", "ANTHROPIC_AUTH_TOKEN"), g.enrol(t, "r", "ANTHROPIC_AUTH_TOKEN")
	again := g.enrol(t, "b", "ANTHROPIC_AUTH_TOKEN") // the same worker, another session

	with := func(name string, values ...string) func(*http.Request) {
		return func(req *http.Request) {
			req.Header.Del("Authorization")
			req.Header[name] = values
		}
	}
	for _, c := range []struct {
		name   string
		url    string
		change func(*http.Request)
		status int
		reason string // empty: forwarded, and the API's own answer
	}{
		{"the placeholder", "https://api.demo.test/echo", nil, 200, ""},
		{"another bearer", "https://api.demo.test/public", with("Authorization", "Bearer other-jwt"), 200, ""},
		{"no header", "https://api.demo.test/public", with("X-Nothing", "x"), 200, ""},
		{"one character more", "https://api.demo.test/echo", with("Authorization", "Bearer "+b.placeholder+"a"), 400, "not_your_placeholder"},
		{"one character less", "https://api.demo.test/echo", with("Authorization", "Bearer "+b.placeholder[:len(b.placeholder)-1]), 400, "not_your_placeholder"},
		{"another worker's", "https://api.demo.test/echo", with("Authorization", "Bearer "+r.placeholder), 400, "not_your_placeholder"},
		{"another session's", "https://api.demo.test/echo", with("Authorization", "Bearer "+again.placeholder), 400, "not_your_placeholder"},
		{"in another header", "https://api.demo.test/echo", with("X-Note", b.placeholder), 400, "misplaced_placeholder"},
		{"in the query", "https://api.demo.test/echo?k=" + b.placeholder, with("X-Nothing", "x"), 400, "misplaced_placeholder"},
		{"twice", "https://api.demo.test/echo", with("Authorization", "Bearer "+b.placeholder, "Bearer evil"), 400, "duplicate_credential"},
		{"another Host", "https://api.demo.test/echo", func(req *http.Request) { req.Host = "other.demo.test" }, 421, "misdirected"},
		{"TRACE", "https://api.demo.test/echo", func(req *http.Request) { req.Method = http.MethodTrace }, 400, "policy_denied"},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/http2=%v", c.name, http2), func(t *testing.T) {
				req := b.request(http.MethodGet, c.url, nil)
				if c.change != nil {
					c.change(req)
				}
				a, err := do(b.client(t, http2), req)
				if err != nil {
					t.Fatal(err)
				}
				if a.status != c.status || a.reason != c.reason {
					t.Errorf("got %v; want %d %s", a, c.status, c.reason)
				}
				if c.reason != "" && !strings.Contains(a.body, `"message"`) {
					t.Errorf("the refusal is not in the provider's shape: %v", a)
				}
			})
		}
	}
	if g.API.Saw(placeholderMarker) {
		t.Error("a placeholder reached the API")
	}
	if !g.API.Saw("other-jwt") {
		t.Error("the other bearer did not arrive untouched")
	}

	// Hosts that nobody listed, and workers that nobody knows, get no further than CONNECT.
	if _, err := do(b.client(t, true), b.request(http.MethodGet, "https://unknown.example/", nil)); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("an unknown host: %v; want 403 at CONNECT", err)
	}
	stranger := b
	u := *b.proxy
	u.User = r.proxy.User
	if pass, ok := u.User.Password(); !ok || pass == "" {
		t.Fatal("no password in the proxy's URL")
	}
	u.User = nil
	stranger.proxy = &u
	if _, err := do(stranger.client(t, true), stranger.request(http.MethodGet, "https://api.demo.test/echo", nil)); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("a stranger: %v; want 407 at CONNECT", err)
	}
}
