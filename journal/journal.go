// Package journal owns files to which a gate adds lines of JSON while it serves, and that take no more than so many bytes. What is in
// the lines is their writer's.
//
//	Add ──queue──▶ Run ──▶ FILE, and FILE.1 with what was before
//
// A request never waits for the file: what the queue cannot take is counted, and the file says how many lines are missing.
package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	queueLength = 4096
	batch       = 256 << 10 // bytes that are written at once, about
)

// Missing is the line that stands for lines that are missing.
type Missing struct {
	Time    time.Time `json:"time"`
	Dropped uint64    `json:"dropped"`
}

// File is a file of lines that are each a T. Its methods are safe for concurrent use.
type File[T any] struct {
	key     string // of the configuration, that names it
	path    string
	log     *slog.Logger
	now     func() time.Time
	queue   chan T
	dropped atomic.Uint64

	// Of Run.
	to interface {
		Put(write func(last []byte) []byte) error
		Close()
	}
	trouble bool
}

// Open opens the file to add to it, readable by its owner only. Together with the one before it takes at most limit bytes. The key
// of the configuration that names the file is in errors and in the log.
func Open[T any](key, path string, limit int64, log *slog.Logger) (*File[T], error) {
	to, err := OpenLines(key, path, limit, 1)
	if err != nil {
		return nil, err
	}
	return &File[T]{key: key, path: path, log: log, now: time.Now, queue: make(chan T, queueLength), to: to}, nil
}

// Add adds a line, or counts it when it cannot. It never waits.
func (r *File[T]) Add(line T) {
	select {
	case r.queue <- line:
	default:
		r.dropped.Add(1)
	}
}

// Run writes until ctx ends, and then what is in the queue. It closes the file.
func (r *File[T]) Run(ctx context.Context) {
	defer r.to.Close()
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
func (r *File[T]) write(first T) {
	var lines bytes.Buffer
	encode := json.NewEncoder(&lines)
	encode.SetEscapeHTML(false)
	count := uint64(0)
	add := func(j T) {
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
func (r *File[T]) flush(lines []byte, count uint64) error {
	missing := r.dropped.Swap(0)
	if missing > 0 {
		line, _ := json.Marshal(Missing{r.now().UTC(), missing}) // a time and a number
		lines = append(append(lines, line...), '\n')
	}
	if len(lines) == 0 {
		return nil
	}
	if err := r.to.Put(func([]byte) []byte { return lines }); err != nil {
		r.dropped.Add(missing + count)
		return err
	}
	if missing > 0 {
		r.log.Warn("lines are missing in a file: they came faster than it takes them, or it could not be written; requests were served all the same", "count", missing, "file", r.path, "key", r.key)
	}
	return nil
}

// say logs when writing begins to fail, and when it works again.
func (r *File[T]) say(err error) {
	if (err != nil) == r.trouble {
		return
	}
	r.trouble = err != nil
	if err != nil {
		r.log.Warn("a file cannot be written; requests are served all the same, and what is missing is counted", "err", err, "file", r.path, "key", r.key)
		return
	}
	r.log.Info("a file is written again", "file", r.path, "key", r.key)
}
