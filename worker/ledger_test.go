package worker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// replicas are gates that share a store and a clock.
func replicas(t testing.TB, docs Documents, clock *time.Time, n int) []*Sessions {
	t.Helper()
	all := make([]*Sessions, n)
	for i := range all {
		s, err := OpenSessions(t.Context(), docs, LedgerOptions{Now: func() time.Time { return *clock }})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = s
	}
	return all
}

// turn has a ledger do what it does in a second, and read everything.
func turn(t testing.TB, all ...*Sessions) {
	t.Helper()
	for _, s := range all {
		if err := errors.Join(s.readRevoked(t.Context()), s.write(t.Context())); err != nil {
			t.Fatal(err)
		}
		for i := range shardCount {
			if err := s.read(t.Context(), i); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func enrolled(t testing.TB, at *Sessions, worker string, when time.Time) Session {
	t.Helper()
	s, _, err := at.Issue(worker, "default", time.Hour, at.Moment(worker, when))
	if err != nil {
		t.Fatal(err)
	}
	at.Issued(s, "", "192.0.2.1")
	return s
}

// The documents of a store as both have them. Whatever a replica does, another does not need its memory.
func testLedger(t *testing.T, docs Documents) {
	clock := now
	all := replicas(t, docs, &clock, 2)
	a, b := all[0], all[1]
	one, two, laptop := enrolled(t, a, "ci", now), enrolled(t, a, "ci", now), enrolled(t, b, "laptop", now)
	check := func(what string, s Session, want error) {
		t.Helper()
		for i, r := range all {
			if err := r.Check(s, clock); !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%s, replica %d: %v, want %v", what, i, err, want)
			}
		}
	}
	check("before anything is written", one, nil)
	turn(t, a, b, a)

	listed := func() (ids []string) {
		t.Helper()
		defer func() {
			if n := a.Count(clock); n != len(ids) {
				t.Errorf("counted: %d, listed: %v", n, ids)
			}
		}()
		live, err := ListSessions(t.Context(), docs, clock)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range live {
			ids = append(ids, s.ID)
			if s.Source != "192.0.2.1" || s.Profile != "default" || !s.Issued.Equal(now) {
				t.Errorf("listed as %+v", s)
			}
		}
		return ids
	}
	if got := listed(); len(got) != 3 {
		t.Errorf("listed: %v", got)
	}

	a.Renew(one, now.Add(90*time.Minute))
	b.End(laptop)
	turn(t, a, b, a)
	check("ended by its worker", laptop, ErrExpired)
	if got := listed(); len(got) != 2 || got[1] != one.ID { // the one that ends last
		t.Errorf("listed: %v", got)
	}
	clock = now.Add(time.Hour)
	check("renewed", one, nil)
	check("not renewed", two, ErrExpired)
	if got := b.Ends(one); !got.Equal(now.Add(90 * time.Minute)) {
		t.Errorf("ends %v", got)
	}
	b.Renew(one, now.Add(time.Hour)) // of a gate that knew of no other
	turn(t, b, a)
	check("renewed for less", one, nil)

	if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{one.ID}}, clock); err != nil {
		t.Fatal(err)
	}
	turn(t, a, b)
	check("revoked", one, ErrRevoked)
	if got := listed(); len(got) != 0 {
		t.Errorf("listed: %v", got)
	}
	three, four := enrolled(t, a, "ci", clock), enrolled(t, b, "laptop", clock)
	if err := Revoke(t.Context(), docs, Revocation{Workers: []string{"ci"}, NotBefore: clock.Add(time.Second)}, clock); err != nil {
		t.Fatal(err)
	}
	turn(t, a, b)
	check("of a revoked worker", three, ErrRevoked)
	check("of another", four, nil)
	five := enrolled(t, a, "ci", clock) // our clock is behind the operator's
	check("issued after the revocation", five, nil)
	clock = clock.Add(2 * time.Second)
	if err := Revoke(t.Context(), docs, Revocation{All: true, NotBefore: clock}, clock); err != nil {
		t.Fatal(err)
	}
	turn(t, a, b)
	check("of whatever worker", four, ErrRevoked)
	check("of whatever worker", five, ErrRevoked)
	check("of whatever worker", enrolled(t, b, "laptop", clock), nil)

	// A replica that starts now knows it all.
	all = append(all, replicas(t, docs, &clock, 1)...)
	check("revoked", one, ErrRevoked)
	check("revoked", four, ErrRevoked)
}

