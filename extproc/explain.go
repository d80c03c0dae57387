package extproc

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	rules "wayleave/policy"
	"wayleave/secret"
	"wayleave/worker"
)

// Explainer says what a configuration makes of requests of which facts are known and nothing else: no session, no
// placeholder, no connection. It decides as a Server does, by the same steps.
type Explainer struct{ policy *policy }

// NewExplainer returns an Explainer of cfg.
func NewExplainer(cfg Config) *Explainer { return &Explainer{newPolicy(cfg)} }

// Explanation is what would become of a request.
type Explanation struct {
	// Verdict is rules.CannotTell when it depends on what is not known.
	Verdict rules.Action `json:"verdict"`
	Rule    string       `json:"rule,omitempty"`
	// Reason is that of the refusal.
	Reason string `json:"reason,omitempty"`
	// Words say why.
	Words string `json:"words,omitempty"`
	// DryRun says that the verdict would be noted and not carried out.
	DryRun bool `json:"dry_run,omitempty"`
	// As is how the host is reached: "route", "tunnel" or "plain"; empty: it is not.
	As         string `json:"as,omitempty"`
	Route      string `json:"route,omitempty"`
	Credential string `json:"credential,omitempty"`
	// Readings are the ways in which path and query can be read, where rules look at them. Empty: no rule was asked.
	Readings []ExplainedReading `json:"readings,omitempty"`
}

// ExplainedReading is what the rules say of one reading.
type ExplainedReading struct {
	rules.Reading
	Verdict rules.Action    `json:"verdict"`
	Rule    string          `json:"rule,omitempty"`
	Steps   []ExplainedStep `json:"steps"`
}

// ExplainedStep is what was found of one rule.
type ExplainedStep struct {
	Rule  string `json:"rule"`
	Found string `json:"found"`
}

// Replay explains a request that was told of, as of the moment it was decided.
func (e *Explainer) Replay(j rules.Judged) Explanation {
	f := j.Facts
	f.Now = j.Time
	_, unknown := f.Known["credential"]
	return e.explain(f, f.Credential != "" || unknown, !f.Opaque && e.policy.find(endpoint{f.Host, uint16(f.Port)}).plain) //nolint:gosec // a port
}

// Explain explains a request with the placeholder of its route; target is its path and query, and cleartext says that it is for an
// http URL.
func (e *Explainer) Explain(f rules.Facts, target string, cleartext bool) Explanation {
	path, query, _ := strings.Cut(target, "?")
	f.Others = nil
	for _, reading := range queryReadings(query) {
		f.Others = append(f.Others, rules.Reading{Path: path, Query: reading})
	}
	f.Reading, f.Others = f.Others[0], f.Others[1:]
	return e.explain(f, true, cleartext)
}

func (e *Explainer) explain(f rules.Facts, credential, cleartext bool) Explanation {
	p := e.policy
	profile, known := p.workers[f.Worker]
	if !known {
		return Explanation{Verdict: rules.Deny, Reason: sessionExpired, Words: "worker " + f.Worker + " is not in the configuration"}
	}
	to := endpoint{f.Host, uint16(f.Port)} //nolint:gosec // a port
	target := p.find(to)
	session := worker.Session{ID: standInID, Worker: f.Worker, Profile: profile, Subject: f.Subject}
	atProxy := request{method: http.MethodConnect, authority: to.String()}
	if cleartext {
		atProxy = request{method: f.Method, authority: to.String(), scheme: "http", path: targetOf(f.Reading)}
	}
	d := decision{by: p, host: to.String(), session: session}
	p.admit(&d, &atProxy)
	switch {
	case d.refusal != nil:
		return d.explained("")
	case cleartext:
		return e.judged(&d, &atProxy, &f, "plain")
	case d.tunnel:
		f.Method, f.Opaque, f.Reading, f.Others, f.Headers = http.MethodConnect, true, rules.Reading{}, nil, nil
		return e.judged(&d, &atProxy, &f, "tunnel")
	case f.Opaque:
		return Explanation{Verdict: rules.CannotTell, As: "route", Words: "it was a tunnel, and each request inside is decided by itself now"}
	}
	inside := request{
		method: f.Method, authority: to.String(), path: f.Path, identity: session.Identity(), connectAuthority: to.String(), serverName: f.Host,
	}
	route := p.routeFor(target, profile)
	if _, hidden := f.Known["path"]; hidden {
		inside.path = "/"
		if route != nil && len(route.Rules) > 0 || p.refusedPaths(to) != nil {
			return Explanation{Verdict: rules.CannotTell, As: "route", Words: "it depends on the path, which is not known of it"}
		}
	}
	if route != nil {
		for _, r := range append([]rules.Reading{f.Reading}, f.Others...) {
			delete(r.Query, route.ParameterIn) // which no rule sees
		}
		if inside.path == f.Path {
			inside.path = targetOf(f.Reading)
		}
		if credential {
			inside.headers = []header{{route.HeaderIn, standInFor(route)}}
		} else if route.choosy() {
			return Explanation{Verdict: rules.CannotTell, As: "route", Route: route.Name, Words: "it depends on whether it came with a credential of its own, which is not known of it"}
		}
	}
	d = p.assess(standIn{}, &inside, time.Time{})
	if d.refusal != nil {
		return d.explained("route")
	}
	if d.answer != nil {
		return Explanation{Verdict: rules.Allow, Words: "the gate answers it by itself"}
	}
	if d.swap != nil {
		f.Credential = d.swap.grant
	}
	f.Route = d.route.Name
	return e.judged(&d, &inside, &f, "route")
}

