//go:build unix

package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wayleave/program"
)

// Exit codes of a shell for a command that did not start.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT,
}

// byTerminal are those that a terminal, or the shell that gives it away, sends to a whole process group.
var byTerminal = []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT}

// End is how a command ended.
type End struct {
	// Code is its exit code, or 128+n when signal n ended it.
	Code int
	// Signal is the one that ended it, or 0.
	Signal syscall.Signal
}

// Follow ends this process by the signal that ended the command, if that is one by which people end programs. A shell that is interrupted goes on with
// its script after a command that gave a code and not after one that the signal ended, and systemd calls the one a failure and not the other.
// It returns where the code has to say it: as process 1, which such a signal does not end, and with any other end.
func (e End) Follow() {
	switch e.Signal {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
	default: // Go would print its stacks at some, and leave a core at others
		return
	}
	if os.Getpid() == 1 || signal.Ignored(e.Signal) {
		return
	}
	signal.Reset(e.Signal)
	if syscall.Kill(os.Getpid(), e.Signal) == nil {
		<-time.After(time.Second) // another thread may take the signal
	}
}

// RunChild runs cmd to its end as if it had been started in our place. When it did not start, the code is 126 or 127 and the error says why.
//
// INT, TERM, HUP, QUIT, USR1, USR2, WINCH, TSTP and CONT are forwarded, save those that were ignored when we started (nohup). The
// child stays in our process group, so job control and the terminal work as without us; the terminal then signals the
// child itself, and what it sends on a key press or a resize is not sent twice. When the child stops, we do, and only then: agents read Ctrl-Z as a
// key and stop themselves alone, and the shell that waits for us would wait forever.
//
// Input and output of cmd are files. As process 1, which a container's first program is, it also takes in what others left behind when they ended: nobody else would, and a
// container may have only so many processes.
func RunChild(cmd *exec.Cmd) (End, error) {
	signals := make(chan os.Signal, 16)
	for _, s := range append([]os.Signal{syscall.SIGTTIN, syscall.SIGTTOU}, forwarded...) { // the first two are for who reads and writes
		if !signal.Ignored(s) {
			signal.Notify(signals, s) // before the start: a signal that comes early is not lost, and does not end us
		}
	}
	defer signal.Stop(signals)

	err := cmd.Start()
	if shell, args, script := program.Shell(err, cmd.Path, cmd.Args); script {
		cmd = &exec.Cmd{Path: shell, Args: args, Env: cmd.Env, Dir: cmd.Dir, Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr}
		err = cmd.Start()
	}
	if err != nil {
		code := exitNotExecutable
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			code = exitNotFound
		}
		return End{Code: code}, fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	type outcome struct {
		end End
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		end, err := wait(cmd)
		ended <- outcome{end, err}
	}()
	for {
		select {
		case s := <-signals:
			if slices.Contains(forwarded, s) && !terminalSends(s) {
				_ = cmd.Process.Signal(s) // fails only when the child has just ended
			}
		case o := <-ended:
			return o.end, o.err
		}
	}
}

// wait waits for cmd, and as process 1 for whatever else ends.
func wait(cmd *exec.Cmd) (End, error) {
	whom := cmd.Process.Pid
	if os.Getpid() == 1 {
		whom = -1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(whom, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return End{Code: exitNotExecutable}, fmt.Errorf("waiting for %s: %w", cmd.Args[0], err)
		case pid != cmd.Process.Pid:
		case status.Exited(), status.Signaled():
			return howEnded(status), nil
		default: // it has stopped, which BSD's Stopped does not say of SIGSTOP
			stopWith(cmd)
		}
	}
}

// stopWith stops us as cmd has stopped, where a shell waits for us that will continue both: it gave us a group of our own in its session. Where
// none does, as in a container or behind ssh, cmd goes on: it would hang there, and we with it.
func stopWith(cmd *exec.Cmd) {
	ours, _ := unix.Getsid(0)
	parents, err := unix.Getsid(os.Getppid())
	switch {
	case !hasTerminal(): // somebody stopped it by hand
	case os.Getppid() == 0, unix.Getpgrp() == ours, err != nil, ours != parents:
		_ = cmd.Process.Signal(syscall.SIGCONT)
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

func howEnded(status syscall.WaitStatus) End {
	if status.Signaled() {
		return End{128 + int(status.Signal()), status.Signal()}
	}
	return End{Code: status.ExitStatus()}
}

// terminalSends reports whether our terminal sends s to its whole foreground process group, and we are in that group.
// Nothing tells who sent a signal we have, so one sent by hand to us alone while we hold the terminal stays with us.
func terminalSends(s os.Signal) bool {
	if !slices.Contains(byTerminal, s) {
		return false
	}
	tty, err := openTerminal()
	if err != nil {
		return false
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

func hasTerminal() bool {
	tty, err := openTerminal()
	if err == nil {
		tty.Close()
	}
	return err == nil
}

// openTerminal opens the terminal that controls this process.
func openTerminal() (*os.File, error) {
	return os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
}
