package console

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/api"
	"wayleave/demo"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/worker"
)

// An operator connects a grant by clicking, and everything about it by what the pages offer.
func TestConnectByClicking(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("overview", b.get("/"), http.StatusOK, "What needs you", "Nobody has connected it yet", "1 Envoy, up to date.", "Nothing has been rolled out yet.", "No request has come")
	b.wants("grant", b.get("/grants/acme"), http.StatusOK, "never connected", "build@acme.example", "Asked for", ">Connect<", "device")

	a := b.post("/grants/acme/connect")
	provider := b.leaves(a)
	if !strings.HasPrefix(provider, w.demo.ProviderURL+"/authorize?") {
		t.Fatal(provider)
	}
	back, err := demo.Approve(t.Context(), provider)
	if err != nil || !strings.HasPrefix(back, w.address+"/callback?") {
		t.Fatalf("%v, %s", err, back)
	}
	a = b.get(back)
	if a.to() != "/grants/acme" {
		t.Fatalf("%d %s %s", a.status, a.to(), a.body)
	}
	b.wants("connected", b.get("/grants/acme"), http.StatusOK, "acme is connected.", "healthy", "Reconnect", "Refresh now")
	if page := b.get("/grants/acme"); strings.Contains(page.body, "acme is connected.") {
		t.Error("a notice is shown twice")
	}

	b.post("/grants/acme/refresh")
	b.wants("refreshed", b.get("/grants/acme"), http.StatusOK, "acme was refreshed.", "The last refresh took")
	w.demo.Provider.SetDown(true)
	b.post("/grants/acme/refresh")
	b.wants("provider down", b.get("/grants/acme"), http.StatusOK, "That did not work", "was not refreshed", "refresh failed")
	w.demo.Provider.SetDown(false)

	b.post("/grants/acme/disconnect", "name", "akme")
	b.wants("not meant", b.get("/grants/acme"), http.StatusOK, "nothing was changed")
	b.post("/grants/acme/disconnect", "name", "acme")
	b.wants("disconnected", b.get("/grants/acme"), http.StatusOK, "revoked at the provider", "never connected")
	for _, want := range []string{"login  by local operator via link from 127.0.0.1: <nil>", "grant.connect acme by local operator", "grant.refresh acme", "grant.disconnect acme"} {
		if !strings.Contains(w.events(), want) {
			t.Errorf("no %q in the audit:\n%s", want, w.events())
		}
	}
}

func TestConnectByPasting(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	a := b.post("/grants/pasted/connect")
	page := b.get(a.to())
	b.wants("pasting", page, http.StatusOK, "Paste what it shows", w.demo.ProviderURL[len("http://"):])
	f := w.onlyFlow()
	b.post("/connects/"+f.ID+"/answer", "answer", "not-ours#wrong-state")
	b.wants("a wrong one", b.get("/connects/"+f.ID), http.StatusOK, "paste it again")
	back, err := demo.Approve(t.Context(), f.URL)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(back)
	a = b.post("/connects/"+f.ID+"/answer", "answer", u.Query().Get("code")+"#"+u.Query().Get("state"))
	b.wants("connected", b.get(a.to()), http.StatusOK, "pasted is connected.", "healthy")

	// Two clicks connect once, and neither says that it did not work.
	a = b.post("/connects/"+f.ID+"/answer", "answer", u.Query().Get("code"))
	b.wants("clicked twice", b.get(a.to()), http.StatusOK, "pasted is connected.", "healthy")
	if n := strings.Count(w.events(), "grant.connect pasted by"); n != 1 {
		t.Errorf("connected %d times:\n%s", n, w.events())
	}
	late := b.post("/grants/pasted/connect").to()
	w.later(flowLife + time.Minute)
	a = b.post(late+"/answer", "answer", "c")
	b.wants("too late", b.get(a.to()), http.StatusOK, "Nobody agreed in time; connect again.", "Connect again")

	// Clients that may only come back to loopback of the operator's machine paste the address.
	a = b.post("/grants/acme/connect", "way", "code", "paste", "1")
	if !strings.HasPrefix(a.to(), "/connects/") {
		t.Fatal(a.to())
	}
	b.wants("pasting an address", b.get(a.to()), http.StatusOK, "paste that page", "build@acme.example")
}

func TestConnectByDevice(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	a := b.post("/grants/acme/connect", "way", "device")
	f := w.onlyFlow()
	b.wants("the code", b.get(a.to()), http.StatusOK, f.Code, "Copy", "goes on by itself")
	if err := demo.ApproveDevice(t.Context(), f.URL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "connected", func() bool { return strings.Contains(b.get(a.to()).body, "workers can use it") })
	b.wants("connected", b.get("/grants/acme"), http.StatusOK, "healthy")
}

