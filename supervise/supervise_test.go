package supervise

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The test binary plays the children: which one is in this variable.
const roleVar = "SUPERVISE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(m.Run())
	case "serve": // says so, then ends on SIGTERM
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("serving")
		<-term
		fmt.Println("ending in order")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		never := make(chan os.Signal, 1)
		signal.Notify(never, syscall.SIGUSR1) // waiting for nothing at all, the runtime takes for a deadlock
		fmt.Println("serving")
		<-never
	case "fail":
		fmt.Fprintln(os.Stderr, "first line")
		fmt.Fprint(os.Stderr, "bad configuration")
		os.Exit(3)
	case "grandchild": // leaves a process behind
		c := child("stubborn")
		if err := c.Start(); err != nil {
			panic(err)
		}
		fmt.Println("grandchild", c.Process.Pid)
	case "supervisor": // supervises "serve" until killed
		err := Run(context.Background(), Process{
			Name: "served", Command: func() *exec.Cmd { return child("serve") }, PIDFile: os.Getenv("SUPERVISE_TEST_PIDFILE"),
			OnEvent: func(e Event) { fmt.Println(e.Kind, e.PID) },
		})
		fmt.Println("error", err)
	}
}

func child(role string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	return cmd
}

// run runs p until the test ends it, and returns its events.
func run(t *testing.T, p Process) (events chan Event, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events = make(chan Event, 100)
	p.OnEvent = func(e Event) { events <- e }
	result := make(chan error, 1)
	go func() { result <- Run(ctx, p) }()
	stop = sync.OnceValue(func() error { cancel(); return <-result })
	t.Cleanup(func() { stop() })
	return events, stop
}

func wait(t *testing.T, events <-chan Event, kind Kind) Event {
	t.Helper()
	for {
		select {
		case e := <-events:
			if e.Kind == kind {
				return e
			}
		case <-time.After(time.Minute): // only so that a broken test ends
			t.Fatalf("no %s event", kind)
		}
	}
}

// transcript is what processes printed.
type transcript chan string

func (c transcript) Write(b []byte) (int, error) {
	c <- string(b)
	return len(b), nil
}

// wait takes what was printed, which must be this.
func (c transcript) wait(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c:
		if got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	case <-time.After(time.Minute): // only so that a broken test ends
		t.Fatalf("%q was not printed", want)
	}
}

// gone waits until the process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 6000 {
		if _, err := identify(pid); errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("process %d is still there", pid)
}

// A process is started, asked until ready, started again when it is killed, and stopped in order with its output passed on.
func TestKeepsRunning(t *testing.T) {
	said := make(transcript, 100)
	var asked atomic.Int32
	events, stop := run(t, Process{
		Name: "server", Command: func() *exec.Cmd { return child("serve") }, Log: said,
		Ready: func(context.Context) error {
			if asked.Add(1)%3 != 0 {
				return errors.New("not yet")
			}
			return nil
		},
	})
	first := wait(t, events, Started)
	if e := wait(t, events, Ready); e.PID != first.PID || asked.Load() != 3 {
		t.Errorf("ready: pid %d after %d questions, want pid %d after 3", e.PID, asked.Load(), first.PID)
	}
	said.wait(t, "serving\n")
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, events, Exited); e.Err == nil || !strings.Contains(e.Err.Error(), "killed") {
		t.Errorf("exit reason: %v", e.Err)
	}
	if e := wait(t, events, Restart); e.Delay <= 0 {
		t.Errorf("restarted without a pause")
	}
	second := wait(t, events, Ready)
	if second.PID == first.PID {
		t.Errorf("the second process is the first")
	}
	said.wait(t, "serving\n") // else SIGTERM may come before it is expected
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if e := wait(t, events, Exited); e.Err != nil || len(e.Tail) == 0 || e.Tail[len(e.Tail)-1] != "ending in order" {
		t.Errorf("last exit: %v, %q", e.Err, e.Tail)
	}
	gone(t, second.PID)
	said.wait(t, "ending in order\n")
}

func TestExitCarriesReasonAndLastLines(t *testing.T) {
	events, _ := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("fail") }})
	e := wait(t, events, Exited)
	var status *exec.ExitError
	if !errors.As(e.Err, &status) || status.ExitCode() != 3 {
		t.Errorf("err = %v, want exit status 3", e.Err)
	}
	if diff := cmp.Diff([]string{"first line", "bad configuration"}, e.Tail); diff != "" {
		t.Error(diff)
	}
}

