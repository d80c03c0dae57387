package console

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"wayleave/grant"
	"wayleave/operate"
)

//go:embed templates
var templateFiles embed.FS

var errNoPage = errors.New("there is nothing at this address")

// view is what every page is made from.
type view struct {
	Title  string
	Nav    string // which entry of the menu it belongs to
	Path   string // where it is asked for again, with its query
	Topics string // what it is asked for again upon, as hx-trigger has it; empty: nothing
	Me     *Me    // nil: nobody is logged in
	CSRF   string
	Notice notice
	Now    time.Time
	Data   any

	Version string
}

var pageNames = []string{"overview", "grant", "connect", "requests", "workers", "routes", "configuration", "access", "login", "error"}

// parsePages parses each page with the layout around it.
func parsePages() (map[string]*template.Template, error) {
	common, err := template.New("layout.html").Funcs(templateFuncs).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return nil, err
	}
	all := map[string]*template.Template{}
	for _, name := range pageNames {
		t, err := common.Clone()
		if err == nil {
			t, err = t.ParseFS(templateFiles, "templates/"+name+".html")
		}
		if err != nil {
			return nil, err
		}
		all[name] = t
	}
	return all, nil
}

// show writes a page. A template that fails is a fault of ours, and shows nothing by half.
func (s *Server) show(w http.ResponseWriter, r *http.Request, status int, name string, who *actor, v view) {
	v.Now, v.Version, v.Path = s.now(), s.Version, pathOf(r)
	if who != nil && who.login != nil {
		v.Me, v.CSRF = &Me{who.Name, who.Role, who.Via}, who.login.csrf
		if !isLive(r) {
			v.Notice = s.logins.told(who.login)
		}
	}
	var out bytes.Buffer
	if err := s.templates[name].ExecuteTemplate(&out, "layout.html", v); err != nil {
		s.Log.Error("a page of the console has a fault", "page", name, "err", err)
		http.Error(w, "this page has a fault, which is in the gate's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes())
}

// pathOf is the address of a page, for it to be asked for again by itself.
func pathOf(r *http.Request) string {
	q := r.URL.Query()
	q.Set("live", "")
	return r.URL.Path + "?" + q.Encode()
}

// failPage says in a page that something could not be done.
func (s *Server) failPage(w http.ResponseWriter, r *http.Request, status int, err error) {
	var who *actor
	if n, ok := s.logins.find(s.cookie(r, loginCookie), false); ok {
		who = &n.actor
	}
	s.show(w, r, status, "error", who, view{Title: http.StatusText(status), Data: sentence(err.Error())})
}

// page is the handler of a page that is looked at.
func (s *Server) page(needs Role, name string, topics string, f func(*http.Request, actor) (title, nav string, data any, err error)) http.Handler {
	return s.guarded(needs, func(w http.ResponseWriter, r *http.Request, who actor) {
		title, nav, data, err := f(r, who)
		if err != nil {
			s.fail(w, r, statusOf(err), err)
			return
		}
		s.show(w, r, http.StatusOK, name, &who, view{Title: title, Nav: nav, Topics: topics, Data: data})
	})
}

// form is the handler of a form: it does something, and shows a page on which stands what came of it.
func (s *Server) form(needs Role, action string, f func(*http.Request, actor) (where string, what notice, err error)) http.Handler {
	return s.guarded(needs, func(w http.ResponseWriter, r *http.Request, who actor) {
		where, what, err := f(r, who)
		if action != "" {
			s.did(who, from(r), action, target(r), err)
		}
		if err != nil {
			what = notice{Text: err.Error(), Failed: true}
		}
		if what.Text != "" {
			s.logins.tell(who.login, what)
		}
		http.Redirect(w, r, where, http.StatusSeeOther) //nolint:gosec // each form names its own pages, and the consent page of a grant
	})
}

const (
	liveGrants   = "sse:grants, sse:tick"
	liveRequests = "sse:decisions, sse:tick"
	liveAll      = "sse:grants, sse:decisions, sse:tick"
)

// pages registers the pages and their forms.
func (s *Server) pages(mux *http.ServeMux) (err error) {
	if s.templates, err = parsePages(); err != nil {
		return err
	}
	mux.HandleFunc("GET /login", s.loginPage)
	mux.HandleFunc("POST /login", s.loginByLink)
	mux.HandleFunc("GET /login/start", s.loginStart)
	mux.HandleFunc("GET /login/callback", s.loginCallback)
	mux.Handle("POST /logout", s.guarded(Viewer, s.logout))
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, asset("icon.svg"), http.StatusSeeOther)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.fail(w, r, http.StatusNotFound, errNoPage) })

	mux.Handle("GET /{$}", s.page(Viewer, "overview", liveAll, s.overviewPage))
	mux.Handle("GET /grants/{grant}", s.page(Viewer, "grant", liveGrants, s.grantPage))
	mux.Handle("GET /connects/{id}", s.page(Operator, "connect", liveGrants, s.connectPage))
	mux.Handle("GET /callback", s.guarded(Operator, s.callback))
	mux.Handle("GET /requests", s.page(Viewer, "requests", liveRequests, s.requestsPage))
	mux.Handle("GET /workers", s.page(Viewer, "workers", liveAll, s.workersPage))
	mux.Handle("GET /routes", s.page(Viewer, "routes", liveGrants, s.routesPage))
	mux.Handle("GET /configuration", s.page(Operator, "configuration", "", s.configurationPage))
	mux.Handle("GET /access", s.page(Admin, "access", "", s.accessPage))

	mux.Handle("POST /grants/{grant}/connect", s.form(Operator, "grant.connect.begin", s.connectForm))
	mux.Handle("POST /connects/{id}/answer", s.form(Operator, "", s.answerForm))
	mux.Handle("POST /grants/{grant}/refresh", s.form(Operator, "grant.refresh", s.refreshForm))
	mux.Handle("POST /grants/{grant}/disconnect", s.form(Operator, "grant.disconnect", s.disconnectForm))
	mux.Handle("POST /grants/{grant}/import", s.form(Operator, "grant.import", s.importForm))
	mux.Handle("POST /workers/{worker}/revoke", s.form(Operator, "session.revoke", s.revokeForm))
	mux.Handle("POST /sessions/{id}/revoke", s.form(Operator, "session.revoke", s.revokeForm))
	mux.Handle("POST /access/tokens", s.form(Admin, "token.create", s.tokenForm))
	mux.Handle("POST /access/tokens/{token}/end", s.form(Admin, "token.end", s.endTokenForm))
	return nil
}

