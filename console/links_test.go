package console

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"html"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"wayleave/approval"
	"wayleave/config"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/notify"
)

// kinds are those of which operators may be told, as the configuration has them.
func kinds(t *testing.T) (all []string) {
	t.Helper()
	f, _ := reflect.TypeFor[config.NotifyTarget]().FieldByName("Kinds")
	for _, option := range strings.Split(f.Tag.Get("jsonschema"), ",") {
		if kind, ok := strings.CutPrefix(option, "enum="); ok {
			all = append(all, kind)
		}
	}
	if len(all) < 7 {
		t.Fatalf("kinds %v", all)
	}
	return all
}

var oidcLink = regexp.MustCompile(`href="(/login/start\?[^"]*)"`)

// Whatever operators are told of, its link leads somebody who is not logged in to the page where they act, which names the trouble.
func TestLinksOfNotifications(t *testing.T) {
	p := newIdentity(t)
	w := newWorld(t, withIdentity(p))
	p.now = w.now
	pages := notify.Pages(func(path string) string { return w.address + path })
	now := time.Now()

	access, refresh := w.demo.Provider.Issue("read")
	w.store("acme", access, refresh, []string{"read"})
	eventually(t, "the gate has it", func() bool { return w.console.Grants.Summary("acme").State == grant.ScopeMissing })
	w.halfway(strings.Repeat("b", 64))
	held := w.hold(approval.Request{Worker: "ci", Rule: "eyes", Host: "api.acme.example", Method: "DELETE", Path: "/all", Words: "look"})
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "root one"}, NotAfter: now.Add(20 * 24 * time.Hour)}
	state, _, err := fleet.ReadState(t.Context(), w.docs)
	if err != nil {
		t.Fatal(err)
	}
	var all []notify.Alert
	names := map[string][]string{} // what the page of each has, by its key
	add := func(a notify.Alert, wrong bool, says ...string) {
		t.Helper()
		if !wrong {
			t.Fatalf("nothing is wrong that the page could say: %q", says)
		}
		all, names[a.Key] = append(all, a), says
	}
	addGrant := func(name string, says ...string) {
		t.Helper()
		a, wrong := notify.OfGrant(w.console.Grants.Summary(name), now, pages)
		add(a, wrong, append(says, "<h1>"+name+"</h1>")...)
	}
	addGrant("acme", "scope missing", "lacks write", `action="/grants/acme/connect"`, ">Reconnect<")
	addGrant("pasted", `action="/grants/pasted/connect"`, ">Connect<")
	addGrant("key", `action="/grants/key/import"`)
	ca, wrong := notify.OfRoots([]*x509.Certificate{root}, now, pages)
	w.alerts = append(w.alerts, ca) // which the overview has from where the notifier has it
	add(ca, wrong, "he certificate authority that workers trust ends", "wayleave ca prepare")
	for _, e := range w.reports[0].Envoys {
		if a, wrong := notify.OfEnvoy(e.ID, e.Refused, "gate-1", pages); wrong {
			add(a, wrong, "<h1>Fleet</h1>", e.ID, html.EscapeString(e.Refused), `action="/fleet/`+e.ID+`/drain"`)
		}
	}
	halted, wrong := notify.OfRollout(state, now, pages)
	add(halted, wrong, "<h1>Rollouts</h1>", "cccccccccccc", "rolled back", "the Envoy envoy-1 refuses it")
	for host, route := range map[string]string{"api.acme.example": ">api.acme.example<", "pypi.org": "pypi.org"} {
		a := notify.OfHost(host, "it is in two routes", pages)
		w.alerts = append(w.alerts, a)
		add(a, true, "<h1>Routes</h1>", route, "it is in two routes", host+" is refused")
	}
	for _, a := range w.board.Waiting() {
		add(notify.OfApproval(a, pages), true, "<h1>Approvals</h1>", held, "DELETE api.acme.example/all", `action="/approvals/`+held+`/decide"`)
	}
	vault, wrong := notify.OfVault([]grant.Summary{{State: grant.VaultUnavailable}}, pages)
	w.alerts = append(w.alerts, vault)
	add(vault, wrong, "Vault could not be asked", "The vault does not answer", "wayleave doctor")

	told := map[string]bool{}
	for _, a := range all {
		told[string(a.Kind)] = true
		if a.Kind == notify.Vault {
			w.breakStore()
			names[a.Key][0] = "Vault does not answer"
		}
		path := strings.TrimPrefix(a.URL, w.address)
		for how, enter := range map[string]func(*browser, string) answer{
			"oidc": func(b *browser, page string) answer {
				start := html.UnescapeString(oidcLink.FindStringSubmatch(page)[1])
				return b.get(p.beginAt(b, start))
			},
			"link": func(b *browser, _ string) answer { // which has no address in it
				form := b.get("/login?token=" + w.once())
				next := regexp.MustCompile(`name="next" value="([^"]*)"`).FindStringSubmatch(form.body)
				return b.post("/login", "token", w.once(), "next", html.UnescapeString(next[1]))
			},
		} {
			b := w.browser()
			door := b.get(a.URL)
			if a.URL == "" || door.status != http.StatusSeeOther || !strings.HasPrefix(door.to(), "/login?next=") {
				t.Errorf("%s: %q: %d %s", a.Key, a.URL, door.status, door.to())
				continue
			}
			if in := enter(b, b.get(door.to()).body); in.to() != path {
				t.Errorf("%s by %s: the log-in leads to %s, and not to %s", a.Key, how, in.to(), path)
			}
			b.wants(a.Key+" by "+how, b.get(path), http.StatusOK, names[a.Key]...)
		}
		if a.Kind == notify.Configuration && a.Subject == "api.acme.example" {
			if page := w.loggedIn().get(path).body; strings.Contains(page, "api.key.example") || strings.Contains(page, "pypi.org is refused") {
				t.Errorf("%s: the page has other routes and their faults", a.URL)
			}
		}
	}
	for _, kind := range kinds(t) {
		if !told[kind] {
			t.Errorf("no link of the kind %s was looked at", kind)
		}
	}
}

// Where somebody wanted to go is an address of this console, whoever says so.
func TestPlantedNext(t *testing.T) {
	w := newWorld(t, nil)
	at, _ := url.Parse(w.address)
	for _, next := range []string{"https://evil.example", "//evil.example", `/\evil.example`, "%"} {
		b := w.browser()
		b.http.Jar.SetCookies(at, []*http.Cookie{{Name: w.console.cookieName(nextCookie), Value: next}, {Name: w.console.cookieName(nextCookie), Value: url.QueryEscape(next), Path: "/login"}})
		b.wants(next, b.get("/login?token="+w.once()), http.StatusOK, `name="next" value="/"`)
	}
}
