package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/journal"
)

// memory is a file of lines that is none.
type memory struct {
	mu    sync.Mutex
	lines []string
	fail  error
	stuck chan struct{} // Put waits for it
}

func (m *memory) Put(write func([]byte) []byte) error {
	if m.stuck != nil {
		<-m.stuck
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	var last []byte
	if n := len(m.lines); n > 0 {
		last = []byte(m.lines[n-1])
	}
	m.lines = append(m.lines, strings.Split(strings.TrimSuffix(string(write(last)), "\n"), "\n")...)
	return nil
}

func (m *memory) Close() {}

func (m *memory) set(err error) { m.mu.Lock(); defer m.mu.Unlock(); m.fail = err }

func (m *memory) records(t *testing.T) (all []Record) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		r, ok := parseLine([]byte(l))
		if !ok {
			t.Fatalf("no record: %s", l)
		}
		all = append(all, r)
	}
	return all
}

// said is what matters of records in few words.
func said(all []Record) string {
	var words []string
	for _, r := range all {
		w := r.Request
		switch {
		case r.Kind == Gap:
			w = fmt.Sprintf("gap%d", r.Dropped+r.Undelivered)
		case r.Open:
			w += "?"
		default:
			w += fmt.Sprintf("=%s/%d", r.Outcome, r.Status)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

type fixture struct {
	*Ledger
	log  *Log
	file *memory
	stop func()
}

// begin is a ledger that runs until stop.
func begin(t *testing.T, refuse string, o LogOptions) fixture {
	t.Helper()
	file := &memory{}
	if o.File == nil {
		o.File = file
	}
	o.Now, o.Log = time.Now, slog.New(slog.DiscardHandler)
	log := NewLog(o)
	l := NewLedger(log, refuse, time.Now)
	ledger, endLedger := context.WithCancel(t.Context())
	writing, endLog := context.WithCancel(t.Context())
	var a, b sync.WaitGroup
	a.Go(func() { l.Run(ledger) })
	b.Go(func() { log.Run(writing) })
	return fixture{l, log, file, func() { endLedger(); a.Wait(); endLog(); b.Wait() }}
}

func decided(id string, o Outcome) Record {
	return Record{Time: time.Now(), Kind: Request, Outcome: o, Worker: "w", Request: id, Token: "1"}
}

func ended(id string, status int) Record {
	r := Record{Time: time.Now(), Kind: Request, Outcome: Swapped, Worker: "w", Request: id, Token: "1", Status: status}
	if status != 200 {
		r.Outcome, r.Token = Refused, ""
	}
	return r
}

func TestLedger(t *testing.T) {
	type l = fixture
	for name, c := range map[string]struct {
		do   func(*testing.T, l)
		want string
	}{
		"joined":          {func(_ *testing.T, l l) { _ = l.Decided(decided("a", Swapped)); l.Ended(ended("a", 200)) }, "a=swapped/200"},
		"refused, joined": {func(_ *testing.T, l l) { _ = l.Decided(decided("a", Refused)); l.Ended(ended("a", 403)) }, "a=refused/403"},
		"open for long, and ended": {func(_ *testing.T, l l) {
			_ = l.Decided(decided("a", Swapped))
			time.Sleep(Hold + time.Second)
			l.Ended(ended("a", 200))
		}, "a? a=swapped/200"},
		"open is said once": {func(_ *testing.T, l l) { _ = l.Decided(decided("a", Swapped)); time.Sleep(10 * Hold) }, "a?"},
		"open at the end":   {func(_ *testing.T, l l) { _ = l.Decided(decided("a", Swapped)) }, "a?"},
		"ended twice": {func(_ *testing.T, l l) {
			_ = l.Decided(decided("a", Swapped))
			l.Ended(ended("a", 200))
			l.Ended(ended("a", 200))
		}, "a=swapped/200"},
		"not known":       {func(_ *testing.T, l l) { l.Ended(ended("a", 200)) }, "a=swapped/200"},
		"not known twice": {func(_ *testing.T, l l) { l.Ended(ended("a", 200)); l.Ended(ended("a", 200)) }, "a=swapped/200"},
		"decided twice": {func(_ *testing.T, l l) {
			_ = l.Decided(decided("a", Swapped))
			_ = l.Decided(decided("a", Refused))
			l.Ended(ended("a", 403))
		}, "a=refused/403"},
		"decided again while open": {func(_ *testing.T, l l) {
			_ = l.Decided(decided("a", Swapped))
			time.Sleep(2 * Hold)
			_ = l.Decided(decided("a", Refused))
			time.Sleep(2 * Hold)
			l.Ended(ended("a", 403))
		}, "a? a=refused/403"},
		"the same id again": {func(_ *testing.T, l l) {
			for range 2 {
				_ = l.Decided(decided("a", Swapped))
				l.Ended(ended("a", 200))
			}
		}, "a=swapped/200 a=swapped/200"},
		"without an id": {func(_ *testing.T, l l) { _ = l.Decided(decided("", Refused)); _ = l.Decided(decided("", Refused)) }, "=refused/0 =refused/0"},
		"refused at a later attempt": {func(_ *testing.T, l l) {
			_ = l.Decided(decided("a", Swapped))
			end := ended("a", 403)
			end.Reason = "host_not_allowed"
			l.Ended(end)
		}, "a=refused/403"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := begin(t, "", LogOptions{})
				c.do(t, l)
				l.stop()
				all := l.file.records(t)
				if got := said(all); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
				for i, r := range all {
					if r.Seq != uint64(i)+1 || r.Run != l.log.id {
						t.Errorf("line %d is number %d of %s", i, r.Seq, r.Run)
					}
				}
			})
		})
	}
}

