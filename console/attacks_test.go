package console

import (
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave/api"
	"wayleave/demo"
)

// The link is good once, for this machine, and slows guessing down.
func TestOneTimeLink(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	if a := b.get("/"); a.status != http.StatusSeeOther || a.to() != "/login?next=%2F" {
		t.Errorf("nobody: %d %s", a.status, a.to())
	}
	link := w.once()
	b.wants("looking at the link does not spend it", b.get("/login?token="+link), http.StatusOK, "Open the console")
	if a := b.post("/login", "token", link, "next", "/workers"); a.status != http.StatusSeeOther || a.to() != "/workers" {
		t.Fatalf("%d %s", a.status, a.to())
	}
	other := w.browser()
	other.wants("a second time", other.post("/login", "token", link), http.StatusForbidden, "each is good once")
	if w.once() == link {
		t.Error("there is no new link")
	}
	for range triesAtOnce {
		other.post("/login", "token", "guess")
	}
	if a := other.post("/login", "token", w.once()); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("guessing goes on: %d", a.status)
	}
	w.later(time.Minute)
	if a := other.post("/login", "token", w.once()); a.status != http.StatusSeeOther {
		t.Errorf("still shut: %d", a.status)
	}
}

// Log-ins end unused, at last, and when somebody logs out; a page that only asks by itself does not prolong one.
func TestLogInsEnd(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	for range 3 {
		w.later(20 * time.Minute)
		b.wants("in use", b.get("/"), http.StatusOK, "Overview")
	}
	w.later(20 * time.Minute)
	b.wants("open", b.get("/?live="), http.StatusOK, "Overview")
	w.later(20 * time.Minute)
	if a := b.get("/"); a.status != http.StatusSeeOther {
		t.Errorf("unused for 40 minutes: %d", a.status)
	}
	r := b.request(http.MethodGet, "/?live=", "")
	r.Header.Set("HX-Request", "true")
	if a := b.do(r); a.header.Get("HX-Redirect") != "/login" {
		t.Errorf("an open page is not sent to the log-in: %d %v", a.status, a.header)
	}
	b = w.loggedIn()
	for range 25 {
		w.later(29 * time.Minute)
		b.get("/")
	}
	if a := b.get("/"); a.status != http.StatusSeeOther {
		t.Errorf("after twelve hours: %d", a.status)
	}
	b = w.loggedIn()
	b.post("/logout")
	if a := b.get("/"); a.status != http.StatusSeeOther {
		t.Errorf("logged out: %d", a.status)
	}
}

// An id that somebody planted is not the one of the log-in, and one that was known before it is not good after it.
func TestSessionFixation(t *testing.T) {
	w := newWorld(t, nil)
	at, _ := url.Parse(w.address)
	b := w.browser()
	b.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(loginCookie), Value: "planted"}})
	b.post("/login", "token", w.once())
	first := b.http.Jar.Cookies(at)[0].Value
	if first == "planted" {
		t.Fatal("the planted id is logged in")
	}
	b.post("/login", "token", w.once())
	thief := w.browser()
	thief.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(loginCookie), Value: first}})
	if a := thief.get("/"); a.status != http.StatusSeeOther {
		t.Errorf("the id from before is still good: %d", a.status)
	}
}

