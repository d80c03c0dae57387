package vault

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Whoever watches is told of each call once, with what became of it.
func TestCalled(t *testing.T) {
	server := httptest.NewServer(vaultHandler(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errors":["check-and-set parameter did not match the current version"]}`)
		case r.URL.Path == "/v1/wayleave/data/grants/a":
			fmt.Fprint(w, aDocument)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errors":[]}`)
		}
	}))
	defer server.Close()
	var told []Call
	c := openAt(t, Config{Address: server.URL, Called: func(c Call) { told = append(told, c) }})
	_, _ = c.Get(t.Context(), "grants/a", &struct{}{})
	_, _ = c.Get(t.Context(), "grants/b", &struct{}{})
	_, _ = c.Put(t.Context(), "grants/a", struct{}{}, 1)
	want := []Call{{Operation: "read"}, {Operation: "read", Err: ErrNotFound}, {Operation: "update", Err: ErrConflict}}
	if len(told) != len(want) {
		t.Fatalf("%d calls: %v", len(told), told)
	}
	for i, w := range want {
		if told[i].Operation != w.Operation || !errors.Is(told[i].Err, w.Err) || told[i].Took <= 0 {
			t.Errorf("call %d: %+v, want %+v", i, told[i], w)
		}
	}
}