// What the end tells of a token is that of the last attempt.
func TestJoined(t *testing.T) {
	d := Record{Outcome: Swapped, Token: "1", Fingerprint: "f1", Rule: "r", Trace: "t"}
	got := joined(d, Record{Outcome: Swapped, Token: "2", Fingerprint: "f2", Status: 200, Received: 3, Sent: 4, Attempts: 2})
	if got.Token != "2" || got.Fingerprint != "f2" || got.Rule != "r" || got.Trace != "t" || got.Received != 3 || got.Sent != 4 || got.Attempts != 2 {
		t.Errorf("%+v", got)
	}
	if got := joined(d, Record{Outcome: Swapped, Token: "1", Status: 200}); got.Fingerprint != "f1" {
		t.Errorf("%+v", got)
	}
}

// However many there are whose end nobody tells, so many are remembered, and all are written.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := begin(t, "", LogOptions{})
		for i := range maxPending + 5000 {
			_ = l.Decided(decided(fmt.Sprint(i), Swapped))
			if i%1000 == 0 {
				synctest.Wait()
			}
		}
		if n := len(l.pending); n != maxPending {
			t.Errorf("%d are remembered", n)
		}
		l.Ended(ended("3", 200))     // forgotten
		l.Ended(ended("90000", 200)) // remembered
		synctest.Wait()
		if all := l.file.records(t); len(all) != 5002 || said(all[5000:]) != "3=swapped/200 90000=swapped/200" {
			t.Errorf("%d, %s", len(all), said(all[5000:]))
		}
	})
}

// What the file does not take is counted in it, and in the metric; the sinks get it all the same.
func TestFileFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, dropped := &inbox{}, map[string]uint64{}
		l := begin(t, "", LogOptions{Sinks: []Target{{Name: "stdout", Sink: sink}}, Watch: Watch{Dropped: func(s string, n uint64) { dropped[s] += n }}})
		l.file.set(errors.New("full"))
		for _, id := range []string{"a", "b"} {
			_ = l.Decided(decided(id, Swapped))
			l.Ended(ended(id, 200))
		}
		time.Sleep(2 * time.Second)
		l.file.set(nil)
		_ = l.Decided(decided("c", Swapped))
		l.Ended(ended("c", 200))
		l.stop()
		all := l.file.records(t)
		if said(all) != "gap2 c=swapped/200" || all[0].Seq != 2 || all[1].Seq != 3 || dropped[InFile] != 2 {
			t.Errorf("%s, %v: %+v", said(all), dropped, all)
		}
		if got := said(sink.got); got != "a=swapped/200 b=swapped/200 gap2 c=swapped/200" {
			t.Errorf("the sink has %s", got)
		}
	})
}

// Where what cannot be written is to be refused, nothing is let out before its line is in the file.
func TestRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := begin(t, "audit_unavailable", LogOptions{})
		if err := l.Decided(decided("a", Swapped)); err != nil || said(l.file.records(t)) != "a?" {
			t.Errorf("%v, %s", err, said(l.file.records(t)))
		}
		l.file.set(errors.New("full"))
		if err := l.Decided(decided("b", Swapped)); err == nil {
			t.Error("it is let out")
		}
		if err := l.Decided(decided("c", Refused)); err != nil {
			t.Error(err)
		}
		l.file.set(nil)
		for id, status := range map[string]int{"a": 200, "b": 503, "c": 403} {
			l.Ended(ended(id, status))
			synctest.Wait()
		}
		l.stop()
		all := l.file.records(t)
		slices.SortStableFunc(all, func(a, b Record) int { return strings.Compare(a.Request, b.Request) })
		if got := said(all); got != "a? a=swapped/200 b=refused/503 c=refused/403" || all[2].Reason != "audit_unavailable" || all[2].Token != "" {
			t.Errorf("%s", got)
		}
	})
}

