package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdpnetwork "github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"wayleave/freeport"
)

const consoleConfig = `
listen: {proxy: $PROXY}
console: {listen: $CONSOLE}
upstream: {ca_files: [api-ca.pem]}
providers:
  acme:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    revoke_url: $PROVIDER/revoke
    device_url: $PROVIDER/device
    client_id: $CLIENT_ID
    allow_insecure: true
    placeholder_prefix: acme_
    env: {ACME_TOKEN: "{placeholder}"}
  pasted:
    authorize_url: $PROVIDER/authorize
    token_url: $PROVIDER/token
    redirect_url: $PROVIDER/code
    client_id: $CLIENT_ID
    allow_insecure: true
  key:
    kind: static
    header: {in: x-key}
    env: {KEY: "{placeholder}"}
grants:
  acme: {provider: acme, scopes: [user:inference], account: operator@demo.test}
  billing: {provider: pasted, scopes: [user:inference]}
  weather: {provider: key}
routes:
  - hosts: [api.demo.test]
    grant: acme
    connect_to: "$API"
    paths: [{prefix: /v1/code/, required_scopes: [user:inference]}]
  - {hosts: [other.demo.test], grant: weather, connect_to: "$API"}
  - {hosts: [x.wild.demo.test], grant: billing, connect_to: "$API"}
profiles:
  default:
    grants: [acme, weather]
    rules: [{name: eyes, when: '"held" in query', hold: {words: this wants a second pair of eyes, for: 2m}}]
  other: {grants: [billing]}
workers:
  ci: {profile: default}
  nightly: {profile: other}
tunnel: [pypi.org]
deny: [metadata.internal]
`

// chromium is the pinned browser, or what CHROMIUM names; where none is pinned, another that is installed.
func chromium(t *testing.T) string {
	for _, name := range []string{os.Getenv("CHROMIUM"), filepath.Join(toolsBin, "chromium"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	if runtime.GOOS == "linux" && runtime.GOARCH == "amd64" {
		t.Fatal("no Chromium is here; run 'make tools'")
	}
	t.Skip("no Chromium is pinned for this system; install one, or name it in CHROMIUM")
	return ""
}

// tab is an operator at a real browser.
type tab struct {
	context.Context
	t *testing.T
}

func newTab(t *testing.T) tab {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 900), chromedp.Flag("no-proxy-server", true))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator)
	t.Cleanup(func() { end(); stop() })
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting a browser: %v", err)
	}
	return tab{ctx, t}
}

func (b tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, late := context.WithTimeout(b, patience)
	defer late()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%s: %v; the page says:\n%.3000s", what, err, b.text())
	}
}

// valueOf is what an expression or a query has for a value.
func valueOf[T any](b tab, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, late := context.WithTimeout(b, patience)
	defer late()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("%v; the page says:\n%.3000s", err, b.text())
	}
	return v
}

// text is what the page says, in one line; "" while there is none.
func (b tab) text() string {
	ctx, late := context.WithTimeout(b, patience) // a page that does not come says nothing
	defer late()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body ? document.body.innerText : ""`))
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(text), " ")
}

// sees waits until the page says something, without being asked again by the operator.
func (b tab) sees(text string) {
	b.t.Helper()
	if err := eventually(func() error {
		if said := b.text(); !strings.Contains(said, text) {
			return fmt.Errorf("no %q in %.3000s", text, said)
		}
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
}

// click presses a button once it is there. It is found and pressed in one step: a live page may put another in its place between two.
func click(button chromedp.CSS) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(visible(button), chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector(%q).click()`, string(button))))
}

func visible(what chromedp.CSS) chromedp.Action[chromedp.Void] { return chromedp.WaitVisible(what) }

var consoleURL = regexp.MustCompile(`the console +(http://\S+)`)

// logIn uses the link that up printed last.
func (b tab) logIn(g *gate) {
	b.t.Helper()
	if err := g.waitOutput("Ctrl-C"); err != nil {
		b.t.Fatal(err)
	}
	links := consoleURL.FindAllStringSubmatch(g.out.String(), -1)
	if len(links) == 0 {
		b.t.Fatalf("no link in:\n%s", g.out)
	}
	b.do("log in", chromedp.Navigate(links[len(links)-1][1]), click("button.primary"), visible("#live"))
}

