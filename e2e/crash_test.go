package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave/freeport"
)

// launch starts `wayleave up` on a state directory of its own and does not wait.
func (w *world) launch(t *testing.T, state string, wrap ...string) *gate {
	t.Helper()
	w = w.with("WAYLEAVE_STATE=" + state)
	c := w.command("wayleave", "up")
	if len(wrap) > 0 {
		c.Args = append(append(wrap, c.Path), c.Args[1:]...)
		c.Path = wrap[0]
	}
	g := &gate{world: w, cmd: c, out: newOutput(w.saved("up.log")), done: make(chan struct{})}
	c.Stdout, c.Stderr = g.out, g.out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Wait(); close(g.done) }()
	t.Cleanup(func() {
		g.kill()
		if t.Failed() {
			t.Logf("the gate of %s printed:\n%s", state, g.out)
		}
	})
	return g
}

func (g *gate) ended() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

// ready waits for the gate to be ready, and fails the test when it is not.
func (g *gate) ready(t *testing.T) *gate {
	t.Helper()
	if err := g.waitOutput("wayleave: ready"); err != nil {
		t.Fatal(err)
	}
	return g
}

// child is the number of a child in its PID file.
func (g *gate) child(t *testing.T, name string) int {
	t.Helper()
	var pid int
	if err := eventually(func() error {
		b, err := os.ReadFile(filepath.Join(g.getenv("WAYLEAVE_STATE"), filepath.FromSlash(name)))
		if err == nil {
			pid, err = pidIn(string(b))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return pid
}

const (
	envoyPID = "envoy/envoy.pid"
	baoPID   = "vault/openbao.pid"
)

func (g *gate) hit(t *testing.T, child string, s syscall.Signal) (pid int) {
	t.Helper()
	pid = g.child(t, child)
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
	return pid
}

// nothingLeft checks that no process runs that has the directory in its arguments or environment. Where there is no
// /proc it sees nothing.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if err := eventually(func() error {
		all, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		var left []string
		for _, p := range all {
			args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // empty for those that ended
			env, _ := os.ReadFile(filepath.Join(p, "environ"))
			if pid := filepath.Base(p); pid != strconv.Itoa(os.Getpid()) && bytes.Contains(append(args, env...), []byte(dir)) {
				left = append(left, pid+" "+string(bytes.ReplaceAll(args, []byte{0}, []byte(" "))))
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func newCrashWorld(t *testing.T) *world {
	t.Helper()
	w := makeWorld(t)
	if err := w.configure(oneTeam); err != nil {
		t.Fatal(err)
	}
	return w
}

// However early the first start is cut off, the next one resumes, or says in one sentence what to do; it never hangs, and
// never makes a new store in place of one whose keys it has.
func TestFirstStartCutOff(t *testing.T) {
	t.Parallel()
	moments := []struct {
		file  string // what the start has just made
		after time.Duration
	}{
		{"lock", 0}, {"vault/openbao.pid", 0}, {"vault/init.json", 0}, {"vault/init.json", 150 * time.Millisecond}, {"vault/address", 0}, {"envoy/envoy.pid", 0},
	}
	for d := range 5 { // in the middle of the initialisation, which takes some 20 ms
		moments = append(moments, struct {
			file  string
			after time.Duration
		}{"vault/init.started", time.Duration(1+3*d) * time.Millisecond})
	}
	for _, m := range moments {
		t.Run(fmt.Sprintf("%s+%v", filepath.Base(m.file), m.after), func(t *testing.T) {
			t.Parallel()
			w := newCrashWorld(t)
			state := w.saved("state")
			path := filepath.Join(state, filepath.FromSlash(m.file))
			g := w.launch(t, state)
			// A file may have come and gone unseen on a busy machine: then a start is cut off that has got further.
			for ready := false; !exists(path) && !ready; <-time.After(200 * time.Microsecond) {
				if g.ended() {
					t.Fatal("it ended")
				}
				ready, _ = g.out.contains("wayleave: ready")
			}
			<-time.After(m.after) // the moment itself: any is right
			g.kill()
			nothingLeft(t, state)
			keys, _ := os.ReadFile(filepath.Join(state, "vault", "init.json"))

			g = w.launch(t, state)
			if err := g.waitOutput("wayleave: ready"); err != nil {
				vault := filepath.Join(state, "vault")
				if !g.ended() || keys != nil || !strings.Contains(err.Error(), "remove "+vault+" and start again") {
					t.Fatal(err)
				}
				t.Log("it explained what to do")
				nothingLeft(t, state)
				if err := os.RemoveAll(vault); err != nil {
					t.Fatal(err)
				}
				g = w.launch(t, state).ready(t)
			}
			if now, err := os.ReadFile(filepath.Join(state, "vault", "init.json")); keys != nil && !bytes.Equal(keys, now) {
				t.Errorf("another store, or %v", err)
			}
			if err := g.stop(); err != nil {
				t.Error(err)
			}
			nothingLeft(t, state)
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Children that are killed again and again, or stand still, come back; with a token in memory OpenBao is not even missed.
func TestChildrenCrashUnderLoad(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")

	if _, err := arrived(w.client(t, true), w); err != nil { // the token is in memory
		t.Fatal(err)
	}
	l := startLoad(t, 4, &replica{gate: g})
	for range 2 {
		pid := g.hit(t, baoPID, syscall.SIGKILL)
		l.more(t, 20)
		if err := eventually(func() error {
			if now := g.child(t, baoPID); now == pid {
				return errors.New("it is not back")
			}
			return g.command("wayleave", "grant", "list").Run()
		}); err != nil {
			t.Error(err)
		}
	}
	g.hit(t, baoPID, syscall.SIGSTOP)
	l.more(t, 50)
	g.hit(t, baoPID, syscall.SIGCONT)
	g.hit(t, envoyPID, syscall.SIGSTOP)
	<-time.After(100 * time.Millisecond) // how long does not matter
	g.hit(t, envoyPID, syscall.SIGCONT)
	l.more(t, 50)
	l.stop(t)

	// Envoy's death costs the requests under way and no more. What fails here is not looked at.
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		client := w.client(t, true)
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					_, _ = arrived(client, w)
				}
			}
		})
	}
	for range 3 {
		pid := g.hit(t, envoyPID, syscall.SIGKILL)
		if err := eventually(func() error {
			if g.child(t, envoyPID) == pid {
				return errors.New("it is not back")
			}
			_, err := arrived(w.client(t, false), w)
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	close(end)
	wg.Wait()
	for _, pause := range []string{"200ms", "400ms", "800ms"} {
		if seen, _ := g.out.contains("after=" + pause); !seen {
			t.Errorf("the back-off of %s is not visible", pause)
		}
	}
	pids := []int{g.child(t, envoyPID), g.child(t, baoPID)}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is there after the end: %v", pid, err)
		}
	}
	nothingLeft(t, g.dir)
}

// A start that finds its port taken says which, and ends.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t)
	l, err := net.Listen("tcp", w.proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := w.launch(t, w.saved("state"))
	if err := g.waitOutput(w.proxy + ": "); err != nil {
		t.Error(err)
	}
	if <-g.done; g.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %d", g.cmd.ProcessState.ExitCode())
	}
	nothingLeft(t, w.dir)
}

// A full disk stops a start, or the gate, with an error at worst; with space again all is there. Where nobody may mount a
// small file system, a limit on the size of files stands for it.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for _, space := range []int{16, 64, 128} { // KiB
		t.Run(fmt.Sprintf("first start with %d KiB", space), func(t *testing.T) {
			t.Parallel()
			w := newCrashWorld(t)
			state := w.saved("state")
			wrap, more := shortOfSpace(t, state, space)
			g := w.launch(t, state, wrap...)
			if err := g.waitOutput("wayleave: ready"); err == nil {
				t.Log("there was space enough")
			} else if !g.ended() {
				t.Fatal(err)
			}
			t.Log(g.out)
			g.kill()
			nothingLeft(t, state)
			more()
			again(t, w, state)
		})
	}
}

// again starts on what a crash left, and does what it says if it says so.
func again(t *testing.T, w *world, state string) {
	t.Helper()
	g := w.launch(t, state)
	if err := g.waitOutput("wayleave: ready"); err != nil {
		t.Log(g.out)
		vault := filepath.Join(state, "vault")
		if !g.ended() || !strings.Contains(err.Error(), "remove "+vault+" and start again") {
			t.Fatal(err)
		}
		if err := os.RemoveAll(vault); err != nil {
			t.Fatal(err)
		}
		g = w.launch(t, state).ready(t)
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
}

// shortOfSpace makes the directory one in which little can be written, by whoever is started wrapped, until more is called.
func shortOfSpace(t *testing.T, dir string, kib int) (wrap []string, more func()) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	size := func(kib int) string { return "size=" + strconv.Itoa(kib) + "k" }
	if err := exec.Command("mount", "-t", "tmpfs", "-o", size(kib), "tmpfs", dir).Run(); err == nil {
		t.Cleanup(func() {
			if err := exec.Command("umount", dir).Run(); err != nil {
				t.Error(err)
			}
		})
		return nil, func() {
			if err := exec.Command("mount", "-o", "remount,"+size(256<<10), dir).Run(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []string{"/bin/sh", "-c", "ulimit -f " + strconv.Itoa(2*kib) + ` && exec "$0" "$@"`}, func() {}
}

// A copy of a state directory, made while it was in use, is one of its own: it runs, and leaves the original alone.
func TestCopiedState(t *testing.T) {
	t.Parallel()
	g := start(t, oneTeam, "claude")
	state := g.getenv("WAYLEAVE_STATE")
	pids := [2]int{g.child(t, envoyPID), g.hit(t, baoPID, syscall.SIGSTOP)} // a copy of one moment
	out, err := exec.Command("cp", "-a", state, g.saved("copy")).CombinedOutput()
	g.hit(t, baoPID, syscall.SIGCONT)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	proxy, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	twin := g.with("PROXY="+proxy, "WAYLEAVE_CONFIG="+g.saved("copy.yaml"))
	if err := twin.configure(oneTeam); err != nil {
		t.Fatal(err)
	}
	c := twin.launch(t, g.saved("copy")).ready(t)
	if out, err := c.command("wayleave", "grant", "list").CombinedOutput(); err != nil || !strings.Contains(string(out), "healthy") {
		t.Errorf("the copy's grants: %v\n%s", err, out)
	}
	if now := [2]int{g.child(t, envoyPID), g.child(t, baoPID)}; now != pids {
		t.Errorf("the children of the original were %v and are %v", pids, now)
	}
	if err := c.stop(); err != nil {
		t.Error(err)
	}
	w := g.enrol(t, "w", "ANTHROPIC_AUTH_TOKEN")
	if _, err := arrived(w.client(t, true), w); err != nil {
		t.Error(err)
	}
}