// A disk that hangs is one that cannot be written.
func TestRefuseWhenStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := begin(t, "audit_unavailable", LogOptions{})
		l.file.stuck = make(chan struct{})
		began := time.Now()
		if err := l.Decided(decided("a", Swapped)); err == nil || time.Since(began) != writeTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		close(l.file.stuck)
		l.Ended(ended("a", 503))
		l.stop()
		if got := said(l.file.records(t)); got != "a? a=refused/503" {
			t.Errorf("%s", got)
		}
	})
}

// inbox is a sink.
type inbox struct {
	mu   sync.Mutex
	got  []Record
	fail error
	shut bool
}

func (i *inbox) Write(_ context.Context, _ [][]byte, records []Record) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fail == nil {
		i.got = append(i.got, records...)
	}
	return i.fail
}

func (i *inbox) Close() error { i.shut = true; return nil }

func (i *inbox) has(n int) bool { i.mu.Lock(); defer i.mu.Unlock(); return len(i.got) == n }

func (i *inbox) set(err error) { i.mu.Lock(); defer i.mu.Unlock(); i.fail = err }

// A sink that fails is tried again and holds up nobody. What it misses is told in the file, and to it.
func TestSinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad, odd := &inbox{}, &inbox{fail: errors.New("away")}, &inbox{fail: &Unwanted{maxBehind, errors.New("no")}}
		dropped := map[string]uint64{}
		l := begin(t, "", LogOptions{Sinks: []Target{{Name: "good", Sink: good}, {Name: "bad", Sink: bad}, {Name: "odd", Sink: odd}}, Watch: Watch{Dropped: func(s string, n uint64) { dropped[s] += n }}})
		const n = maxBehind + 100
		for i := range n {
			l.Ended(ended(fmt.Sprint(i), 200))
			if i%1000 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if !good.has(n) || len(l.file.records(t)) != n {
			t.Errorf("%d in the file", len(l.file.records(t)))
		}
		odd.set(nil)
		bad.set(nil)
		time.Sleep(5 * time.Minute)
		l.stop()
		if !good.shut || !bad.shut {
			t.Error("not closed")
		}
		gaps := map[string]uint64{}
		for _, r := range l.file.records(t) {
			if r.Kind == Gap {
				gaps[r.Sink] += r.Undelivered
			}
		}
		of := func(i *inbox, name string) (n uint64) { // records that it got
			for _, r := range i.got {
				if r.Sink != name {
					n++
				}
			}
			return n
		}
		for name, sink := range map[string]*inbox{"bad": bad, "odd": odd} {
			own := uint64(0)
			for _, r := range l.file.records(t) {
				if r.Sink == name {
					own++
				}
			}
			if gaps[name] != dropped[name] || gaps[name] < 100 || own == 0 || own > 3 || of(sink, name)+gaps[name]+own != uint64(len(l.file.lines)) {
				t.Errorf("%s got %d, and did not get %d as %d lines say, of %d", name, of(sink, name), gaps[name], own, len(l.file.lines))
			}
		}
		if len(good.got) != len(l.file.lines) {
			t.Errorf("the good one has %d of %d", len(good.got), len(l.file.lines))
		}
	})
}

// A sink that fails until the end misses what it has not got, which the file tells.
func TestSinkAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := &inbox{fail: errors.New("away")}
		l := begin(t, "", LogOptions{Sinks: []Target{{Name: "bad", Sink: bad}}})
		l.Ended(ended("a", 200))
		time.Sleep(time.Second)
		l.stop()
		if all := l.file.records(t); said(all) != "a=swapped/200 gap1" || all[1].Sink != "bad" {
			t.Errorf("%s", said(all))
		}
	})
}