// TestConsole is the operator's story in a real browser, on the real stack.
func TestConsole(t *testing.T) {
	t.Parallel()
	b := newTab(t)
	w := makeWorld(t)
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "CONSOLE="+address)
	text := consoleConfig
	g := startIn(t, w, text)
	b.logIn(g)
	b.firstView("http://" + address + "/")

	// Connect by clicking, and it is healthy; a worker that was there uses it.
	b.sees("Nobody has connected it yet.")
	b.do("look at it", chromedp.Navigate("http://"+address+"/grants/acme"), visible("#connect"))
	b.do("connect", click("#connect"))
	b.sees("acme is connected.")
	b.sees("● healthy")
	call := func(path string) (string, error) {
		out, err := w.command("wayleave", "run", "--worker", "ci", "--", "sh", "-c", `curl -sS -X POST -H "Authorization: Bearer $ACME_TOKEN" -d '{}' https://api.demo.test`+path).CombinedOutput()
		return string(out), err
	}
	if out, err := call("/echo"); err != nil || !strings.Contains(out, `"host":"api.demo.test"`) {
		t.Fatalf("%v: %s", err, out)
	}

	// The page of requests has it, and shows the next one by itself.
	b.do("requests", chromedp.Navigate("http://"+address+"/requests"))
	b.sees("POST api.demo.test")
	if out, err := w.command("wayleave", "run", "--worker", "ci", "--", "curl", "-sS", "https://nowhere.example").CombinedOutput(); err == nil {
		t.Errorf("a host that is not allowed was reached: %s", out)
	}
	b.sees("■ host not allowed")

	// A file that asks for more needs one reconnect, which the open page says by itself. What the grant can do goes on working.
	b.do("the overview", chromedp.Navigate("http://"+address+"/"), visible("#live"))
	b.is(connection, "live")
	b.js("window.unloaded = false")
	wider := strings.NewReplacer(
		"scopes: [user:inference], account", "scopes: [user:inference, user:sessions:claude_code], account", "required_scopes: [user:inference]", "required_scopes: [user:sessions:claude_code]",
	).Replace(text) + "rollout: {steps: [{share: 50, dwell: 10m}, {share: 100, dwell: 1s}]}\n"
	if err := w.configure(wider); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.sees("It needs one reconnect: the configuration asks for user:sessions:claude_code")
	t.Logf("the open page says what needs the operator %v after the file has changed", time.Since(began).Round(time.Millisecond))
	b.is("window.unloaded", "false")
	if out, err := call("/v1/code/sessions"); err != nil || !strings.Contains(out, "permission_error") {
		t.Errorf("the provider itself, before the reconnect: %v %s", err, out)
	}
	if out, err := call("/echo"); err != nil || !strings.Contains(out, `"host":"api.demo.test"`) {
		t.Errorf("what it can do, before the reconnect: %v %s", err, out)
	}
	b.shots(address, "before")
	b.do("reconnect", click("#connect-acme"))
	b.sees("acme is connected.")
	b.sees("user:sessions:claude_code ● yes")

	// With that it is rolled out, which an operator leads.
	b.do("the rollout", chromedp.Navigate("http://"+address+"/rollouts"))
	b.sees("Step 1 of 2 (50 %): 1 of 1 Envoy")
	b.shot("rollout-under-way")
	b.do("promote", chromedp.Evaluate[chromedp.Void](`window.confirm = () => true`), click("#promote"))
	b.sees("Every Envoy gets the new revision now.")
	b.sees("● completed")
	b.is("location.pathname", "/rollouts")
	if out, err := call("/v1/code/sessions"); err != nil || !strings.Contains(out, `"session"`) {
		t.Errorf("the worker's next call after the reconnect: %v %s", err, out)
	}
	b.do("the grant", chromedp.Navigate("http://"+address+"/grants/acme"))

	// A refresh that is asked for is made, and drawn.
	for range 3 {
		b.do("refresh", visible("#refresh"), click("#refresh"))
		b.sees("acme was refreshed.")
		b.do("look again", chromedp.Navigate("http://"+address+"/grants/acme"))
	}
	b.do("the chart", visible("svg.refreshes rect"))

	// A device's code is large, and the page goes on by itself.
	b.do("a device", chromedp.Navigate("http://"+address+"/grants/acme"), click("input[value=device] + button"))
	b.sees("Enter this code there:")
	b.shot("device")
	page := valueOf(b, chromedp.AttributeValue(chromedp.CSS("ol a"), "href")).Value
	if out, err := w.command("demo", "approve", page).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", page, err, out)
	}
	b.sees("workers can use it")
	b.shot("connected")

	// Paste. Whoever says no at the provider has connected nothing.
	b.do("paste", chromedp.Navigate("http://"+address+"/grants/billing"), click("#connect"))
	b.sees("Paste what it shows")
	b.shot("paste")
	flow := valueOf(b, chromedp.Location())
	b.do("a refusal", chromedp.SendKeys(chromedp.CSS("#answer"), "http://127.0.0.1/callback?error=access_denied&state="+stateOf(t, valueOf(b, chromedp.AttributeValue(chromedp.CSS("ol a"), "href")).Value)),
		click("form.paste button"))
	b.sees("That did not work.")
	b.do("what came of it", chromedp.Navigate(flow))
	b.sees("not connected")
	b.shot("connect-failed")

	// A request that waits is decided about.
	held := make(chan string, 1)
	go func() {
		out, err := call("/echo?held=1")
		held <- fmt.Sprint(out, err)
	}()
	b.do("the overview", chromedp.Navigate("http://"+address+"/"))
	b.sees("A request waits for an operator")
	b.do("approvals", chromedp.Navigate("http://"+address+"/approvals"))
	b.sees("this wants a second pair of eyes")
	b.shot("approvals")
	b.do("a note", chromedp.SendKeys(chromedp.CSS("form.decide input[name=note]"), "planned"))
	b.do("allow", click("form.decide button[value=allow]"))
	b.sees("The request of ci is allowed, and goes on.")
	b.sees("planned")
	if out := <-held; !strings.Contains(out, `"host":"api.demo.test"`) {
		t.Errorf("a request that was allowed: %s", out)
	}

	// A key is imported, and not shown.
	b.do("import", chromedp.Navigate("http://"+address+"/grants/weather"), chromedp.SendKeys(chromedp.CSS("#value"), "k-4f9aXq-real-key"), click("#import button"))
	b.sees("weather is imported.")

	// A session that is revoked is refused.
	enter := w.command("wayleave", "run", "--worker", "ci", "--", "sh", "-c", `while :; do curl -sS -o /dev/null -w "%{http_code} %{http_connect}\n" -H "Authorization: Bearer $ACME_TOKEN" https://api.demo.test/echo; sleep 0.5; done`)
	said := newOutput(w.saved("loop.log"))
	enter.Stdout, enter.Stderr = said, said
	if err := enter.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = enter.Wait(); close(ended) }()
	defer func() { _ = enter.Process.Signal(os.Interrupt); <-ended }()
	if err := eventually(func() error { return says(said, "200 200") }); err != nil {
		t.Fatal(err)
	}
	b.do("workers", chromedp.Navigate("http://"+address+"/workers"))
	b.sees("End all sessions")
	b.shots(address, "after")
	b.do("revoke", chromedp.Evaluate[chromedp.Void](`window.confirm = () => true`), click("#revoke-ci"))
	b.sees("All sessions of ci are ended")
	if err := eventually(func() error { return says(said, "40") }); err != nil {
		t.Error(err)
	}

	// A change that cannot be watched goes back, and both pages say so by themselves.
	b.do("rollouts", chromedp.Navigate("http://"+address+"/rollouts"))
	halted := strings.NewReplacer("tunnel: [pypi.org]", "tunnel: [pypi.org, npmjs.com]", "{share: 50, dwell: 10m}", "{group: canary, dwell: 1s}", "rollout: {", "rollout: {take_time: 5s, ").Replace(wider)
	if err := w.configure(halted); err != nil {
		t.Fatal(err)
	}
	b.sees("group canary")
	b.sees("■ rolled back")
	b.shot("rollout-halted")
	b.do("what it was", click("tbody td a"))
	b.sees("npmjs.com")
	b.shot("difference")
	b.do("the overview", chromedp.Navigate("http://"+address+"/"))
	b.sees("was halted")
	b.shot("halted")

	// Whoever has no log-in is told how to get one.
	b.do("leave", click(".who button"), visible(".login"))
	b.sees("this prints a link that logs you in once")
	b.shot("login")
}

