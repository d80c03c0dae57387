package console

import (
	"errors"
	"net/http"
	"net/url"
)

type loginView struct {
	OIDC  bool
	Token string // of the link; empty: none came along
	Link  bool   // there are links
	Next  string
	Error string
}

func (s *Server) showLogin(w http.ResponseWriter, r *http.Request, status int, problem string) {
	q := r.URL.Query()
	next := local(q.Get("next"))
	switch kept, err := url.QueryUnescape(s.cookie(r, nextCookie)); {
	case q.Get("token") == "" && next != "/":
		s.setCookie(w, nextCookie, url.QueryEscape(next))
	case !q.Has("next") && err == nil: // a link that was printed for one log-in knows of no page
		next = local(kept)
	}
	s.show(w, r, status, "login", nil, view{Title: "Log in", Data: loginView{
		OIDC: s.oidc != nil, Link: s.NewLink != nil, Token: q.Get("token"), Next: next, Error: problem,
	}})
}

// loginPage is for who is not logged in: a tab that was led here goes on when another one has logged in.
func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if _, _, in := s.logins.find(s.cookie(r, loginCookie), false); in && q.Get("token") == "" {
		http.Redirect(w, r, local(q.Get("next")), http.StatusSeeOther)
		return
	}
	s.showLogin(w, r, http.StatusOK, "")
}

// loginByLink takes the token of a one-time link: in a form, so that nothing that only looks at links spends it.
func (s *Server) loginByLink(w http.ResponseWriter, r *http.Request) {
	if wait := s.limiter.Wait(source(r), s.now()); wait > 0 {
		s.unknown(w, r, tooMany(wait))
		return
	}
	if s.NewLink == nil || !s.logins.spend(r.PostFormValue("token")) {
		s.limiter.Failed(source(r), s.now())
		err := errors.New("this link is not good any more: each is good once")
		s.did(actor{Via: "link"}, from(r), "login", "", err)
		s.showLogin(w, r, http.StatusForbidden, "This link is not good any more: each is good once. `wayleave console` prints a new one.")
		return
	}
	s.newLink()
	s.welcome(w, r, actor{Name: "local operator", Role: Admin, Via: "link", id: byLink}, r.PostFormValue("next"))
}

// welcome logs somebody in, under a new id whatever the browser had before.
func (s *Server) welcome(w http.ResponseWriter, r *http.Request, who actor, next string) {
	id := s.logins.begin(who, s.cookie(r, loginCookie))
	s.logInsEnded()
	s.setCookie(w, loginCookie, id)
	s.setCookie(w, nextCookie, "")
	s.did(who, from(r), "login", "", nil)
	http.Redirect(w, r, local(next), http.StatusSeeOther)
}

// logInsEnded has every stream see whether its log-in stands, so that the other tabs of one that has ended do not go on until there is news.
func (s *Server) logInsEnded() { s.hub.publish(topicTick) }

func (s *Server) loginStart(w http.ResponseWriter, r *http.Request) {
	if s.oidc == nil {
		s.fail(w, r, http.StatusNotFound, errNoPage)
		return
	}
	to, cookie, err := s.oidc.begin(r.Context(), source(r), local(r.URL.Query().Get("next")), s.cookie(r, askedCookie))
	if err != nil {
		s.fail(w, r, http.StatusBadGateway, err)
		return
	}
	s.setCookie(w, askedCookie, cookie)
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (s *Server) loginCallback(w http.ResponseWriter, r *http.Request) {
	if s.oidc == nil {
		s.fail(w, r, http.StatusNotFound, errNoPage)
		return
	}
	if wait := s.limiter.Wait(source(r), s.now()); wait > 0 {
		s.unknown(w, r, tooMany(wait))
		return
	}
	browser := s.cookie(r, askedCookie)
	who, next, err := s.oidc.finish(r, browser)
	if !s.oidc.awaits(browser) {
		s.setCookie(w, askedCookie, "")
	}
	if who.id != "" { // it is known who they are, whether they may come in or not
		s.logins.follow(who)
		s.logInsEnded()
		if err := s.tokens.know(r.Context(), who); err != nil {
			s.Log.Warn("the tokens of somebody who logged in may do what they could before", "operator", who.Name, "err", err, "fix", "once Vault answers, log in again or end the tokens")
		}
	}
	if _, _, in := s.logins.find(s.cookie(r, loginCookie), false); in && errors.Is(err, errLoginOver) { // as when somebody goes back, or loads the page again
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	if err != nil {
		s.limiter.Failed(source(r), s.now())
		who.Via = "oidc"
		s.did(who, from(r), "login", "", err)
		r.URL.RawQuery = "" // it has a code in it
		s.showLogin(w, r, http.StatusForbidden, sentence(err.Error()))
		return
	}
	// The tabs of a browser that come back together are one log-in: another one would end that which the first of them got, with its pages' forms.
	if n, _, in := s.logins.find(s.cookie(r, loginCookie), false); in && n.actor.id == who.id && s.now().Sub(n.created) < askedFor {
		http.Redirect(w, r, local(next), http.StatusSeeOther)
		return
	}
	s.welcome(w, r, who, next)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request, who actor) {
	if who.login != nil {
		s.logins.end(who.login)
		s.logInsEnded()
	}
	s.did(who, from(r), "logout", "", nil)
	s.setCookie(w, loginCookie, "")
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
