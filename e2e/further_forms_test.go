package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
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
  - {hosts: [github.com], grant: hub, connect_to: "$GIT", foreign_bearer: refuse}
  - {hosts: [api.github.com], grant: hub, connect_to: "$HUB"}
  - {hosts: [npm.demo.test], grant: packages, connect_to: "$NPM"}
  - {hosts: [pip.demo.test], grant: index, connect_to: "$PIP"}
  - {hosts: ["*.googleapis.com"], grant: google, connect_to: "$GOOGLE"}
profiles:
  default: {grants: [hub, packages, index, google], modes: {hub: git}}
  federated: {grants: [google], modes: {google: external_account}}
workers:
  w: {profile: default}
  federated: {profile: federated}
`

// gitStory is a day's work with git, with more in it than git sends in one piece, over either version of HTTP.
const gitStory = `
git clone -q https://github.com/repo.git one
cd one
git config user.name a
git config user.email a@demo.test
for version in HTTP/2 HTTP/1.1; do
	head -c 5000000 /dev/urandom > large
	git add large
	git commit -qm "$version"
	git -c http.version=$version push -q origin HEAD:main
	rm -rf ../two
	git -c http.version=$version clone -q https://github.com/repo.git ../two
	cmp large ../two/large
done
git fetch -q
echo cloned, pushed and cloned`

// smartRepository serves repo.git as git's own server does, which takes pushes too.
func smartRepository(t *testing.T) http.Handler {
	t.Helper()
	dir := makeRepository(t)
	for _, command := range [][]string{{"config", "http.receivepack", "true"}, {"symbolic-ref", "HEAD", "refs/heads/main"}} {
		if out, err := exec.Command("git", append([]string{"-C", filepath.Join(dir, "repo.git")}, command...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	programs, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	server := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(programs)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=robot"},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.TransferEncoding = nil // which package cgi refuses; git reads to the end
		server.ServeHTTP(w, r)
	})
}

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
	t.Parallel()
	made := makeWorld(t)
	repository := smartRepository(t)
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
	say("cloudresourcemanager.googleapis.com/v1/projects/1", "application/json", `{"projectId":"p"}`)
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
	// What people have at home: a proxy of the network they are in, ssh for git, tokens in addresses.
	for name, text := range map[string]string{
		".gitconfig": "[http]\n\tproxy = http://127.0.0.1:9\n\tproxyAuthMethod = ntlm\n[url \"git@github.com:\"]\n\tinsteadOf = https://github.com/\n\tpushInsteadOf = https://github.com/\n" +
			"[url \"https://" + theirs + "@github.com/\"]\n\tinsteadOf = git@github.com:\n\tinsteadOf = ssh://git@github.com/\n",
		".npmrc":               "proxy=http://127.0.0.1:9\nhttps-proxy=http://127.0.0.1:9\nnoproxy=npm.demo.test\n",
		".config/pip/pip.conf": "[global]\nproxy = http://127.0.0.1:9\n",
	} {
		path := filepath.Join(home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	others := inherited(t, "github-token, git", "npm, file", "pip", "google, adc")
	odd := filepath.Join(home, "it's a place") // in which the files are that variables name
	if err := os.Mkdir(odd, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(worker string, command ...string) (string, error) {
		c := g.command("wayleave", append([]string{"run", "--worker", worker, "--"}, command...)...)
		c.Dir = home
		c.Env = append(append(c.Env, others...), "HOME="+home, "TMPDIR="+odd)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	// As actions/checkout leaves a repository: with the job's own token in a header for git.
	checkedOut := filepath.Join(home, "checked-out")
	if out, err := exec.Command("sh", "-ec", `git init -q "$0"; git -C "$0" config http.https://github.com/.extraheader "AUTHORIZATION: basic aW5oZXJpdGVkOmluaGVyaXRlZA=="`, checkedOut).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, p := range []struct {
		command      []string
		says, scheme string // as it arrives
		host         string
	}{
		{[]string{"env", "-u", "GIT_ASKPASS", "git", "ls-remote", "https://github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "-C", checkedOut, "ls-remote", "https://github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "ls-remote", "https://git@github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "ls-remote", "https://me@github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"}, // which git sends before it is asked
		{[]string{"git", "ls-remote", "git@github.com:repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "ls-remote", "ssh://git@github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "ls-remote", "ssh://git@ssh.github.com:443/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"git", "ls-remote", "git://github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		// A program that keeps git's variables from it, as pre-commit does, but for GIT_ASKPASS.
		{[]string{"env", "-u", "GIT_CONFIG_PARAMETERS", "-u", "GIT_CONFIG_SYSTEM", "HOME=/nowhere", "git", "ls-remote", "https://github.com/repo.git"}, "refs/heads/main", "Basic", "github.com"},
		// An agent that keeps keys and tokens from the commands that it runs.
		{[]string{"sh", "-ec", `unset GIT_CONFIG_COUNT $(env | sed -n 's/^\([A-Za-z_0-9]*\(KEY\|TOKEN\|SECRET\)[A-Za-z_0-9]*\)=.*/\1/p'); exec git ls-remote https://github.com/repo.git`}, "refs/heads/main", "Basic", "github.com"},
		{[]string{"sh", "-ec", gitStory}, "cloned, pushed and cloned", "Basic", "github.com"},
		{[]string{"npm", "view", "acme", "version"}, "1.2.3", "Bearer", "npm.demo.test"},
		{[]string{"sh", "-c", `NPM_CONFIG_USERCONFIG=$HOME/.npmrc exec npm view acme version --registry https://npm.demo.test/ "--//npm.demo.test/:_authToken=$(sed -n 's/.*_authToken=//p' "$NPM_CONFIG_USERCONFIG")"`}, "1.2.3", "Bearer", "npm.demo.test"},
		{[]string{python, "-m", "pip", "index", "versions", "acme"}, "acme (1.2.3)", "Basic", "pip.demo.test"},
		{[]string{python, script, "https://storage.googleapis.com/b"}, "storage#buckets", "Bearer", "storage.googleapis.com"},
		{[]string{"gh", "api", "user", "--jq", ".login"}, "robot", "token", "api.github.com"},
	} {
		accepted.Delete(p.host + " " + p.scheme)
		out, err := run("w", p.command...)
		if err != nil || !strings.Contains(out, p.says) {
			t.Errorf("%s: %v\n%s", p.command, err, out)
		}
		if _, ok := accepted.Load(p.host + " " + p.scheme); !ok {
			t.Errorf("%s: no request of it was accepted with %s", p.command, p.scheme)
		}
	}
	for _, user := range []string{"", "git@"} { // whom an address may name
		ask := "echo url=https://" + user + "github.com/repo.git | env -u GIT_CONFIG_PARAMETERS HOME=/nowhere git credential fill"
		if out, err := run("w", "sh", "-c", ask); err != nil || !strings.Contains(out, "password=ghp_") {
			t.Errorf("%s: %v\n%s", ask, err, out)
		}
	}
	if out, err := run("w", "git", "config", "acme.setting"); err != nil || !strings.Contains(out, "kept\n") {
		t.Errorf("git's settings that were there before: %v\n%s", err, out)
	}

	// Python's requests and aiohttp, and git, take an entry of ~/.netrc in place of what a program sets, but for what 'wayleave run' does about it.
	if err := os.WriteFile(filepath.Join(home, ".netrc"), []byte("machine api.github.com login me password "+theirs+"\nmachine github.com login me password "+theirs+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const requests = `import os, requests; print("status", requests.get("https://api.github.com/user", headers={"Authorization": "Bearer " + os.environ["GH_TOKEN"]}).status_code)`
	const aiohttp = `import aiohttp, asyncio, os
async def main():
    async with aiohttp.ClientSession(trust_env=True) as s, s.get("https://api.github.com/user", headers={"Authorization": "Bearer " + os.environ["GH_TOKEN"]}) as r:
        print("status", r.status)
asyncio.run(main())`
	for _, p := range []struct {
		command []string
		says    string
	}{
		{[]string{python, "-c", requests}, "status 200"},
		{[]string{python, "-c", aiohttp}, "status 200"},
		{[]string{"git", "ls-remote", "https://github.com/repo.git"}, "refs/heads/main"},
	} {
		out, err := run("w", p.command...)
		if err != nil || !strings.Contains(out, p.says) {
			t.Errorf("%s with a .netrc: %v\n%s", p.command, err, out)
		}
		for _, says := range []string{".netrc has an entry for api.github.com, which programs prefer to the placeholder for hub: NETRC is /dev/null", ".netrc has an entry for github.com, which git prefers"} {
			if !strings.Contains(out, says) {
				t.Errorf("it is not said that %s:\n%s", says, out)
			}
		}
	}
	for _, up := range upstreams {
		if up.sawText(theirs) || up.sawText("aW5oZXJpdGVk") {
			t.Error("what was at home arrived")
		}
	}
	// And they would.
	if err := os.WriteFile(filepath.Join(home, ".netrc"), []byte("machine api.github.com login me password my-own\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("w", "env", "-u", "NETRC", python, "-c", requests); err != nil || !strings.Contains(out, "status 401") {
		t.Errorf("requests with its .netrc: %v\n%s", err, out)
	}

	// Workload identity federation: by the gate's file, by one of the program's own, and by one that goes on to a service account.
	const subject = "the-subject-token-of-a-program"
	own := filepath.Join(home, "own.json")
	federate := func(more string) []string {
		file := `{"type":"external_account","audience":"//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p",
			"subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"https://sts.googleapis.com/v1/token",` + more + `
			"credential_source":{"file":"` + own + `","format":{"type":"json","subject_token_field_name":"subject"}},"subject":"` + subject + `"}`
		if err := os.WriteFile(own, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"env", "GOOGLE_APPLICATION_CREDENTIALS=" + own, python, script, "https://storage.googleapis.com/b"}
	}
	for _, command := range [][]string{{python, script, "https://storage.googleapis.com/b"}, federate("")} {
		accepted.Delete("storage.googleapis.com Bearer")
		if out, err := run("federated", command...); err != nil || !strings.Contains(out, "storage#buckets") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		if _, ok := accepted.Load("storage.googleapis.com Bearer"); !ok {
			t.Errorf("%s: no request of it was accepted", command)
		}
	}
	out, err := run("federated", federate(`"service_account_impersonation_url":"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken",`)...)
	if err == nil || !strings.Contains(out, "wayleave: iamcredentials.googleapis.com:443 gives out tokens") {
		t.Errorf("a service account's token: %v\n%s", err, out)
	}
	for _, up := range upstreams {
		if up.sawText(subject) {
			t.Error("a subject token arrived")
		}
		if up.sawText(placeholderMarker) || up.sawText("aW5oZXJpdGVk") {
			t.Error("a placeholder arrived, or what was in the environment before")
		}
	}
}
