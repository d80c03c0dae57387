package console

import (
	"net/http"
	"testing"
)

// How requests ended is on the page, with which token, and where records are missing.
func TestAuditPage(t *testing.T) {
	w := newWorld(t, nil)
	b := w.loggedIn()
	b.wants("all", b.get("/audit"), http.StatusOK, ">201<", "67 ms, 12 B in, 345 B out", `href="/audit?fingerprint=9f86d081884c7d65"`)
	b.wants("gaps", b.get("/audit?kind=gap"), http.StatusOK, "2 records are missing (killed)", "&lt;run&gt;")
	b.wants("by status", b.get("/audit?status=2XX&fingerprint=9f86d081884c7d65"), http.StatusOK, "r-1", `value="2xx"`)
	b.wants("of another status", b.get("/audit?status=5xx"), http.StatusOK, "Nothing like that was found")
	b.wants("of none", b.get("/audit?status=soon"), http.StatusBadRequest, "neither a status")
	b.wants("open ones", b.get("/audit?open=true"), http.StatusOK, "Nothing like that was found")
}
