package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidFile remembers which process is ours across our own death, and is locked against a second supervisor. A nil one
// does nothing.
type pidFile struct{ f *os.File }

// record is the file's content. A process number is given out again, so identity decides: see identify. File is the
// file's own, so that a copy of it, in a copied state directory, says nothing of the processes of the original.
type record struct {
	PID      int    `json:"pid"`
	Identity string `json:"identity"`
	File     string `json:"file"`
}

// self tells this file from a copy of it, and survives a move.
func (p *pidFile) self() (string, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(p.f.Fd()), &s); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino), nil
}

func openPIDFile(path string) (*pidFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// The kernel drops the lock with our last descriptor; children do not inherit it (close-on-exec).
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is locked: another process already runs it", path)
	}
	return &pidFile{f}, nil
}

// endOrphan ends the recorded process if it is still the one that was recorded, and returns its number, 0 when there
// was nothing to end.
func (p *pidFile) endOrphan(timeout time.Duration) (int, error) {
	if p == nil {
		return 0, nil
	}
	text, err := io.ReadAll(io.NewSectionReader(p.f, 0, 1<<16))
	if err != nil {
		return 0, err
	}
	var r record
	self, err := p.self()
	if err != nil {
		return 0, err
	}
	// A file cut short by a crash names nobody.
	if json.Unmarshal(text, &r) != nil || r.PID <= 1 || r.Identity == "" || r.File != self {
		return 0, nil
	}
	same := func() bool { id, err := identify(r.PID); return err == nil && id == r.Identity }
	if !same() {
		return 0, nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, timeout}, {syscall.SIGKILL, 5 * time.Second}} {
		signalGroup(r.PID, step.signal)
		// It is not our child, so there is nothing to wait on but its absence.
		for end := time.Now().Add(step.wait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) { //nolint:forbidigo // polling
			if !same() {
				return r.PID, nil
			}
		}
	}
	return 0, fmt.Errorf("process %d does not end: end it by hand", r.PID)
}

func (p *pidFile) record(pid int) error {
	if p == nil {
		return nil
	}
	id, err := identify(pid)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return nil // it has ended already; Wait will tell
		}
		return fmt.Errorf("identifying process %d: %w", pid, err)
	}
	self, err := p.self()
	if err != nil {
		return err
	}
	text, err := json.Marshal(record{PID: pid, Identity: id, File: self})
	if err != nil {
		return err
	}
	if err := p.f.Truncate(0); err != nil {
		return err
	}
	_, err = p.f.WriteAt(append(text, '\n'), 0)
	return err
}

// clear forgets the process. If it fails, the identity still protects whoever has the number next.
func (p *pidFile) clear() {
	if p != nil {
		_ = p.f.Truncate(0)
	}
}

// close lets go of the lock. The file stays: removing it would let two supervisors lock two files of the same name.
func (p *pidFile) close() {
	if p != nil {
		p.f.Close()
	}
}
