// Package spool owns a directory of encrypted entries that survive a crash of this process: what a provider answered and
// Vault does not have yet. What an entry means is left to grant.
//
// An entry is one file, written beside its place, flushed to the disk and renamed, so that it is there whole or not at all.
// It is sealed with AES-256-GCM under a key that is kept in Vault and never on this machine's disk: a stolen disk, or a
// backup of it, is worth nothing without Vault. The directory belongs to one process at a time.
package spool

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave/durable"
)

// Dir is a spool. Its methods are safe for concurrent use with distinct names.
type Dir struct {
	path string
	id   string
	seal cipher.AEAD
	lock *os.File
}

// ErrTaken is in the error of Open when another process has the directory.
var ErrTaken = errors.New("another gate uses the spool directory")

// OpenNext is Open for whoever is to follow the process that has the directory, which Awaited tells that one. It calls
// waiting if it must wait, and waits until ctx ends.
func OpenNext(ctx context.Context, path string, key Key, waiting func()) (*Dir, error) {
	d, err := Open(path, key)
	if !errors.Is(err, ErrTaken) {
		return d, err
	}
	queue, err := os.OpenFile(filepath.Join(path, nextFile), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the spool directory: %w", err)
	}
	defer queue.Close()
	if err := unix.Flock(int(queue.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("a gate waits already for the one that uses the spool directory %s", path)
	}
	waiting()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if d, err = Open(path, key); !errors.Is(err, ErrTaken) {
			return d, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// nextFile is locked by who waits for the directory.
const nextFile = ".next"

// Awaited reports whether a process waits for the directory in OpenNext.
func (d *Dir) Awaited() bool {
	queue, err := os.OpenFile(filepath.Join(d.path, nextFile), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // nobody ever waited
	}
	defer queue.Close()
	return errors.Is(unix.Flock(int(queue.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Open takes the directory for this process, and makes it if there is none. It fails when another process has it.
func Open(path string, key Key) (*Dir, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the spool directory: %w; give the gate a directory it may write to", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, ".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the spool directory: %w; give the gate a directory it may write to", err)
	}
	d := &Dir{path: path, seal: seal, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, fmt.Errorf("%w %s; give each a directory of its own", ErrTaken, path)
	}
	if err := d.identify(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close lets another process have the directory.
func (d *Dir) Close() { d.lock.Close() }

// ID names the directory: the same for every process that ever has it, and no other.
func (d *Dir) ID() string { return d.id }

func (d *Dir) identify() error {
	path := filepath.Join(d.path, ".id")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) < 20 {
		b = []byte(rand.Text())
		err = durable.Replace(path, b)
	}
	if err != nil {
		return fmt.Errorf("naming the spool directory: %w", err)
	}
	d.id = string(b)
	return nil
}

// Keep writes the entry called name in place of an earlier one, and returns when it is on the disk.
func (d *Dir) Keep(name string, data []byte) error {
	path, err := d.file(name)
	if err != nil {
		return err
	}
	return durable.Replace(path, d.seal.Seal(nil, nil, data, []byte(name)))
}

// Read returns the entry called name; [fs.ErrNotExist] when there is none.
func (d *Dir) Read(name string) ([]byte, error) {
	path, err := d.file(name)
	if err != nil {
		return nil, err
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data, err := d.seal.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%s was not written with the key that Vault has now, or is damaged", path)
	}
	return data, nil
}

// Drop removes the entry called name; none is no error.
func (d *Dir) Drop(name string) error {
	path, err := d.file(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// file is where the entry called name is. Our own files begin with a dot.
func (d *Dir) file(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, `/\`) || len(name) > 200 {
		return "", fmt.Errorf("%q cannot be the name of a spooled entry", name)
	}
	return filepath.Join(d.path, name), nil
}
