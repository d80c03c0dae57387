package supervise

import (
	"bytes"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes: macOS has no parent-death signal, so only the PID file covers our sudden death.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// identify returns what no two processes share even if they share a number: when it started and its name. The error is
// os.ErrNotExist when there is no such process.
func identify(pid int) (string, error) {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil || int(info.Proc.P_pid) != pid {
		return "", os.ErrNotExist
	}
	const zombie = 5 // SZOMB in sys/proc.h
	if info.Proc.P_stat == zombie {
		return "", os.ErrNotExist
	}
	name, _, _ := bytes.Cut(info.Proc.P_comm[:], []byte{0})
	started := info.Proc.P_starttime
	return fmt.Sprintf("%d.%06d %s", started.Sec, started.Usec, name), nil
}
