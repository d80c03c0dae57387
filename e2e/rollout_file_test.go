package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// reaches waits until the worker's requests to a host are answered so: with a status, or with a CONNECT that is refused.
func (w worker) reaches(t *testing.T, host, want string) {
	t.Helper()
	began := time.Now()
	if err := eventually(func() error {
		a, err := do(w.client(t, true), w.request(http.MethodGet, "https://"+host+"/echo", nil))
		got := fmt.Sprint(a.status)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			return fmt.Errorf("%s: got %s; want %s", host, got, want)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("%s: %s after %v", host, want, time.Since(began).Round(time.Millisecond))
}

// The file of a gate is edited while it serves: a good change is there within seconds, one with a fault changes nothing, and the file
// as it was brings back what was. Nothing is restarted, and nobody notices but those whom the change is about.
func TestFileIsEdited(t *testing.T) {
	t.Parallel()
	file := oneTeam + "rollout: {steps: [{share: 100, dwell: 1s}]}\n"
	more := strings.Replace(file, "[api.demo.test]", "[api.demo.test, other.demo.test]", 1)
	g := start(t, file, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	held := holdOpen(t, w)
	load := startSteadyOver(w, []*http.Client{w.client(t, false), w.client(t, true)}, edgeRate)
	write := func(text string) {
		t.Helper()
		if err := g.configure(text); err != nil {
			t.Fatal(err)
		}
	}
	w.reaches(t, "other.demo.test", "Forbidden")

	write(more)
	w.reaches(t, "other.demo.test", "200")
	write(strings.Replace(more, "grant: claude", "grant: clod", 1))
	if err := g.waitOutput("has faults; nothing was changed"); err != nil {
		t.Fatal(err)
	}
	if seen, _ := g.out.contains("clod"); !seen {
		t.Errorf("the fault is not named:\n%s", g.out)
	}
	load.more(t, edgeRate)
	w.reaches(t, "other.demo.test", "200")
	write(file)
	w.reaches(t, "other.demo.test", "Forbidden")

	load.more(t, edgeRate)
	load.stop()
	load.report(t, "all the time", 0)
	held.check(t)
	select {
	case <-g.done:
		t.Error("the gate has ended")
	default:
	}
}
