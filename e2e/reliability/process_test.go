package reliability

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 2 * time.Minute // with what must come; machines that run tests are slow at times

// replica is another process, as its parent sees it.
type replica struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	said   *transcript
	ended  chan struct{}
	orders int

	mu     sync.Mutex
	events []event
	news   chan struct{} // closed at the next event
}

// start runs a replica until it is killed, told to stop, or the test ends.
func (w *world) start(s settings) *replica {
	w.Helper()
	if s.Vault == (login{}) {
		s.Vault = w.login
	}
	if s.Spool == "" {
		s.Spool = w.spool()
	}
	r := &replica{t: w.T, cmd: exec.Command(os.Args[0]), said: w.transcript(), ended: make(chan struct{}), news: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), replicaEnv+"=1", "GORACE=halt_on_error=0 exitcode=66 atexit_sleep_ms=0")
	r.cmd.Stderr = r.said
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	r.stdin = stdin
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		r.listen(stdout)
		_ = r.cmd.Wait()
	}()
	w.Cleanup(func() {
		r.kill()
		if w.Failed() {
			w.Logf("a process printed:\n%s", r.said.tail())
		}
	})
	r.send(s)
	return r
}

func (r *replica) listen(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		_, _ = r.said.Write(append(lines.Bytes(), '\n'))
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // of the test binary itself
		}
		r.mu.Lock()
		r.events = append(r.events, e)
		close(r.news)
		r.news = make(chan struct{})
		r.mu.Unlock()
	}
}

func (r *replica) send(v any) {
	// What was killed meanwhile does not read.
	_ = json.NewEncoder(r.stdin).Encode(v)
}

func (r *replica) all() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// await returns the first event, since the start, that is what is waited for.
func (r *replica) await(what string, is func(event) bool) event {
	r.t.Helper()
	end := time.After(patience)
	for {
		r.mu.Lock()
		i, news := slices.IndexFunc(r.events, is), r.news
		var e event
		if i >= 0 {
			e = r.events[i]
		}
		r.mu.Unlock()
		if i >= 0 {
			return e
		}
		select {
		case <-news:
		case <-r.ended:
			r.t.Fatalf("waiting for %s: the process ended\n%s", what, r.said.tail())
		case <-end:
			r.t.Fatalf("waiting for %s: nothing\n%s", what, r.said.tail())
		}
	}
}

func (r *replica) awaitAt(grant string, p point) {
	r.t.Helper()
	r.await(grant+" "+string(p), func(e event) bool { return e.What == "at" && e.Grant == grant && e.Point == p })
}

// use is a worker's request.
func (r *replica) use(grant string) event {
	r.t.Helper()
	r.mu.Lock()
	r.orders++
	id := r.orders
	r.mu.Unlock()
	r.send(order{Do: "use", ID: id, Grant: grant})
	return r.await("a use of "+grant, func(e event) bool { return e.What == "used" && e.ID == id })
}

func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}

// freeze is SIGSTOP; it returns when the process stands still.
func (r *replica) freeze() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, "the process stands still", func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(r.cmd.Process.Pid) + "/stat")
		if err != nil {
			r.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		return strings.HasPrefix(rest, "T")
	})
}

func (r *replica) thaw() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		r.t.Fatal(err)
	}
}

// stop ends the process as an operator does, and reports whether it ended well.
func (r *replica) stop() {
	r.t.Helper()
	_ = r.stdin.Close()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.t.Fatalf("the process does not end\n%s", r.said.tail())
	}
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		r.t.Errorf("the process ended with %d\n%s", code, r.said.tail())
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(limit); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// transcript is all that a process printed.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *transcript) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.b.Bytes())
}

func (o *transcript) tail() []byte {
	b := o.bytes()
	return b[max(0, len(b)-8000):]
}