// Gates that are killed at any moment, one after the other: each decision that somebody has seen is in the file once, or is counted.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("AUDIT_TEST_GATE"); dir != "" {
		gateToKill(t, dir)
		return
	}
	t.Parallel()
	dir := t.TempDir()
	seen := map[string]bool{}
	var twice []string  // of which the end was told, and is told again
	var untold []string // decided by a gate that was killed, and not ended yet
	for round := range 5 {
		c := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		c.Env = append(os.Environ(), "AUDIT_TEST_GATE="+dir)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		known, again := untold, twice
		go func() { // its Envoys tell the ends of a part of what they know of
			for i, id := range known {
				if i%2 == 0 {
					fmt.Fprintln(in, id)
				}
			}
			for _, id := range again { // and what they are not sure that it has heard
				fmt.Fprintln(in, id)
			}
			fmt.Fprintln(in, "go")
		}()
		most := 500 + rand.IntN(3000)
		untold, twice = nil, nil
		for n := 0; lines.Scan(); {
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "decided":
				seen[id] = true
				untold = append(untold, id)
				n++
			case "ended": // Envoy has told it, and does not again, but for some
				if n%10 == 0 {
					twice = append(twice, id)
				}
				untold = slices.DeleteFunc(untold[max(0, len(untold)-200):], func(u string) bool { return u == id })
			}
			if n == most {
				_ = c.Process.Kill()
				n++
			}
		}
		_ = c.Wait()
		if round > 0 && len(untold) == 0 {
			t.Fatal("nothing was decided")
		}
	}
	// The last one comes and goes in peace.
	now := time.Now()
	clock := func() time.Time { return now }
	f := openGate(t, dir, clock)
	f.recovery.Look(t.Context())
	now = now.Add(time.Hour)
	f.recovery.Look(t.Context())
	deadline := time.After(time.Minute)
	for {
		f.recovery.Look(t.Context())
		left, err := filepath.Glob(filepath.Join(dir, "*.run-*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 1 {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("left: %v", left)
		case <-time.After(10 * time.Millisecond):
		}
	}
	f.stop()
	if left, _ := filepath.Glob(filepath.Join(dir, "*.run-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	final, open, counted, total := map[string]int{}, map[string]bool{}, map[string]int{}, 0
	if err := eachBack(t.Context(), journal.Files(filepath.Join(dir, "audit.jsonl"), 1), 1<<40, func(r Record) bool {
		switch {
		case r.Kind == Gap:
			total += int(r.Dropped)
			for _, id := range r.Requests {
				counted[id]++
			}
		case r.Open:
			open[r.Request] = true
		default:
			final[r.Request]++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	var lost int
	for id := range seen {
		in := final[id]
		if in == 0 && open[id] {
			in = 1
		}
		if in+counted[id] != 1 {
			t.Errorf("%s is there %d times, and counted %d times", id, in, counted[id])
		}
		lost += counted[id]
	}
	t.Logf("%d decisions seen, %d have an end, %d counted, of which %d were seen", len(seen), len(final), total, lost)
	if total < lost {
		t.Errorf("%d are counted, %d are lost", total, lost)
	}
	found, err := Verify(t.Context(), journal.Files(filepath.Join(dir, "audit.jsonl"), 1), "")
	if err != nil || found.Broken != nil {
		t.Errorf("%+v, %v", found, err)
	}
}

type testGate struct {
	fixture
	recovery *Recovery
}

func openGate(t *testing.T, dir string, now func() time.Time) testGate {
	t.Helper()
	path := filepath.Join(dir, "audit.jsonl")
	lines, err := journal.OpenLines("audit.file", path, 1<<30, 1)
	if err != nil {
		t.Fatal(err)
	}
	run, err := StartRun(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := begin(t, "", LogOptions{File: lines, Run: run, Chain: true})
	return testGate{f, NewRecovery(path, journal.Files(path, 1), time.Minute, f.Ledger, f.log, now, slog.New(slog.DiscardHandler))}
}

// gateToKill decides until it is killed. Before it says that a request has ended, the ledger knows.
func gateToKill(t *testing.T, dir string) {
	f := openGate(t, dir, time.Now)
	f.recovery.Look(t.Context())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() && in.Text() != "go" {
		f.Ended(ended(in.Text(), 200))
	}
	out := io.Writer(os.Stdout)
	var late []string
	for i := 0; ; i++ {
		id := uuid()
		if err := f.Decided(decided(id, Swapped)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(out, "decided", id)
		if i%3 == 0 {
			late = append(late, id)
		} else {
			fmt.Fprintln(out, "ended", id)
			f.Ended(ended(id, 200))
		}
		if len(late) > 50 {
			fmt.Fprintln(out, "ended", late[0])
			f.Ended(ended(late[0], 200))
			late = late[1:]
		}
	}
}

func uuid() string {
	return fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", rand.Uint32(), rand.IntN(1<<16), rand.IntN(1<<12), rand.IntN(1<<12), rand.Uint64N(1<<48))
}

func TestKeys(t *testing.T) {
	for _, id := range []string{"a", uuid(), "ghsldamluaksf6u2rjbdltfxvh"} {
		if k := keyOf(id); k.id() != id || k.anonymous() || k == (key{}) {
			t.Errorf("%s is %q", id, k.id())
		}
	}
	long := strings.Repeat("x", 100)
	if k := keyOf(long); k.id() != "" || k.anonymous() || k != keyOf(long) || k == keyOf(long+"x") {
		t.Errorf("%v", k)
	}
	if k := anonymous(7); k.id() != "" || !k.anonymous() || k == anonymous(8) {
		t.Errorf("%v", k)
	}
}