func TestLedger(t *testing.T) {
	testLedger(t, vaulttest.NewMemory())
}

func TestLedgerOverOpenBao(t *testing.T) {
	t.Parallel()
	s := vaulttest.StartDev(t, vaulttest.Binary(t))
	// The operator has no right to write down sessions, and the viewer none to revoke. Gates revoke for who uses their console.
	testLedger(t, split{s.Gateway, s.Operator})
	if _, err := s.Viewer.Put(t.Context(), revokedPath, struct{}{}, 99); !errors.Is(err, vault.ErrDenied) {
		t.Errorf("a viewer may revoke: %v", err)
	}

	// Many sessions, and many that were revoked, fit in what a server takes.
	clock := now
	a := replicas(t, split{s.Gateway, s.Operator}, &clock, 1)[0]
	clock = clock.Add(2 * time.Hour) // after what the suite has revoked
	var revoked []string
	for i := range 20_000 {
		session, _, err := a.Issue("ci", "default", time.Hour, clock)
		if err != nil {
			t.Fatal(err)
		}
		a.Issued(session, "repo:acme/app:ref:refs/heads/main", "192.0.2.1")
		if i%4 == 0 {
			revoked = append(revoked, session.ID)
		}
	}
	turn(t, a)
	if err := Revoke(t.Context(), s.Operator, Revocation{Sessions: revoked}, clock); err != nil {
		t.Fatal(err)
	}
	turn(t, a)
	if live, err := ListSessions(t.Context(), s.Viewer, clock); err != nil || len(live) < 15_000 || len(live) > 15_010 {
		t.Errorf("%d sessions, %v", len(live), err)
	}
}

// split is a store in which operators write what is theirs.
type split struct{ gateway, operator Documents }

func (s split) Get(ctx context.Context, path string, into any) (int, error) {
	return s.gateway.Get(ctx, path, into)
}

func (s split) Put(ctx context.Context, path string, doc any, cas int) (int, error) {
	if path == revokedPath {
		return s.operator.Put(ctx, path, doc, cas)
	}
	return s.gateway.Put(ctx, path, doc, cas)
}

// A revocation is known everywhere within five seconds: at worst one interval passes before it is read, and the reading takes as
// long as a call to Vault may.
func TestRevocationIsInTime(t *testing.T) {
	const call = 2 * time.Second // vault.Client's bound for one
	if revokedEvery+call > 5*time.Second {
		t.Errorf("a revocation may take %v", revokedEvery+call)
	}
}

// Run does it all by itself, in time.
func TestLedgerRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docs := vaulttest.NewMemory()
		clock := now
		all := replicas(t, docs, &clock, 2)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, r := range all {
			wg.Go(func() { r.Run(ctx) })
		}
		s, other := enrolled(t, all[0], "ci", now), enrolled(t, all[0], "ci", now)
		if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{s.ID}}, now); err != nil {
			t.Fatal(err)
		}
		time.Sleep(revokedEvery)
		synctest.Wait()
		for i, r := range all {
			if err := r.Check(s, now); !errors.Is(err, ErrRevoked) {
				t.Errorf("replica %d: %v", i, err)
			}
		}
		time.Sleep(liveEvery * (shardCount/shardsAtOnce + 1))
		synctest.Wait()
		if _, ok := all[1].Lookup(other.ID); !ok {
			t.Error("a session of another gate is not known")
		}
		last := enrolled(t, all[1], "ci", now)
		cancel()
		wg.Wait()
		live, err := ListSessions(t.Context(), docs, now)
		if err != nil || len(live) != 2 || !slices.ContainsFunc(live, func(l Live) bool { return l.ID == last.ID }) {
			t.Errorf("what was issued last is not written down at the end: %v, %v", live, err)
		}
	})
}