func TestStubbornProcessIsKilled(t *testing.T) {
	events, stop := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("stubborn") }, StopTimeout: 50 * time.Millisecond})
	pid := wait(t, events, Ready).PID
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	gone(t, pid)
}

// A process that does not become ready is not waited for in silence.
func TestWaitingSaysWhy(t *testing.T) {
	events, _ := run(t, Process{
		Name: "x", Command: func() *exec.Cmd { return child("serve") }, Slow: 10 * time.Millisecond,
		Ready: func(context.Context) error { return errors.New("the port is in use") },
	})
	for range 2 {
		if e := wait(t, events, Waiting); e.Err == nil || e.PID == 0 {
			t.Errorf("event %+v", e)
		}
	}
	for e := wait(t, events, Waiting); e.Err.Error() != "the port is in use"; e = wait(t, events, Waiting) {
	}
}

// A process is asked to end only when it has finished its work, and one that has ended is not waited for.
func TestDrain(t *testing.T) {
	drained := make(chan struct{})
	output, err := OpenLog(filepath.Join(t.TempDir(), "x.log"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p := Process{Name: "x", Command: func() *exec.Cmd { return child("serve") }, Log: output, Ready: func(context.Context) error {
		if b, err := os.ReadFile(output.path); err != nil || len(b) == 0 {
			return errors.New("it has not said that it serves")
		}
		return nil
	}}
	p.Drain = func(ctx context.Context) {
		if ctx.Err() != nil {
			t.Error("the context ended before the process")
		}
		close(drained)
	}
	events, stop := run(t, p)
	wait(t, events, Ready)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if e := wait(t, events, Exited); e.Err != nil || len(e.Tail) == 0 || e.Tail[len(e.Tail)-1] != "ending in order" {
		t.Errorf("exit: %v, %q", e.Err, e.Tail)
	}
	<-drained

	entered := make(chan struct{})
	p.Drain = func(ctx context.Context) { close(entered); <-ctx.Done() }
	events, stop = run(t, p)
	pid := wait(t, events, Ready).PID
	go func() { <-entered; syscall.Kill(pid, syscall.SIGKILL) }()
	if err := stop(); err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

// A process that stands still is ended all the same.
func TestStoppedProcessIsKilled(t *testing.T) {
	events, stop := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("serve") }, StopTimeout: 50 * time.Millisecond})
	pid := wait(t, events, Ready).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	read := func(path string) string { b, _ := os.ReadFile(path); return string(b) }
	l, err := OpenLog(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"first\n", "second\n", "third\n", "fourth\n", "fifth\n"} {
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
	if old, now := read(path+".1"), read(path); old != "third\nfourth\n" || now != "fifth\n" {
		t.Errorf("%q, then %q", old, now)
	}
	l.Close()
	// What is there counts, and a log that was taken away is made anew.
	if l, err = OpenLog(path, 6); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Remove(path)
	l.Write([]byte("sixth\n"))
	if now := read(path); now != "sixth\n" {
		t.Errorf("%q", now)
	}
	// One that cannot be renamed is not written any more.
	os.Remove(path + ".1")
	if err := os.MkdirAll(path+".1/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("seventh\n")); err == nil || read(path) != "sixth\n" {
		t.Errorf("%v, %q", err, read(path))
	}
}

// What a child started does not survive it.
func TestGrandchildEndsToo(t *testing.T) {
	events, _ := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("grandchild") }})
	e := wait(t, events, Exited)
	for _, line := range e.Tail {
		if pid, ok := strings.CutPrefix(line, "grandchild "); ok {
			n, _ := strconv.Atoi(pid)
			gone(t, n)
			return
		}
	}
	t.Fatalf("no grandchild in %q", e.Tail)
}

func TestFirstStartMustWork(t *testing.T) {
	err := Run(t.Context(), Process{Name: "nothing", Command: func() *exec.Cmd { return exec.Command(filepath.Join(t.TempDir(), "nothing")) }})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "starting nothing") {
		t.Errorf("err = %v", err)
	}
}

func TestSecondSupervisorIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.pid")
	p := Process{Name: "x", Command: func() *exec.Cmd { return child("serve") }, PIDFile: file}
	events, stop := run(t, p)
	pid := wait(t, events, Ready).PID
	if err := Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "already runs") {
		t.Errorf("second Run: %v", err)
	}
	if _, err := identify(pid); err != nil {
		t.Errorf("the second Run ended the first one's process: %v", err)
	}
	stop()
	if err := Run(ended(), p); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A child from a run that died is recognised and ended; a process that merely has its number is left alone.
