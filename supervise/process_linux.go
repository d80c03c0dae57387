package supervise

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
)

func childAttributes() *syscall.SysProcAttr {
	// SIGKILL, because a child that ignores SIGTERM must not outlive us either: nobody is left to insist.
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// identify returns what no two processes share even if they share a number: which boot, when it started, in clock ticks
// since then (field 22 of /proc/<pid>/stat), and its executable. The error is os.ErrNotExist or ESRCH when there is no
// such process.
func identify(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Field 2 is the name in parentheses and may hold both spaces and parentheses.
	_, rest, ok := cutLast(stat, ')')
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		return "", os.ErrNotExist // it only waits to be collected
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "", err
	}
	// Start-up is so regular that the same program may get the same number at the same tick of the next boot.
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %s", bytes.TrimSpace(boot), fields[19], strings.TrimSuffix(exe, " (deleted)")), nil // an upgrade replaced the file
}

func cutLast(b []byte, sep byte) (before, after []byte, found bool) {
	i := bytes.LastIndexByte(b, sep)
	if i < 0 {
		return b, nil, false
	}
	return b[:i], b[i+1:], true
}
