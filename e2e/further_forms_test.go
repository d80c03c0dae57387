package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const furtherForms = `
listen: {proxy: $PROXY}
upstream: {ca_files: [api-ca.pem]}
providers:
  google: {authorize_url: $PROVIDER/authorize, client_id: $CLIENT_ID, auth_style: none, redirect_url: "", token_url: $PROVIDER/token, revoke_url: "", allow_insecure: true}
grants:
  hub: {provider: github-token}
  packages: {provider: npm}
  index: {provider: pip}
  google: {provider: google, scopes: [openid]}
routes:
  - {hosts: [github.com], grant: hub, connect_to: "$GIT"}
  - {hosts: [api.github.com], grant: hub, connect_to: "$HUB"}
  - {hosts: [npm.demo.test], grant: packages, connect_to: "$NPM"}
  - {hosts: [pip.demo.test], grant: index, connect_to: "$PIP"}
  - {hosts: ["*.googleapis.com"], grant: google, connect_to: "$GOOGLE"}
profiles:
  default: {grants: [hub, packages, index, google], modes: {hub: git}}
workers:
  w: {profile: default}
`

// importValue gives a static grant its value.
func (g *gate) importValue(t *testing.T, name, value string) {
	t.Helper()
	c := g.command("wayleave", "grant", "import", name)
	c.Stdin = strings.NewReader(value + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("importing %s: %v\n%s", name, err, out)
	}
}

// git, gh, npm, pip and Google's library, each in the way of its preset: the program is run as people run it, and nothing but 'wayleave run' tells it of a credential.
func TestFurtherForms(t *testing.T) {
	made := makeWorld(t)
	repository := http.FileServer(http.Dir(makeRepository(t)))
	mux := http.NewServeMux()
	mux.Handle("github.com/", repository)
	say := func(pattern, kind, text string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			fmt.Fprint(w, text)
		})
	}
	say("api.github.com/user", "application/json", `{"login":"robot"}`)
	say("npm.demo.test/acme", "application/json", `{"name":"acme","dist-tags":{"latest":"1.2.3"},"versions":{"1.2.3":{"name":"acme","version":"1.2.3","dist":{"tarball":"https://npm.demo.test/acme.tgz","shasum":"x"}}}}`)
	say("pip.demo.test/simple/acme/", "text/html", `<a href="acme-1.2.3-py3-none-any.whl">acme-1.2.3-py3-none-any.whl</a>`)
	say("storage.googleapis.com/b", "application/json", `{"kind":"storage#buckets"}`)
	var accepted sync.Map // host and scheme of requests
	serve := func(w http.ResponseWriter, r *http.Request) {
		authorization := r.Header.Get("Authorization")
		if !made.accepts(strings.Replace(authorization, "token ", "Bearer ", 1)) {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "no real token", http.StatusUnauthorized)
			return
		}
		scheme, _, _ := strings.Cut(authorization, " ")
		accepted.Store(r.Host+" "+scheme, true)
		mux.ServeHTTP(w, r)
	}
	var upstreams []*upstream
	for name, host := range map[string]string{"GIT": "github.com", "HUB": "api.github.com", "NPM": "npm.demo.test", "PIP": "pip.demo.test", "GOOGLE": "*.googleapis.com"} {
		up := newUpstream(t, made.CA, host, serve)
		upstreams = append(upstreams, up)
		made.env = append(made.env, name+"="+up.address)
	}
	g := startIn(t, made, furtherForms, "google")
	for _, name := range []string{"hub", "packages", "index"} {
		token, _ := made.Provider.Issue("openid")
		g.importValue(t, name, token)
	}
	script, err := filepath.Abs("testdata/clients/adc.py")
	if err != nil {
		t.Fatal(err)
	}
	home := g.newHome(t)
	for _, p := range []struct {
		command      []string
		says, scheme string // as it arrives
		host         string
	}{
		{[]string{"git", "ls-remote", "https://github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"npm", "view", "acme", "version"}, "1.2.3", "Bearer", "npm.demo.test"},
		{[]string{python, "-m", "pip", "index", "versions", "acme"}, "acme (1.2.3)", "Basic", "pip.demo.test"},
		{[]string{python, script, "https://storage.googleapis.com/b"}, "storage#buckets", "Bearer", "storage.googleapis.com"},
		{[]string{"gh", "api", "user", "--jq", ".login"}, "robot", "token", "api.github.com"},
	} {
		c := g.command("wayleave", append([]string{"run", "--worker", "w", "--"}, p.command...)...)
		c.Dir = home
		c.Env = append(c.Env, "HOME="+home)
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), p.says) {
			t.Errorf("%s: %v\n%s", p.command, err, out)
		}
		if _, ok := accepted.Load(p.host + " " + p.scheme); !ok {
			t.Errorf("%s: no request of it was accepted with %s", p.command[0], p.scheme)
		}
	}
	for _, up := range upstreams {
		if up.sawText(placeholderMarker) {
			t.Error("a placeholder arrived")
		}
	}
}
