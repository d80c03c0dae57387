package supervise

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// LogFile is a log of bounded size: when it is full it is renamed, with ".1" at its end and in place of the one that was
// so named, and a new one begins. So there are at most two files of Max bytes and a line.
type LogFile struct {
	path string
	most int64

	mu   sync.Mutex
	f    *os.File // guarded by mu
	size int64    // guarded by mu
}

// OpenLog opens a log that only we may read, and adds to what is there.
func OpenLog(path string, most int64) (*LogFile, error) {
	l := &LogFile{path: path, most: most}
	return l, l.open()
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening a log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write writes b to one file, whole. What cannot be written is lost: a full disk must not stop whoever logs, nor a log
// that cannot be renamed fill the disk.
func (l *LogFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size >= l.most {
		if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		full := l.f
		if err := l.open(); err != nil {
			return 0, err
		}
		full.Close()
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return n, err
}

// Close closes the file.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
