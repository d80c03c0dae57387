//go:build unix

package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes of a shell for a command that did not start.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// RunChild runs cmd to its end as if it had been started in our place, and returns the exit code to end with: its own,
// or 128+n when signal n ended it. When it did not start, the code is 126 or 127 and the error says why.
//
// INT, TERM, HUP, QUIT, USR1, USR2 and WINCH are forwarded, save those that were ignored when we started (nohup). The
// child stays in our process group, so job control and the terminal work as without us; the terminal then signals the
// child itself, and what it sends on a key press or a resize is not sent twice.
//
// As process 1, which a container's first program is, it also takes in what others left behind when they ended: nobody else would, and a
// container may have only so many processes.
func RunChild(cmd *exec.Cmd) (code int, err error) {
	signals := make(chan os.Signal, 16)
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(signals, s) // before the start: a signal that comes early is not lost, and does not end us
		}
	}
	defer signal.Stop(signals)

	if err := cmd.Start(); err != nil {
		code = exitNotExecutable
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			code = exitNotFound
		}
		return code, fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	wait := waitFor
	if os.Getpid() == 1 {
		wait = waitForAll
	}
	ended := make(chan end, 1)
	go func() { ended <- wait(cmd) }()
	for {
		select {
		case s := <-signals:
			if !terminalSends(s) {
				_ = cmd.Process.Signal(s) // fails only when the child has just ended
			}
		case e := <-ended:
			return e.code, e.err
		}
	}
}

// end is how a child ended.
type end struct {
	code int
	err  error
}

func waitFor(cmd *exec.Cmd) end {
	err := cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); exited { // else copying its input or output failed
		err = nil
	}
	return end{exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), err}
}

// waitForAll waits for whatever ends until cmd does, whose input and output are files.
func waitForAll(cmd *exec.Cmd) end {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return end{exitNotExecutable, fmt.Errorf("waiting for %s: %w", cmd.Args[0], err)}
		case pid == cmd.Process.Pid:
			return end{exitCode(status), nil}
		}
	}
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// terminalSends reports whether our terminal sends s to its whole foreground process group, and we are in that group.
// Nothing tells who sent a signal we have, so one sent by hand to us alone while we hold the terminal stays with us.
func terminalSends(s os.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}
