package console

import (
	"net/http"
	"testing"
)

// Who is not logged in any more goes on at a page, which the address that a form is sent to is not.
func TestBackFrom(t *testing.T) {
	for _, tt := range []struct{ method, target, referer, want string }{
		{"GET", "/workers?find=ci", "", "/workers?find=ci"},
		{"GET", "/callback?code=c&state=s", "", "/"},
		{"POST", "/approvals/a/decide", "http://gate.example/approvals", "/approvals"},
		{"POST", "/approvals/a/decide", "http://gate.example/grants/x?y=z", "/grants/x?y=z"},
		{"POST", "/approvals/a/decide", "http://evil.example/approvals", "/"},
		{"POST", "/approvals/a/decide", "", "/"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://gate.example"+tt.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RequestURI = tt.target
		r.Header.Set("Referer", tt.referer)
		if got := backFrom(r); got != tt.want {
			t.Errorf("%s %s from %q: %q, want %q", tt.method, tt.target, tt.referer, got, tt.want)
		}
	}
}