// A consent whose answer is under way when the gate is stopped is stored, however it was agreed to.
func TestGateStopsDuringAConsent(t *testing.T) {
	for _, way := range []operate.Way{operate.ByDevice, operate.ByCode} {
		t.Run(string(way), func(t *testing.T) {
			w := newWorld(t, nil)
			b := w.loggedIn()
			b.post("/grants/acme/connect", "way", string(way))
			asked, answer := make(chan struct{}), make(chan struct{})
			w.demo.Provider.EditAnswers(func(map[string]string, map[string]any) { close(asked); <-answer })
			var coming sync.WaitGroup
			if f := w.onlyFlow(); way == operate.ByDevice {
				if err := demo.ApproveDevice(t.Context(), f.URL); err != nil {
					t.Fatal(err)
				}
			} else {
				back, err := demo.Approve(t.Context(), f.URL)
				if err != nil {
					t.Fatal(err)
				}
				coming.Go(func() { b.get(back) })
			}
			<-asked
			go func() { <-w.console.flows.ctx.Done(); close(answer) }()
			w.stop()
			if f := w.onlyFlow(); f.State != api.FlowConnected {
				t.Errorf("%s: %s", f.State, f.Error)
			}
			if !strings.Contains(w.events(), "grant.connect acme by local operator") {
				t.Errorf("the audit has\n%s", w.events())
			}
			coming.Wait()
		})
	}
}

func (w *world) onlyFlow() api.Flow {
	w.t.Helper()
	f := w.console.flows
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.byID {
		return x.Flow
	}
	w.t.Fatal("no flow")
	return api.Flow{}
}

func TestImportByForm(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("grant", b.get("/grants/key"), http.StatusOK, "Import a key", `type="password"`)
	b.post("/grants/key/import", "value", "your-api-key")
	b.wants("an example", b.get("/grants/key"), http.StatusOK, "an example", "nothing was changed")
	b.post("/grants/key/import", "value", "k-"+hush)
	b.wants("imported", b.get("/grants/key"), http.StatusOK, "key is imported.", "healthy")
	if strings.Contains(w.events(), hush) {
		t.Error("the audit has the key")
	}
}

// A configuration that asks for more shows as one reconnect.
func TestScopesThatAreNew(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	token := func(scopes ...string) {
		access, refresh := w.demo.Provider.Issue(scopes...)
		w.store("acme", access, refresh, scopes)
	}
	token("read")
	eventually(t, "the gate has seen it", func() bool { return w.console.Grants.Summary("acme").State == grant.ScopeMissing })
	b.wants("overview", b.get("/"), http.StatusOK, "scope missing", "1 of 2", "lacks write", "Reconnect")
	b.wants("grant", b.get("/grants/acme"), http.StatusOK, "asked for and not granted")
}

func TestWorkersAndRequests(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("none", b.get("/workers"), http.StatusOK, "ci", "It has no live session")
	s, _, err := w.sessions.Issue("ci", "default", time.Hour, w.now())
	if err != nil {
		t.Fatal(err)
	}
	w.sessions.Issued(s, "", "10.0.0.7")
	eventually(t, "the session is listed", func() bool { return strings.Contains(b.get("/workers").body, s.ID) })
	b.wants("one", b.get("/workers"), http.StatusOK, "10.0.0.7", "End all sessions")
	b.post("/sessions/" + s.ID + "/revoke")
	b.wants("ended", b.get("/workers"), http.StatusOK, "is ended")
	eventually(t, "the session is refused", func() bool { return w.sessions.Check(s, w.now()) == worker.ErrRevoked }) //nolint:errorlint // the error itself
	b.post("/workers/nobody/revoke")
	b.wants("nobody", b.get("/workers"), http.StatusOK, "there is no worker")

	w.console.Decisions.Add(Decision{At: w.now(), Outcome: Swapped, Worker: "ci", Host: "api.acme.example", Method: "POST", Grant: "acme"})
	w.console.Decisions.Add(Decision{At: w.now(), Outcome: Refused, Reason: "host_not_allowed", Worker: "ci", Host: "evil.example", Method: "CONNECT", Request: "r-1"})
	b.wants("requests", b.get("/requests"), http.StatusOK, "swapped", "host not allowed", "evil.example", "1 refused")
	if page := b.get("/requests?outcome=refused&host=evil"); strings.Contains(page.body, ">api.acme") || !strings.Contains(page.body, "r-1") {
		t.Error("the filter does not filter")
	}
	b.wants("overview", b.get("/"), http.StatusOK, "Refused in the last hour", "host not allowed")
	b.wants("routes", b.get("/routes"), http.StatusOK, "api.acme.example", "needs <code>read</code>", "pypi.org")
}

// What is not there, and what does not answer, is said.
func TestHonestPages(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("no grant", b.get("/grants/nobody"), http.StatusNotFound, "No grant &#34;nobody&#34;; there are:")
	b.wants("no page", b.get("/nowhere"), http.StatusNotFound, "nothing at this address")
	w.breakStore()
	b.wants("no vault", b.get("/"), http.StatusOK, "Vault does not answer; this is what this gate remembers")
	b.wants("no vault", b.get("/workers"), http.StatusOK, "Vault does not answer")
	b.wants("no vault", b.get("/access"), http.StatusServiceUnavailable, "vault")
}

func TestConfigurationPage(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("as it was", b.get("/configuration"), http.StatusOK, "the same", "profiles:")
	w.rewrite("tunnel: [pypi.org]", "tunnel: [pypi.org, npmjs.com]")
	b.wants("changed", b.get("/configuration"), http.StatusOK, "takes effect when the gate is restarted", "&#43;tunnel: [pypi.org, npmjs.com]", "-tunnel: [pypi.org]")
	w.rewrite("tunnel: [pypi.org, npmjs.com]", "tunnels: [pypi.org]")
	b.wants("broken", b.get("/configuration"), http.StatusOK, "would not start", "tunnels")
}
