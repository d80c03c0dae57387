//go:build linux

package worker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This test binary is, by the first argument, also the program around the child and the child itself.
func TestMain(m *testing.M) {
	restarts = []time.Duration{time.Millisecond, time.Millisecond} // no test waits for a gate that is away
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "testOnlyRun":
			cmd := exec.Command(os.Args[2], os.Args[3:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			end, err := RunChild(cmd)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			end.Follow()
			os.Exit(end.Code)
		case "testOnlyHide": // without root's rights to see everything, which what is started anew then has no more
			runtime.LockOSThread()
			for _, right := range []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_PERFMON} {
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, right, 0, 0, 0)
			}
			fmt.Fprintln(os.Stderr, syscall.Exec("/proc/self/exe", []string{os.Args[0], "testOnlyHidden", os.Args[2]}, os.Environ()))
			os.Exit(1)
		case "testOnlyHidden":
			Hide()
			end, _ := RunChild(&exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", os.Args[2]}, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdout: os.Stdout, Stderr: os.Stderr})
			os.Exit(end.Code)
		case "testOnlyCount":
			countSignals()
		}
	}
	os.Exit(m.Run())
}

// countSignals prints each signal it gets; TERM ends it.
func countSignals() {
	signals := make(chan os.Signal, 16)
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	fmt.Println("ready")
	for s := range signals {
		fmt.Printf("got %d\n", s)
		if s == syscall.SIGTERM {
			os.Exit(3)
		}
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// started is a running program whose output is read line by line.
type started struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
}

func start(t *testing.T, cmd *exec.Cmd, output io.Reader) *started {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s := &started{t, cmd, make(chan string, 64)}
	go func() {
		defer close(s.lines)
		for scan := bufio.NewScanner(output); scan.Scan(); {
			s.lines <- strings.TrimSpace(scan.Text())
		}
	}()
	return s
}

// expect waits for the next line. The limit is for a broken program only.
func (s *started) expect(want string) {
	s.t.Helper()
	select {
	case got, ok := <-s.lines:
		if !ok || got != want {
			s.t.Fatalf("output %q (%v), want %q", got, ok, want)
		}
	case <-time.After(30 * time.Second):
		s.t.Fatalf("no %q", want)
	}
}

func TestRunChildExitCodes(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain") // a script without #!
	if err := os.WriteFile(plain, []byte("exit $1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		want int
		err  bool
	}{
		{"success", exec.Command("true"), 0, false},
		{"its own code", exec.Command("sh", "-c", "exit 7"), 7, false},
		{"a script without #!", exec.Command(plain, "9"), 9, false},
		{"killed", exec.Command("sh", "-c", "kill -KILL $$"), 128 + 9, false},
		{"terminated", exec.Command("sh", "-c", "kill -TERM $$"), 128 + 15, false},
		{"not found", exec.Command("no-such-program"), 127, true},
		{"no such file", exec.Command("/no/such/program"), 127, true},
		{"not executable", exec.Command("/dev/null"), 126, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			end, err := RunChild(c.cmd)
			if end.Code != c.want || (err != nil) != c.err || end.Signal != 0 && int(end.Signal)+128 != c.want {
				t.Errorf("RunChild = %+v, %v, want %d", end, err, c.want)
			}
		})
	}
}

// A program may be of the same user and still not read what is not passed on to it where it came from.
func TestWhatIsNotPassedOnIsHidden(t *testing.T) {
	for script, want := range map[string]bool{
		`cat /proc/$PPID/environ`:          false,
		`cat /proc/$PPID/maps`:             false,
		`cat /proc/$$/environ >/dev/null`:  true, // of its own
		`tr '\0' '\n' </proc/$PPID/status`: true, // of no concern
	} {
		cmd := exec.Command(self(t), "testOnlyHide", script)
		cmd.Env = append(os.Environ(), "NOT_PASSED_ON=a-token")
		out, err := cmd.CombinedOutput()
		if (err == nil) != want || strings.Contains(string(out), "a-token") {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

// As the first process of a container it takes in what is left behind, which would otherwise be there until the end, and its exit codes and
// signals are as ever.
func TestRunChildAsProcess1(t *testing.T) {
	run := func(script string) *exec.Cmd {
		cmd := exec.Command(self(t), "testOnlyRun", "sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID}
		if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		}
		return cmd
	}
	orphan := run(`test $PPID = 1 || exit 8; left=$(sh -c 'true & echo $!'); while kill -0 $left 2>/dev/null; do sleep 0.02; done; exit 7`)
	out, err := orphan.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := orphan.Start(); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("this machine allows no namespaces: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(30*time.Second, func() { orphan.Process.Kill() })
	defer limit.Stop()
	said, _ := io.ReadAll(out)
	orphan.Wait()
	if code := orphan.ProcessState.ExitCode(); code != 7 {
		t.Errorf("ended with %d: what had lost its parent is still there\n%s", code, said)
	}

	cmd := run(`echo ready; exec sleep 60`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, cmd, stdout)
	s.expect("ready")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range s.lines {
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 128+15 {
		t.Errorf("after TERM: %v", cmd.ProcessState)
	}
}

// A script that is interrupted ends with what ran, as it would without us; with a code in the signal's place bash goes on.
func TestRunChildEndsByItsSignal(t *testing.T) {
	notIgnored(t)
	for _, c := range []struct {
		script string
		signal syscall.Signal
		code   int
	}{
		{"kill -INT $$", syscall.SIGINT, -1},
		{"kill -TERM $$", syscall.SIGTERM, -1},
		{"kill -HUP $$", syscall.SIGHUP, -1},
		{"ulimit -c 0; kill -QUIT $$", 0, 128 + 3},
		{"kill -KILL $$", 0, 128 + 9},
		{"exit 130", 0, 130},
	} {
		cmd := exec.Command(self(t), "testOnlyRun", "sh", "-c", c.script)
		out, _ := cmd.CombinedOutput()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if cmd.ProcessState.ExitCode() != c.code || c.signal != 0 && status.Signal() != c.signal || len(out) > 0 {
			t.Errorf("%s: ended with %v\n%s", c.script, cmd.ProcessState, out)
		}
	}

	master, slave := pty(t)
	cmd := exec.Command("bash", "-c", `"$0" testOnlyRun sh -c 'echo ready; exec sleep 60'; echo went on`, self(t))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if cmd.Err != nil {
		t.Skip("there is no bash here")
	}
	s := start(t, cmd, master)
	s.expect("ready")
	io.WriteString(master, "\x03")
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGINT {
		t.Errorf("a script that was interrupted ended with %v", cmd.ProcessState)
	}
}

// notIgnored has programs begin with the default of signals that may be ignored where the tests run: under nohup, or in a script's background.
func notIgnored(t *testing.T) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	t.Cleanup(func() { signal.Stop(caught) })
}

func TestRunChildForwardsSignals(t *testing.T) {
	notIgnored(t)
	cmd := exec.Command(self(t), "testOnlyRun", self(t), "testOnlyCount")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, whoever runs the tests
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, cmd, out)
	s.expect("ready")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTERM} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		s.expect(fmt.Sprintf("got %d", sig))
	}
	for range s.lines {
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("ended with %v", err)
	}
}

func TestRunChildLeavesIgnoredSignalsIgnored(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap '' HUP; exec "$0" testOnlyRun "$0" testOnlyCount`, self(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, cmd, out)
	s.expect("ready")
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	s.expect(fmt.Sprintf("got %d", syscall.SIGUSR1)) // and no HUP before it
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.expect(fmt.Sprintf("got %d", syscall.SIGTERM))
}

// On a terminal the child can read what is typed, and a key press reaches it once: from the terminal, not from us too.
func TestRunChildOnATerminal(t *testing.T) {
	master, slave := pty(t)
	run := func(args ...string) *started {
		cmd := exec.Command(self(t), append([]string{"testOnlyRun"}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		return start(t, cmd, master)
	}
	s := run("sh", "-c", `stty -echo -echoctl; echo ready; read line; echo "read $line"; exec "$0" testOnlyCount`, self(t))
	s.expect("ready")
	io.WriteString(master, "hello\n")
	s.expect("read hello")
	s.expect("ready")
	for _, key := range []struct {
		press string
		want  syscall.Signal
	}{{"\x03", syscall.SIGINT}, {"\x1c", syscall.SIGQUIT}, {"\x03", syscall.SIGINT}} {
		io.WriteString(master, key.press)
		s.expect(fmt.Sprintf("got %d", key.want))
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 34}); err != nil {
		t.Fatal(err)
	}
	s.expect(fmt.Sprintf("got %d", syscall.SIGWINCH))
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.expect(fmt.Sprintf("got %d", syscall.SIGTERM)) // and nothing twice before it
}

// Agents read Ctrl-Z as a key and stop themselves, of which the shell that waits for us is to know. It continues us, and the terminal's own Ctrl-Z works too.
func TestRunChildStopsWithTheChild(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("there is no bash here")
	}
	master, slave := pty(t)
	cmd := exec.Command("bash", "-c", `set -m
		"$0" testOnlyRun sh -c 'stty -echo; echo ready; kill -STOP $$; echo continued; read line; echo "read $line"'; echo "stopped: $?"
		fg >/dev/null; echo "stopped again: $?"
		fg >/dev/null`, self(t))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	s := start(t, cmd, master)
	limit := time.AfterFunc(30*time.Second, func() { master.Close() }) // which hangs up
	defer limit.Stop()
	until := func(want string) { // bash says what it does too
		t.Helper()
		limit.Reset(30 * time.Second)
		for got := range s.lines {
			if got == want {
				return
			}
		}
		t.Fatalf("no %q", want)
	}
	until("ready")
	until("stopped: 147") // 128 + SIGSTOP
	until("continued")
	io.WriteString(master, "\x1a")
	until("stopped again: 147")
	io.WriteString(master, "line\n")
	until("read line")

	// Behind ssh, and in a container, nobody is there who would continue it.
	for _, by := range [][]string{{self(t)}, {"sh", "-c", `"$0" "$@"; true`, self(t)}} {
		master, slave = pty(t)
		cmd = exec.Command(by[0], append(by[1:], "testOnlyRun", "sh", "-c", "kill -STOP $$; echo went on")...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		start(t, cmd, master).expect("went on")
	}
}

// pty opens a pseudo terminal.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}
