package console

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"wayleave/approval"
	"wayleave/grant"
	"wayleave/notify"
	"wayleave/oauth"
	"wayleave/operate"
	"wayleave/secret"
)

// Whatever operators are told of is on the overview, the worst in front, with what to do and a page to go to.
func TestOverviewHasWhatIsTold(t *testing.T) {
	w := newWorld(t, nil)
	w.alerts = []notify.Alert{
		{Key: "ca/root", Kind: notify.CA, Subject: "root 1", Severity: notify.Warning, Title: "the certificate authority that workers trust ends 2026-04-01 00:00 UTC", Text: "After that no worker can connect.", Next: "make its successor: `wayleave ca prepare`"},
		{Key: "vault", Kind: notify.Vault, Subject: "vault", Severity: notify.Critical, Title: "the vault does not answer", Text: "Requests are refused.", Next: "check that it is up"},
		{Key: "envoy/none", Kind: notify.Envoy, Subject: "fleet", Severity: notify.Critical, Title: "no Envoy is connected to any gate", Text: "Nothing can pass."},
		{Key: "rollout/r1", Kind: notify.Rollout, Subject: "revision abc", Severity: notify.Warning, Title: "the rollout of revision abc was halted", Text: "It <i>fails</i>.", URL: "/rollouts"},
		notify.OfHost("faulty.example", "it is in two routes", func(path string) string { return path }),
		{Key: "approval/elsewhere", Kind: notify.Approval, Severity: notify.Warning, Title: "a request waits"}, // the store does not have it yet
	}
	w.hold(approval.Request{Worker: "ci", Rule: "eyes", Host: "api.acme.example", Method: "GET", Path: "/", Words: "look"})
	b := w.loggedIn()
	page := b.get("/").body
	from := 0
	for _, want := range []string{
		"What needs you",
		`<a href="/#grants">The vault does not answer</a>`, "Next: check that it is up.", `<a href="/fleet">No Envoy is connected to any gate</a>`,
		`<a href="/routes?find=faulty.example">faulty.example is refused: the configuration has a fault</a>`, "it is in two routes",
		`<a href="/approvals">2 requests wait for an operator</a>`, `<a href="/grants/acme">acme</a>`, "Nobody has connected it yet.", `id="connect-acme"`, `href="/grants/key#import"`,
		`<a href="/rollouts">The certificate authority that workers trust ends`, "Next: make its successor: <code>wayleave ca prepare</code>.",
		`<a href="/rollouts">The rollout of revision abc was halted</a>`, "It &lt;i&gt;fails",
	} {
		i := strings.Index(page[from:], want)
		if i < 0 {
			t.Fatalf("no %q after what is before it in:\n%s", want, page)
		}
		from += i
	}
	if strings.Contains(page, "Nothing needs you") {
		t.Error("it says that nothing needs anybody")
	}
	for _, kind := range []notify.Kind{notify.Grant, notify.CA, notify.Envoy, notify.Vault, notify.Configuration, notify.Rollout} {
		if p := places[kind]; p.url == "" || p.label == "" || p.each == "" {
			t.Errorf("the overview has no place for alerts of the kind %s", kind)
		}
	}
}

// counted is the store as the console asks it.
type counted struct {
	grant.Documents
	calls atomic.Int64
}

func (c *counted) Get(ctx context.Context, path string, into any) (int, error) {
	c.calls.Add(1)
	return c.Documents.Get(ctx, path, into)
}

func (c *counted) List(ctx context.Context, path string) ([]string, error) {
	c.calls.Add(1)
	return c.Documents.List(ctx, path)
}

// counting is a desk that works with the store.
func counting(desk operate.Desk, store *counted) func() operate.Desk {
	store.Documents, desk.Docs = desk.Docs, store
	return func() operate.Desk { return desk }
}

// However much needs somebody, and however many grants there are, the overview is a page, and asks the store as often as for few; and not
// at all when it is brought up to date by itself.
func TestOverviewIsBounded(t *testing.T) {
	const many = 3000
	store := &counted{}
	w := newWorld(t, func(c *Config) {
		desk := counting(c.Desk(), store)()
		for i := range many {
			spec := desk.Specs[0]
			spec.Name = fmt.Sprintf("grant-%04d", i)
			desk.Specs = append(desk.Specs, spec)
		}
		c.Desk = func() operate.Desk { return desk }
	})
	for i := range many {
		w.alerts = append(w.alerts, notify.OfHost(fmt.Sprintf("h%d.example", i), "it is in two routes", nil))
	}
	if _, err := grant.Connect(t.Context(), w.docs, grant.Spec{Name: "stray", Provider: "acme"}, oauth.Token{Access: secret.New("at-of-a-stray")}, w.now()); err != nil {
		t.Fatal(err)
	}
	b := w.loggedIn()
	w.stopClock() // what the store said is old after some seconds

	before := store.calls.Load()
	page := b.get("/")
	if calls := store.calls.Load() - before; calls > 5 { // the requests that wait, the names of grants, and the stray's status
		t.Errorf("the store was asked %d times", calls)
	}
	if len(page.body) > 100<<10 {
		t.Errorf("the overview has %d bytes", len(page.body))
	}
	hidden := many + 3 - shownNeeds // of the grants, three are kept here and not connected
	b.wants("overview", page, http.StatusOK, fmt.Sprintf(`<a href="/routes">%d hosts</a>`, hidden-3), `<a href="/#grants">3 grants</a>`,
		fmt.Sprintf("100 of %d are shown", many+4), `name="grant"`)
	b.wants("found", b.get("/?grant=grant-2999"), http.StatusOK, `href="/grants/grant-2999"`)
	b.wants("a stray", b.get("/?grant=stray"), http.StatusOK, "not in the configuration")
	b.wants("found none", b.get("/?grant=nothing"), http.StatusOK, "No grant has nothing in its name.")

	before = store.calls.Load()
	for range 10 {
		b.wants("by itself", b.get("/?live="), http.StatusOK, "What needs you")
	}
	if calls := store.calls.Load() - before; calls > 0 {
		t.Errorf("the store was asked %d times by pages that are only open", calls)
	}
}
