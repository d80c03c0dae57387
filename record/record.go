// Package record owns the file in which a gate notes what was decided of which facts: one line of JSON for each request, for
// whoever wants to know what other rules would have done.
//
//	Add ──queue──▶ Run ──▶ FILE, and FILE.1 with what was before
//
// A request never waits for the file: what the queue cannot take is counted, and the file says how many lines are missing.
package record

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"wayleave/policy"
)

const (
	queueLength = 4096
	batch       = 256 << 10 // bytes that are written at once, about
	maxLine     = 1 << 20
)

// dropped is the line that stands for lines that are missing.
type dropped struct {
	Time    time.Time `json:"time"`
	Dropped uint64    `json:"dropped"`
}

// Recorder writes lines. It is safe for concurrent use.
type Recorder struct {
	path    string
	half    int64 // bytes, after which the file becomes the one before
	log     *slog.Logger
	now     func() time.Time
	queue   chan policy.Judged
	dropped atomic.Uint64

	// Of Run.
	file    *os.File
	size    int64
	trouble bool
}

// Open opens the file to add to it, readable by its owner only. Together with the one before it takes at most limit bytes.
func Open(path string, limit int64, log *slog.Logger) (*Recorder, error) {
	r := &Recorder{path: path, half: limit / 2, log: log, now: time.Now, queue: make(chan policy.Judged, queueLength)}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Recorder) open() error {
	if info, err := os.Lstat(r.path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("record.file: %s is no regular file; name another", r.path)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record.file: %w", err)
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("record.file: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Chmod(0o600) // of one that was there
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("record.file: %w", err)
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Add notes a decision, or counts it when it cannot. It never waits.
func (r *Recorder) Add(j policy.Judged) {
	select {
	case r.queue <- j:
	default:
		r.dropped.Add(1)
	}
}

// Run writes until ctx ends, and then what is in the queue. It closes the file.
func (r *Recorder) Run(ctx context.Context) {
	defer func() { r.file.Close() }()
	for {
		select {
		case j := <-r.queue:
			r.write(j)
		case <-ctx.Done():
			for {
				select {
				case j := <-r.queue:
					r.write(j)
				default:
					r.say(r.flush(nil, 0))
					return
				}
			}
		}
	}
}

// write writes first and, with it, what else there is.
func (r *Recorder) write(first policy.Judged) {
	var lines bytes.Buffer
	encode := json.NewEncoder(&lines)
	encode.SetEscapeHTML(false)
	count := uint64(0)
	add := func(j policy.Judged) {
		if err := encode.Encode(j); err == nil { // strings, numbers and times of this century
			count++
		}
	}
	add(first)
	for more := true; more && lines.Len() < batch; {
		select {
		case j := <-r.queue:
			add(j)
		default:
			more = false
		}
	}
	r.say(r.flush(lines.Bytes(), count))
}

// flush puts lines into the file, and behind them how many are missing. What cannot be written is missing too.
func (r *Recorder) flush(lines []byte, count uint64) error {
	missing := r.dropped.Swap(0)
	if missing > 0 {
		line, _ := json.Marshal(dropped{r.now().UTC(), missing}) // a time and a number
		lines = append(append(lines, line...), '\n')
	}
	if len(lines) == 0 {
		return nil
	}
	if err := r.put(lines); err != nil {
		r.dropped.Add(missing + count)
		return err
	}
	if missing > 0 {
		r.log.Warn("requests were not recorded, since they came faster than the file takes them or it could not be written; they were served all the same", "count", missing, "file", r.path)
	}
	return nil
}

// put writes whole lines or nothing.
func (r *Recorder) put(lines []byte) error {
	if r.size > 0 && r.size+int64(len(lines)) > r.half {
		if err := os.Rename(r.path, r.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		before := r.file
		if err := r.open(); err != nil { // and try again with the next lines
			return err
		}
		before.Close()
	}
	n, err := r.file.Write(lines)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, r.file.Truncate(r.size))
		}
		return err
	}
	r.size += int64(n)
	return nil
}

// say logs when writing begins to fail, and when it works again.
func (r *Recorder) say(err error) {
	if (err != nil) == r.trouble {
		return
	}
	r.trouble = err != nil
	if err != nil {
		r.log.Warn("requests cannot be recorded; they are served all the same", "err", err, "file", r.path)
		return
	}
	r.log.Info("requests are recorded again", "file", r.path)
}

// Read calls each with every decision of a record, in order. Missing is how many were not recorded. The error names the line.
func Read(from io.Reader, each func(policy.Judged)) (missing uint64, err error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		var line struct {
			policy.Judged
			Dropped uint64 `json:"dropped"`
		}
		decode := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decode.DisallowUnknownFields()
		err := decode.Decode(&line)
		switch {
		case err == nil && decode.More():
			err = errors.New("something follows the object")
		case err == nil && line.Dropped == 0 && (line.Facts.Worker == "" || line.Facts.Host == "" || line.Verdict == "" || line.Time.IsZero()):
			err = errors.New("it has no time, verdict, worker or host")
		}
		if err != nil {
			return missing, fmt.Errorf("line %d is not one of a record: %w", n, err)
		}
		if line.Dropped > 0 {
			missing += line.Dropped
			continue
		}
		each(line.Judged)
	}
	if err := lines.Err(); err != nil {
		return missing, fmt.Errorf("line %d: %w", n+1, err)
	}
	return missing, nil
}
