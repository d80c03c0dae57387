// Package durable owns how a file is put on the disk so that a crash, of the process or the machine, finds it whole.
package durable

import (
	"os"
	"path/filepath"
)

// Replace makes path hold content and nothing else, readable by its owner only: after a crash there is the old file or the
// new one, on the disk and not just in memory. A failure leaves path as it was, except one that comes after the new file is
// in its place and before the disk has noted that.
func Replace(path string, content []byte) error { return replace(path, content, 0o600) }

// ReplacePublic is Replace for what everybody may read.
func ReplacePublic(path string, content []byte) error { return replace(path, content, 0o644) }

func replace(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = Sync(filepath.Dir(path))
	}
	return err
}

// Sync puts new and removed names of a directory on the disk.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