// While Vault is away sessions are issued, renewed and go on; it learns of them afterwards.
func TestLedgerWithoutVault(t *testing.T) {
	clock := now
	docs := vaulttest.NewMemory()
	a := replicas(t, docs, &clock, 1)[0]
	old := enrolled(t, a, "ci", now)
	turn(t, a)
	docs.Inject(func(string, string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
	fresh := enrolled(t, a, "ci", now)
	a.Renew(old, now.Add(2*time.Hour))
	calls := 0
	docs.Inject(func(string, string) vaulttest.Fault { calls++; return vaulttest.Fault{Before: vault.ErrUnavailable} })
	for range 3 {
		if err := errors.Join(a.readRevoked(t.Context()), a.keepLive(t.Context())); !errors.Is(err, vault.ErrUnavailable) {
			t.Fatalf("err = %v", err)
		}
	}
	if calls != 6 {
		t.Errorf("a store that is away was called %d times in 3 turns", calls)
	}
	clock = now.Add(30 * time.Minute)
	for _, s := range []Session{old, fresh} {
		if err := a.Check(s, clock); err != nil {
			t.Error(err)
		}
	}
	docs.Inject(nil)
	turn(t, a)
	b := replicas(t, docs, &clock, 1)[0]
	if got := b.Ends(old); !got.Equal(now.Add(2 * time.Hour)) {
		t.Errorf("the renewal arrived as %v", got)
	}
	if _, ok := b.Lookup(fresh.ID); !ok {
		t.Error("the session issued meanwhile is not known")
	}
}

// What cannot be read in one shard keeps nothing from being written in the others.
func TestLedgerWithADamagedShard(t *testing.T) {
	clock := now
	docs := vaulttest.NewMemory()
	a := replicas(t, docs, &clock, 1)[0]
	docs.Inject(func(_, path string) vaulttest.Fault {
		if path == shardPath(0) {
			return vaulttest.Fault{Before: errors.New("damaged")}
		}
		return vaulttest.Fault{}
	})
	for range 200 {
		enrolled(t, a, "ci", now)
	}
	if err := a.write(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("err = %v", err)
	}
	docs.Inject(nil)
	live, err := ListSessions(t.Context(), docs, now)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(a.shards[0].unwritten); len(live)+n != 200 || n == 0 {
		t.Errorf("%d written, %d not", len(live), n)
	}
}

// Many gates that write at once lose nothing.
func TestLedgerTogether(t *testing.T) {
	clock := now
	docs := vaulttest.NewMemory()
	all := replicas(t, docs, &clock, 4)
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() {
			for range 100 {
				s, _, err := r.Issue("ci", "default", time.Hour, now)
				if err != nil {
					t.Error(err)
				}
				r.Issued(s, "", "")
				if err := r.write(context.Background()); err != nil && !errors.Is(err, vault.ErrConflict) {
					t.Error(err)
				}
				if err := r.Check(s, now); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	turn(t, all...)
	if live, err := ListSessions(t.Context(), docs, now); err != nil || len(live) != 400 {
		t.Errorf("%d sessions, %v", len(live), err)
	}
}

// What is over is forgotten, here and in the store, and what the store lost is written again.
func TestLedgerForgets(t *testing.T) {
	clock := now
	docs := vaulttest.NewMemory()
	a := replicas(t, docs, &clock, 1)[0]
	s := enrolled(t, a, "ci", now)
	i := fiveBits(s.ID[len(s.ID)-1])
	turn(t, a)
	if err := docs.Delete(t.Context(), shardPath(i)); err != nil {
		t.Fatal(err)
	}
	turn(t, a, a)
	if live, err := ListSessions(t.Context(), docs, clock); err != nil || len(live) != 1 {
		t.Errorf("a lost document is not written again: %v, %v", live, err)
	}
	if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{s.ID}, Workers: []string{"ci"}, All: true, NotBefore: clock}, clock); err != nil {
		t.Fatal(err)
	}
	turn(t, a, a)
	if doc, _, err := readShard(t.Context(), docs, i); err != nil || len(doc) != 0 {
		t.Errorf("a revoked session is still written down: %v, %v", doc, err)
	}
	other := enrolled(t, a, "other", clock.Add(time.Second))
	turn(t, a)
	clock = other.Expires.Add(skew + time.Second)
	turn(t, a)
	for i := range shardCount {
		if n := len(a.shards[i].live); n != 0 {
			t.Errorf("%d sessions are remembered", n)
		}
	}
	clock = now.Add(LongestSession + time.Second)
	if err := Revoke(t.Context(), docs, Revocation{}, clock); err != nil {
		t.Fatal(err)
	}
	if r, _, err := readRevocations(t.Context(), docs); err != nil || len(r.Sessions)+len(r.Workers) != 0 || !r.All.IsZero() {
		t.Errorf("revocations of sessions that are long over: %+v, %v", r, err)
	}
}

// A store that is set back to a backup has none of the revocations since. A gate that knows of them keeps to them.
func TestRevokedBeforeRestore(t *testing.T) {
	docs, clock := vaulttest.NewMemory(), now
	a := replicas(t, docs, &clock, 1)[0]
	one, other := enrolled(t, a, "ci", now), enrolled(t, a, "agent", now)
	if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{one.ID}, Workers: []string{"agent"}, NotBefore: now.Add(time.Minute)}, now); err != nil {
		t.Fatal(err)
	}
	turn(t, a)
	if err := docs.Delete(t.Context(), revokedPath); err != nil {
		t.Fatal(err)
	}
	turn(t, a)
	for _, s := range []Session{one, other} {
		if !a.revoked.Load().covers(s.ID, s.Worker) {
			t.Errorf("the session of %s is good again", s.Worker)
		}
	}
}

