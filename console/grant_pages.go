package console

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"wayleave/api"
	"wayleave/grant"
	"wayleave/operate"
)

type grantView struct {
	api.GrantDetail
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
}

func (s *Server) grantPage(r *http.Request, who actor) (string, string, any, error) {
	name := r.PathValue("grant")
	d, err := s.detail(r.Context(), name)
	if err != nil {
		return "", "", nil, err
	}
	v := grantView{
		GrantDetail: d, Advice: s.advise(d.Grant), Scopes: scopeRows(d.Grant), Chart: chartRefreshes(d.Grant.History), May: who.Role.may(Operator),
		Pasting: s.Desk().FixedRedirect(name) != "", Refresh: s.Desk().CanRefresh(d.Grant) == nil,
	}
	v.History = slices.Clone(d.Grant.History)
	slices.Reverse(v.History)
	v.Device = len(d.Ways) > 1 && d.Ways[1] == operate.ByDevice
	_, err = s.Desk().CanImport(name)
	v.Import = err == nil
	if p, ok := s.Desk().Config.ProviderOf(name); ok {
		if u, err := url.Parse(cmp.Or(p.AuthorizeURL, p.DeviceURL)); err == nil {
			v.Where = u.Host
		}
	}
	return name, "overview", v, nil
}

func (s *Server) connectForm(r *http.Request, who actor) (string, notice, error) {
	name := r.PathValue("grant")
	f, err := s.beginConnect(r.Context(), who, from(r), name, operate.Way(r.PostFormValue("way")), comesBack{pasted: r.PostFormValue("paste") != ""})
	if err != nil {
		return "/grants/" + name, notice{}, err
	}
	return "/connects/" + f.ID, notice{}, nil
}

type connectView struct {
	api.Flow
	Host   string
	Leaves bool // the browser goes to the provider, and comes back by itself
}

func (s *Server) connectPage(r *http.Request, who actor) (string, string, any, error) {
	f, ok := s.flows.find(r.PathValue("id"), who.owner())
	if !ok {
		return "", "", nil, errFlowGone
	}
	v := connectView{Flow: f, Leaves: f.State == api.FlowWaiting && f.Way == string(operate.ByCode) && !f.Pasted}
	if u, err := url.Parse(f.URL); err == nil {
		v.Host = u.Host
	}
	return "Connect " + f.Grant, "overview", v, nil
}

func (s *Server) answerForm(r *http.Request, who actor) (string, notice, error) {
	f, err := s.answer(r.Context(), who, r.PathValue("id"), r.PostFormValue("answer"))
	if err != nil {
		if f, known := s.flows.find(r.PathValue("id"), who.owner()); known { // its page says what became of it
			return "/connects/" + f.ID, notice{}, nil
		}
		return "/", notice{}, err
	}
	switch f.State {
	case api.FlowWaiting:
		return "/connects/" + f.ID, notice{Text: f.Error + "; paste it again", Failed: true}, nil
	case api.FlowStoring:
		return "/connects/" + f.ID, notice{}, nil
	}
	return "/grants/" + f.Grant, outcome(f), nil
}

// outcome is what came of a connect.
func outcome(f api.Flow) notice {
	if f.State == api.FlowConnected {
		text := f.Grant + " is connected."
		if note := f.Stored.Note(); note != "" {
			text += " " + sentence(note)
		}
		return notice{Text: text}
	}
	return notice{Text: fmt.Sprintf("connecting %s: %s", f.Grant, f.Error), Failed: true}
}

// callback is where a provider sends the browser back to. Only the log-in that began a connect finishes it, and once: who comes again, as by going
// back, sees what became of it.
func (s *Server) callback(w http.ResponseWriter, r *http.Request, who actor) {
	state := r.URL.Query().Get("state")
	this := func(x *flow) bool { return x.ours && state != "" && x.consent.State() == state }
	x, ok := s.flows.take(who.owner(), this)
	if f, known := s.flows.known(who.owner(), this); known && !ok {
		http.Redirect(w, r, "/connects/"+f.ID, http.StatusSeeOther)
		return
	}
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
	end, err := s.disconnectNow(r.Context(), name, r.PostFormValue("keep") == "", operate.AnswerTime)
	if err != nil {
		return back, notice{}, err
	}
	if _, configured := s.Desk().Config.Grants[name]; !configured {
		back = "/"
	}
	text := name + " is disconnected, and its tokens were revoked at the provider."
	if !end.Revoked {
		because := end.Because
		if because == operate.NotAsked {
			because = "that was not asked for"
		}
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