// A log-in that is used goes on under other ids, which changes nothing for what is on the way, nor when an answer is lost. One that
// somebody took is of no use for long.
func TestLogInsRotate(t *testing.T) {
	w := newWorld(t, nil)
	at, _ := url.Parse(w.address)
	b := w.loggedIn()
	id := func() string { return b.http.Jar.Cookies(at)[0].Value }
	put := func(b *browser, id string) {
		b.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(loginCookie), Value: id}})
	}
	in := func(id string) bool {
		other := w.browser()
		put(other, id)
		return other.get("/?live=").status == http.StatusOK
	}
	first := id()
	w.later(rotateEvery - time.Second)
	if b.get("/"); id() != first {
		t.Error("another id too early")
	}
	w.later(time.Second)
	if b.get("/?live="); id() != first {
		t.Error("another id for a page that is only open")
	}
	b.get("/")
	second := id()
	if second == first {
		t.Fatal("the id has not changed")
	}
	put(b, first) // as if the answer were lost
	if b.get("/"); id() != first {
		t.Error("two ids were made at once")
	}
	w.later(rotateEvery)
	b.get("/")
	third := id()
	if third == first || in(second) || !in(first) {
		t.Errorf("after a lost answer: changed %v, the lost one is good %v, the one before is %v", third != first, in(second), in(first))
	}
	page := b.get("/workers") // the new one has come back now
	b.wants("with the new id", page, http.StatusOK, "Workers")
	if !in(first) {
		t.Error("what was on the way is refused")
	}
	w.later(formerFor)
	if in(first) || !in(third) {
		t.Errorf("after a while: the former id is good %v, the new one is %v", in(first), in(third))
	}
	if a := b.post("/logout"); a.status != http.StatusSeeOther || in(third) {
		t.Errorf("logged out: %d, in: %v", a.status, in(third))
	}
	key, _, _ := strings.Cut(third, ".")
	for _, bad := range []string{"", ".", key, key + ".", "." + key} {
		if in(bad) {
			t.Errorf("the id %q is logged in", bad)
		}
	}
}

// Nobody is logged in as somebody else without knowing: neither by a form of another site that has the other's link, nor by an answer of the
// identity provider to the other's log-in.
func TestLogInForgery(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	victim, attacker := w.browser(), w.browser()
	r := victim.request(http.MethodPost, "/login", url.Values{"token": {w.once()}}.Encode())
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	r.Header.Set("Origin", "https://evil.example")
	a := victim.do(r)
	victim.wants("the attacker's link", a, http.StatusForbidden, "page of another site")
	if len(a.header.Values("Set-Cookie")) > 0 {
		t.Errorf("cookies %v", a.header.Values("Set-Cookie"))
	}
	begun := w.browser()
	p.begin(begun) // a log-in of its own
	back := p.begin(attacker)
	for what, b := range map[string]*browser{"in no log-in": victim, "in another log-in": begun} {
		b.wants("the attacker's answer "+what, b.get(back), http.StatusForbidden, "not begun in this browser")
		if a := b.get("/"); a.status != http.StatusSeeOther {
			t.Errorf("the victim %s is logged in: %d", what, a.status)
		}
	}
	w.later(time.Minute) // which forgives
	if a := attacker.get(back); a.to() != "/workers" {
		t.Errorf("the attacker's own log-in: %d", a.status)
	}
}

// Whoever begins log-ins without end, or logs in without end, takes memory from nobody and ends nobody else's.
func TestLogInsAreBounded(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	begin := func(source string) string {
		t.Helper()
		_, cookie, err := w.console.oidc.begin(t.Context(), source, "/", "")
		if err != nil {
			t.Fatal(err)
		}
		return cookie
	}
	pending := w.console.oidc.awaits
	maria, first := begin("192.0.2.1"), begin("192.0.2.2")
	for range askedOfOne {
		begin("192.0.2.2")
	}
	if !pending(maria) || pending(first) || len(w.console.oidc.asked) != askedOfOne+1 {
		t.Errorf("%d have begun; maria's is there: %v, the attacker's first too: %v", len(w.console.oidc.asked), pending(maria), pending(first))
	}

	l := w.console.logins
	in := func(id string) bool { _, _, there := l.find(id, false); return there }
	marias := l.begin(actor{Name: "maria", Role: Viewer, id: "maria"}, "")
	eves := l.begin(actor{Name: "eve", Role: Viewer, id: "eve"}, "")
	for range loginsOfOne {
		l.begin(actor{Name: "eve", Role: Viewer, id: "eve"}, "")
	}
	if !in(marias) || in(eves) || len(l.byKey) != loginsOfOne+1 {
		t.Errorf("%d are logged in; maria is: %v, eve's first too: %v", len(l.byKey), in(marias), in(eves))
	}

	all := map[string]int{} // by name, when it came
	for i := range 10 {
		makeRoom(all, 2, 5, func(at int) (bool, time.Time) { return false, time.Unix(int64(at), 0) })
		all[strconv.Itoa(i)] = i
	}
	if want := map[string]int{"5": 5, "6": 6, "7": 7, "8": 8, "9": 9}; !maps.Equal(all, want) {
		t.Errorf("%v, want %v", all, want)
	}
}

