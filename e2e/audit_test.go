package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// auditLine is a line of an audit, as far as these tests look.
type auditLine struct {
	Kind, Outcome, Reason, Worker, Request, Fingerprint, Cause, Host, Path, Lane string
	Open                                                                         bool
	Status                                                                       int
	Sent                                                                         int64  `json:"bytes_sent"`
	PlaceholderOf                                                                string `json:"placeholder_of"`
	Dropped                                                                      int
	Requests                                                                     []string
}

// auditLines are those of the files in a directory that match.
func auditLines(t *testing.T, pattern string) (all []auditLine) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var l auditLine
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				if strings.HasPrefix(line, `{"time"`) { // a part of one, which a killed gate left
					continue
				}
				t.Fatalf("%s: %v: %s", name, err, line)
			}
			all = append(all, l)
		}
	}
	return all
}

// Requests of several workers while Envoy and each gate are killed: each decision that a worker has seen is in the audit once, or is
// counted there as missing.
func TestAuditIsComplete(t *testing.T) {
	t.Parallel()
	s := newHouseOf(t, fleetConfig+"audit: {file: audit.jsonl, chain: true, grace: 20s}\n", "a", "b")
	g := &gate{world: s.world}
	var workers []worker
	for range 3 {
		workers = append(workers, g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN"))
	}
	var (
		mu   sync.Mutex
		seen = map[string]int{} // decisions by their ids, with the status that came of them
		end  = make(chan struct{})
		wg   sync.WaitGroup
	)
	stop := sync.OnceFunc(func() { close(end); wg.Wait() })
	defer stop()
	for i := range 12 {
		w := workers[i%len(workers)]
		client := w.client(t, i%2 == 0)
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				case <-time.After(loadPause):
				}
				req := w.request(http.MethodGet, "https://api.demo.test/echo", nil)
				if n%2 == 0 { // the gate refuses it, and names it: an answer from elsewhere has no name of ours
					req.Header.Set("X-Note", w.placeholder)
				}
				a, err := do(client, req)
				if id := a.header.Get("X-Request-Id"); err == nil && id != "" {
					mu.Lock()
					seen[id] = a.status
					mu.Unlock()
				}
			}
		})
	}
	more := func(n int) { // however slow they come, if they come
		t.Helper()
		mu.Lock()
		last := len(seen)
		mu.Unlock()
		for enough := last + n; last < enough; {
			if err := eventually(func() error {
				mu.Lock()
				defer mu.Unlock()
				if len(seen) == last {
					return fmt.Errorf("no decision after %d", last)
				}
				last = len(seen)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	more(200)
	for range 2 {
		for _, name := range []string{"a", "b"} {
			s.gates[name].kill()
			more(100)
			s.serve(t, name)
			more(200)
		}
		for _, child := range childrenOf(t, s.envoy.cmd.Process.Pid) {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		more(200)
	}
	stop()
	if err := eventually(func() error { // only what lives is left
		left, err := filepath.Glob(s.saved("audit.*.run-*"))
		if err == nil && len(left) > 2 {
			err = fmt.Errorf("the runs %v are not settled", left)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := s.gates[name].stop(); err != nil {
			t.Error(err)
		}
	}

	final, open, counted := map[string]int{}, map[string]bool{}, map[string]int{}
	total := 0
	for _, l := range auditLines(t, s.saved("audit.*.jsonl")) {
		switch {
		case l.Kind == "gap":
			total += l.Dropped
			for _, id := range l.Requests {
				counted[id]++
			}
		case l.Open:
			open[l.Request] = true
		default:
			final[l.Request]++
			if want := seen[l.Request]; want != 0 && l.Status != want {
				t.Errorf("the worker got %d of %s, and the audit says %d", want, l.Request, l.Status)
			}
			if l.Outcome == "swapped" && l.Fingerprint == "" {
				t.Errorf("no fingerprint: %+v", l)
			}
		}
	}
	ends, lost, opened := 0, 0, 0
	for id := range seen {
		n := final[id]
		ends += n
		if n == 0 && open[id] {
			n = 1
			opened++
		}
		lost += counted[id]
		if n+counted[id] != 1 {
			t.Errorf("%s is in the audit %d times, and counted %d times", id, n, counted[id])
		}
	}
	t.Logf("%d decisions were seen by workers: %d are in the audit with their end, %d without, %d are counted (of %d that are)", len(seen), ends, opened, lost, total)
	if ends < len(seen)/2 {
		t.Errorf("only %d of %d have an end", ends, len(seen))
	}
	out, err := s.command("wayleave", "audit", "verify", "-c", s.getenv("WAYLEAVE_CONFIG")).CombinedOutput()
	if err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
}

// childrenOf are the processes that a process has started.
func childrenOf(t *testing.T, pid int) (all []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Skip("there is no /proc here")
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for word := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	if len(all) == 0 {
		t.Fatal(errors.New("it has no child"))
	}
	return all
}
