package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave/vault/vaulttest"
)

// enrolWith is what a worker gets that presents itself by these variables, or what it is told.
func (g *gate) enrolWith(t *testing.T, variables ...string) (w worker, said string, ok bool) {
	t.Helper()
	c := g.command("wayleave", "run", "--keep-session", "--", "sh", "-c", sayEnvironment)
	c.Env = append(c.Env, variables...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return w, stderr.String(), false
	}
	return workerFrom(t, string(out), "ANTHROPIC_AUTH_TOKEN"), stderr.String(), true
}

// works sends one request and sees that its placeholder is swapped.
func (w worker) works(t *testing.T) {
	t.Helper()
	a, err := do(w.client(t, true), w.request(http.MethodGet, "https://api.demo.test/echo", nil))
	if err != nil || a.status != http.StatusOK || !strings.Contains(a.body, "authorization_sha256") {
		t.Errorf("a request through the gate: %v %v", a, err)
	}
}

// Workers that have no token of the gate's are let in by what their platforms say, and refused with the reason.
func TestEnrolmentByIssuers(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	ci, cluster := vaulttest.NewIssuer(t), vaulttest.NewKubernetes(t)
	for name, content := range map[string]string{"cluster.pem": cluster.CA, "own.token": "of-the-gate"} {
		if err := os.WriteFile(made.saved(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	audience := "http://" + made.proxy
	g := startIn(t, made, fmt.Sprintf(`
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants: {claude: {provider: anthropic}}
routes: [{hosts: [api.demo.test], grant: claude, connect_to: "$API"}]
profiles:
  default:
    grants: [claude]
    rules: [{name: proved, when: 'subject in ["repo:acme/app", "system:serviceaccount:fleet:agent"]', allow: true}]
    default: deny
issuers:
  ci: {issuer: "https://ci.demo.test", audience: %[1]q, jwks_url: %[2]q}
  cluster: {issuer: "https://kubernetes.default.svc.cluster.local", audience: %[1]q, method: token_review, api: %[3]q, ca_file: cluster.pem, token_file: own.token}
workers:
  app: {profile: default, from: {issuer: ci, claims: {repository: acme/app}}}
  agent: {profile: default, from: {issuer: cluster, subject: "system:serviceaccount:fleet:agent"}}
`, audience, ci.URL, cluster.URL), "claude")
	token := func(life time.Duration, changes map[string]any) string {
		claims := map[string]any{"iss": "https://ci.demo.test", "aud": audience, "sub": "repo:acme/app", "repository": "acme/app"}
		for k, v := range changes {
			claims[k] = v
		}
		return ci.Token(t, life, claims)
	}
	gate := "WAYLEAVE_GATE=" + audience

	t.Run("GitLab's variable", func(t *testing.T) {
		w, said, ok := g.enrolWith(t, gate, "WAYLEAVE_ID_TOKEN="+token(time.Hour, nil))
		if !ok {
			t.Fatal(said)
		}
		w.works(t)
		if w.env["WAYLEAVE_ID_TOKEN"] != "" {
			t.Error("the command can prove that it is the worker")
		}
	})
	t.Run("GitHub Actions", func(t *testing.T) {
		actions := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"value":%q}`, token(time.Hour, map[string]any{"aud": r.URL.Query().Get("audience")}))
		}))
		t.Cleanup(actions.Close)
		w, said, ok := g.enrolWith(t, gate, "ACTIONS_ID_TOKEN_REQUEST_URL="+actions.URL+"?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=of-the-job")
		if !ok {
			t.Fatal(said)
		}
		w.works(t)
		if w.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] != "" || !strings.Contains(said, "removed ACTIONS_ID_TOKEN_REQUEST_URL, ACTIONS_ID_TOKEN_REQUEST_TOKEN") {
			t.Errorf("the command can prove that it is the worker, or nobody was told: %s", said)
		}
	})
	t.Run("Kubernetes", func(t *testing.T) {
		file := made.saved("projected")
		for account, admitted := range map[string]bool{"agent": true, "other": false} {
			if err := os.WriteFile(file, []byte(cluster.ServiceAccount(t, account, audience, time.Hour)), 0o600); err != nil {
				t.Fatal(err)
			}
			w, said, ok := g.enrolWith(t, gate, "WAYLEAVE_TOKEN_FILE="+file)
			if ok != admitted {
				t.Fatalf("%s: %s", account, said)
			}
			if ok {
				w.works(t)
			} else if !strings.Contains(said, "system:serviceaccount:fleet:other") {
				t.Errorf("%q does not say who was refused", said)
			}
		}
	})
	for name, c := range map[string]struct{ token, says string }{
		"expired":        {token(-time.Hour, nil), "expired at"},
		"wrong audience": {token(time.Hour, map[string]any{"aud": "https://elsewhere.example"}), audience},
		"forged":         {vaulttest.NewIssuer(t).Token(t, time.Hour, map[string]any{"iss": "https://ci.demo.test", "aud": audience, "sub": "repo:acme/app", "repository": "acme/app"}), "not signed by the issuer"},
		"unknown issuer": {token(time.Hour, map[string]any{"iss": "https://elsewhere.example"}), "add it to issuers"},
		"not admitted":   {token(time.Hour, map[string]any{"repository": "acme/other"}), "add one to workers"},
	} {
		t.Run(name, func(t *testing.T) {
			_, said, ok := g.enrolWith(t, gate, "WAYLEAVE_TOKEN="+c.token)
			if ok || !strings.Contains(said, c.says) || strings.Count(said, "\n") != 1 {
				t.Errorf("let in: %v; said: %s", ok, said)
			}
		})
	}
	t.Run("the issuers are down", func(t *testing.T) {
		ci.Down.Store(true)
		cluster.Down.Store(true)
		w, said, ok := g.enrolWith(t, gate, "WAYLEAVE_TOKEN="+token(time.Hour, nil))
		if !ok {
			t.Fatal(said)
		}
		w.works(t)
		_, said, ok = g.enrolWith(t, gate, "WAYLEAVE_TOKEN="+cluster.ServiceAccount(t, "agent", audience, time.Hour))
		if ok || !strings.Contains(said, "cannot be asked at the moment") {
			t.Errorf("let in: %v; said: %s", ok, said)
		}
	})
}

// A worker enrols with its X.509-SVID through Envoy, which verifies it, and goes on with its session alone.
func TestEnrolmentByCertificate(t *testing.T) {
	t.Parallel()
	made := makeWorld(t)
	authority, stranger := vaulttest.NewAuthority(t, "workers"), vaulttest.NewAuthority(t, "strangers")
	const id = "spiffe://demo.test/ns/builds/sa/agent"
	files := map[string]string{
		"bundle.pem": authority.PEM(), "agent.pem": authority.SVID(t, time.Hour, id), "other.pem": authority.SVID(t, time.Hour, "spiffe://demo.test/ns/other/sa/agent"),
		"expired.pem": authority.SVID(t, -time.Hour, id), "stranger.pem": stranger.SVID(t, time.Hour, id), "plain.pem": authority.Client(t, "agent", time.Hour),
	}
	for name, content := range files {
		if err := os.WriteFile(made.saved(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := startIn(t, made, `
listen: {proxy: $PROXY, proxy_tls: $PROXY_TLS, tls_names: [localhost], client_ca_file: bundle.pem}
upstream: {ca_files: [api-ca.pem]}
providers:
  anthropic: {authorize_url: $PROVIDER/authorize, token_url: $PROVIDER/token, client_id: $CLIENT_ID, redirect_url: "", allow_insecure: true, refused_hosts: []}
grants: {claude: {provider: anthropic}}
routes: [{hosts: [api.demo.test], grant: claude, connect_to: "$API"}]
profiles: {default: {grants: [claude], rules: [{name: proved, when: subject == "`+id+`", allow: true}], default: deny}}
workers:
  agent: {profile: default, spiffe_id: "`+id+`"}
`, "claude")
	overTLS := []string{"WAYLEAVE_GATE=https://localhost:" + made.getenv("PROXY_TLS_PORT"), "WAYLEAVE_GATE_CA=" + made.getenv("WAYLEAVE_STATE") + "/ca.pem"}
	with := func(file string) []string {
		return append([]string{"WAYLEAVE_CERT=" + made.saved(file), "WAYLEAVE_KEY=" + made.saved(file)}, overTLS...)
	}
	w, said, ok := g.enrolWith(t, with("agent.pem")...)
	if !ok {
		t.Fatal(said)
	}
	w.works(t)
	for file, says := range map[string]string{
		"other.pem": "add one to workers", "expired.pem": "does not take this worker's certificate", "stranger.pem": "does not take this worker's certificate", "plain.pem": "has 0 URIs",
	} {
		t.Run(file, func(t *testing.T) {
			if _, said, ok := g.enrolWith(t, with(file)...); ok || !strings.Contains(said, says) {
				t.Errorf("let in: %v; said: %s", ok, said)
			}
		})
	}
	t.Run("in the clear", func(t *testing.T) {
		variables := append(with("agent.pem"), "WAYLEAVE_GATE=http://"+made.proxy)
		if _, said, ok := g.enrolWith(t, variables...); ok || !strings.Contains(said, "over TLS only") {
			t.Errorf("let in: %v; said: %s", ok, said)
		}
	})
	t.Run("a forged header", func(t *testing.T) {
		_, cert, _ := strings.Cut(files["agent.pem"], "-----END PRIVATE KEY-----\n")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+made.proxy+"/.wayleave/v1/sessions", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-Client-Cert", `Hash=aa;Cert="`+url.PathEscape(cert)+`"`)
		a, err := do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}, req)
		if err != nil || a.status != http.StatusUnauthorized || !strings.Contains(a.body, "unknown_worker") {
			t.Errorf("%v %v", a, err)
		}
	})
}
