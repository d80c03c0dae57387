package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxQueue  = 8192 // records that wait to be written
	maxBatch  = 1024 // of them that are written at once
	writeTime = 2 * time.Second
	// headEvery is after how long the hash of the last line is logged again, where lines are chained.
	headEvery = time.Hour
)

// Places where records go missing, beside the names of sinks.
const (
	InFile  = "file" // it could not be written
	InQueue = "all"  // they came faster than they could be written
)

// Killed is the cause of what a killed gate had in memory alone.
const Killed = "killed"

// Watch is told what is counted. Its functions must not block.
type Watch struct {
	Written func(Record)                // a record that is in its place
	Dropped func(sink string, n uint64) // records that did not get there
	Lost    func(cause string, n uint64)
}

// Appender is the file; a *journal.Lines is one.
type Appender interface {
	// Put adds what write returns, which may be asked for it twice. It is told the line before.
	Put(write func(last []byte) []byte) error
	Close()
}

// fill has nobody told where nobody wants to be.
func (w *Watch) fill() {
	if w.Written == nil {
		w.Written = func(Record) {}
	}
	if w.Dropped == nil {
		w.Dropped = func(string, uint64) {}
	}
	if w.Lost == nil {
		w.Lost = func(string, uint64) {}
	}
}

// LogOptions are how a Log works.
type LogOptions struct {
	File  Appender // nil: there is none
	Run   *Run     // of File
	Chain bool     // each line has the hash of the one before
	Sinks []Target
	Watch Watch
	Now   func() time.Time
	Log   *slog.Logger
}

// Log numbers records and writes them: to the file, and from there on to the sinks, each of which may be behind without the others.
type Log struct {
	o     LogOptions
	id    string // of the run
	sinks []*queue

	mu     sync.Mutex
	queue  []item        // guarded by mu
	missed uint64        // guarded by mu: records that the queue did not take, since the last batch
	wake   chan struct{} // holds one

	unnamed atomic.Uint64 // how many records had no id

	// Of Run.
	seq     uint64
	told    uint64 // of those missing that the log was told
	trouble bool
	head    string // hash of the last line
	headAt  time.Time
}

// item is a record on its way.
type item struct {
	rec   Record
	claim claim
	// done is told whether it was written. It is not missing then when it was not: somebody else takes care. Nil: nobody.
	done func(error)
}

var errFull = errors.New("the account cannot be written as fast as requests come")

// NewLog returns a Log; its Run does the work.
func NewLog(o LogOptions) *Log {
	o.Watch.fill()
	l := &Log{o: o, wake: make(chan struct{}, 1)}
	if o.Run != nil {
		l.id = o.Run.ID
	} else {
		l.id = newRunID(o.Now())
	}
	for _, t := range o.Sinks {
		l.sinks = append(l.sinks, newQueue(t, o))
	}
	return l
}

// claim notes that a decision is not written yet.
func (l *Log) claim(k key) claim { return l.o.Run.claim(k) }

// Add writes a record of what is not a request's. It never waits.
func (l *Log) Add(r Record) { l.add(item{rec: r, claim: l.claim(anonymous(l.unnamed.Add(1)))}) }

