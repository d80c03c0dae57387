package notify

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// gateOf is a gate that sees troubles and reads and writes the book, without waiting.
type gateOf struct {
	name   string
	sights sights
	mine   map[string]bool
}

// life is gates with one book, five seconds by five seconds.
type life struct {
	t     *testing.T
	now   time.Time
	began time.Time
	book  book
	gates []*gateOf
	see   map[string]map[string]Alert // by gate, by key
	said  []string
	// lose says that messages do not arrive.
	lose bool
}

var timing = Timing{GroupWait: 10 * time.Second, Repeat: time.Hour}

func newLife(t *testing.T, gates ...string) *life {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := &life{t: t, now: at, began: at, book: book{}, see: map[string]map[string]Alert{}}
	for _, name := range gates {
		l.start(name)
	}
	return l
}

func (l *life) start(name string) {
	l.gates = append(slices.DeleteFunc(l.gates, func(g *gateOf) bool { return g.name == name }), &gateOf{name, sights{}, map[string]bool{}})
	if l.see[name] == nil {
		l.see[name] = map[string]Alert{}
	}
}

func (l *life) stop(name string) {
	l.gates = slices.DeleteFunc(l.gates, func(g *gateOf) bool { return g.name == name })
}

// breaks lets every gate see a trouble; mends lets it end.
func (l *life) breaks(a Alert) {
	for _, seen := range l.see {
		seen[a.Key] = a
	}
}

func (l *life) mends(key string) {
	for _, seen := range l.see {
		delete(seen, key)
	}
}

func (l *life) run(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); l.now = l.now.Add(5 * time.Second) {
		for _, g := range l.gates {
			g.sights.update(slices.Collect(maps.Values(l.see[g.name])), l.book, l.now)
			before := maps.Clone(l.book)
			p := makePlan(l.book, g.sights, timing, l.now, g.name, g.mine)
			if !maps.Equal(l.book, before) {
				l.t.Fatal("a plan changed the book that it was made from")
			}
			if !p.due() {
				continue
			}
			l.book = p.book
			keys := map[string]bool{}
			for _, key := range p.message.keys() {
				keys[key], g.mine[key] = true, true
			}
			if !l.lose {
				l.book.mark(keys)
			}
			if !p.message.empty() {
				l.said = append(l.said, fmt.Sprintf("%s %s %s", l.now.Sub(l.began), g.name, say(p.message)))
			}
		}
	}
}

// say is a message in short: + what there is, - what is over, ~ how many others.
func say(m Message) string {
	var parts []string
	for _, a := range m.Firing {
		parts = append(parts, "+"+a.Key)
	}
	for _, a := range m.Over {
		parts = append(parts, "-"+a.Key)
	}
	if m.Others > 0 {
		parts = append(parts, fmt.Sprintf("~%d", m.Others))
	}
	return strings.Join(parts, " ")
}

// heard compares what was said since the last call.
func (l *life) heard(want ...string) {
	l.t.Helper()
	if !slices.Equal(l.said, want) {
		l.t.Errorf("at %s\n said %q\n want %q", l.now.Sub(l.began), l.said, want)
	}
	l.said = nil
}

func trouble(key string, wait time.Duration) Alert {
	kind, subject, _ := strings.Cut(key, "/")
	subject, _, _ = strings.Cut(subject, "/")
	return Alert{Key: key, Kind: Kind(kind), Subject: subject, Severity: Critical, Title: key, Wait: wait}
}

func TestToldOnceByAllGates(t *testing.T) {
	l := newLife(t, "a", "b", "c")
	l.breaks(trouble("grant/x/needs_reconnect", 0))
	l.run(30 * time.Minute)
	l.heard("10s a +grant/x/needs_reconnect")
	l.stop("a") // the others know
	l.run(29 * time.Minute)
	l.heard()
	l.mends("grant/x/needs_reconnect")
	l.run(time.Minute)
	l.heard("59m10s b -grant/x/needs_reconnect")
	l.run(24 * time.Hour)
	l.heard()
	if len(l.book) > 0 {
		t.Errorf("the book still has %v", l.book)
	}
}

func TestGrouped(t *testing.T) {
	l := newLife(t, "a")
	l.breaks(trouble("grant/x/s", 0))
	l.run(5 * time.Second)
	l.breaks(trouble("grant/y/s", 0))
	l.breaks(trouble("envoy/n", time.Minute)) // is not yet worth telling
	l.run(20 * time.Second)
	l.heard("10s a +grant/x/s +grant/y/s")
	l.run(time.Minute)
	l.heard("1m15s a +envoy/n ~2")
}

