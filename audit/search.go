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
	"strconv"
	"strings"
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
	// Missing is how many records are not there, by the gates' own count.
	Missing int `json:"missing,omitempty"`
	// Back is how far the search got: everything after it was looked at. Zero: everything was.
	Back time.Time `json:"back,omitzero"`
	// Next is where to look for what is older; empty: there is no more.
	Next Place `json:"next,omitempty"`

	ended map[string]struct{} // requests that were open before, of which the end was found
	late  int                 // how many of those missing were found
	after string              // the record that it begins behind, until it came there; empty: none
	last  []byte              // the last line that was looked at
	got   string              // the last record that was looked at
}

// Place is how far a search got in the files of each gate. Times are none: several records have the same, and they are in no strict order.
type Place string

// ErrPlace says that something is none of these gates'.
var ErrPlace = errors.New("is not what a search of this audit said as next")

const wholly = "-" // everything of a gate's was looked at

// of is the place in the files of each of n gates.
func (p Place) of(n int) ([]string, error) {
	if p == "" {
		return make([]string, n), nil
	}
	all := strings.Split(string(p), ",")
	if len(all) != n {
		return nil, ErrPlace
	}
	return all, nil
}

// place tells a record from all others of a gate; those that gates wrote before they had numbers have none, and nothing is looked for behind them.
func (r *Record) place() string {
	if r.Run == "" {
		return wholly
	}
	return r.Run + "." + strconv.FormatUint(r.Seq, 10)
}

// Search looks through the files of a gate, the newest one first, for so many of the newest records. It ends early with ctx, and then says how
// far it got. A file that is not there is empty. It is SearchAll that goes on where another one got to.
func Search(ctx context.Context, files []string, f Filter, limit int) (Found, error) {
	return search(ctx, files, f, limit, "")
}

// search is Search behind a place in these files.
func search(ctx context.Context, files []string, f Filter, limit int, after string) (found Found, err error) {
	found = Found{Records: []Record{}, ended: map[string]struct{}{}, after: after, got: after}
	if after == wholly {
		return found, nil
	}
	defer func() { found.Missing = max(0, found.Missing-found.late) }()
	for _, name := range files {
		more, err := found.searchFile(ctx, name, f, limit)
		if err != nil {
			return found, err
		}
		if !more {
			if r, ok := parseLine(found.last); ok && found.got != wholly && found.Back.IsZero() { // it did not come to what is new
				found.Back = r.Time
			}
			return found, nil
		}
	}
	found.Back, found.got = time.Time{}, wholly
	return found, nil
}

// SearchAll is Search through the files of several gates, each the newest one first.
func SearchAll(ctx context.Context, gates [][]string, f Filter, limit int) (Found, error) {
	all := Found{Records: []Record{}}
	after, err := f.After.of(len(gates))
	if err != nil {
		return all, err
	}
	each := make([]Found, len(gates))
	for i, files := range gates {
		share, cancel := ctx, context.CancelFunc(func() {})
		if end, has := ctx.Deadline(); has { // none takes the time of those after it
			share, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(gates)-i))
		}
		each[i], err = search(share, files, f, limit, after[i])
		cancel()
		if err != nil {
			return all, err
		}
		all.Unreadable += each[i].Unreadable
		all.Missing += each[i].Missing
		if each[i].Back.After(all.Back) {
			all.Back = each[i].Back
		}
	}
	taken := all.merge(each, limit)
	more, left := false, false
	for i := range each {
		left = left || taken[i] < len(each[i].Records)
		switch n := taken[i]; {
		case n == len(each[i].Records):
			after[i] = each[i].got
		case n > 0:
			after[i] = each[i].Records[n-1].place()
		}
		more = more || after[i] != wholly
	}
	if more {
		all.Next = Place(strings.Join(after, ","))
	}
	slices.SortStableFunc(all.Records, func(a, b Record) int { return b.Time.Compare(a.Time) })
	if left && all.Records[limit-1].Time.After(all.Back) {
		all.Back = all.Records[limit-1].Time
	}
	return all, nil
}

