package console

import (
	"bytes"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/api"
	"wayleave/config"
	"wayleave/notify"
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
	Topics string // what it is asked for again upon; empty: nothing
	Me     *Me    // nil: nobody is logged in
	CSRF   string
	Notice notice
	Now    time.Time
	Data   any

	Version string
}

var pageNames = []string{"overview", "grant", "connect", "requests", "approvals", "workers", "fleet", "rollouts", "difference", "routes", "configuration", "audit", "access", "login", "error"}

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
	v.Now, v.Version = s.now(), s.Version
	if who != nil && who.login != nil {
		v.Me, v.CSRF, v.Path = &Me{who.Name, who.Role, who.Via}, who.login.csrf, pathOf(r, who.login)
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

// pathOf is the address of a page, for it to be asked for again by itself; it says for which log-in it was made.
func pathOf(r *http.Request, n *login) string {
	q := r.URL.Query()
	q.Set("live", n.mark())
	return r.URL.Path + "?" + q.Encode()
}

// otherLogin reports whether a page that asks by itself was made for a log-in of before: it has the name of who that was, and forms of theirs.
func otherLogin(r *http.Request, n *login) bool {
	of := r.URL.Query().Get("live")
	return of != "" && of != n.mark()
}

// failPage says in a page that something could not be done.
func (s *Server) failPage(w http.ResponseWriter, r *http.Request, status int, err error) {
	var who *actor
	if n, _, ok := s.logins.find(s.cookie(r, loginCookie), false); ok {
		who = &n.actor
	}
	if status == http.StatusNotFound && isLive(r) { // what somebody looks at is gone
		w.Header().Set("HX-Refresh", "true")
	}
	s.show(w, r, status, "error", who, view{Title: http.StatusText(status), Data: sentence(err.Error())})
}

// page is the handler of a page that is looked at.
func (s *Server) page(needs Role, name string, topics string, f func(*http.Request, actor) (title, nav string, data any, err error)) http.Handler {
	return s.guarded(needs, func(w http.ResponseWriter, r *http.Request, who actor) {
		if otherLogin(r, who.login) {
			w.Header().Set("HX-Refresh", "true")
			w.WriteHeader(http.StatusNoContent)
			return
		}
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
		http.Redirect(w, r, where, http.StatusSeeOther) //nolint:gosec // each form names its own pages
	})
}

// What pages are brought up to date upon, beside all.
const (
	liveGrants    = topicGrants + " " + topicTick
	liveRequests  = topicDecisions + " " + topicTick
	liveApprovals = topicApprovals + " " + topicTick
	liveFleet     = topicFleet + " " + topicTick
	liveSessions  = topicSessions + " " + topicTick
	liveAll       = topicGrants + " " + topicFleet + " " + topicDecisions + " " + topicApprovals + " " + topicTick
)

// pages registers the pages and their forms.
func (s *Server) pages(mux doors) (err error) {
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
	mux.Handle("GET /approvals", s.page(Viewer, "approvals", liveApprovals, s.approvalsPage))
	mux.Handle("GET /workers", s.page(Viewer, "workers", liveSessions, s.workersPage))
	mux.Handle("GET /fleet", s.page(Viewer, "fleet", liveFleet, s.fleetPage))
	mux.Handle("GET /rollouts", s.page(Viewer, "rollouts", liveFleet, s.rolloutsPage))
	mux.Handle("GET /rollouts/{from}/{to}", s.page(Operator, "difference", "", s.differencePage))
	mux.Handle("GET /routes", s.page(Viewer, "routes", liveGrants, s.routesPage))
	mux.Handle("GET /configuration", s.page(Operator, "configuration", liveFleet, s.configurationPage))
	mux.Handle("GET /audit", s.page(Operator, "audit", "", s.auditPage))
	mux.Handle("GET /access", s.page(Viewer, "access", "", s.accessPage))

	mux.Handle("POST /grants/{grant}/connect", s.form(Operator, "grant.connect.begin", s.connectForm))
	mux.Handle("POST /connects/{id}/answer", s.form(Operator, "", s.answerForm))
	mux.Handle("POST /grants/{grant}/refresh", s.form(Operator, "grant.refresh", s.refreshForm))
	mux.Handle("POST /grants/{grant}/disconnect", s.form(Operator, "grant.disconnect", s.disconnectForm))
	mux.Handle("POST /grants/{grant}/import", s.form(Operator, "grant.import", s.importForm))
	mux.Handle("POST /approvals/{id}/decide", s.form(Operator, "approval.decide", s.decideForm))
	mux.Handle("POST /approvals/{id}/forget", s.form(Operator, "approval.forget", s.forgetForm))
	mux.Handle("POST /workers/{worker}/revoke", s.form(Operator, "session.revoke", s.revokeForm))
	mux.Handle("POST /sessions/{id}/revoke", s.form(Operator, "session.revoke", s.revokeForm))
	mux.Handle("POST /fleet/{envoy}/drain", s.form(Operator, "fleet.drain", s.drainForm))
	mux.Handle("POST /fleet/{envoy}/undrain", s.form(Operator, "fleet.undrain", s.undrainForm))
	mux.Handle("POST /rollouts/pause", s.form(Operator, "rollout.pause", s.leadForm(operate.Desk.PauseRollout, "The rollout is paused. It still goes back by itself when something is wrong.")))
	mux.Handle("POST /rollouts/resume", s.form(Operator, "rollout.resume", s.leadForm(operate.Desk.ResumeRollout, "The rollout goes on. The step is watched anew.")))
	mux.Handle("POST /rollouts/promote", s.form(Admin, "rollout.promote", s.leadForm(operate.Desk.PromoteRollout, "Every Envoy gets the new revision now.")))
	mux.Handle("POST /rollouts/abort", s.form(Operator, "rollout.abort", s.leadForm(operate.Desk.AbortRollout, "Every Envoy goes back to the old revision.")))
	mux.Handle("POST /access/tokens", s.form(Viewer, "token.create", s.tokenForm))
	mux.Handle("POST /access/tokens/{token}/end", s.form(Viewer, "token.end", s.endTokenForm))
	return nil
}

// Requests.

type requestsView struct {
	Filter    Filter
	Decisions []Decision
	Found     int // of those that are remembered
	Kept      int // how many are remembered at most
	Filtered  bool
	Minutes   minutesChart
	Grants    []string
	Workers   []string
	Reasons   []string
}

const shownRequests = 200

func (s *Server) requestsPage(r *http.Request, _ actor) (string, string, any, error) {
	f := filterOf(r.URL.Query().Get)
	v := requestsView{Kept: s.Decisions.size(), Filter: f, Filtered: f != Filter{}, Minutes: chartMinutes(s.Decisions.perMinute(s.now(), countedMinutes))}
	v.Decisions = s.Decisions.Last(f, 1<<30)
	v.Found = len(v.Decisions)
	v.Decisions, _ = cut(v.Decisions, shownRequests)
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

// Routes and configuration.

type routesView struct {
	Shown  Routes
	Faults []need // for which hosts are refused
	Find   string // what their names or hosts have in them
	Many   bool   // more than fit a page
	Pages  pages
}

const shownRoutes = 100

func (s *Server) routesPage(r *http.Request, _ actor) (string, string, any, error) {
	v := routesView{Find: r.URL.Query().Get("find")}
	for _, a := range s.Needs() {
		if a.Kind == notify.Configuration && strings.Contains(a.Subject, v.Find) && len(v.Faults) < shownNeeds {
			v.Faults = append(v.Faults, s.need(a))
		}
	}
	var from, to int
	v.Shown = s.routesOf(func(all []config.Route) []config.Route {
		v.Many = len(all) > shownRoutes
		all = slices.DeleteFunc(slices.Clone(all), func(x config.Route) bool {
			return !strings.Contains(x.Name, v.Find) && !slices.ContainsFunc(x.Hosts, func(h string) bool { return strings.Contains(h, v.Find) })
		})
		from, to, v.Pages = part(r.URL, shownRoutes, len(all))
		return all[from:to]
	})
	return "Routes", "routes", v, nil
}

type configurationView struct {
	Configuration
	Lines []diffLine
	Same  bool // what is on disk means the same as what runs
}

type diffLine struct{ Kind, Text string }

func (s *Server) configurationPage(*http.Request, actor) (string, string, any, error) {
	c := s.configurationNow()
	return "Configuration", "configuration", configurationView{Configuration: c, Same: c.OnDisk == c.Revision, Lines: diffLines(c.Diff)}, nil
}

func diffLines(diff string) (lines []diffLine) {
	for _, l := range strings.Split(diff, "\n") {
		kind := map[bool]string{true: "added"}[strings.HasPrefix(l, "+")]
		if strings.HasPrefix(l, "-") {
			kind = "removed"
		}
		if l != "" {
			lines = append(lines, diffLine{kind, l})
		}
	}
	return lines
}

// Access.

type accessView struct {
	Tokens []Token
	Roles  []Role // that a token may have
	Days   []int  // that it may be good for
	Chosen int    // of them, at first
	All    bool   // everybody's tokens are shown
	API    string
}

func (s *Server) accessPage(r *http.Request, who actor) (string, string, any, error) {
	all, err := s.tokens.list(r.Context(), who)
	v := accessView{Tokens: all, Days: []int{1, 7, 30, tokenDays, 180, mostDays}, Chosen: tokenDays, All: who.Role.may(Admin), API: s.URL.JoinPath(api.Root).String()}
	for _, role := range roles {
		if who.Role.may(role) {
			v.Roles = append(v.Roles, role)
		}
	}
	return "Access", "access", v, err
}

func (s *Server) tokenForm(r *http.Request, who actor) (string, notice, error) {
	days, err := strconv.Atoi(r.PostFormValue("days"))
	if err != nil {
		days = 0 // as if it was not said
	}
	r.SetPathValue("token", r.PostFormValue("name")) // what the audit says that it was about
	t, text, err := s.tokens.create(r.Context(), who, r.PostFormValue("name"), Role(r.PostFormValue("role")), days)
	return "/access", notice{Text: "The token " + t.Name + " is shown this once:", Secret: text.Reveal()}, err
}

func (s *Server) endTokenForm(r *http.Request, who actor) (string, notice, error) {
	name := r.PathValue("token")
	return "/access", notice{Text: "The token " + name + " is ended."}, s.tokens.end(r.Context(), who, name)
}