// A page that was made for a log-in of before gets no forms of another one: it has the name of one operator, and would act for the other.
func TestPagesOfAnotherLogIn(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	asked := regexp.MustCompile(`hx-get="([^"]+)"`)
	live := func() string {
		t.Helper()
		m := asked.FindStringSubmatch(b.get("/workers?find=c").body)
		if m == nil {
			t.Fatal("the page is not brought up to date")
		}
		return html.UnescapeString(m[1])
	}
	before := live()
	b.wants("the same log-in", b.get(before), http.StatusOK, ">ci<")
	b.post("/login", "token", w.once()) // in another tab
	if a := b.get(before); a.status != http.StatusNoContent || a.header.Get("HX-Refresh") != "true" || a.body != "" {
		t.Errorf("another log-in: %d %v %s", a.status, a.header, a.body)
	}
	b.wants("a page of the other one", b.get(live()), http.StatusOK, ">ci<")
}

// Cookies know hosts and no ports: two consoles of one host leave each other's alone.
func TestTwoConsolesOfOneHost(t *testing.T) {
	one, two := newWorld(t, nil), newWorld(t, nil)
	a, b := one.loggedIn(), two.browser()
	b.http.Jar = a.http.Jar
	if r := b.post("/login", "token", two.once()); r.status != http.StatusSeeOther {
		t.Fatal(r.status)
	}
	b.wants("the second", b.get("/"), http.StatusOK, "Overview")
	a.wants("the first", a.get("/"), http.StatusOK, "Overview")
	b.post("/logout")
	a.wants("the first, when the second is left", a.get("/"), http.StatusOK, "Overview")
}

// The tabs of a log-in that ends are told so at once: by its operator, or by another log-in in its place.
func TestTabsAreToldOfTheEnd(t *testing.T) {
	w := newWorld(t, nil)
	for what, end := range map[string]func(*browser){
		"log out":      func(b *browser) { b.post("/logout") },
		"log in again": func(b *browser) { b.post("/login", "token", w.once()) },
	} {
		b := w.loggedIn()
		l := w.console.hub.listen()
		end(b)
		if heard := w.console.hub.heard(l); !slices.Contains(heard, topicTick) {
			t.Errorf("%s: the streams hear of %v", what, heard)
		}
		w.console.hub.leave(l)
	}
}

// A cookie is out of reach for scripts, other sites and, over TLS, everybody who could read or set it on the way or by a sister name.
func TestCookies(t *testing.T) {
	for address, want := range map[string]string{
		"http://127.0.0.1:3180":         "wayleave-3180=x; Path=/; HttpOnly; SameSite=Lax",
		"https://gate.example.com":      "__Host-wayleave-443=x; Path=/; HttpOnly; Secure; SameSite=Lax",
		"https://gate.example.com:8443": "__Host-wayleave-8443=x; Path=/; HttpOnly; Secure; SameSite=Lax",
	} {
		at, _ := url.Parse(address)
		rec := httptest.NewRecorder()
		(&Server{Config: Config{URL: at}}).setCookie(rec, loginCookie, "x")
		if got := rec.Header().Get("Set-Cookie"); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
		rec = httptest.NewRecorder()
		(&Server{Config: Config{URL: at}}).setCookie(rec, nextCookie, "x")
		if got := rec.Header().Get("Set-Cookie"); !strings.Contains(got, "; Max-Age=600; HttpOnly") { // else it leads astray days later
			t.Errorf("where somebody wanted to go: %s", got)
		}
	}
}

