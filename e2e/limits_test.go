package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// What a gate counts as under way goes on when the gate is told to stop, and is broken off when it is killed. Neither the gate
// after it nor the one beside it counts it.
func TestGateLeavesWhatItCounts(t *testing.T) {
	t.Parallel()
	s := newHouseOf(t, strings.Replace(fleetConfig, "default: {grants: [claude]}", "default: {grants: [claude], limits: {concurrent: 1}}", 1))
	w := (&gate{world: s.world}).enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	asks := func() (status int, reason string) {
		t.Helper()
		a, err := do(w.client(t, true), w.request(http.MethodGet, "https://api.demo.test/echo", nil))
		if err != nil {
			t.Fatal(err)
		}
		return a.status, a.header.Get("X-Wayleave-Reason")
	}
	free := func() {
		t.Helper()
		if err := eventually(func() error {
			if status, reason := asks(); status != http.StatusOK {
				return fmt.Errorf("%d %s", status, reason)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	full := func() {
		t.Helper()
		if status, reason := asks(); status != http.StatusTooManyRequests || reason != "rate_limited" {
			t.Errorf("beside a request that is under way: %d %s", status, reason)
		}
	}

	works := openSocket(t, w)
	full()
	if err := s.gates[""].stop(); err != nil {
		t.Error(err)
	}
	works(t)
	s.serve(t, "")
	free()
	works(t)

	resp, err := w.client(t, true).Do(w.request(http.MethodGet, "https://api.demo.test/sse?n=100000&ms=100", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	full()
	s.gates[""].kill()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("the answer that was broken off looks whole after %d bytes", n)
	}
	works(t) // it was not this gate's
	s.serve(t, "")
	free()
}