// stateOf is the state that an address of a consent page carries.
func stateOf(t *testing.T, page string) string {
	t.Helper()
	u, err := url.Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("state")
}

func says(o *output, text string) error {
	if seen, _ := o.contains(text); !seen {
		return fmt.Errorf("no %q in:\n%s", text, o)
	}
	return nil
}

// shots looks at every page: axe-core looks for barriers, and there are screenshots, light, dark, as on a phone and as printed,
// for whoever sets WAYLEAVE_SCREENSHOTS to a directory.
func (b tab) shots(address, when string) {
	b.t.Helper()
	was := valueOf(b, chromedp.Location())
	for name, path := range map[string]string{"overview": "/", "grant": "/grants/acme", "key": "/grants/weather", "requests": "/requests", "approvals": "/approvals", "workers": "/workers", "routes": "/routes", "fleet": "/fleet", "rollouts": "/rollouts", "configuration": "/configuration", "audit": "/audit", "access": "/access", "missing": "/nowhere"} {
		b.do(name, chromedp.Navigate("http://"+address+path), visible("main"))
		b.shot(when + "-" + name)
	}
	b.do("back", chromedp.Navigate(was), visible("main"))
}

// barriers are what keeps people from using the page as it is, in both colour schemes, by axe-core's judgement.
func (b tab) barriers(name string) {
	b.t.Helper()
	axe, err := os.ReadFile(filepath.Join(filepath.Dir(toolsBin), "browser", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		b.t.Fatalf("axe-core: %v; run 'make tools'", err)
	}
	for _, scheme := range []string{"light", "dark"} {
		b.prefer(scheme, "")
		b.do("axe", chromedp.Evaluate[chromedp.Void](string(axe)+"; undefined"))
		const look = `axe.run().then(r => r.passes.length === 0 ? "nothing was looked at" : r.violations.map(v => v.impact + ": " + v.id + ": " + v.help + ": " + v.nodes.map(n => n.html).join(" ")).join("\n"))`
		if found := valueOf(b, chromedp.Evaluate[string](look, chromedp.EvalAwaitPromise)); found != "" {
			b.t.Errorf("%s, %s:\n%s", name, scheme, found)
		}
	}
}

// prefer makes the browser one of somebody who prefers a colour scheme, on a medium: a screen unless it is said.
func (b tab) prefer(scheme, media string) {
	b.t.Helper()
	b.do("a colour scheme", func(ctx context.Context, at *chromedp.Target) (none chromedp.Void, err error) {
		_, err = cdp.Call(ctx, at, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return none, err
	})
}

// firstView is what a browser loads for a page that it has never seen: little, and all of it named by the page itself, so that
// it comes in one round of requests.
func (b tab) firstView(url string) {
	b.t.Helper()
	b.do("forget", func(ctx context.Context, at *chromedp.Target) (none chromedp.Void, err error) {
		_, err = cdp.Call(ctx, at, cdpnetwork.ClearBrowserCache, cdp.Empty{})
		return none, err
	}, chromedp.Navigate(url), visible("main"))
	type resource struct {
		Name, Initiator string
		Bytes           int
		ByPage          bool
	}
	const look = `JSON.stringify((() => {
		const named = new Set([...document.querySelectorAll("[src], link[href]")].map(e => e.src || e.href))
		return [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map(e => (
			{Name: e.name, Initiator: e.initiatorType, Bytes: e.transferSize, ByPage: e.initiatorType === "navigation" || named.has(e.name)}))
	})())`
	var loaded []resource
	if err := json.Unmarshal([]byte(valueOf(b, chromedp.Evaluate[string](look))), &loaded); err != nil {
		b.t.Fatal(err)
	}
	total := 0
	for _, r := range loaded {
		total += r.Bytes
		if !r.ByPage && !strings.Contains(r.Name, "/events") && r.Initiator != "xmlhttprequest" { // these keep it up to date
			b.t.Errorf("%s is only loaded by something else that is (%s)", r.Name, r.Initiator)
		}
	}
	b.t.Logf("the first view of %s takes %d requests and %d bytes", url, len(loaded), total)
	if total > 100<<10 || total < 5<<10 {
		b.t.Errorf("the first view takes %d bytes: %+v", total, loaded)
	}
}

// shot is the page as it is, in each look, without barriers.
func (b tab) shot(name string) {
	b.t.Helper()
	b.barriers(name)
	b.picture(name)
}

// picture keeps the page as it is, in each look.
func (b tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("WAYLEAVE_SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, look := range []struct {
		name, scheme, media string
		width               int64
		mobile              bool
	}{{"light", "light", "", 1280, false}, {"dark", "dark", "", 1280, false}, {"phone", "light", "", 390, true}, {"print", "light", "print", 800, false}} {
		b.prefer(look.scheme, look.media)
		if look.mobile {
			b.do("a phone", chromedp.EmulateViewport(look.width, 844, chromedp.EmulateMobile))
		} else {
			b.do("a screen", chromedp.EmulateViewport(look.width, 844))
		}
		png := valueOf(b, chromedp.FullScreenshot(100))
		if err := os.WriteFile(filepath.Join(dir, name+"-"+look.name+".png"), png, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	b.prefer("light", "")
	b.do("as before", chromedp.EmulateReset())
}

// An address that the identity provider has not verified makes nobody an operator, at two real providers: one has it in userinfo, one in
// the identity token.
func TestConsoleLogInByAddress(t *testing.T) {
	t.Parallel()
	hydra, _ := hydra(t)
	for _, s := range []*authServer{oidcProvider(t), hydra} {
		for scope, in := range map[string]bool{"email": true, "contact": false} {
			w := makeWorld(t)
			address, err := freeport.Address()
			if err != nil {
				t.Fatal(err)
			}
			g := startIn(t, w, fmt.Sprintf(`
listen: {proxy: $PROXY}
console:
  listen: %s
  oidc:
    issuer: %s
    client_id: console
    client_secret_file: %s
    scopes: [openid, %s]
    roles_claim: email
    roles: {operator: [operator@interop.test]}
grants: {claude: {provider: anthropic}}
routes: [{hosts: [api.demo.test], grant: claude}]
profiles: {default: {grants: [claude]}}
workers: {w: {profile: default}}
`, address, s.issuer, s.file("client-secret"), scope))
			b, err := newBrowser()
			if err != nil {
				t.Fatal(err)
			}
			page, err := b.agreeUntil("http://"+address+"/login/start", address)
			if in && (err != nil || !strings.Contains(page, `operator, logged in by oidc">operator@interop.test<`)) {
				t.Errorf("%s, verified: %v\n%.3000s", s.name, err, page)
			}
			if !in && (err == nil || !strings.Contains(err.Error(), "none of the roles")) {
				t.Errorf("%s, not verified: %v\n%.3000s", s.name, err, page)
			}
			if err := g.stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Operators log in at a real identity provider, and may do what their role says.
func TestConsoleLogIn(t *testing.T) {
	t.Parallel()
	s := oidcProvider(t)
	for role, sees := range map[string]string{"operator": `href="/configuration"`, "admin": `href="/access"`, "viewer": `href="/routes"`} {
		w := makeWorld(t)
		address, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		// What the test types as the name of its account is the subject of the identity token.
		g := startIn(t, w, fmt.Sprintf(`
listen: {proxy: $PROXY}
console:
  listen: %s
  oidc:
    issuer: %s
    client_id: console
    client_secret_file: %s
    scopes: [openid]
    roles_claim: sub
    roles: {%s: [operator]}
grants: {claude: {provider: anthropic}}
routes: [{hosts: [api.demo.test], grant: claude}]
profiles: {default: {grants: [claude]}}
workers: {w: {profile: default}}
`, address, s.issuer, s.file("client-secret"), role))
		b, err := newBrowser()
		if err != nil {
			t.Fatal(err)
		}
		page, err := b.agreeUntil("http://"+address+"/login/start?next=/workers", address)
		if err != nil || !strings.Contains(page, role+", logged in by oidc") || !strings.Contains(page, sees) || !strings.Contains(page, "<h1>Workers</h1>") {
			t.Errorf("%s: %v\n%.3000s", role, err, page)
		}
		if err := g.stop(); err != nil {
			t.Error(err)
		}
	}
}
