package console

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/operate"
	"wayleave/vault"
)

// However many sessions there are, the page of workers has as many rows as fit and says what it does not show, and the store is not asked
// for them.
func TestWorkersPageIsBounded(t *testing.T) {
	const many, workers = 10_000, 100
	store := &counted{}
	w := newWorld(t, func(c *Config) { c.Desk = counting(c.Desk(), store) })
	for i := range many {
		name := "ci"
		if i%2 == 0 {
			name = fmt.Sprintf("old-%02d", i/2%workers)
		}
		s, _, err := w.sessions.Issue(name, "default", time.Hour+time.Duration(i)*time.Second, w.now())
		if err != nil {
			t.Fatal(err)
		}
		w.sessions.Issued(s, "", "10.0.0.7")
	}
	b := w.loggedIn()
	look := func(path string, rows int, texts ...string) string {
		t.Helper()
		before := store.calls.Load()
		page := b.get(path)
		b.wants(path, page, http.StatusOK, append(texts, "10000 sessions of 101 workers")...)
		if calls := store.calls.Load() - before; calls > 3 { // the requests that wait, and the names of grants, for the warning
			t.Errorf("%s: the store was asked %d times", path, calls)
		}
		if got := strings.Count(page.body, "<tr id="); got != rows {
			t.Errorf("%s: %d sessions are shown; want %d", path, got, rows)
		}
		if perRow := len(page.body) / rows; perRow > 1500 {
			t.Errorf("%s: %d bytes for %d rows", path, len(page.body), rows)
		}
		return page.body
	}
	look("/workers", shownWorkers*shownSessions, "and 4992 more are not", `<a href="/workers?worker=ci">All sessions of ci</a>`, "1 to 25 of 101", `href="/workers?page=2"`)
	look("/workers?page=5", shownSessions, "101 to 101 of 101", `href="/workers?page=4"`, "old-99")
	look("/workers?page=77", shownSessions, "101 to 101 of 101")
	look("/workers?find=old-0&live=", 10*shownSessions, "old-09")
	first := look("/workers?worker=ci", shownOfOne, "1 to 200 of 5000", `href="/workers?page=2&amp;worker=ci"`)
	last := look("/workers?worker=ci&page=25", shownOfOne, "4801 to 5000 of 5000")
	look("/workers?worker=ci&page=-1", shownOfOne, "1 to 200 of 5000")
	for id := range strings.SplitSeq(first, `<tr id="`) {
		if id, _, _ = strings.Cut(id, `"`); strings.Contains(last, `<tr id="`+id+`"`) {
			t.Errorf("session %s is on two pages", id)
		}
	}
	b.wants("nobody", b.get("/workers?find=nobody"), http.StatusOK, "No worker has nobody in its name.")
	b.wants("nobody", b.get("/workers?worker=nobody"), http.StatusOK, "There is no worker nobody")
	if a := b.post("/workers/ci/revoke", "one", "ci"); a.to() != "/workers?worker=ci" {
		t.Errorf("after the revocation: %d %s", a.status, a.to())
	}
	b.wants("revoked", b.get("/workers?worker=ci"), http.StatusOK, "All sessions of ci are ended", "It has no live session.", "5000 sessions of 101 workers")
}

// The other lists that grow are cut too, and say so.
func TestListsAreBounded(t *testing.T) {
	const many = 1000
	w := newWorld(t, func(c *Config) {
		desk := c.Desk()
		cfg := *desk.Config
		cfg.Routes = slices.Clone(cfg.Routes)
		cfg.Workers = maps.Clone(cfg.Workers)
		for i := range many {
			host := fmt.Sprintf("h%04d.example", i)
			cfg.Routes = append(cfg.Routes, config.Route{Name: host, Hosts: []string{host}, Grant: "acme"})
			cfg.Workers[fmt.Sprintf("w%04d", i)] = config.Worker{Profile: "default"}
			cfg.Tunnel = append(cfg.Tunnel, host)
		}
		desk.Config = &cfg
		c.Desk = func() operate.Desk { return desk }
		c.Decisions = NewDecisions(many)
	})
	for i := range many {
		w.console.Decisions.Add(Decision{At: w.now(), Outcome: Refused, Reason: "host_not_allowed", Worker: fmt.Sprintf("w%04d", i), Host: "evil.example"})
	}
	now := w.now()
	kept := map[string]any{}
	for i := range 300 {
		kept[fmt.Sprintf("s%d eyes", i)] = map[string]any{"worker": fmt.Sprintf("w%04d", i), "session": fmt.Sprintf("s%d", i), "rule": "eyes", "approval": fmt.Sprint(i), "verdict": "allow", "until": now.Add(time.Hour), "at": now}
	}
	if _, err := w.docs.Put(t.Context(), "approvals/held", vault.Packed{Value: map[string]any{"kept": kept}}, 0); err != nil {
		t.Fatal(err)
	}
	b := w.loggedIn()
	for path, texts := range map[string][]string{
		"/routes":                {"1 to 100 of 1002", `href="/routes?page=2"`, "and 981 more", "w0018 and 981 more"},
		"/routes?find=h0999":     {`id="h0999.example"`},
		"/routes?find=nowhere":   {"No route has nowhere in its name or a host."},
		"/requests":              {"The latest 200 of 1000 are shown.", "remembers its latest 1000 requests", `placeholder="its whole name"`},
		"/requests?worker=w0007": {"w0007", "evil.example"},
		"/grants/acme":           {"and 981 more", "and 981 more"},
		"/approvals":             {"200 more, which end later, are not shown"},
		"/audit":                 {`placeholder="its whole name"`},
		"/":                      {"host not allowed"},
	} {
		page := b.get(path)
		b.wants(path, page, http.StatusOK, texts...)
		if len(page.body) > 150<<10 {
			t.Errorf("%s has %d bytes", path, len(page.body))
		}
	}
}