// merge takes the newest records of all gates, those of each in their order, and returns how many it has of each.
func (found *Found) merge(each []Found, limit int) (taken []int) {
	taken = make([]int, len(each))
	for len(found.Records) < limit {
		newest := -1
		for i := range each {
			if taken[i] < len(each[i].Records) && (newest < 0 || each[i].Records[taken[i]].ended().After(each[newest].Records[taken[newest]].ended())) {
				newest = i
			}
		}
		if newest < 0 {
			break
		}
		found.Records = append(found.Records, each[newest].Records[taken[newest]])
		taken[newest]++
	}
	return taken
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
	for looked := false; !looked || ctx.Err() == nil; looked = true { // at one at least, to say where it is
		line, err := lines()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("reading the audit: %w", err)
		}
		if found.last = line; found.passes(line) {
			continue
		}
		r, ok := parseLine(line)
		switch {
		case !ok:
			found.Unreadable++
			continue
		case r.Kind == Gap:
			found.Missing += int(r.Dropped)
			if f.Kind != Gap {
				continue
			}
		case r.Late:
			found.late++
		}
		if !f.From.IsZero() && r.ended().Before(f.From.Add(-longest)) { // they are in the order of their ends, about
			found.Back, found.got = time.Time{}, wholly
			return false, nil
		}
		if found.after != "" { // what was found before
			if found.superseded(&r); r.place() == found.after {
				found.after = ""
			}
			continue
		}
		if found.superseded(&r) {
			found.got = r.place()
			continue
		}
		found.Back = r.Time
		if f.Match(&r) {
			if len(found.Records) == limit {
				return false, nil
			}
			found.Records = append(found.Records, r)
		}
		found.got = r.place()
	}
	return false, nil
}

// passes reports whether a line is surely of no use before the record that the search begins behind: to read each would take as long at every page as at
// the first.
func (found *Found) passes(line []byte) bool {
	if found.after == "" || bytes.Contains(line, []byte(`"after_open":true`)) {
		return false
	}
	run, seq, _ := strings.Cut(found.after, ".")
	return !bytes.Contains(line, []byte(run)) || !bytes.Contains(line, []byte(`"seq":`+seq))
}

// longest is by how much records may be out of order: what waits to be written together.
const longest = time.Minute

// ended is when a record was written, or not long after.
func (r *Record) ended() time.Time {
	return r.Time.Add(r.Took())
}

// superseded reports whether a record says that a request is open of which the end was found. The end of one that was found open takes
// its place.
func (found *Found) superseded(r *Record) bool {
	if r.Open {
		_, ended := found.ended[r.Request]
		return ended
	}
	if r.AfterOpen {
		found.ended[r.Request] = struct{}{}
		found.Records = slices.DeleteFunc(found.Records, func(o Record) bool { return o.Open && o.Request == r.Request })
	}
	return false
}

// parseLine reads a line.
func parseLine(line []byte) (r Record, ok bool) {
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, false
	}
	if r.Kind == "" && r.Dropped > 0 { // as gates wrote it before there was a kind for it
		r.Kind = Gap
	}
	return r, r.Kind != "" && !r.Time.IsZero()
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
			if i := bytes.LastIndexByte(rest, '\n'); i >= 0 {
				follow(rest[:i], f, each)
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

// follow calls each with the records in lines that came together, but for those of open requests of which there is the end too.
func follow(lines []byte, f Filter, each func(Record)) {
	var all []Record
	ended := map[string]bool{}
	for line := range bytes.SplitSeq(lines, []byte("\n")) {
		if r, ok := parseLine(line); ok {
			all = append(all, r)
			ended[r.Request] = ended[r.Request] || r.AfterOpen
		}
	}
	for _, r := range all {
		if f.Match(&r) && (!r.Open || !ended[r.Request]) {
			each(r)
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
