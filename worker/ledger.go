package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wayleave/vault"
)

// How often a gate reads what others wrote, and writes what others should read. A revocation is known everywhere within one
// interval and one call to Vault, which is less than the five seconds we promise.
const (
	revokedEvery = 2 * time.Second
	liveEvery    = time.Second // writes what changed, and reads shardsAtOnce of the shards
	shardsAtOnce = 2
)

const (
	livePrefix    = "sessions/live/"
	shardCount    = 32 // one for each character that an id can end with
	shardTries    = 5  // against other gates
	conflictPause = 10 * time.Millisecond
	// skew is more than the clocks of gates and operators differ. A session stays written down for as long after its end: one gate
	// would write down again what another takes away.
	skew = time.Minute
)

// Record is what the ledger has of a session.
type Record struct {
	Worker  string    `json:"worker"`
	Profile string    `json:"profile"`
	Subject string    `json:"subject,omitempty"` // who the worker proved to be, where it proved more than a token
	Source  string    `json:"source,omitempty"`  // the address it came from
	Issued  time.Time `json:"issued"`
	Ends    time.Time `json:"ends"`            // with every renewal
	Ended   bool      `json:"ended,omitempty"` // by the worker itself
}

// and is the record of which two replicas wrote different states.
func (r Record) and(o Record) Record {
	if o.Worker == "" {
		o, r = r, o
	}
	o.Ends, o.Ended = later(r.Ends, o.Ends), r.Ended || o.Ended
	return o
}

// Ledger knows which sessions live, which were renewed, and which were ended before their time, by any of the gates that share
// a Vault. A session needs no entry to be good: its token proves it, so that sessions are issued, and go on, while Vault is
// away. What a gate could not write it writes later. It is safe for concurrent use.
//
//	sessions/revoked   what operators ended; every gate reads it every two seconds
//	sessions/live/X    the live sessions whose id ends with X: written in batches, read in turns
type Ledger struct {
	docs    Documents
	now     func() time.Time
	log     *slog.Logger
	revoked atomic.Pointer[revocations]
	joining sync.Mutex // held by whoever replaces revoked
	shards  [shardCount]shard
	changes atomic.Uint64 // of what is known here

	next    int            // the shard to be read next; belongs to keepLive
	trouble [3]atomic.Bool // whether reading the revocations, keeping the live sessions, and reading the keys failed the last time
}

// shard is a part of the live sessions, as known here.
type shard struct {
	mu        sync.RWMutex
	live      map[string]Record // guarded by mu
	unwritten map[string]bool   // guarded by mu; ids whose record is not in the document yet
	purge     bool              // guarded by mu; the document has sessions that were revoked
}

// LedgerOptions are optional.
type LedgerOptions struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: none
}

// OpenLedger reads the ledger.
func OpenLedger(ctx context.Context, docs Documents, o LedgerOptions) (*Ledger, error) {
	l := &Ledger{docs: docs, now: o.Now, log: o.Log}
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	err := l.readRevoked(ctx)
	for i := range l.shards {
		l.shards[i].live, l.shards[i].unwritten = map[string]Record{}, map[string]bool{}
		if err == nil {
			err = l.read(ctx, i)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the ledger of sessions: %w", err)
	}
	return l, nil
}

// Run keeps the ledger up to date until ctx ends, and then writes what is still unwritten, for as long as that takes a Vault
// that answers.
func (l *Ledger) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		repeat(ctx, revokedEvery, func() { l.say(ctx, 0, "revocations of sessions", l.readRevoked(ctx)) })
	})
	wg.Go(func() {
		repeat(ctx, liveEvery, func() { l.say(ctx, 1, "live sessions", l.keepLive(ctx)) })
	})
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := l.write(last); err != nil {
		l.log.Warn("not every session is written down; those go on, and are not listed", "err", err)
	}
}

