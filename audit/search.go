package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

const (
	block   = 64 << 10 // bytes that are read at once
	maxLine = 1 << 20
	pollFor = 500 * time.Millisecond
)

// Found is what a search has found.
type Found struct {
	Records []Record `json:"records"` // the newest first
	// Unreadable is how many lines were none of a record.
	Unreadable int `json:"unreadable,omitempty"`
	// Missing is how many records could not be written, by the gate's own count.
	Missing int `json:"missing,omitempty"`
	// Back is how far the search got: everything after it was looked at. Zero: everything was.
	Back time.Time `json:"back,omitzero"`
}

// Search looks through the files, the newest one first, for so many of the newest records. It ends early with ctx, and then says how
// far it got. A file that is not there is empty.
func Search(ctx context.Context, files []string, f Filter, limit int) (Found, error) {
	found := Found{Records: []Record{}}
	for _, name := range files {
		more, err := found.searchFile(ctx, name, f, limit)
		if err != nil {
			return found, err
		}
		if !more {
			return found, nil
		}
	}
	found.Back = time.Time{}
	return found, nil
}

// SearchAll is Search through the files of several gates, each the newest one first.
func SearchAll(ctx context.Context, gates [][]string, f Filter, limit int) (Found, error) {
	all := Found{Records: []Record{}}
	for _, files := range gates {
		found, err := Search(ctx, files, f, limit)
		if err != nil {
			return all, err
		}
		all.Records = append(all.Records, found.Records...)
		all.Unreadable += found.Unreadable
		all.Missing += found.Missing
		if found.Back.After(all.Back) {
			all.Back = found.Back
		}
	}
	slices.SortStableFunc(all.Records, func(a, b Record) int { return b.Time.Compare(a.Time) })
	if len(all.Records) > limit {
		all.Records = all.Records[:limit]
		all.Back = all.Records[limit-1].Time
	}
	return all, nil
}

// searchFile reports whether it is of use to look further back.
func (found *Found) searchFile(ctx context.Context, name string, f Filter, limit int) (more bool, err error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the audit: %w", err)
	}
	defer file.Close()
	lines, err := backward(file)
	if err != nil {
		return false, fmt.Errorf("reading the audit: %w", err)
	}
	for ctx.Err() == nil {
		line, err := lines()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("reading the audit: %w", err)
		}
		r, missing, ok := parse(line)
		found.Missing += missing
		switch {
		case missing > 0:
			continue
		case !ok:
			found.Unreadable++
			continue
		}
		if !f.From.IsZero() && r.Time.Before(f.From.Add(-longest)) { // they are in the order of their ends, about
			found.Back = time.Time{}
			return false, nil
		}
		found.Back = r.Time
		if !f.Match(&r) {
			continue
		}
		if len(found.Records) == limit {
			return false, nil
		}
		found.Records = append(found.Records, r)
	}
	return false, nil
}

// longest is by how much records may be out of order: what waits to be written together.
const longest = time.Minute

// parse reads a line, which may be the count of those that are missing.
func parse(line []byte) (r Record, missing int, ok bool) {
	var l struct {
		Record
		Dropped int `json:"dropped"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Record{}, 0, false
	}
	if l.Dropped > 0 {
		return Record{}, l.Dropped, true
	}
	return l.Record, 0, l.Kind != "" && !l.Time.IsZero()
}

// backward returns the lines of a file, the last one first. What comes after the last line break is not a line yet.
func backward(f *os.File) (func() ([]byte, error), error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	at := info.Size()
	var have []byte // what is read and not returned, from at
	first := true
	return func() ([]byte, error) {
		for {
			if i := bytes.LastIndexByte(have, '\n'); i >= 0 {
				line := have[i+1:]
				have = have[:i]
				if first { // after the last line break
					first = false
					continue
				}
				return line, nil
			}
			if at == 0 {
				if len(have) > 0 && !first {
					line := have
					have = nil
					return line, nil
				}
				return nil, io.EOF
			}
			n := min(at, block)
			more := make([]byte, n, n+int64(len(have)))
			if _, err := f.ReadAt(more, at-n); err != nil {
				return nil, err
			}
			at -= n
			have = append(more, have...)
			if len(have) > maxLine {
				return nil, fmt.Errorf("%s has a line longer than %d bytes, so it is no audit", f.Name(), maxLine)
			}
		}
	}, nil
}

// Follow calls each with every record that is added to the file from now on, until ctx ends. It goes on when the file is begun anew.
func Follow(ctx context.Context, name string, f Filter, each func(Record)) error {
	file, err := os.Open(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the audit: %w", err)
	}
	if err == nil {
		if _, err := file.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("reading the audit: %w", err)
		}
	}
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	var rest []byte
	tick := time.NewTicker(pollFor)
	defer tick.Stop()
	for {
		if file != nil {
			more, err := io.ReadAll(file)
			if err != nil {
				return fmt.Errorf("reading the audit: %w", err)
			}
			rest = append(rest, more...)
			for i := bytes.IndexByte(rest, '\n'); i >= 0; i = bytes.IndexByte(rest, '\n') {
				if r, missing, ok := parse(rest[:i]); ok && missing == 0 && f.Match(&r) {
					each(r)
				}
				rest = rest[i+1:]
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if fresh := begunAnew(file, name); fresh != nil {
			if file != nil {
				file.Close()
			}
			file, rest = fresh, nil
		}
	}
}

// begunAnew opens the file when it is not the one that is open, and that one has been read.
func begunAnew(was *os.File, name string) *os.File {
	now, err := os.Stat(name)
	if err != nil {
		return nil
	}
	if was != nil {
		before, err := was.Stat()
		if err != nil || os.SameFile(before, now) {
			return nil
		}
		if at, err := was.Seek(0, io.SeekCurrent); err != nil || at < before.Size() {
			return nil // what was added before it was renamed is read first
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	return f
}