// Nothing is changed by a page of another site, nor without the token of one of ours.
func TestForgery(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	good := url.Values{"csrf": {b.csrf}}.Encode()
	for name, change := range map[string]func(*http.Request){
		"another site":              func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"a sister site":             func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"another origin, no fetch":  func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
		"an opaque origin":          func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
		"a name made to point here": func(r *http.Request) { r.Host = "evil.example" },
	} {
		r := b.request(http.MethodPost, "/grants/acme/connect", good)
		change(r)
		if a := b.do(r); a.status != http.StatusForbidden && a.status != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	for name, body := range map[string]string{"no token": "", "another token": "csrf=AAAA"} {
		if a := b.do(b.request(http.MethodPost, "/grants/acme/connect", body)); a.status != http.StatusForbidden {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	r := b.request(http.MethodPost, api.Root+"/grants/acme/connect", "{}")
	r.Header.Set("Content-Type", "application/json")
	if a := b.do(r); a.status != http.StatusForbidden {
		t.Errorf("the API with a cookie and no token: %d", a.status)
	}
	r = b.request(http.MethodGet, "/", "")
	r.Host = "evil.example"
	b.wants("rebinding", b.do(r), http.StatusMisdirectedRequest, "This is the console at "+w.address+", and the request is for &#34;evil.example&#34;; where a reverse proxy is before it")
	if n := len(w.console.flows.byID); n != 0 {
		t.Errorf("%d connects were begun", n)
	}
}

// Pages run nothing that is not ours, and are in nobody's frame.
func TestHeaders(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	for _, path := range []string{"/", "/grants/acme", "/nowhere", "/login", "/api/v1/me", "/api/v1/openapi.json"} {
		h := b.get(path).header
		policy := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !slices.Contains(strings.Split(policy, "; "), want) {
				t.Errorf("%s: no %q in %q", path, want, policy)
			}
		}
		if strings.Contains(policy, "unsafe") || h.Get("X-Frame-Options") != "DENY" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") != "same-origin" {
			t.Errorf("%s: %v", path, h)
		}
	}
	for _, path := range []string{"/", "/grants/acme", "/grants/key", "/requests", "/approvals", "/workers", "/routes", "/configuration", "/audit", "/access"} {
		a := b.get(path)
		if a.status != http.StatusOK || strings.Contains(a.body, "has a fault") {
			t.Errorf("%s: %d %.200s", path, a.status, a.body)
		}
		page := a.body
		for _, not := range []string{" style=", "<style", " onclick", "javascript:", "<script>", "http://fonts", "https://cdn"} {
			if strings.Contains(page, not) {
				t.Errorf("%s has %q", path, not)
			}
		}
	}
	if a := b.get("/static/style.css"); a.header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
		t.Error(a.header)
	}
}

// What others write is shown and not run.
func TestScripting(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	const evil = `"><script>alert(1)</script>`
	w.console.Decisions.Add(Decision{At: w.now(), Outcome: Refused, Reason: evil, Worker: evil, Host: evil, Method: evil, Grant: evil, Request: evil})
	for _, path := range []string{"/", "/requests", "/requests?worker=" + url.QueryEscape(evil), "/grants/" + url.PathEscape(evil), "/login?next=" + url.QueryEscape(evil) + "&token=" + url.QueryEscape(evil), "/nowhere/" + url.PathEscape(evil)} {
		if page := b.get(path).body; strings.Contains(page, "<script>alert") {
			t.Errorf("%s runs what others wrote", path)
		}
	}
	r := b.request(http.MethodGet, api.Root+"/decisions", "")
	if a := b.do(r); strings.Contains(a.body, "<script>") || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("the API: %v %s", a.header, a.body)
	}
}

// A log-in leads to our own pages only.
func TestOpenRedirect(t *testing.T) {
	w := newWorld(t, nil)
	for _, next := range []string{"https://evil.example", "//evil.example", `/\evil.example`, "/\t/evil.example", "evil", "javascript:alert(1)", ""} {
		b := w.browser()
		if a := b.post("/login", "token", w.once(), "next", next); a.to() != "/" {
			t.Errorf("%q leads to %q", next, a.to())
		}
	}
}

