package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"

	"wayleave/freeport"
)

// beside is another tab of the same browser, at an address.
func (b tab) beside(url string) tab {
	b.t.Helper()
	ctx, end := chromedp.NewContext(b)
	b.t.Cleanup(end)
	other := tab{ctx, b.t}
	if err := chromedp.Do(ctx); err != nil {
		b.t.Fatal(err)
	}
	other.do("another tab at "+url, chromedp.Navigate(url), visible("main"))
	return other
}

// is waits until an expression has a value.
func (b tab) is(expression, want string) {
	b.t.Helper()
	var got string
	if err := eventually(func() (err error) {
		got, err = chromedp.Run(b, chromedp.Evaluate[string]("Promise.resolve("+expression+").then(String)", chromedp.EvalAwaitPromise))
		if err == nil && got != want {
			err = fmt.Errorf("%s is %q; want %q", expression, got, want)
		}
		return err
	}); err != nil {
		held := valueOf(b, chromedp.Evaluate[string]("Promise.resolve("+streams+").then(String)", chromedp.EvalAwaitPromise))
		b.t.Fatalf("%v; of the tabs that want the stream %s have it; the page says:\n%.2000s", err, held, b.text())
	}
}

func (b tab) js(script string) {
	b.t.Helper()
	b.do(script, chromedp.Evaluate[chromedp.Void](script+"; undefined"))
}

const (
	connection = `document.getElementById("connection").textContent`
	streams    = `navigator.locks.query().then(q => q.held.length + " of " + (q.held.length + q.pending.length))`
)

