package record

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
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/policy"
)

func judged(n int) policy.Judged {
	return policy.Judged{
		Time:    time.Date(2026, 3, 1, 12, 0, 0, n, time.UTC),
		Facts:   policy.Facts{Worker: "ci", Profile: "agents", Host: "api.example.com", Port: 443, Method: "GET", Reading: policy.Reading{Path: fmt.Sprintf("/%d?<&>", n)}, Known: map[string][]string{"headers": {}}},
		Verdict: policy.Deny, Rule: "r", Reason: "policy_denied",
	}
}

// running is a recorder that runs until stop is called.
func running(t *testing.T, path string, limit int64) (r *Recorder, log *bytes.Buffer, stop func()) {
	t.Helper()
	log = &bytes.Buffer{}
	r, err := Open(path, limit, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	return r, log, func() { cancel(); <-done }
}

func readFile(t *testing.T, path string) (all []policy.Judged, missing uint64) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	missing, err = Read(bytes.NewReader(text), func(j policy.Judged) { all = append(all, j) })
	if err != nil {
		t.Fatal(err)
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
			wg.Go(func() { r.Add(judged(i)) })
		}
		wg.Wait()
		stop()
	}
	all, missing := readFile(t, path)
	if len(all) != 200 || missing != 0 {
		t.Fatalf("%d lines, %d missing", len(all), missing)
	}
	if diff := cmp.Diff(judged(all[7].Time.Nanosecond()), all[7]); diff != "" {
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
		r, err := Open(path, limit, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		r.Add(judged(i))
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
		if want := 300 - len(all) + i; j.Time.Nanosecond() != want {
			t.Fatalf("line %d is %d, want %d", i, j.Time.Nanosecond(), want)
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
	r, err := Open(path, 64<<20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range queueLength + 17 {
		r.Add(judged(i))
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
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	var log bytes.Buffer
	r, err := Open(path, 1<<20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	good := r.file
	r.file = full
	for i := range 3 {
		r.write(judged(i))
	}
	full.Close()
	r.file = good
	r.write(judged(3))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	all, missing := readFile(t, path)
	if len(all) != 1 || missing != 3 {
		t.Errorf("%d lines, %d missing", len(all), missing)
	}
	said := log.String()
	if strings.Count(said, "cannot be recorded") != 1 || strings.Count(said, "recorded again") != 1 || strings.Count(said, "count=3") != 1 {
		t.Errorf("log: %s", said)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, os.DevNull, filepath.Join(dir, "none", "file")} {
		if _, err := Open(path, 1<<20, nil); err == nil || !strings.Contains(err.Error(), "record.file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReadNamesTheLine(t *testing.T) {
	good, err := json.Marshal(judged(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{}", "x", `{"time":"2026-03-01T12:00:00Z"}`, string(good) + "{}", `{"unknown":1}`, string(good[:40]), strings.Repeat("x", maxLine+1)} {
		_, err := Read(strings.NewReader(string(good)+"\n"+bad+"\n"), func(policy.Judged) {})
		if err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%.40s: %v", bad, err)
		}
	}
}

// What is read is what would be written, and what cannot be read is said with its line.
func FuzzRead(f *testing.F) {
	for _, s := range []string{`{"time":"2026-03-01T12:00:00Z","facts":{"worker":"ci","host":"h","port":1,"known":{"headers":null}},"verdict":"other"}`, `{"time":"2026-03-01T12:00:00Z","dropped":1}`, "\n", "{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, err := Read(strings.NewReader(text), func(j policy.Judged) {
			line, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Read(bytes.NewReader(line), func(policy.Judged) {}); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		})
		if err != nil && !strings.Contains(err.Error(), "line ") {
			t.Error(err)
		}
	})
}
