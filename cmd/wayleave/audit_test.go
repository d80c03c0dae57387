package main

import (
	"strings"
	"testing"
	"time"

	"wayleave/audit"
)

// What others wrote into a record does nothing to the terminal that shows it.
func TestPrintRecord(t *testing.T) {
	for _, r := range []audit.Record{
		{Kind: audit.Operator, Outcome: audit.Failed, Actor: "maria", Action: "grant.refresh", Target: "a\x1b[2Jb"},
		{Kind: audit.Request, Outcome: audit.Passed, Method: "GET", Host: "api.test", Path: "/a\u009b2Jb"},
		{Kind: audit.Request, Outcome: audit.Passed, Method: "GET", Host: "api.test", Path: "/a\nb"},
	} {
		r.Time = time.Now()
		var out strings.Builder
		if err := printRecord(&out, r, false); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); strings.ContainsAny(got, "\x1b\u009b") || strings.Count(got, "\n") != 1 || !strings.Contains(got, "a?") {
			t.Errorf("%q", got)
		}
	}
}
