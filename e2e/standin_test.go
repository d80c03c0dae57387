package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

const twoProfiles = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: [login.demo.test/token, api.demo.test/token],
    answers: [{host: api.demo.test, path: /nothing, status: 204}, {host: api.demo.test, path: /unchanged, status: 304}, {host: api.demo.test, path: /there, method: HEAD, json: '{"a": 1}'}]}
grants:
  claude: {provider: anthropic}
routes:
  - {hosts: [api.demo.test], grant: claude, connect_to: "$API"}
profiles:
  answered: {grants: [claude], token_endpoint: placeholder}
  refused: {grants: [claude]}
workers:
  a: {profile: answered}
  r: {profile: refused}
`

// A client that refreshes by itself gets its placeholder again, or is refused, as its profile says. Its provider hears
// nothing of it, and the placeholder goes on working.
func TestClientsOwnRefresh(t *testing.T) {
	t.Parallel()
	g := start(t, twoProfiles, "claude")
	before := g.Provider.Stats().TokenCalls
	answered, refused := g.enrol(t, "a", "ANTHROPIC_AUTH_TOKEN"), g.enrol(t, "r", "ANTHROPIC_AUTH_TOKEN")
	for _, http2 := range []bool{false, true} {
		for _, url := range []string{"https://login.demo.test/token", "https://api.demo.test/token"} {
			body := `{"grant_type":"refresh_token","refresh_token":"` + answered.placeholder + `","client_id":"x"}`
			req := answered.request(http.MethodPost, url, strings.NewReader(body))
			req.Header.Del("Authorization")
			req.Header.Set("Content-Type", "application/json")
			a, err := do(answered.client(t, http2), req)
			if err != nil || a.status != http.StatusOK {
				t.Fatal(url, a, err)
			}
			var token struct {
				Access  string `json:"access_token"`
				Refresh string `json:"refresh_token"`
				Type    string `json:"token_type"`
				Expires int    `json:"expires_in"`
				Scope   string `json:"scope"`
			}
			if err := json.Unmarshal([]byte(a.body), &token); err != nil {
				t.Fatal(err)
			}
			if token.Access != answered.placeholder || token.Refresh != answered.placeholder || token.Type != "Bearer" || token.Expires < 3600 || !strings.Contains(token.Scope, "user:inference") {
				t.Errorf("%s: got %s", url, a.body)
			}
			if a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: headers %v", url, a.header)
			}
		}
	}
	// An answer without a body has none, or it would be taken for the next answer.
	conn, err := g.inside(t, answered, "api.demo.test", "api.demo.test")
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/nothing", 204}, {"GET", "/unchanged", 304}, {"HEAD", "/there", 200}, {"GET", "/public", 200}} {
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: api.demo.test\r\n\r\n", c.method, c.path)
		resp, err := http.ReadResponse(in, &http.Request{Method: c.method})
		if err != nil || resp.StatusCode != c.status {
			t.Fatalf("%s: %v, %v", c.path, resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	if _, err := arrived(answered.client(t, true), answered); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"https://login.demo.test/", "https://login.demo.test/token/"} {
		if a, err := do(answered.client(t, true), answered.request(http.MethodPost, url, nil)); err != nil || a.status != http.StatusServiceUnavailable || a.reason != "token_endpoint" {
			t.Errorf("%s: %v, %v", url, a, err)
		}
	}
	if a, err := do(refused.client(t, true), refused.request(http.MethodPost, "https://api.demo.test/token", nil)); err != nil || a.reason != "token_endpoint" {
		t.Errorf("refused: %v, %v", a, err)
	}
	if _, err := do(refused.client(t, true), refused.request(http.MethodPost, "https://login.demo.test/token", nil)); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("refused, at a host of its own: %v", err)
	}
	if n := g.Provider.Stats().TokenCalls - before; n != 0 {
		t.Errorf("the provider got %d token calls", n)
	}
}