// Log-in.

type loginView struct {
	OIDC  bool
	Token string // of the link; empty: none came along
	Link  bool   // there are links
	Next  string
	Error string
}

func (s *Server) showLogin(w http.ResponseWriter, r *http.Request, status int, problem string) {
	q := r.URL.Query()
	s.show(w, r, status, "login", nil, view{Title: "Log in", Data: loginView{
		OIDC: s.oidc != nil, Link: s.NewLink != nil, Token: q.Get("token"), Next: local(q.Get("next")), Error: problem,
	}})
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	s.showLogin(w, r, http.StatusOK, "")
}

// loginByLink takes the token of a one-time link: in a form, so that nothing that only looks at links spends it.
func (s *Server) loginByLink(w http.ResponseWriter, r *http.Request) {
	if wait := s.limiter.wait(from(r), s.now()); wait > 0 {
		s.unknown(w, r, tooMany(wait))
		return
	}
	if s.NewLink == nil || !s.logins.spend(r.PostFormValue("token")) {
		s.limiter.failed(from(r), s.now())
		err := errors.New("this link is not good any more: each is good once")
		s.did(actor{Via: "link"}, from(r), "login", "", err)
		s.showLogin(w, r, http.StatusForbidden, "This link is not good any more: each is good once. `wayleave console` prints a new one.")
		return
	}
	s.newLink()
	s.welcome(w, r, actor{Name: "local operator", Role: Admin, Via: "link"}, r.PostFormValue("next"))
}

// welcome logs somebody in, under a new id whatever the browser had before.
func (s *Server) welcome(w http.ResponseWriter, r *http.Request, who actor, next string) {
	id := s.logins.begin(who, s.cookie(r, loginCookie))
	s.setCookie(w, loginCookie, id)
	s.did(who, from(r), "login", "", nil)
	http.Redirect(w, r, local(next), http.StatusSeeOther)
}

