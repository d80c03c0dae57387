package console

import (
	"context"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"wayleave/audit"
)

// What does not fit a page is on those behind it, to its last record.
func TestOlderAudit(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.SearchAudit = func(_ context.Context, f audit.Filter, limit int) (found audit.Found, err error) {
			if f.Worker != "ci" {
				t.Errorf("looked for %+v", f)
			}
			switch f.After {
			case "":
				found.Next = "r.7,-"
			case "r.7,-":
			default:
				return found, audit.ErrPlace
			}
			found.Records = []audit.Record{{Time: auditRecords[1].Time, Kind: audit.Request, Outcome: audit.Swapped, Request: "behind " + string(f.After)}}
			return found, nil
		}
	})
	b := w.loggedIn()
	b.wants("the latest", b.get("/audit?worker=ci&limit=1"), http.StatusOK, "behind <", "1 shown", `href="/audit?after=r.7%2C-&amp;limit=1&amp;worker=ci" rel="next">Older</a>`)
	last := b.get("/audit?after=r.7%2C-&limit=1&worker=ci")
	b.wants("the rest", last, http.StatusOK, "behind r.7,-")
	if strings.Contains(last.body, "Older") || strings.Contains(last.body, `name="after"`) {
		t.Errorf("there is more, or another search begins behind this: %s", last.body)
	}
	b.wants("nowhere", b.get("/audit?after=x&worker=ci"), http.StatusBadRequest, "after is not what a search of this audit said as next")
}

// How requests ended is on the page, with which token, and where records are missing.
func TestAuditPage(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("all", b.get("/audit"), http.StatusOK, ">201<", "67 ms, 12 B in, 345 B out", `href="/audit?fingerprint=9f86d081884c7d65"`)
	b.wants("gaps", b.get("/audit?kind=gap"), http.StatusOK, "2 records are missing (killed)", "&lt;run&gt;")
	b.wants("by status", b.get("/audit?status=2XX&fingerprint=9f86d081884c7d65"), http.StatusOK, "r-1", `value="2xx"`)
	b.wants("of another status", b.get("/audit?status=5xx"), http.StatusOK, "Nothing like that was found")
	b.wants("of none", b.get("/audit?status=soon"), http.StatusBadRequest, "neither a status")
	const one = "/audit?kind=request&from=2026-01-02T03:04:04Z&to=2026-01-02T05:04:05%2B02:00"
	b.wants("within a second", b.get(one), http.StatusOK, "r-1", `step="1" value="2026-01-02T03:04:04"`, `step="1" value="2026-01-02T03:04:05"`)
	b.wants("as the fields have it", b.get("/audit?from=2026-01-02T03:04:04&to=2026-01-02T03:04:05"), http.StatusOK, "r-1")
	b.wants("without seconds", b.get("/audit?from=2026-01-02T03:05"), http.StatusOK, "Nothing like that was found")
	b.wants("pasted with what is around it", b.get("/audit?status=+201%09&fingerprint=9f86d081884c7d65+&host=+acme.example%0A"), http.StatusOK, "r-1", `value="9f86d081884c7d65"`)
	b.wants("open ones", b.get("/audit?open=true"), http.StatusOK, "Nothing like that was found")
}

// A browser takes for a status what the search does, and says so where it was written: else what was looked for is lost.
func TestStatusField(t *testing.T) {
	m := regexp.MustCompile(`name="status"[^>]* pattern="([^"]+)"`).FindStringSubmatch(newWorld(t, nil).loggedIn().get("/audit").body)
	if m == nil {
		t.Fatal("the field takes anything")
	}
	takes := regexp.MustCompile("^(" + html.UnescapeString(m[1]) + ")$")
	for _, text := range []string{"429", "5xx", "2XX", "20x", "2x0", "599", "600", "099", "xxx", "42", "4290", "soon", "4xX", "4x4"} {
		if _, err := audit.ParseStatuses(text); takes.MatchString(text) != (err == nil) {
			t.Errorf("%s: the search says %v", text, err)
		}
	}
}