func (l *Log) add(it item) {
	l.mu.Lock()
	full := len(l.queue) >= maxQueue
	if !full {
		l.queue = append(l.queue, it)
	} else if it.done == nil {
		l.missed++
		l.miss(1)
	}
	l.mu.Unlock()
	if full {
		it.claim.settle()
		if it.done != nil {
			it.done(errFull)
		} else {
			l.o.Watch.Dropped(InQueue, 1)
		}
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// miss counts records that are in no line, where a gate that comes after this one finds it.
func (l *Log) miss(n uint64) {
	if l.o.Run != nil {
		l.o.Run.missing().Add(n)
	}
}

// Run writes until ctx ends, and then what there still is. What comes after is not written.
func (l *Log) Run(ctx context.Context) {
	var sinks sync.WaitGroup
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, q := range l.sinks {
		sinks.Go(func() { q.run(work) })
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-l.wake:
		case <-tick.C:
			l.tellUndelivered()
			l.sayHead(false)
		case <-ctx.Done():
		}
		l.writeAll()
	}
	// The sinks get what they take in a moment; what they do not is told in the file.
	l.writeAll()
	for _, q := range l.sinks {
		q.end()
	}
	sent := make(chan struct{})
	go func() { sinks.Wait(); close(sent) }()
	late := time.AfterFunc(lastTime, stop)
	select {
	case <-sent:
	case <-time.After(2 * lastTime): // one hangs in a write that nothing ends
	}
	late.Stop()
	l.tellUndelivered()
	l.writeAll()
	l.sayHead(true)
	l.close()
}

func (l *Log) close() {
	if l.o.File != nil {
		l.o.File.Close()
	}
	if r := l.o.Run; r != nil {
		if r.missing().Load() == 0 && len(r.claims()) == 0 {
			if err := r.finish(); err != nil {
				l.o.Log.Warn("the file of a run of the audit is left behind", "err", err)
			}
			return
		}
		r.close() // the next gate counts what is missing
	}
}

// writeAll writes what waits.
func (l *Log) writeAll() {
	for {
		l.mu.Lock()
		n := min(len(l.queue), maxBatch)
		batch := l.queue[:n:n]
		l.queue = l.queue[n:]
		missed := l.missed
		l.missed = 0
		if len(l.queue) == 0 {
			l.queue = nil
		}
		l.mu.Unlock()
		l.seq += missed
		l.told += missed
		if n == 0 && l.told == 0 {
			return
		}
		l.write(batch)
		if n == 0 || n < maxBatch {
			return
		}
	}
}

// lines are records as they are written.
type lines struct {
	raw     [][]byte
	records []Record
	seq     uint64 // of the last
}

// number makes lines of records, after the line that is there.
func (l *Log) number(batch []item, missing uint64, chain bool, last []byte) lines {
	out := lines{seq: l.seq}
	prev := ""
	if chain && last != nil {
		prev = hashOf(last)
	}
	add := func(r Record) {
		r.Prev = prev
		raw := marshal(r)
		if chain {
			r.Hash = hashOf(raw)
			raw = append(append(append(raw[:len(raw)-1], hashField...), r.Hash...), `"}`...)
			prev = r.Hash
		}
		out.raw, out.records = append(out.raw, raw), append(out.records, r)
	}
	if missing > 0 { // they have numbers already
		add(Record{Time: l.o.Now().UTC(), Kind: Gap, Dropped: missing, Run: l.id, Seq: out.seq})
	}
	for _, it := range batch {
		r := it.rec
		if r.Run == "" { // else it is of one that was killed
			out.seq++
			r.Run, r.Seq = l.id, out.seq
		}
		add(r)
	}
	return out
}

// marshal is a record as JSON.
func marshal(r Record) []byte {
	var b bytes.Buffer
	encode := json.NewEncoder(&b)
	encode.SetEscapeHTML(false)
	_ = encode.Encode(r) // strings, numbers and times of this century
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// write puts a batch into the file and hands it on.
func (l *Log) write(batch []item) {
	missing := l.told
	var out lines
	if l.o.File == nil {
		out = l.number(batch, missing, false, nil)
		l.wrote(batch, out, missing)
		return
	}
	err := l.o.File.Put(func(last []byte) []byte {
		out = l.number(batch, missing, l.o.Chain, last)
		return append(bytes.Join(out.raw, []byte("\n")), '\n')
	})
	l.say(err)
	if err == nil {
		l.wrote(batch, out, missing)
		return
	}
	// Whoever waits for a record takes care of it. The others are missing in the file, and go on to the sinks all the same.
	var others []item
	for _, it := range batch {
		if it.done == nil {
			others = append(others, it)
		}
	}
	n := uint64(len(others))
	l.miss(n)
	l.told += n
	if n > 0 {
		l.o.Watch.Dropped(InFile, n)
	}
	for _, it := range batch {
		it.claim.settle()
	}
	for _, it := range batch {
		if it.done != nil {
			it.done(err)
		}
	}
	out = l.number(others, 0, false, nil)
	l.seq = out.seq
	l.handOn(out)
}

// wrote is after a batch is in the file.
func (l *Log) wrote(batch []item, out lines, missing uint64) {
	l.seq = out.seq
	if r := l.o.Run; r != nil {
		r.seq().Store(l.seq) // before the claims, so that whoever comes after a kill knows which lines to look for
		r.missing().Add(-missing)
	}
	if missing > 0 {
		l.o.Log.Warn("records are missing in the audit: they came faster than they could be written, or the disk was full; requests were served all the same", "count", missing)
	}
	l.told -= missing
	for _, it := range batch {
		it.claim.settle()
		if it.done != nil {
			it.done(nil)
		}
		l.o.Watch.Written(it.rec)
	}
	if n := len(out.records); n > 0 {
		l.head = out.records[n-1].Hash
	}
	l.handOn(out)
}

func (l *Log) handOn(out lines) {
	for _, q := range l.sinks {
		q.offer(out)
	}
}

// say logs when writing begins to fail, and when it works again.
func (l *Log) say(err error) {
	if (err != nil) == l.trouble {
		return
	}
	l.trouble = err != nil
	if err != nil {
		l.o.Log.Error("the audit cannot be written; what is missing is counted", "err", err)
		return
	}
	l.o.Log.Info("the audit is written again")
}

// tellUndelivered writes what sinks did not get.
func (l *Log) tellUndelivered() {
	for _, q := range l.sinks {
		if n := q.undelivered(); n > 0 {
			l.Add(Record{Time: l.o.Now().UTC(), Kind: Gap, Sink: q.Name, Undelivered: n})
			l.o.Watch.Dropped(q.Name, n)
			l.o.Log.Warn("records were not delivered, which the audit's file has", "sink", q.Name, "count", n)
		}
	}
}

// sayHead logs the hash of the last line, to be compared with the file by whoever does not trust it.
func (l *Log) sayHead(now bool) {
	if l.head == "" || !now && l.o.Now().Sub(l.headAt) < headEvery {
		return
	}
	l.headAt = l.o.Now()
	l.o.Log.Info("the audit's last line", "head", l.head, "run", l.id, "seq", l.seq)
}

func await(written <-chan error, most time.Duration) error {
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case err := <-written:
		return err
	case <-late.C:
		return fmt.Errorf("the account was not written within %v", most)
	}
}