func (s *Server) loginStart(w http.ResponseWriter, r *http.Request) {
	if s.oidc == nil {
		s.fail(w, r, http.StatusNotFound, errNoPage)
		return
	}
	to, cookie, err := s.oidc.begin(r.Context(), local(r.URL.Query().Get("next")))
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
	if wait := s.limiter.wait(from(r), s.now()); wait > 0 {
		s.unknown(w, r, tooMany(wait))
		return
	}
	who, next, err := s.oidc.finish(r, s.cookie(r, askedCookie))
	s.setCookie(w, askedCookie, "")
	if err != nil {
		s.limiter.failed(from(r), s.now())
		who.Via = "oidc"
		s.did(who, from(r), "login", "", err)
		r.URL.RawQuery = "" // it has a code in it
		s.showLogin(w, r, http.StatusForbidden, sentence(err.Error()))
		return
	}
	s.welcome(w, r, who, next)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request, who actor) {
	if who.login != nil {
		s.logins.end(who.login)
	}
	s.did(who, from(r), "logout", "", nil)
	s.setCookie(w, loginCookie, "")
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// Overview.

type overviewView struct {
	Grants   []grant.Summary
	Needs    []need
	Warning  string
	Refusals []Refusals
	Minutes  minutesChart
	Fleet    []Node
	Healthy  int
	May      bool // connect and such
}

// need is a grant that an operator should do something about.
type need struct {
	Grant  grant.Summary
	Advice advice
}

const refusalsFor = time.Hour

func (s *Server) overviewPage(r *http.Request, who actor) (string, string, any, error) {
	all, err := s.grants(r.Context())
	if err != nil {
		return "", "", nil, err
	}
	v := overviewView{
		Grants: all.Grants, Warning: all.Warning, Refusals: s.Decisions.refusals(s.now().Add(-refusalsFor)), Fleet: s.Fleet(), May: who.Role.may(Operator),
		Minutes: chartMinutes(s.Decisions.perMinute(s.now(), countedMinutes)),
	}
	for _, g := range all.Grants {
		if a := s.advise(g); a.Action != "" || a.Text != "" {
			v.Needs = append(v.Needs, need{g, a})
		}
		if g.State == grant.Healthy || g.State == grant.Refreshing {
			v.Healthy++
		}
	}
	slices.SortStableFunc(v.Needs, func(a, b need) int { return cmp.Compare(urgency(b.Grant.State), urgency(a.Grant.State)) })
	return "Overview", "overview", v, nil
}

// urgency orders what needs somebody: first what fails.
func urgency(st grant.State) int {
	return slices.Index([]grant.State{
		grant.Degraded, grant.Ambiguous, grant.NeverConnected, grant.ScopeMissing, grant.RefreshUnavailable, grant.VaultUnavailable, grant.NeedsReconnect,
	}, st)
}

// Grants.

type grantView struct {
	GrantDetail
	Advice  advice
	Scopes  []scopeRow
	Chart   refreshChart
	History []grant.Event // the newest first
	May     bool
	Device  bool // it can be connected by device too
	Pasting bool // its consent page shows a code; else the browser comes back
	Import  bool // it takes an import
	Refresh bool // a gate could refresh it
	Where   string
	Wanted  string // the account to connect
}

func (s *Server) grantPage(r *http.Request, who actor) (string, string, any, error) {
	name := r.PathValue("grant")
	d, err := s.detail(r.Context(), name)
	if err != nil {
		return "", "", nil, err
	}
	v := grantView{
		GrantDetail: d, Advice: s.advise(d.Grant), Scopes: scopeRows(d.Grant), Chart: chartRefreshes(d.Grant.History), May: who.Role.may(Operator),
		Pasting: s.Desk.FixedRedirect(name) != "", Refresh: s.Desk.CanRefresh(d.Grant) == nil, Wanted: s.Desk.Config.Grants[name].Account,
	}
	v.History = slices.Clone(d.Grant.History)
	slices.Reverse(v.History)
	v.Device = len(d.Ways) > 1 && d.Ways[1] == operate.ByDevice
	_, err = s.Desk.CanImport(name)
	v.Import = err == nil
	if p, ok := s.Desk.Config.ProviderOf(name); ok {
		if u, err := url.Parse(cmp.Or(p.AuthorizeURL, p.DeviceURL)); err == nil {
			v.Where = u.Host
		}
	}
	return name, "overview", v, nil
}

func (s *Server) connectForm(r *http.Request, who actor) (string, notice, error) {
	name := r.PathValue("grant")
	f, err := s.beginConnect(r.Context(), who, from(r), name, operate.Way(r.PostFormValue("way")), r.PostFormValue("paste") != "")
	if err != nil {
		return "/grants/" + name, notice{}, err
	}
	if f.Way == string(operate.ByCode) && !f.Pasted {
		return f.URL, notice{}, nil // and the browser comes back by itself
	}
	return "/connects/" + f.ID, notice{}, nil
}

type connectView struct {
	Flow
	Account string
	Host    string
}

func (s *Server) connectPage(r *http.Request, who actor) (string, string, any, error) {
	f, ok := s.flows.find(r.PathValue("id"), who.owner())
	if !ok {
		return "", "", nil, errFlowGone
	}
	v := connectView{Flow: f, Account: s.Desk.Config.Grants[f.Grant].Account}
	if u, err := url.Parse(f.URL); err == nil {
		v.Host = u.Host
	}
	return "Connect " + f.Grant, "overview", v, nil
}

func (s *Server) answerForm(r *http.Request, who actor) (string, notice, error) {
	f, err := s.answer(r.Context(), who, r.PathValue("id"), r.PostFormValue("answer"))
	if err != nil {
		return "/", notice{}, err
	}
	if f.State == FlowWaiting {
		return "/connects/" + f.ID, notice{Text: f.Error, Failed: true}, nil
	}
	return "/grants/" + f.Grant, outcome(f), nil
}

// outcome is what came of a connect.
func outcome(f Flow) notice {
	if f.State == FlowConnected {
		return notice{Text: f.Grant + " is connected."}
	}
	return notice{Text: f.Error, Failed: true}
}

// callback is where a provider sends the browser back to. Only the log-in that began a connect finishes it, and once.
func (s *Server) callback(w http.ResponseWriter, r *http.Request, who actor) {
	state := r.URL.Query().Get("state")
	x, ok := s.flows.take(who.owner(), func(x *flow) bool { return !x.Pasted && state != "" && x.consent.State() == state })
	if !ok {
		s.did(who, from(r), "grant.connect", "", errFlowGone)
		r.URL.RawQuery = ""
		s.fail(w, r, http.StatusForbidden, errFlowGone)
		return
	}
	f := s.finishConnect(r.Context(), x, r.URL.String())
	s.logins.tell(who.login, outcome(f))
	http.Redirect(w, r, "/grants/"+f.Grant, http.StatusSeeOther)
}

func (s *Server) refreshForm(r *http.Request, _ actor) (string, notice, error) {
	name := r.PathValue("grant")
	_, err := s.refreshNow(r.Context(), name)
	return "/grants/" + name, notice{Text: name + " was refreshed."}, err
}

func (s *Server) disconnectForm(r *http.Request, _ actor) (string, notice, error) {
	name := r.PathValue("grant")
	back := "/grants/" + name
	if r.PostFormValue("name") != name {
		return back, notice{}, errors.New("nothing was changed: the name was not typed as it is")
	}
	end, err := s.disconnectNow(r.Context(), name, r.PostFormValue("keep") == "")
	if err != nil {
		return back, notice{}, err
	}
	if _, configured := s.Desk.Config.Grants[name]; !configured {
		back = "/"
	}
	text := name + " is disconnected, and its tokens were revoked at the provider."
	if !end.Revoked {
		because := strings.Replace(end.Because, "it was not asked for (--no-revoke)", "that was not asked for", 1)
		text = fmt.Sprintf("%s is disconnected. Its tokens were not revoked at the provider: %s.", name, because)
	}
	return back, notice{Text: text}, nil
}

func (s *Server) importForm(r *http.Request, _ actor) (string, notice, error) {
	name := r.PathValue("grant")
	got, err := s.importNow(r.Context(), name, r.PostFormValue("value"))
	text := name + " is imported."
	if got.Warning != "" {
		text += " " + sentence(got.Warning)
	}
	return "/grants/" + name, notice{Text: text}, err
}

// Requests.

type requestsView struct {
	Filter    Filter
	Decisions []Decision
	Filtered  bool
	Minutes   minutesChart
	Grants    []string
	Workers   []string
	Reasons   []string
}

const shownRequests = 200

func (s *Server) requestsPage(r *http.Request, _ actor) (string, string, any, error) {
	f := filterOf(r.URL.Query().Get)
	v := requestsView{Filter: f, Filtered: f != Filter{}, Decisions: s.Decisions.Last(f, shownRequests), Minutes: chartMinutes(s.Decisions.perMinute(s.now(), countedMinutes))}
	seen := map[string]bool{}
	add := func(list *[]string, kind, value string) {
		if value != "" && !seen[kind+value] {
			seen[kind+value] = true
			*list = append(*list, value)
		}
	}
	for _, d := range append(s.Decisions.Last(Filter{}, 1<<30), Decision{Worker: f.Worker, Grant: f.Grant, Reason: f.Reason}) {
		add(&v.Workers, "w", d.Worker)
		add(&v.Grants, "g", d.Grant)
		add(&v.Reasons, "r", d.Reason)
	}
	for _, list := range [][]string{v.Workers, v.Grants, v.Reasons} {
		slices.Sort(list)
	}
	return "Requests", "requests", v, nil
}

// Workers.

type workersView struct {
	Workers
	May bool
}

func (s *Server) workersPage(r *http.Request, who actor) (string, string, any, error) {
	all, err := s.workers(r.Context())
	return "Workers", "workers", workersView{all, who.Role.may(Operator)}, err
}

func (s *Server) revokeForm(r *http.Request, _ actor) (string, notice, error) {
	what, err := s.revoke(r.Context(), Revoked{Worker: r.PathValue("worker"), Session: r.PathValue("id")})
	text := "Session " + what.Session + " is ended: its requests are refused within five seconds."
	if what.Worker != "" {
		text = "All sessions of " + what.Worker + " are ended: their requests are refused within five seconds. Its next sessions are good."
	}
	return "/workers", notice{Text: text}, err
}

// Routes and configuration.

func (s *Server) routesPage(*http.Request, actor) (string, string, any, error) {
	return "Routes", "routes", s.allRoutes(), nil
}

type configurationView struct {
	Configuration
	Lines []diffLine
	Same  bool // what is on disk means the same as what runs
}

type diffLine struct{ Kind, Text string }

func (s *Server) configurationPage(*http.Request, actor) (string, string, any, error) {
	c := s.configurationNow()
	v := configurationView{Configuration: c, Same: c.OnDisk == c.Revision}
	for _, l := range strings.Split(c.Diff, "\n") {
		kind := map[bool]string{true: "added"}[strings.HasPrefix(l, "+")]
		if strings.HasPrefix(l, "-") {
			kind = "removed"
		}
		if l != "" {
			v.Lines = append(v.Lines, diffLine{kind, l})
		}
	}
	return "Configuration", "configuration", v, nil
}

// Access.

type accessView struct {
	Tokens []Token
	Roles  []Role
	API    string
}

func (s *Server) accessPage(r *http.Request, _ actor) (string, string, any, error) {
	all, err := s.tokens.list(r.Context())
	return "Access", "access", accessView{all, roles, s.URL.JoinPath(apiRoot).String()}, err
}

func (s *Server) tokenForm(r *http.Request, who actor) (string, notice, error) {
	t, text, err := s.tokens.create(r.Context(), r.PostFormValue("name"), Role(r.PostFormValue("role")), who.Name)
	return "/access", notice{Text: "The token of " + t.Name + " is shown this once:", Secret: text.Reveal()}, err
}

func (s *Server) endTokenForm(r *http.Request, _ actor) (string, notice, error) {
	name := r.PathValue("token")
	return "/access", notice{Text: "The token of " + name + " is ended."}, s.tokens.end(r.Context(), name)
}
