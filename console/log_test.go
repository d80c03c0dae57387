package console

import (
	"net/http"
	"strings"
	"testing"

	"wayleave/api"
)

// Operators change for a while what the gate logs, and the audit says who did; viewers only look.
func TestLogLevels(t *testing.T) {
	w := newWorld(t, nil)
	op, viewer := w.as(Operator), w.as(Viewer)
	levels := func(want string) {
		t.Helper()
		var l api.LogLevels
		if status := viewer.call("GET", "/log", "", &l); status != http.StatusOK {
			t.Fatal(status)
		}
		if got := l.Parts["grant"].Level + " " + l.Parts["xds"].Level; got != want {
			t.Errorf("grant and xds are at %s; want %s", got, want)
		}
		if l.Parts["grant"].Until.IsZero() != strings.HasPrefix(want, "info") {
			t.Errorf("until %v", l.Parts["grant"].Until)
		}
	}
	levels("info info")
	for _, c := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"levels":{"grant":"debug"}}`, 200, "debug info"},
		{`{"levels":{"":"warn","grant":"error"},"for":"1h"}`, 200, "error warn"},
		{`{"levels":{"grant":"loud"}}`, 422, "error warn"},
		{`{"levels":{"grants":"debug"}}`, 422, "error warn"},
		{`{"levels":{"grant":"debug"},"for":"48h"}`, 422, "error warn"},
		{`{"levels":{"grant":"debug"},"for":"long"}`, 422, "error warn"},
		{`{}`, 200, "info info"},
	} {
		if status := op.call("PUT", "/log", c.body, &struct{}{}); status != c.status {
			t.Errorf("%s: %d; want %d", c.body, status, c.status)
		}
		levels(c.want)
	}
	if status := viewer.call("PUT", "/log", `{"levels":{"grant":"debug"}}`, &struct{}{}); status != http.StatusForbidden {
		t.Errorf("a viewer gets %d", status)
	}
	for _, want := range []string{"log.level grant=debug by operator-script", "log.level all=warn grant=error by", "log.level as in the file by"} {
		if !strings.Contains(w.events(), want) {
			t.Errorf("the audit lacks %q:\n%s", want, w.events())
		}
	}
}