// Pages that are open are true, in more tabs than a browser has connections for one host; they take nothing out of the hands of whoever
// works with them, and find their way back when the gate was away.
func TestConsoleTabs(t *testing.T) {
	t.Parallel()
	first := newTab(t)
	w := makeWorld(t)
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "CONSOLE="+address)
	at := "http://" + address
	// A route that is called as that of the answers in a provider's place has a fault that only what Envoy is told shows.
	text := strings.NewReplacer(
		"routes:\n", "routes:\n  - {name: wayleave.answers, hosts: [faulty.demo.test], grant: weather}\n", "  other: {grants: [billing]}", "  other: {grants: [billing], token_endpoint: placeholder}",
		"    redirect_url: $PROVIDER/code\n", "    redirect_url: $PROVIDER/code\n    refused_hosts: [login.demo.test/token]\n",
	).Replace(consoleConfig)
	g := startIn(t, w, text)
	first.logIn(g)

	// What operators would be told of is there, and leads on.
	first.sees("faulty.demo.test is refused: the configuration has a fault")
	first.do("where that is mended", click(`.card.bad a.button[href="/routes?find=faulty.demo.test"]`), visible("h1"))
	first.is("location.pathname", "/routes")
	first.do("back", chromedp.Navigate(at+"/"), visible("#live"))

	tabs := map[string]tab{"/": first}
	for _, path := range []string{"/grants/acme", "/requests", "/approvals", "/workers", "/routes", "/fleet", "/rollouts", "/configuration"} {
		tabs[path] = first.beside(at + path)
	}
	for _, b := range tabs {
		b.is(connection, "live")
	}
	first.is(streams, "1 of 9")

	// News reaches all of them.
	run := func(command string) {
		t.Helper()
		if out, err := w.command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", command, err, out)
		}
	}
	run("wayleave grant connect acme")
	tabs["/grants/acme"].sees("● healthy")
	tabs["/"].sees("acme ● healthy")
	tabs["/routes"].sees("acme healthy")
	run(`wayleave run --worker ci -- sh -c 'curl -sS https://nowhere.example || true'`)
	tabs["/requests"].sees("■ host not allowed")
	tabs["/"].sees("host not allowed 1")

	// The tab that has the stream is put aside, and then one is closed.
	other := tabs["/workers"]
	first.js(`Object.defineProperty(document, "hidden", {get: () => true, configurable: true}); document.dispatchEvent(new Event("visibilitychange"))`)
	other.is(streams, "1 of 8")
	if err := chromedp.Cancel(tabs["/grants/acme"]); err != nil {
		t.Fatal(err)
	}
	delete(tabs, "/grants/acme")
	other.is(streams, "1 of 7")
	run("wayleave run --worker nightly -- true")
	for _, path := range []string{"/requests", "/approvals", "/workers", "/fleet"} {
		tabs[path].is(connection, "live")
	}
	run(`wayleave run --worker ci -- sh -c 'curl -sS https://elsewhere.example || true'`)
	tabs["/requests"].sees("elsewhere.example")
	first.js(`delete document.hidden; document.dispatchEvent(new Event("visibilitychange"))`)
	first.sees("host not allowed 2")

	// What is written, open, selected and focused stays, while the page goes on.
	written := first.beside(at + "/grants/acme")
	b := written
	b.is(connection, "live")
	b.js(`
		document.querySelector("#disconnect").open = true
		document.querySelector("#import").open = true
		document.querySelector("#value").value = "half of a to"`)
	b.do("write", chromedp.SendKeys(chromedp.CSS("#name"), "acm"))
	b.js(`window.mark = document.querySelector("#disconnect")`)
	run("wayleave grant refresh acme")
	b.sees("The last refresh took")
	b.is(`[document.activeElement.id, document.querySelector("#name").value, document.querySelector("#value").value, document.querySelector("#disconnect").open, document.querySelector("#import").open, window.mark.isConnected].join(" ")`,
		"name acm half of a to true true true")
	b.js(`document.activeElement.blur(); getSelection().setBaseAndExtent(document.querySelector("tbody code").firstChild, 0, document.querySelector("#history ~ table time").firstChild, 3)`)
	const selected = `getSelection().toString()`
	was := valueOf(b, chromedp.Evaluate[string](selected))
	if !strings.HasPrefix(was, "user:inference") || !strings.Contains(was, "What happened") {
		t.Fatalf("%q is selected", was)
	}
	run("wayleave grant refresh acme")
	b.is(connection, "waits while you select")
	b.is(selected, was)
	b.js(`getSelection().removeAllRanges()`)
	b.sees("The last 2 refreshes")
	b.is(connection, "live")

	// While somebody decides nothing moves, and the page says so; then it is brought up to date.
	held := func(n int) {
		c := w.command("wayleave", "run", "--worker", "ci", "--", "sh", "-c", fmt.Sprintf(`curl -sS -X POST -H "Authorization: Bearer $ACME_TOKEN" -d '{}' 'https://api.demo.test/echo?held=%d'`, n))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	}
	b = tabs["/approvals"]
	held(1)
	b.sees("this wants a second pair of eyes")
	b.do("write", chromedp.SendKeys(chromedp.CSS("form.decide input[name=note]"), "not on a Fri"))
	held(2)
	tabs["/"].sees("2 requests wait for an operator")
	b.is(connection, "waits while you write")
	b.is(`document.querySelectorAll("form.decide").length + document.activeElement.value`, "1not on a Fri")
	b.js(`document.activeElement.value = ""; document.activeElement.blur()`)
	b.is(`document.querySelectorAll("form.decide").length`, "2")
	b.is(connection, "live")

	// What cannot be had is not shown as if it were new, and what is gone is not shown any more.
	b = tabs["/fleet"]
	b.js(`
		window.elsewhere = ""
		const asked = XMLHttpRequest.prototype.open
		XMLHttpRequest.prototype.open = function (method, url, ...rest) { return asked.call(this, method, window.elsewhere || url, ...rest) }
		window.elsewhere = "/audit?status=soon"
		htmx.trigger("#live", "stale")`)
	b.is(connection, "not up to date")
	b.js(`window.elsewhere = ""; htmx.trigger("#live", "stale")`)
	b.is(connection, "live")
	b.js(`window.elsewhere = "/nowhere?live="; htmx.trigger("#live", "stale")`)
	b.is("typeof window.elsewhere", "undefined")
	b.is(connection, "live")

	// What somebody reads that could not be done stays, whatever other tabs do.
	b = first.beside(at + "/nowhere")
	b.js(`window.heard = 0; new BroadcastChannel("wayleave").onmessage = (event) => { window.heard += event.data.loggedIn ? 1 : 0 }`)
	for _, heard := range []string{"1", "2"} { // an address that it was led to would be there by the second
		tabs["/routes"].do("load again", chromedp.Navigate(at+"/routes"), visible("#live"))
		b.is("window.heard", heard)
	}
	b.is("location.pathname", "/nowhere")
	if err := chromedp.Cancel(b); err != nil {
		t.Fatal(err)
	}

	// Whoever logs in anew in one tab does so in all of them, but where something is written.
	for _, b := range tabs {
		b.js("window.before = true")
	}
	link, err := w.command("wayleave", "console", "--no-browser").Output()
	if err != nil {
		t.Fatal(err)
	}
	first.do("log in anew", chromedp.Navigate(strings.TrimSpace(string(link))), click("button.primary"), visible("#live"))
	for _, b := range tabs {
		b.is("typeof window.before", "undefined")
		b.is(connection, "live")
	}
	written.is(connection, "open it again")
	if err := chromedp.Cancel(written); err != nil {
		t.Fatal(err)
	}

	// A Vault that does not answer is said, and what the gate remembers is shown; it is over by itself.
	g.hit(t, baoPID, syscall.SIGSTOP)
	tabs["/"].sees("Vault does not answer; this is what this gate remembers")
	tabs["/"].sees("The vault does not answer Requests whose tokens are not in memory are refused.")
	g.hit(t, baoPID, syscall.SIGCONT)
	tabs["/"].is(`document.body.innerText.includes("Vault does not answer")`, "false")

	// A stream that dies without a word, as when a machine was asleep, is missed, and begun anew.
	for _, b := range tabs {
		b.js(`{ const later = setTimeout; window.setTimeout = (f, ms, ...rest) => later(f, ms === 75000 ? 2000 : ms, ...rest) }`)
	}
	run(`wayleave run --worker ci -- sh -c 'curl -sS https://silent.example || true'`)
	tabs["/requests"].sees("silent.example")
	for _, step := range []struct {
		signal syscall.Signal
		says   string
	}{{syscall.SIGSTOP, "not up to date"}, {syscall.SIGCONT, "live"}} {
		if err := g.cmd.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
		for _, b := range tabs {
			b.is(connection, step.says)
		}
	}

	// A gate that was away is found again, and so is the log-in.
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	for _, b := range tabs {
		b.is(connection, "not up to date")
	}
	g = startIn(t, w, text)
	for path, b := range tabs {
		b.is("location.pathname + location.search", "/login?next="+strings.ReplaceAll(path, "/", "%2F"))
	}
	first.logIn(g)
	for path, b := range tabs {
		b.is("location.pathname", path)
		b.is(connection, "live")
	}
}