// An operator's revocation is never lost to another's.
func TestRevokeTogether(t *testing.T) {
	docs := vaulttest.NewMemory()
	var wg sync.WaitGroup
	k := newKeyring(t)
	for range 8 {
		s, _ := issue(t, k, "ci", "default")
		wg.Go(func() {
			if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{s.ID}}, now); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if r, _, err := readRevocations(t.Context(), docs); err != nil || len(r.Sessions) != 8 {
		t.Errorf("%d revocations, %v", len(r.Sessions), err)
	}
	docs.Inject(func(op, _ string) vaulttest.Fault { return vaulttest.Fault{Before: vault.ErrUnavailable} })
	if err := Revoke(t.Context(), docs, Revocation{All: true, NotBefore: now}, now); !errors.Is(err, vault.ErrUnavailable) {
		t.Errorf("err = %v", err)
	}
}

// What is known here of sessions, by their workers, is what the store lists; and whoever looks whether it has changed is told when it has,
// and not otherwise.
func TestSessionsOfWorkers(t *testing.T) {
	clock := now
	docs := vaulttest.NewMemory()
	all := replicas(t, docs, &clock, 2)
	a, b := all[0], all[1]
	changes := func(what string, at *Sessions, want bool, do func()) {
		t.Helper()
		before := at.Changes()
		do()
		if got := at.Changes() != before; got != want {
			t.Errorf("%s: it changed: %v", what, got)
		}
	}
	var last Session
	changes("a session here", a, true, func() {
		for range 3 {
			last = enrolled(t, a, "ci", clock)
		}
		enrolled(t, a, "nightly", clock)
	})
	changes("sessions elsewhere", b, true, func() { turn(t, a, b) })
	changes("nothing", b, false, func() { turn(t, a, b) })
	check := func(what string, ci int) {
		t.Helper()
		turn(t, a, b)
		listed, err := ListSessions(t.Context(), docs, clock)
		if err != nil {
			t.Fatal(err)
		}
		listed = slices.DeleteFunc(listed, func(l Live) bool { return l.Worker != "ci" })
		of := b.Of(clock, "ci", "nobody")
		if counts := b.Counts(clock); counts["ci"] != ci || len(listed) != ci || counts["nightly"] != 1 || len(of) != 2 || len(of["nobody"]) != 0 {
			t.Errorf("%s: %v, %v", what, counts, of)
		}
		if !slices.EqualFunc(of["ci"], listed, func(x, y Live) bool { return x.ID == y.ID && same(x.Record, y.Record) }) {
			t.Errorf("%s: known are %v, and listed %v", what, of["ci"], listed)
		}
	}
	check("as they began", 3)
	changes("a renewal elsewhere", b, true, func() { a.Renew(last, clock.Add(2*time.Hour)); turn(t, a, b) })
	check("renewed", 3)
	if err := Revoke(t.Context(), docs, Revocation{Sessions: []string{last.ID}}, clock); err != nil {
		t.Fatal(err)
	}
	changes("a revocation", b, true, func() {
		if err := b.Reread(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if got := b.Counts(clock)["ci"]; got != 2 {
		t.Errorf("%d are left at once", got)
	}
	check("revoked", 2)
}