// targetOf is a path with its query.
func targetOf(r rules.Reading) string {
	if len(r.Query) == 0 {
		return r.Path
	}
	return r.Path + "?" + url.Values(r.Query).Encode()
}

// judged lets the rules decide, and says how they came to it.
func (e *Explainer) judged(d *decision, r *request, f *rules.Facts, as string) Explanation {
	p := e.policy
	f.Profile = d.session.Profile
	if as != "route" {
		f.Route, f.Credential = "", ""
	}
	set := p.rules[f.Profile]
	if set == nil {
		return Explanation{Verdict: rules.Allow, As: as, Route: f.Route, Credential: f.Credential}
	}
	queries := []map[string][]string{nil}
	if set.LooksAt("query") {
		queries[0] = f.Query
		for _, other := range f.Others {
			queries = append(queries, other.Query)
		}
	}
	v := verdictOn(set, r, f, f.Path, queries)
	d.rule, d.verdict = v.Rule, v.Action
	if v.Action != rules.CannotTell {
		p.apply(d, v)
	}
	x := d.explained(as)
	x.Route, x.Credential = f.Route, f.Credential
	switch {
	case v.Action == rules.Hold && as == "route": // it is not refused yet
		x.Reason, x.Words = "", v.Words
	case v.Action == rules.Hold:
		x.Verdict = rules.Deny
	case x.Words == "":
		x.Words = v.Words
	}
	for _, r := range append([]rules.Reading{f.Reading}, f.Others...) {
		v, steps := set.Steps(f, r)
		reading := ExplainedReading{Reading: r, Verdict: v.Action, Rule: v.Rule, Steps: []ExplainedStep{}}
		for _, s := range steps {
			found := s.Found
			if s.Err != nil {
				found += ": " + s.Err.Error()
			}
			reading.Steps = append(reading.Steps, ExplainedStep{s.Rule, found})
		}
		x.Readings = append(x.Readings, reading)
	}
	return x
}

// explained is a decision in words.
func (d *decision) explained(as string) Explanation {
	x := Explanation{Verdict: d.verdict, Rule: d.rule, As: as, DryRun: d.wouldRefuse != nil}
	if d.route != nil {
		x.Route = d.route.Name
	}
	f := d.refusal
	if f == nil {
		f = d.wouldRefuse
	}
	if f != nil {
		x.Reason, x.Words = f.reason, strings.TrimPrefix(f.message(), "wayleave: ")
		if x.Verdict == "" {
			x.Verdict = rules.Deny
		}
	}
	return x
}

// standIn takes the place of what knows sessions: the session is good, and has every placeholder.
type standIn struct{}

// standInID is the id of that session.
const standInID = "aaaaaaaaaaaaaaaaaaaaaaaa"

func (standIn) Verify(string, secret.Text) (worker.Session, error) {
	return worker.Session{}, worker.ErrUnknown
}
func (standIn) Check(worker.Session, time.Time) error                 { return nil }
func (standIn) Ends(s worker.Session) time.Time                       { return s.Expires }
func (standIn) Damaged(string) bool                                   { return false }
func (standIn) Placeholder(_ worker.Session, _, prefix string) string { return prefix + worker.Marker }
func (standIn) Recognize(_ string, s worker.Session, _, _ string) (worker.Session, worker.Mismatch) {
	return s, ""
}

// standInFor is a header of the route with a placeholder in it.
func standInFor(r *Route) string {
	value := r.PlaceholderPrefix + worker.Marker
	if strings.EqualFold(r.SchemeIn, "basic") {
		value = base64.StdEncoding.EncodeToString([]byte("x:" + value))
	}
	if r.SchemeIn != "" {
		value = r.SchemeIn + " " + value
	}
	return value
}