func TestMendsItself(t *testing.T) {
	l := newLife(t, "a")
	for range 20 {
		l.breaks(trouble("grant/x/degraded", 5*time.Minute))
		l.run(4 * time.Minute)
		l.mends("grant/x/degraded")
		l.run(time.Minute)
	}
	l.heard()
}

func TestRepeatedWithBackOff(t *testing.T) {
	l := newLife(t, "a", "b")
	critical := trouble("grant/x/s", 0)
	warning := trouble("grant/y/s", 0)
	warning.Severity = Warning
	l.breaks(critical)
	l.breaks(warning)
	l.run(16 * time.Hour)
	l.heard("10s a +grant/x/s +grant/y/s", "1h0m10s a +grant/x/s +grant/y/s", "3h0m10s a +grant/x/s +grant/y/s", "7h0m10s a +grant/x/s +grant/y/s", "15h0m10s a +grant/x/s +grant/y/s")
	l.run(9 * 24 * time.Hour)
	count := map[string]int{}
	for _, s := range l.said {
		for _, key := range []string{"+grant/x/s", "+grant/y/s"} {
			count[key] += strings.Count(s, key)
		}
	}
	l.said = nil
	// Every day, and every 16, 32, 64, 128 hours.
	if count["+grant/x/s"] != 9 || count["+grant/y/s"] != 3 {
		t.Errorf("told %v times in nine days, want 9 and 3", count)
	}
}

func TestFlappingIsNotToldEachTime(t *testing.T) {
	l := newLife(t, "a")
	for range 12 { // an hour
		l.breaks(trouble("grant/x/s", 0))
		l.run(3 * time.Minute)
		l.mends("grant/x/s")
		l.run(2 * time.Minute)
	}
	l.heard("10s a +grant/x/s", "3m10s a -grant/x/s")
	l.breaks(trouble("grant/x/s", 0))
	l.run(10 * time.Minute)
	l.heard("1h0m10s a +grant/x/s")
	l.mends("grant/x/s")
	l.run(30 * time.Minute)
	l.heard("1h10m10s a -grant/x/s")
	l.breaks(trouble("grant/x/s", 0)) // that is another
	l.run(time.Minute)
	l.heard("1h40m10s a +grant/x/s")
}

// A grant that goes from bad to worse is not better in between.
func TestWorseIsNotOver(t *testing.T) {
	l := newLife(t, "a", "b")
	l.breaks(trouble("grant/x/scope_missing", 0))
	l.run(time.Minute)
	l.mends("grant/x/scope_missing")
	l.breaks(trouble("grant/x/needs_reconnect", 0))
	l.run(10 * time.Minute)
	l.heard("10s a +grant/x/scope_missing", "1m10s a +grant/x/needs_reconnect")
	l.mends("grant/x/needs_reconnect")
	l.run(time.Minute)
	l.heard("11m10s a -grant/x/needs_reconnect")
}

func TestLocalTroubleEndsWhereItIsSeen(t *testing.T) {
	l := newLife(t, "a", "b")
	own := trouble("envoy/a/n", 0)
	own.Local = true
	l.see["a"][own.Key] = own
	l.run(30 * time.Minute)
	l.heard("10s a +envoy/a/n")
	l.stop("a")
	l.run(48 * time.Hour)
	l.heard()
	delete(l.see["a"], own.Key)
	l.start("a")
	l.run(time.Minute)
	l.heard("48h30m10s a -envoy/a/n")
}

// A gate that ends before its message has left says it when it is back, or another does.
func TestLostMessageIsToldAgain(t *testing.T) {
	l := newLife(t, "a", "b")
	l.breaks(trouble("grant/x/s", 0))
	l.lose = true
	l.run(20 * time.Second)
	l.heard("10s a +grant/x/s")
	l.lose = false
	l.start("a")
	l.run(10 * time.Minute)
	l.heard("20s a +grant/x/s")

	l = newLife(t, "a", "b")
	l.breaks(trouble("grant/x/s", 0))
	l.lose = true
	l.run(20 * time.Second)
	l.heard("10s a +grant/x/s")
	l.lose = false
	l.stop("a")
	l.run(30 * time.Minute)
	l.heard("15m10s b +grant/x/s")
}

// A gate that starts does not tell again what is known, and says of what ended meanwhile that it is over.
func TestRestart(t *testing.T) {
	l := newLife(t, "a")
	l.breaks(trouble("grant/x/s", 0))
	l.breaks(trouble("grant/y/s", 0))
	l.run(time.Minute)
	l.heard("10s a +grant/x/s +grant/y/s")
	l.mends("grant/x/s")
	l.start("a")
	l.run(10 * time.Minute)
	l.heard("1m10s a -grant/x/s ~1")
}
