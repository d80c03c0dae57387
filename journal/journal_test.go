package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// line is what the tests write.
type line struct {
	N    int    `json:"n"`
	Text string `json:"text"`
}

func numbered(n int) line {
	return line{n, fmt.Sprintf("/%d?<&> as long as a line may well be, or about a hundred bytes of it", n)}
}

// running is a recorder that runs until stop is called.
func running(t *testing.T, path string, limit int64) (r *File[line], log *bytes.Buffer, stop func()) {
	t.Helper()
	log = &bytes.Buffer{}
	r, err := Open[line]("record.file", path, limit, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	return r, log, func() { cancel(); <-done }
}

func readFile(t *testing.T, path string) (all []line, missing uint64) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for one := range strings.Lines(string(text)) {
		var l struct {
			line
			Missing
		}
		if err := json.Unmarshal([]byte(one), &l); err != nil {
			t.Fatal(err)
		}
		missing += l.Dropped
		if l.Dropped == 0 {
			all = append(all, l.line)
		}
	}
	return all, missing
}

func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restart adds to it
		r, _, stop := running(t, path, 1<<20)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { r.Add(numbered(i)) })
		}
		wg.Wait()
		stop()
	}
	all, missing := readFile(t, path)
	if len(all) != 200 || missing != 0 {
		t.Fatalf("%d lines, %d missing", len(all), missing)
	}
	if diff := cmp.Diff(numbered(all[7].N), all[7]); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	const limit = 20_000
	for i := range 300 {
		r, err := Open[line]("record.file", path, limit, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		r.Add(numbered(i))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.Run(ctx)
	}
	var size int64
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		size += info.Size()
	}
	if size > limit || size < limit/2 {
		t.Errorf("%d bytes", size)
	}
	before, _ := readFile(t, path+".1")
	after, _ := readFile(t, path)
	all := append(before, after...)
	for i, j := range all {
		if want := 300 - len(all) + i; j.N != want {
			t.Fatalf("line %d is %d, want %d", i, j.N, want)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}

// What the queue cannot take is counted and said, and nobody waits.
func TestDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	var log bytes.Buffer
	r, err := Open[line]("record.file", path, 64<<20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range queueLength + 17 {
		r.Add(numbered(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	all, missing := readFile(t, path)
	if len(all) != queueLength || missing != 17 || !strings.Contains(log.String(), "count=17") {
		t.Errorf("%d lines, %d missing, log: %s", len(all), missing, &log)
	}
}

// A disk that takes nothing costs lines and nothing else.
func TestFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	var log bytes.Buffer
	r, err := Open[line]("record.file", path, 1<<20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	good := r.to
	r.to = full{}
	for i := range 3 {
		r.write(numbered(i))
	}
	r.to = good
	r.write(numbered(3))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	all, missing := readFile(t, path)
	if len(all) != 1 || missing != 3 {
		t.Errorf("%d lines, %d missing", len(all), missing)
	}
	said := log.String()
	if strings.Count(said, "cannot be written") != 1 || strings.Count(said, "written again") != 1 || strings.Count(said, "count=3") != 1 {
		t.Errorf("log: %s", said)
	}
}

// full is a disk that takes nothing.
type full struct{}

func (full) Put(func([]byte) []byte) error { return unix.ENOSPC }
func (full) Close()                        {}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, os.DevNull, filepath.Join(dir, "none", "file")} {
		if _, err := Open[line]("record.file", path, 1<<20, nil); err == nil || !strings.Contains(err.Error(), "record.file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
