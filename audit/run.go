package audit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// key is the id of a decision, as long as each may be: its length, and its text. Of a longer one it is a hash.
type key [40]byte

// nameless is in place of the length of a key that has no text.
const nameless = 0xff

func keyOf(id string) (k key) {
	if len(id) >= len(k) {
		sum := sha256.Sum256([]byte(id))
		k[0] = nameless - 1
		copy(k[1:], sum[:])
		return k
	}
	k[0] = byte(len(id))
	copy(k[1:], id)
	return k
}

// anonymous is the key of something that no end is told of.
func anonymous(n uint64) (k key) {
	k[0] = nameless
	binary.BigEndian.PutUint64(k[1:], n)
	return k
}

func (k key) anonymous() bool { return k[0] == nameless }

// id is the id; empty: it is not known.
func (k key) id() string {
	if int(k[0]) >= len(k) {
		return ""
	}
	return string(k[1 : 1+k[0]])
}

// Run is the account of one gate from its start to its end, as far as somebody must know of it who comes after it was killed: the
// decisions that are not in the file yet. They are kept in a file beside it that is mapped into memory, so that they cost no system
// call, and are there whatever becomes of this process. Its lock says that the process lives.
type Run struct {
	ID   string
	path string
	file *os.File
	mem  []byte

	mu   sync.Mutex
	free []uint32 // places, guarded by mu
}

const (
	runMagic  = "WLAUDIT1"
	runHeader = 64
	placeSize = len(key{})
	// places are more than there can be decisions that are not in the file: maxPending and twice maxQueue.
	places  = 128 << 10
	runSize = runHeader + places*placeSize
)

func runPath(path, id string) string { return path + ".run-" + id }

// newRunID names a run by its start.
func newRunID(now time.Time) string {
	return now.UTC().Format("20060102T150405") + "-" + strings.ToLower(rand.Text()[:8])
}

// StartRun begins a run of the account in the file of that path.
func StartRun(path string, now time.Time) (*Run, error) {
	r := &Run{ID: newRunID(now)}
	r.path = runPath(path, r.ID)
	draft := r.path + ".new" // nobody sees it without its lock
	f, err := os.OpenFile(draft, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit.file: %w; let the gate make files beside it, or name another", err)
	}
	// Written and not only made so long: else a full disk would end the process when it uses the memory.
	if _, err = f.Write(append([]byte(runMagic), make([]byte, runSize-len(runMagic))...)); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = r.mapped(f)
	}
	if err == nil {
		err = os.Rename(draft, r.path)
	}
	if err != nil {
		r.close()
		f.Close()
		os.Remove(draft)
		return nil, fmt.Errorf("audit.file: %w; make room for %d MB beside it, or name another", err, runSize>>20+1)
	}
	r.free = make([]uint32, places)
	for i := range r.free {
		r.free[i] = uint32(places - 1 - i)
	}
	return r, nil
}

func (r *Run) mapped(f *os.File) (err error) {
	r.file = f
	r.mem, err = unix.Mmap(int(f.Fd()), 0, runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

// close lets go of the file, which is there for whoever comes after.
func (r *Run) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem = nil
	}
	if r.file != nil {
		r.file.Close()
	}
}

// finish ends a run of which nothing is missing any more.
func (r *Run) finish() error {
	err := os.Remove(r.path)
	r.close()
	return err
}

// number is one of the header's. The mapping begins at a page.
func (r *Run) number(at int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&r.mem[at])) }

// seq is the number of the last line of the run that is surely in the file.
func (r *Run) seq() *atomic.Uint64 { return r.number(8) }

// missing is how many records are not in the file of which no line there tells.
func (r *Run) missing() *atomic.Uint64 { return r.number(16) }

func (r *Run) place(n uint32) []byte {
	at := runHeader + int(n)*placeSize
	return r.mem[at : at+placeSize]
}

// claim is a decision that is not in the file yet. The zero claim is of none.
type claim struct {
	run   *Run
	place uint32
}

// claim notes a decision.
func (r *Run) claim(k key) claim {
	if r == nil {
		return claim{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.free) == 0 {
		return claim{}
	}
	n := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	copy(r.place(n), k[:])
	return claim{r, n}
}

// settle says that the decision is in the file, or is counted.
func (c claim) settle() {
	if c.run == nil {
		return
	}
	c.run.mu.Lock()
	defer c.run.mu.Unlock()
	if c.run.mem == nil { // the run has been finished
		return
	}
	clear(c.run.place(c.place))
	c.run.free = append(c.run.free, c.place)
}

// killedRuns are those of the account whose processes are gone. They are locked for the caller, who finishes them or closes them. One that is
// none of ours is left alone.
func killedRuns(path string) (all []*Run, err error) {
	names, err := filepath.Glob(escapeGlob(path) + ".run-*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".new") {
			continue
		}
		r, e := openKilled(name, strings.TrimPrefix(name, path+".run-"))
		if e != nil {
			err = errors.Join(err, e)
		} else if r != nil {
			all = append(all, r)
		}
	}
	return all, err
}

// openKilled opens a run; nil when its process lives.
func openKilled(name, id string) (*Run, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // it has ended
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil //nolint:nilnil // it lives
		}
		return nil, err
	}
	have, err := f.Stat()
	named, e := os.Lstat(name)
	if err = errors.Join(err, e); err != nil || !os.SameFile(have, named) {
		f.Close()
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // it was finished just now
		}
		return nil, err
	}
	r := &Run{ID: id, path: name}
	if have.Size() != int64(runSize) {
		f.Close()
		return nil, fmt.Errorf("%s is no file of a run of the account; remove it", name)
	}
	if err := r.mapped(f); err != nil {
		r.close()
		return nil, err
	}
	if string(r.mem[:len(runMagic)]) != runMagic {
		r.close()
		return nil, fmt.Errorf("%s is no file of a run of the account; remove it", name)
	}
	return r, nil
}

// claims are the decisions that a killed run had not in the file, by what it knew.
func (r *Run) claims() map[key]claim {
	all := map[key]claim{}
	for n := range uint32(places) {
		if k := key(r.place(n)); k != (key{}) {
			all[k] = claim{r, n}
		}
	}
	return all
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// hashOf is the hash by which a line is chained to the next.
func hashOf(line []byte) string {
	sum := sha256.Sum256(unhashed(line))
	return hex.EncodeToString(sum[:])
}

const hashField = `,"hash":"`

// unhashed is what the hash in a line is of: the line without it. A line without one is all of it.
func unhashed(line []byte) []byte {
	n := len(line) - len(hashField) - 2*sha256.Size - len(`"}`)
	if n < 0 || string(line[n:n+len(hashField)]) != hashField {
		return line
	}
	return append(append(make([]byte, 0, n+1), line[:n]...), '}')
}
