package e2e

import (
	"bufio"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// A stop lets what is under way finish: an event stream that still has events to come is not cut. Here it is the terminal that is closed; the
// others stop by Ctrl-C.
func TestStopLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	const events = 20
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	resp, err := w.client(t, true).Do(w.request(http.MethodGet, "https://api.demo.test/sse?n=20&ms=100", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "event: ") {
			if got++; got == 1 { // it has begun, and has two seconds to go
				if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got != events {
		t.Errorf("%d of %d events arrived", got, events)
	}
	<-g.done
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the gate ended with %d", code)
	}
}