func TestOrphan(t *testing.T) {
	start := func(t *testing.T) *exec.Cmd {
		cmd := child("stubborn")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it ignores SIGTERM from here on
			t.Fatal(err)
		}
		return cmd
	}
	for _, tt := range []struct {
		name    string
		content func(pid int, identity, file string) string
		ends    bool
	}{
		{"ours", whose, true},
		{"number given to another", func(pid int, id, file string) string { return whose(pid, "1"+id, file) }, false},
		{"of the directory this one is a copy of", func(pid int, id, file string) string { return whose(pid, id, "1"+file) }, false},
		{"cut short", func(pid int, _, _ string) string { return fmt.Sprintf(`{"pid":%d,"iden`, pid) }, false},
		{"number only", func(pid int, _, _ string) string { return strconv.Itoa(pid) }, false},
		{"everybody", func(_ int, _, file string) string { return whose(-1, "x", file) }, false},
		{"empty", func(int, string, string) string { return "" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left := start(t)
			id, err := identify(left.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "x.pid")
			p, err := openPIDFile(file)
			if err != nil {
				t.Fatal(err)
			}
			self, err := p.self()
			p.close()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(tt.content(left.Process.Pid, id, self)), 0o600); err != nil {
				t.Fatal(err)
			}
			events, _ := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("serve") }, PIDFile: file, StopTimeout: 50 * time.Millisecond})
			if tt.ends {
				if e := wait(t, events, Orphan); e.PID != left.Process.Pid {
					t.Errorf("orphan %d, want %d", e.PID, left.Process.Pid)
				}
				gone(t, left.Process.Pid)
				return
			}
			if e := <-events; e.Kind != Started {
				t.Errorf("first event %s, want %s", e.Kind, Started)
			}
			if _, err := identify(left.Process.Pid); err != nil {
				t.Errorf("a process that is not ours was ended: %v", err)
			}
		})
	}
}

func whose(pid int, identity, file string) string {
	return fmt.Sprintf(`{"pid":%d,"identity":%q,"file":%q}`, pid, identity, file)
}

// supervisor starts one in a process of its own and returns it with its child's number.
func supervisor(t *testing.T, pidFile string) (*exec.Cmd, int) {
	cmd := child("supervisor")
	cmd.Env = append(cmd.Env, "SUPERVISE_TEST_PIDFILE="+pidFile)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		if pid, ok := strings.CutPrefix(scan.Text(), "ready "); ok {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			go func() { // so that it never blocks on its output
				for scan.Scan() {
				}
			}()
			return cmd, n
		}
	}
	t.Fatal("the supervisor ended early")
	return nil, 0
}

// kill -9 of the supervisor ends the child: by the kernel on Linux, by the next run elsewhere.
func TestKilledSupervisor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.pid")
	parent, pid := supervisor(t, file)
	parent.Process.Kill()
	parent.Wait()
	if runtime.GOOS == "linux" {
		gone(t, pid)
	}
	_, again := supervisor(t, file)
	gone(t, pid)
	if again == pid {
		t.Errorf("the second child is the first")
	}
}

// Ctrl-C in a terminal signals the foreground process group: the child must not be in it.
func TestChildHasItsOwnProcessGroup(t *testing.T) {
	events, _ := run(t, Process{Name: "x", Command: func() *exec.Cmd { return child("serve") }})
	pid := wait(t, events, Ready).PID
	group, err := syscall.Getpgid(pid)
	if err != nil || group != pid {
		t.Errorf("process group %d (%v), want %d", group, err, pid)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for _, ran := range []time.Duration{0, time.Second, 0, stable - 1, 0, 0, 0, 0, 0, stable, 0} {
		got = append(got, b.next(ran))
	}
	const ms = time.Millisecond
	want := []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 30000 * ms, 200 * ms, 400 * ms}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	l := &lines{to: &out}
	for _, s := range []string{"a", "b\nc", "\r\n\nd"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if diff := cmp.Diff("ab\nc\r\n\n", out.String()); diff != "" {
		t.Errorf("passed on: %s", diff)
	}
	if diff := cmp.Diff([]string{"ab", "c", "", "d"}, l.tail()); diff != "" {
		t.Errorf("tail: %s", diff)
	}
	for i := range 3 * tailLines {
		fmt.Fprintf(l, "%d %s\n", i, strings.Repeat("x", 2*tailWidth))
	}
	tail := l.tail()
	if len(tail) != tailLines || len(tail[0]) != tailWidth || !strings.HasPrefix(tail[tailLines-1], strconv.Itoa(3*tailLines-1)) {
		t.Errorf("tail of much output: %d lines, last %q", len(tail), tail[len(tail)-1])
	}
}
