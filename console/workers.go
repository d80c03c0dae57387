package console

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"wayleave/worker"
)

// What fits a page of workers: so many of them with some sessions of each, or one with all of its.
const (
	shownWorkers  = 25
	shownSessions = 8
	shownOfOne    = 200
)

type workersView struct {
	Workers  []workerRow
	Find     string // what their names have in them
	One      string // the one that is looked at alone
	Known    int    // how many there are
	Sessions int    // how many sessions they have
	Many     bool   // more than fit a page
	Pages    pages
	Warning  string
	May      bool
}

type workerRow struct {
	Name, Profile string
	Gone          bool // the configuration does not have it any more
	Grants        []string
	Sessions      []worker.Live
	More          int // sessions that are not shown
}

// pages are the parts of a list.
type pages struct {
	First, Last, Of int    // what this one shows, counted from one
	Before, After   string // the addresses of its neighbours; empty: there is none
}

// part is what a page of a list shows, of which the query says which it is.
func part(u *url.URL, size, n int) (from, to int, p pages) {
	page, _ := strconv.Atoi(u.Query().Get("page"))
	last := max(0, (n-1)/size)
	page = min(max(0, page-1), last)
	at := func(i int) string {
		q := u.Query()
		q.Del("live")
		q.Set("page", strconv.Itoa(i+1))
		return u.Path + "?" + q.Encode()
	}
	from, to = page*size, min(n, page*size+size)
	p = pages{First: from + 1, Last: to, Of: n}
	if page > 0 {
		p.Before = at(page - 1)
	}
	if page < last {
		p.After = at(page + 1)
	}
	return from, to, p
}

// workersPage is made of what this gate knows by itself, and has as many rows as fit, however many workers and sessions there are.
func (s *Server) workersPage(r *http.Request, who actor) (string, string, any, error) {
	cfg, now, q := s.Desk().Config, s.now(), r.URL.Query()
	counts := s.Sessions.Counts(now)
	v := workersView{Find: q.Get("find"), One: q.Get("worker"), May: who.Role.may(Operator), Warning: s.storeSays(r.Context(), isLive(r)).warning()}
	names := slices.Collect(maps.Keys(cfg.Workers))
	for name, n := range counts {
		v.Sessions += n
		if _, configured := cfg.Workers[name]; !configured {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	v.Known, v.Many = len(names), len(names) > shownWorkers
	names = slices.DeleteFunc(names, func(name string) bool {
		return v.One != "" && name != v.One || !strings.Contains(name, v.Find)
	})
	if v.One == "" {
		var from, to int
		from, to, v.Pages = part(r.URL, shownWorkers, len(names))
		names = names[from:to]
	}
	of := s.Sessions.Of(now, names...)
	for _, name := range names {
		w, configured := cfg.Workers[name]
		row := workerRow{Name: name, Profile: w.Profile, Gone: !configured, Grants: cfg.Profiles[w.Profile].Grants, Sessions: of[name]}
		if v.One != "" {
			var from, to int
			from, to, v.Pages = part(r.URL, shownOfOne, len(row.Sessions))
			row.Sessions = row.Sessions[from:to]
		} else {
			row.Sessions, row.More = cut(row.Sessions, shownSessions)
		}
		v.Workers = append(v.Workers, row)
	}
	return cmp.Or(v.One, "Workers"), "workers", v, nil
}

// cut is as much of a list as is shown, and how many more there are.
func cut[T any](list []T, most int) (shown []T, more int) {
	shown = list[:min(len(list), most)]
	return shown, len(list) - len(shown)
}

// revokeForm ends sessions, and shows the worker again whose page it was sent from.
func (s *Server) revokeForm(r *http.Request, _ actor) (string, notice, error) {
	what, err := s.revoke(r.Context(), Revoked{Worker: r.PathValue("worker"), Session: r.PathValue("id")})
	text := fmt.Sprintf("Session %s is ended: its requests are refused within five seconds.", what.Session)
	if what.Worker != "" {
		text = "All sessions of " + what.Worker + " are ended: their requests are refused within five seconds. Its next sessions are good."
	}
	back := "/workers"
	if one := r.PostFormValue("one"); one != "" {
		back += "?" + url.Values{"worker": {one}}.Encode()
	}
	return back, notice{Text: text}, err
}
