package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Lines is a file of lines that is begun anew when it is full: FILE, and FILE.1, FILE.2 and so on with what was before. Several
// processes may add to one file, as they do while one gate hands over to the next. It is not safe for concurrent use.
type Lines struct {
	key  string // of the configuration, that names it
	path string
	most int64 // bytes, after which it is begun anew
	keep int   // how many there are of what was before

	file *os.File
	size int64  // as we left it
	last []byte // the last line in it, or before it; without its break
}

// OpenLines opens the file to add to it, readable by its owner only. Together with keep files of what was before it takes at most
// limit bytes. The key of the configuration that names the file is in errors.
func OpenLines(key, path string, limit int64, keep int) (*Lines, error) {
	l := &Lines{key: key, path: path, most: limit / int64(keep+1), keep: keep, size: -1}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// Files are the names that a file of lines may have, the newest one first.
func Files(path string, keep int) []string {
	all := []string{path}
	for n := 1; n <= keep; n++ {
		all = append(all, before(path, n))
	}
	return all
}

func before(path string, n int) string { return path + "." + strconv.Itoa(n) }

func (l *Lines) open() error {
	if info, err := os.Lstat(l.path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %s is no regular file; name another", l.key, l.path)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", l.key, err)
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", l.key, err)
	}
	if err := f.Chmod(0o600); err != nil { // of one that was there
		f.Close()
		return fmt.Errorf("%s: %w", l.key, err)
	}
	l.Close()
	l.file, l.size = f, -1
	return nil
}

// Close closes the file.
func (l *Lines) Close() {
	if l.file != nil {
		l.file.Close()
	}
}

// Put adds what write returns, which is whole lines, or nothing of it. It is told the line before, without its break; nil: there is none.
func (l *Lines) Put(write func(last []byte) []byte) error {
	if err := l.lock(); err != nil {
		return err
	}
	defer l.unlock()
	lines := write(l.last)
	if len(lines) == 0 {
		return nil
	}
	if l.size > 0 && l.size+int64(len(lines)) > l.most {
		for n := l.keep; n > 0; n-- {
			from := l.path
			if n > 1 {
				from = before(l.path, n-1)
			}
			if err := os.Rename(from, before(l.path, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := l.lock(); err != nil { // of the new one; a process that waits for the old one sees that it is another
			return err
		}
		if lines = write(l.last); len(lines) == 0 { // another process may have been faster
			return nil
		}
	}
	n, err := l.file.Write(lines)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.file.Truncate(l.size))
		}
		return err
	}
	l.size += int64(n)
	lines = bytes.TrimSuffix(lines, []byte("\n"))
	l.last = bytes.Clone(lines[bytes.LastIndexByte(lines, '\n')+1:])
	return nil
}

// lock has the file to itself until it is unlocked. It is the file that has the name now, and ends with a whole line.
func (l *Lines) lock() error {
	for {
		if err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX); err != nil {
			return fmt.Errorf("locking %s: %w", l.path, err)
		}
		same, err := l.check()
		if err != nil {
			l.unlock()
			return err
		}
		if same {
			return nil
		}
		if err := l.open(); err != nil { // closes the one before, which unlocks it
			l.unlock()
			return err
		}
	}
}

// unlock fails for a file that is closed, which needs none.
func (l *Lines) unlock() { _ = unix.Flock(int(l.file.Fd()), unix.LOCK_UN) }

// check reports whether the file still has the name, and if so learns how it ends.
func (l *Lines) check() (same bool, err error) {
	have, err := l.file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !os.SameFile(have, named) {
		return false, err
	}
	if have.Size() == l.size {
		return true, nil
	}
	return true, l.meet(have.Size())
}

// meet learns how the file ends that another process has written to. One that was killed may have left a part of a line: that is
// made a line, which says nothing.
func (l *Lines) meet(size int64) error {
	l.size = size
	if size == 0 {
		last, err := lastOf(before(l.path, 1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l.last = last
		return nil
	}
	last, whole, err := lastLine(l.file, size)
	if err != nil {
		return err
	}
	l.last = last
	if !whole {
		n, err := l.file.WriteString("\n")
		l.size += int64(n)
		return err
	}
	return nil
}

func lastOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	last, _, err := lastLine(f, info.Size())
	return last, err
}

// lastLine is the last line of a file of that size, and whether it has its break.
func lastLine(f io.ReaderAt, size int64) (line []byte, whole bool, err error) {
	const block = 64 << 10
	for n := min(size, block); ; n = min(size, 2*n) {
		have := make([]byte, n)
		if _, err := f.ReadAt(have, size-n); err != nil && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
		have, whole = bytes.CutSuffix(have, []byte("\n"))
		if i := bytes.LastIndexByte(have, '\n'); i >= 0 {
			return have[i+1:], whole, nil
		}
		if n == size {
			return have, whole, nil
		}
	}
}
