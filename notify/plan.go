package notify

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Timing is when operators are told.
type Timing struct {
	// GroupWait is how long what is to be told waits for more, so that one cause is one message.
	GroupWait time.Duration
	// Repeat is after how long something that lasts is told again; each time after twice as long, but no longer than a day
	// where workers are refused, else a week.
	Repeat time.Duration
}

const (
	calm      = 10 * time.Second // for which a trouble must be gone to be over
	relapse   = 10 * time.Minute // in which one that comes back is still the same
	takeOver  = 15 * time.Minute // after which something that was to be told, and was not, is told by whoever sees it
	forgotten = 30 * 24 * time.Hour
)

// longest is the longest time between two tellings.
func longest(s Severity) time.Duration {
	if s == Critical {
		return 24 * time.Hour
	}
	return 7 * 24 * time.Hour
}

// sights are the troubles that this gate sees or saw lately, by key.
type sights map[string]sight

type sight struct {
	alert Alert
	since time.Time
	gone  time.Time // zero: it is there
}

// update takes what there is now. What others told and is not there counts as gone from when it was first missed.
func (s sights) update(alerts []Alert, b book, now time.Time) {
	there := map[string]bool{}
	for _, a := range alerts {
		there[a.Key] = true
		x, seen := s[a.Key]
		if !seen || !x.gone.IsZero() {
			x.since, x.gone = now, time.Time{}
		}
		x.alert = a
		s[a.Key] = x
	}
	for key, x := range s {
		switch {
		case there[key]:
		case x.gone.IsZero():
			x.gone = now
			s[key] = x
		case now.Sub(x.gone) > time.Hour:
			delete(s, key)
		}
	}
	for key := range b {
		if _, seen := s[key]; !seen {
			s[key] = sight{gone: now}
		}
	}
}

// here reports whether something of that name is in trouble.
func (s sights) here(kind Kind, subject string) bool {
	for _, x := range s {
		if x.gone.IsZero() && x.alert.Kind == kind && x.alert.Subject == subject {
			return true
		}
	}
	return false
}

// book is what has been told, by key.
type book map[string]entry

// told is the stored form.
type told struct {
	Alerts book `json:"alerts"`
}

func (t told) open() book {
	if t.Alerts == nil {
		return book{}
	}
	return t.Alerts
}

// entry is a trouble that operators were told of.
type entry struct {
	Alert Alert     `json:"alert"`
	Since time.Time `json:"since"`
	Told  time.Time `json:"told"`  // last
	Times int       `json:"times"` // how often
	By    string    `json:"by"`    // the gate that told it last
	Done  bool      `json:"done"`  // it has reached somebody
	Local bool      `json:"local,omitempty"`
	Over  time.Time `json:"over,omitzero"`
	Quiet bool      `json:"quiet,omitempty"` // it came back after it was over, and that was not told
}

// mark says of keys that they have reached somebody, and reports whether that was news.
func (b book) mark(keys map[string]bool) (news bool) {
	for key := range keys {
		if e, ok := b[key]; ok && !e.Done {
			e.Done, news = true, true
			b[key] = e
		}
	}
	return news
}

// next is when it is told again while it lasts.
func (e entry) next(repeat time.Duration) time.Time {
	wait, most := repeat, longest(e.Alert.Severity)
	for i := 1; i < e.Times && wait < most; i++ {
		wait *= 2
	}
	return e.Told.Add(min(wait, most))
}

// plan is what is to be told, and the book as it is then.
type plan struct {
	message Message
	book    book
	changed bool
}

// due reports whether there is anything to tell or to write down.
func (p plan) due() bool { return p.changed || !p.message.empty() }

// makePlan says what a gate called holder is to tell now. mine are the keys that it has told since it began; it does not change
// what it is given.
func makePlan(b book, s sights, t Timing, now time.Time, holder string, mine map[string]bool) plan {
	p := plan{book: maps.Clone(b), message: Message{At: now}}
	tell := func(key string, e entry) {
		e.Told, e.By, e.Done, e.Quiet = now, holder, false, false
		e.Times++
		p.book[key] = e
	}

	// New ones wait for each other.
	var fresh []string
	open := false
	for key, x := range s {
		if _, known := b[key]; known || !x.gone.IsZero() {
			continue
		}
		ready := now.Sub(x.since.Add(x.alert.Wait))
		if ready >= 0 {
			fresh = append(fresh, key)
		}
		open = open || ready >= t.GroupWait
	}
	if open {
		for _, key := range fresh {
			x := s[key]
			tell(key, entry{Alert: x.alert, Since: x.since, Local: x.alert.Local})
			p.message.Firing = append(p.message.Firing, x.alert)
		}
	}

	for key, e := range b {
		x, seen := s[key]
		there := seen && x.gone.IsZero()
		switch {
		case there && !e.Over.IsZero(): // it came back: it is the same, and is told when it would have been
			e.Over, e.Quiet = time.Time{}, true
			p.book[key], p.changed = e, true
		case there && (!now.Before(e.next(t.Repeat)) || e.lost(holder, mine[key], now)):
			e.Alert = x.alert
			tell(key, e)
			p.message.Firing = append(p.message.Firing, x.alert)
		case there:
			p.message.Others++
		case !e.Over.IsZero():
			if now.Sub(e.Over) >= relapse {
				delete(p.book, key)
				p.changed = true
			}
		case e.Local && e.By != holder:
			if now.Sub(e.Told) >= forgotten { // that gate is no more
				delete(p.book, key)
				p.changed = true
			}
		case seen && now.Sub(x.gone) >= calm:
			e.Over = now
			p.book[key], p.changed = e, true
			if !e.Quiet && !s.here(e.Alert.Kind, e.Alert.Subject) {
				p.message.Over = append(p.message.Over, e.Alert)
			}
		}
	}
	order(p.message.Firing)
	order(p.message.Over)
	return p
}

// lost reports whether nobody can have been told of it, for the gate that was to tell it ended before.
func (e entry) lost(holder string, mine bool, now time.Time) bool {
	return !e.Done && (now.Sub(e.Told) >= takeOver || e.By == holder && !mine)
}

// order puts the worst first.
func order(alerts []Alert) {
	slices.SortFunc(alerts, func(a, b Alert) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Key, b.Key)) // critical before warning
	})
}
