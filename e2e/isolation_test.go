package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
)

// Two teams share the gate and the host, each with an account of its own.
const twoTeams = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants:
  blue: {provider: anthropic}
  red: {provider: anthropic}
routes:
  - {name: blue, hosts: [api.demo.test], grant: blue, connect_to: "$API"}
  - {name: red, hosts: [api.demo.test], grant: red, connect_to: "$API"}
profiles:
  blue: {grants: [blue]}
  red: {grants: [red]}
workers:
  b: {profile: blue}
  r: {profile: red}
`

// No request ever carries another worker's credential, however the connections between the two halves of Envoy are
// pooled. Identity crosses that hop as filter state, and the documented way of doing so mixes workers up under
// concurrency while every test with one worker passes: hence sixteen connections each, and reuse.
func TestNoWorkerGetsAnothersCredential(t *testing.T) {
	t.Parallel()
	const connections, requests = 16, 60
	g := start(t, twoTeams, "blue", "red")

	// What each credential looks like at the API.
	credential := map[string]string{}
	for _, name := range []string{"b", "r"} {
		w := g.enrol(t, name, "ANTHROPIC_AUTH_TOKEN")
		var err error
		if credential[name], err = arrived(w.client(t, true), w); err != nil {
			t.Fatalf("%s's first request: %v", name, err)
		}
	}
	if credential["b"] == credential["r"] {
		t.Fatal("both workers have one credential: the test would see nothing")
	}

	var wg sync.WaitGroup
	failures := make(chan error, 2*connections)
	for _, name := range []string{"b", "r"} {
		w := g.enrol(t, name, "ANTHROPIC_AUTH_TOKEN")
		for i := range connections {
			client := w.client(t, i%2 == 0)
			wg.Go(func() {
				for range requests {
					got, err := arrived(client, w)
					if err == nil && got != credential[name] {
						err = errors.New("another credential arrived")
					}
					if err != nil {
						failures <- fmt.Errorf("worker %s: %w", name, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
}

// arrived makes a request and returns the hash of the credential with which it reached the API.
func arrived(c *http.Client, w worker) (string, error) {
	a, err := do(c, w.request(http.MethodGet, "https://api.demo.test/echo", nil))
	if err != nil {
		return "", err
	}
	var echo struct {
		SHA256 string `json:"authorization_sha256"`
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("refused: %v", a)
	}
	if err := json.Unmarshal([]byte(a.body), &echo); err != nil || echo.SHA256 == "" {
		return "", fmt.Errorf("no credential arrived: %v", a)
	}
	return echo.SHA256, nil
}