func repeat(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// say logs when something begins to fail, and when it works again.
func (l *Ledger) say(ctx context.Context, which int, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	if was := l.trouble[which].Swap(err != nil); was == (err != nil) {
		return
	}
	if err != nil {
		l.log.Warn("what gates share of sessions cannot be read or written; what is known of it stands", "what", what, "err", err)
		return
	}
	l.log.Info("what gates share of sessions is read and written again", "what", what)
}

// Check says whether a session may be served: the error is ErrExpired or ErrRevoked.
func (l *Ledger) Check(s Session, now time.Time) error {
	if l.revoked.Load().covers(s.ID, s.Worker) {
		return ErrRevoked
	}
	r, _ := l.Lookup(s.ID)
	if r.Ended || !now.Before(later(s.Expires, r.Ends)) {
		return ErrExpired
	}
	return nil
}

// Ends is when a session ends, with every renewal that is known here.
func (l *Ledger) Ends(s Session) time.Time {
	r, _ := l.Lookup(s.ID)
	return later(s.Expires, r.Ends)
}

// Lookup returns what is known here of the session called id; another gate's is known within twenty seconds.
func (l *Ledger) Lookup(id string) (Record, bool) {
	sh := l.shard(id)
	if sh == nil {
		return Record{}, false
	}
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	r, ok := sh.live[id]
	return r, ok
}

// Count is how many sessions are under way, as known here.
func (l *Ledger) Count(now time.Time) (n int) {
	l.each(now, func(string, Record) { n++ })
	return n
}

// Changes grows whenever what is known here of sessions is not as it was, but for those that end because their time has come.
func (l *Ledger) Changes() uint64 { return l.changes.Load() }

// Counts are how many sessions each worker has, as known here; another gate's are within twenty seconds.
func (l *Ledger) Counts(now time.Time) map[string]int {
	counts := map[string]int{}
	l.each(now, func(_ string, r Record) { counts[r.Worker]++ })
	return counts
}

// Of are the sessions of some workers, likewise, those that end first in front.
func (l *Ledger) Of(now time.Time, workers ...string) map[string][]Live {
	of := map[string][]Live{}
	for _, name := range workers {
		of[name] = nil
	}
	l.each(now, func(id string, r Record) {
		if list, asked := of[r.Worker]; asked {
			of[r.Worker] = append(list, Live{id, r})
		}
	})
	for _, list := range of {
		slices.SortFunc(list, Live.compare)
	}
	return of
}

// each calls f with every session under way.
func (l *Ledger) each(now time.Time, f func(id string, r Record)) {
	over := l.revoked.Load()
	for i := range l.shards {
		l.shards[i].each(now, over, f)
	}
}

func (sh *shard) each(now time.Time, over *revocations, f func(id string, r Record)) {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	for id, r := range sh.live {
		if !r.Ended && now.Before(r.Ends) && !over.covers(id, r.Worker) {
			f(id, r)
		}
	}
}

// Moment is when a session of the worker is to be issued: now, or the moment before which its sessions were ended, if the clock
// of whoever ended them is a little ahead of ours: its next sessions must not end with the earlier ones.
func (l *Ledger) Moment(worker string, now time.Time) time.Time {
	if moment := time.Unix(l.revoked.Load().notBefore(worker), 0); moment.After(now) && moment.Sub(now) <= skew {
		return moment
	}
	return now
}

// Issued writes a new session down.
func (l *Ledger) Issued(s Session, subject, source string) {
	l.put(s, Record{Worker: s.Worker, Profile: s.Profile, Subject: subject, Source: source, Issued: s.Issued(), Ends: s.Expires})
}

// Renew makes a session last until ends, if that is later than before.
func (l *Ledger) Renew(s Session, ends time.Time) {
	l.put(s, Record{Worker: s.Worker, Profile: s.Profile, Issued: s.Issued(), Ends: ends.UTC().Truncate(time.Second)})
}

// End ends a session, as its worker wants. Other gates know of it within twenty seconds.
func (l *Ledger) End(s Session) {
	l.put(s, Record{Worker: s.Worker, Profile: s.Profile, Issued: s.Issued(), Ends: s.Expires, Ended: true})
}

func (l *Ledger) put(s Session, r Record) {
	sh := l.shard(s.ID)
	if sh == nil {
		return
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if old, ok := sh.live[s.ID]; ok {
		r = r.and(old) // old has the subject and the source
	}
	sh.live[s.ID] = r
	sh.unwritten[s.ID] = true
	l.changes.Add(1)
}

// shard is the one that has the session called id, nil if it is no id.
func (l *Ledger) shard(id string) *shard {
	if !validSessionID(id) {
		return nil
	}
	return &l.shards[fiveBits(id[len(id)-1])]
}

func shardPath(i int) string { return livePrefix + "abcdefghijklmnopqrstuvwxyz234567"[i:i+1] }

// readRevoked learns what operators ended.
func (l *Ledger) readRevoked(ctx context.Context) error {
	r, _, err := readRevocations(ctx, l.docs)
	if err != nil {
		return err
	}
	l.joining.Lock()
	defer l.joining.Unlock()
	was := l.revoked.Load()
	r.join(was)
	r.prune(l.now())
	l.revoked.Store(r)
	if was != nil && !reflect.DeepEqual(was, r) {
		l.changes.Add(1)
	}
	return nil
}

// Reread learns at once what operators ended: somebody has just ended sessions here.
func (l *Ledger) Reread(ctx context.Context) error { return l.readRevoked(ctx) }

// keepLive writes what changed here, and reads some of what others wrote.
func (l *Ledger) keepLive(ctx context.Context) error {
	err := l.write(ctx)
	for range shardsAtOnce {
		if errors.Is(err, vault.ErrUnavailable) {
			break
		}
		err = errors.Join(err, l.read(ctx, l.next))
		l.next = (l.next + 1) % shardCount
	}
	return err
}

// write writes each shard that has changed. One that cannot be written keeps no other from being so, unless Vault is away.
func (l *Ledger) write(ctx context.Context) error {
	var failed error
	for i := range l.shards {
		if err := l.writeShard(ctx, i); err != nil {
			failed = errors.Join(failed, err)
		}
		if errors.Is(failed, vault.ErrUnavailable) {
			break
		}
	}
	return failed
}

// read takes over what the document of a shard says.
func (l *Ledger) read(ctx context.Context, i int) error {
	doc, _, err := readShard(ctx, l.docs, i)
	if err == nil {
		l.take(i, doc, nil)
	}
	return err
}

// writeShard writes what is unwritten of a shard, and takes away what is over.
func (l *Ledger) writeShard(ctx context.Context, i int) error {
	sh := &l.shards[i]
	for try := 1; ; try++ {
		ours := map[string]Record{}
		sh.mu.RLock()
		for id := range sh.unwritten {
			ours[id] = sh.live[id]
		}
		due := len(ours) > 0 || sh.purge
		sh.mu.RUnlock()
		if !due {
			return nil
		}
		doc, version, err := readShard(ctx, l.docs, i)
		if err != nil {
			return err
		}
		was := maps.Clone(doc)
		for id, r := range ours {
			doc[id] = r.and(doc[id])
		}
		now, revoked := l.now(), l.revoked.Load()
		maps.DeleteFunc(doc, func(id string, r Record) bool {
			return now.Sub(r.Ends) > skew || revoked.covers(id, r.Worker)
		})
		if !maps.EqualFunc(was, doc, same) {
			_, err = l.docs.Put(ctx, shardPath(i), vault.Packed{Value: doc}, version)
		}
		switch {
		case err == nil:
			l.take(i, doc, ours)
			return nil
		case !errors.Is(err, vault.ErrConflict) || try == shardTries:
			return err
		}
		select {
		case <-time.After(mathrand.N(time.Duration(try) * conflictPause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take makes what is known of a shard what its document says, and what is not written yet. Written is what has just been.
func (l *Ledger) take(i int, doc, written map[string]Record) {
	sh, now, revoked := &l.shards[i], l.now(), l.revoked.Load()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for id, r := range written {
		if same(sh.live[id], r) { // and has not changed since
			delete(sh.unwritten, id)
		}
	}
	sh.purge = false
	for id, r := range doc {
		was := sh.live[id]
		if r = r.and(was); !same(was, r) {
			sh.live[id] = r
			l.changes.Add(1)
		}
		sh.purge = sh.purge || revoked.covers(id, r.Worker)
	}
	for id, r := range sh.live {
		switch _, there := doc[id]; {
		case !now.Before(r.Ends) || revoked.covers(id, r.Worker):
			delete(sh.live, id)
			delete(sh.unwritten, id)
		case !there: // a document that was lost, or restored
			sh.unwritten[id] = true
		}
	}
}

func same(a, b Record) bool {
	return a.Worker == b.Worker && a.Profile == b.Profile && a.Subject == b.Subject && a.Source == b.Source && a.Ended == b.Ended &&
		a.Issued.Equal(b.Issued) && a.Ends.Equal(b.Ends)
}

// readShard returns an empty document when there is none.
func readShard(ctx context.Context, docs Documents, i int) (map[string]Record, int, error) {
	doc := map[string]Record{}
	version, err := docs.Get(ctx, shardPath(i), &vault.Packed{Value: &doc})
	if errors.Is(err, vault.ErrNotFound) {
		doc, err = map[string]Record{}, nil
	}
	return doc, version, err
}

// Live is a session in a list.
type Live struct {
	ID string `json:"id"`
	Record
}

// ListSessions returns the live sessions that gates have written down, those that end first in front.
func ListSessions(ctx context.Context, docs Documents, now time.Time) ([]Live, error) {
	revoked, _, err := readRevocations(ctx, docs)
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	all := []Live{}
	for i := range shardCount {
		doc, _, err := readShard(ctx, docs, i)
		if err != nil {
			return nil, fmt.Errorf("listing sessions: %w", err)
		}
		for id, r := range doc {
			if now.Before(r.Ends) && !r.Ended && validSessionID(id) && !revoked.covers(id, r.Worker) {
				all = append(all, Live{id, r})
			}
		}
	}
	slices.SortFunc(all, Live.compare)
	return all, nil
}

func (a Live) compare(b Live) int { return cmp.Or(a.Ends.Compare(b.Ends), cmp.Compare(a.ID, b.ID)) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