// The answer of a provider is taken from the browser that asked, with the state it asked with, and once.
func TestCallback(t *testing.T) {
	w := newWorld(t, nil)
	b, other := w.loggedIn(), w.loggedIn()
	begin := func() string {
		t.Helper()
		back, err := demo.Approve(t.Context(), b.leaves(b.post("/grants/acme/connect")))
		if err != nil {
			t.Fatal(err)
		}
		return back
	}
	back := begin()
	nobody := w.browser()
	if a := nobody.get(back); a.status != http.StatusSeeOther || !strings.HasPrefix(a.to(), "/login") {
		t.Errorf("nobody: %d %s", a.status, a.to())
	}
	other.wants("another log-in", other.get(back), http.StatusForbidden, "begun elsewhere")
	b.wants("another state", b.get(strings.Replace(back, "state=", "state=x", 1)), http.StatusForbidden, "begun elsewhere")
	b.wants("no state", b.get("/callback?code=c"), http.StatusForbidden, "begun elsewhere")
	if a := b.get(back); a.to() != "/grants/acme" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	b.wants("connected", b.get("/grants/acme"), http.StatusOK, "acme is connected.")
	before := w.events()
	a := b.get(back) // as when somebody goes back
	b.wants("what became of it", b.get(a.to()), http.StatusOK, "The gate has it, and workers can use it.")
	if w.events() != before {
		t.Errorf("an answer that comes again changes something:\n%s", strings.TrimPrefix(w.events(), before))
	}

	// A code of somebody else's consent fails at the provider, which has our challenge (PKCE).
	first, second := begin(), begin()
	u, _ := url.Parse(second)
	q, v := u.Query(), mustQuery(first)
	q.Set("code", v.Get("code"))
	u.RawQuery = q.Encode()
	b.get(u.String())
	b.wants("another consent's code", b.get("/grants/acme"), http.StatusOK, "That did not work", "invalid_grant")

	// One that took too long is over.
	late := begin()
	w.later(flowLife + time.Minute)
	b.wants("late", b.get(b.get(late).to()), http.StatusOK, "Nobody agreed in time; connect again.")
	w.later(flowKept)
	b.get("/grants/acme")
	b.post("/grants/acme/connect") // which has those forgotten that are over
	b.wants("later still", b.get(late), http.StatusForbidden, "is over")
}

func mustQuery(address string) url.Values {
	u, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	return u.Query()
}

// Nobody sees or finishes another's connect, whatever their role.
func TestOthersConnects(t *testing.T) {
	w := newWorld(t, nil)
	programs := map[Role]*program{Operator: w.as(Operator), Admin: w.as(Admin)}
	var f api.Flow
	if status := programs[Operator].call("POST", "/grants/acme/connect", "{}", &f); status != http.StatusOK || !f.Pasted {
		t.Fatalf("%d %+v", status, f)
	}
	for _, tt := range []struct{ method, path, body string }{{"GET", "", ""}, {"POST", "/answer", `{"answer":"x"}`}, {"DELETE", "", ""}} {
		if status := programs[Admin].call(tt.method, "/connects/"+f.ID+tt.path, tt.body, nil); status != http.StatusNotFound {
			t.Errorf("%s %s of somebody else's connect: %d", tt.method, tt.path, status)
		}
	}
	b := w.loggedIn()
	b.wants("another's page", b.get("/connects/"+f.ID), http.StatusNotFound, "begun elsewhere")
	b.post("/connects/"+f.ID+"/answer", "answer", "x")
	if status := programs[Operator].call("GET", "/connects/"+f.ID, "", &f); status != http.StatusOK || f.State != api.FlowWaiting || f.Error != "" {
		t.Errorf("one's own connect: %d %+v", status, f)
	}
}

// A viewer is not offered what only operators may.
func TestOfferedToViewers(t *testing.T) {
	w := newWorld(t, nil)
	at, _ := url.Parse(w.address)
	b := w.browser()
	id := w.console.logins.begin(actor{Name: "maria", Role: Viewer, Via: "oidc"}, "")
	b.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(loginCookie), Value: id, Path: "/"}})
	for _, path := range []string{"/", "/grants/acme", "/workers", "/fleet", "/rollouts", "/approvals"} {
		if page := b.get(path).body; strings.Contains(page, "/connect\"") || strings.Contains(page, "/revoke\"") || strings.Contains(page, "/import\"") || strings.Contains(page, "drain\"") || strings.Contains(page, "/pause\"") || strings.Contains(page, "/decide\"") {
			t.Errorf("%s offers a viewer what only operators may", path)
		}
	}
}
