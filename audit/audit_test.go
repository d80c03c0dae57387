package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

func numbered(n int) Record {
	return Record{
		Time: start.Add(time.Duration(n) * time.Second), Kind: Request, Outcome: []Outcome{Swapped, Refused}[n%2], Worker: fmt.Sprintf("w%d", n%3),
		Host: "api.example.com", Method: "GET", Path: "/" + strings.Repeat("x", n%500), Request: fmt.Sprint(n),
	}
}

func write(t *testing.T, name string, lines ...any) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, l := range lines {
		text, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if raw, ok := l.(string); ok {
			text = []byte(raw)
		}
		fmt.Fprintf(f, "%s\n", text)
	}
}

func ids(found Found) (all []string) {
	for _, r := range found.Records {
		all = append(all, r.Request)
	}
	return all
}

func TestSearch(t *testing.T) {
	dir := t.TempDir()
	now, before := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.jsonl.1")
	for n := range 3000 {
		name := before
		if n >= 1000 {
			name = now
		}
		write(t, name, numbered(n))
	}
	write(t, now, map[string]any{"time": start, "dropped": 7}, "no record", map[string]any{"time": start})
	files := []string{now, before}
	for name, c := range map[string]struct {
		filter Filter
		limit  int
		want   []string
		all    bool // everything was looked at, or as far as the filter wants
	}{
		"the latest":         {Filter{}, 3, []string{"2999", "2998", "2997"}, false},
		"some":               {Filter{Worker: "w1", Outcome: Refused}, 2, []string{"2995", "2989"}, false},
		"in the file before": {Filter{Request: "17"}, 10, []string{"17"}, true},
		"since":              {Filter{From: start.Add(2997 * time.Second)}, 10, []string{"2999", "2998", "2997"}, true},
		"until":              {Filter{To: start.Add(2 * time.Second)}, 10, []string{"1", "0"}, true},
		"text":               {Filter{Text: "API.EXAMPLE", Request: "5"}, 10, []string{"5"}, true},
		"nothing":            {Filter{Grant: "none"}, 10, nil, true},
	} {
		found, err := Search(t.Context(), files, c.filter, c.limit)
		if err != nil || !slices.Equal(ids(found), c.want) {
			t.Errorf("%s: %v, %v", name, ids(found), err)
		}
		if found.Missing != 7 || found.Unreadable != 2 {
			t.Errorf("%s: %d missing, %d unreadable", name, found.Missing, found.Unreadable)
		}
		if found.Back.IsZero() != c.all {
			t.Errorf("%s: looked back until %v", name, found.Back)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := Search(ctx, files, Filter{}, 10); err != nil || len(found.Records) != 0 {
		t.Errorf("without time: %v, %v", found, err)
	}
	if found, err := Search(t.Context(), []string{filepath.Join(dir, "none")}, Filter{}, 10); err != nil || len(found.Records) != 0 {
		t.Errorf("no file: %v, %v", found, err)
	}
	if _, err := Search(t.Context(), []string{dir}, Filter{}, 10); err == nil {
		t.Error("a directory was searched")
	}
}

// A line that is being written is not looked at, and a file that is no audit is not read whole.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, "half")
	write(t, half, numbered(1))
	text, _ := os.ReadFile(half)
	if err := os.WriteFile(half, append(text, text[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Search(t.Context(), []string{half}, Filter{}, 10); err != nil || len(found.Records) != 1 || found.Unreadable != 0 {
		t.Errorf("%+v, %v", found, err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte(strings.Repeat("x", maxLine+2*block)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Search(t.Context(), []string{other}, Filter{}, 10); err == nil || !strings.Contains(err.Error(), "no audit") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Search(t.Context(), []string{other}, Filter{}, 10); err != nil || len(found.Records) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestSearchAll(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for n := range 10 {
		write(t, []string{a, b}[n%2], numbered(n))
	}
	found, err := SearchAll(t.Context(), [][]string{{a}, {b}}, Filter{}, 4)
	if err != nil || !slices.Equal(ids(found), []string{"9", "8", "7", "6"}) || found.Back.IsZero() {
		t.Errorf("%v %v %v", ids(found), found.Back, err)
	}
}

// Whoever goes on where a search got to sees each record once, however many have one time, in whatever order they ended, and of which gate.
func TestSearchGoesOn(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	want := map[string]bool{}
	record := func(to, run string, n int, at, took time.Duration) {
		r := Record{Time: start.Add(at), Kind: Request, Outcome: Swapped, Run: run, Seq: uint64(n), Request: fmt.Sprintf("%s-%d", run, n), DurationMS: float64(took.Milliseconds()), Worker: fmt.Sprintf("w%d", n%2)}
		write(t, to, r)
		want[r.Request] = true
	}
	for n := 1; n <= 40; n++ {
		record(a+".1", "r1", n, 0, 0) // all at once
	}
	for n := 1; n <= 30; n++ {
		record(a, "r2", n, time.Duration(60-n)*time.Second, time.Duration(2*n)*time.Second) // who began later ended earlier
		if n%3 == 0 {
			record(b, "r3", n, time.Duration(60+n)*time.Second, 0)
		}
	}
	write(t, a, Record{Time: start.Add(time.Hour), Kind: Gap, Dropped: 1, Run: "r2", Seq: 32})
	gates := [][]string{{a, a + ".1"}, {b}}
	for _, f := range []Filter{{}, {Worker: "w1"}, {From: start}} {
		for _, limit := range []int{1, 7, 40, 100} {
			got, f := map[string]bool{}, f
			for {
				found, err := SearchAll(t.Context(), gates, f, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range found.Records {
					if got[r.Request] {
						t.Errorf("%+v, %d at a time: %s again", f, limit, r.Request)
					}
					got[r.Request] = true
				}
				if f.After = found.Next; f.After == "" {
					break
				}
			}
			for id := range want {
				if n := id[strings.Index(id, "-")+1:]; got[id] != (f.Worker == "" || strings.ContainsAny(n[len(n)-1:], "13579")) {
					t.Errorf("%+v, %d at a time: %s is there: %v", f, limit, id, got[id])
				}
			}
		}
	}
	// Without the time to come there it is told that older ones were not looked at.
	first, err := SearchAll(t.Context(), gates, Filter{}, 30)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), start)
	defer cancel()
	if found, err := SearchAll(ctx, gates, Filter{After: first.Next}, 30); err != nil || len(found.Records) > 0 || found.Back.IsZero() || found.Next != first.Next {
		t.Errorf("without time: %+v, %v", found, err)
	}
	for _, place := range []Place{"x", "r1.1,r2.2,r3.3"} {
		if _, err := SearchAll(t.Context(), gates, Filter{After: place}, 10); !errors.Is(err, ErrPlace) {
			t.Errorf("%s: %v", place, err)
		}
	}
}

func TestMatch(t *testing.T) {
	r := Record{
		Time: start, Kind: Operator, Outcome: Failed, Reason: "no", Actor: "maria", From: "192.0.2.1", Action: "grant.refresh", Target: "acme", Host: "api.example.com",
		Worker: "ci", Session: "s", Request: "r",
	}
	for _, f := range []Filter{
		{}, {Kind: Operator}, {Outcome: Failed}, {Reason: "no"}, {Actor: "maria"}, {Grant: "acme"}, {Worker: "ci"}, {Session: "s"}, {Request: "r"}, {Host: "example"},
		{Text: "REFRESH"}, {From: start}, {To: start.Add(1)},
	} {
		if !f.Match(&r) {
			t.Errorf("%+v does not match", f)
		}
	}
	for _, f := range []Filter{
		{Kind: Request}, {Outcome: Done}, {Reason: "n"}, {Actor: "mari"}, {Grant: "acm"}, {Worker: "c"}, {Session: "t"}, {Request: "q"}, {Host: "other"}, {Text: "nowhere"},
		{From: start.Add(1)}, {To: start},
	} {
		if f.Match(&r) {
			t.Errorf("%+v matches", f)
		}
	}
}

func TestStatuses(t *testing.T) {
	for text, want := range map[string][3]bool{"": {true, true, true}, "429": {true, false, false}, "4xx": {true, false, false}, "50X": {false, true, false}, "5xx": {false, true, false}} {
		s, err := ParseStatuses(text)
		if err != nil {
			t.Fatal(err)
		}
		for i, status := range []int{429, 503, 0} {
			if s.has(status) != want[i] {
				t.Errorf("%q of %d", text, status)
			}
		}
	}
	for _, text := range []string{"x", "xxx", "4", "4x1", "999", "4xxx", "ok", "-12"} {
		if s, err := ParseStatuses(text); err == nil {
			t.Errorf("%q is %q", text, s)
		}
	}
}

// What is open is shown until its end is there, in whatever order they were written.
func TestSearchJoins(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	line := func(n int, open, after bool) Record {
		r := numbered(n)
		r.Open, r.AfterOpen = open, after
		if !open {
			r.Status = 200
		}
		return r
	}
	write(t, name,
		line(1, true, false), line(2, true, false), line(3, false, false), line(1, false, true), line(4, false, true), line(4, true, false),
		Record{Time: start, Kind: Gap, Dropped: 5, Cause: Killed, Requests: []string{"6"}, Run: "r", Seq: 9},
		Record{Time: start, Kind: Request, Request: "6", Outcome: Swapped, Late: true, AfterOpen: true},
		Record{Time: start, Kind: Gap, Undelivered: 3, Sink: "webhook"},
	)
	for want, f := range map[string]Filter{
		"6 4 1 3 2":   {},
		"2":           {Open: true},
		"4 1 3":       {Status: "2xx"},
		"gap/3 gap/5": {Kind: Gap},
	} {
		found, err := Search(t.Context(), []string{name}, f, 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range found.Records {
			if r.Kind == Gap {
				r.Request = fmt.Sprint("gap/", r.Dropped+r.Undelivered)
			}
			got = append(got, r.Request)
		}
		if strings.Join(got, " ") != want || found.Missing != 4 {
			t.Errorf("%+v: %v, want %s; %d missing", f, got, want, found.Missing)
		}
	}
}

// A request that took long is found by when it was decided, though its line comes much later.
func TestSearchLong(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	early, late := numbered(0), numbered(0)
	early.Request, late.Request, late.Time = "early", "late", start.Add(3*time.Hour)
	early.DurationMS = float64((4 * time.Hour).Milliseconds())
	write(t, name, late, early)
	found, err := Search(t.Context(), []string{name}, Filter{From: start.Add(2 * time.Hour)}, 10)
	if err != nil || !slices.Equal(ids(found), []string{"late"}) {
		t.Errorf("%v, %v", ids(found), err)
	}
}

func TestFollow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	write(t, name, numbered(0))
	got := make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Follow(ctx, name, Filter{Outcome: Swapped}, func(r Record) { got <- r.Request })
	}()
	next := func(want string, again func()) {
		t.Helper()
		for {
			again() // it may not have begun to look
			select {
			case id := <-got:
				if id == want {
					return
				}
			case <-time.After(pollFor):
			}
			if t.Context().Err() != nil {
				t.Fatalf("%s does not come", want)
			}
		}
	}
	next("2", func() { write(t, name, numbered(1), numbered(2)) })
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	next("4", func() { write(t, name, numbered(3), numbered(4)) })
	cancel()
	for {
		select {
		case <-got:
			continue
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		}
		return
	}
}
