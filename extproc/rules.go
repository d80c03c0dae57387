package extproc

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	rules "wayleave/policy"
)

// The rules that operators write look at facts. This file makes them of what is left of a request once everything else is
// decided: what is a fact is what will be sent.

// judge lets the rules of the session's profile decide about a request that would be forwarded.
func (p *policy) judge(d *decision, r *request, now time.Time) {
	set := p.rules[d.session.Profile]
	if set == nil || d.refusal != nil || d.answer != nil {
		return
	}
	f, target := d.forwarded(r, now)
	d.credential = f.Credential
	path, query, _ := strings.Cut(target, "?")
	queries := []map[string][]string{nil}
	if set.LooksAt("query") {
		queries = queryReadings(query)
	}
	if set.LooksAt("headers") {
		f.Headers = p.uncredentialed(r.headers)
	}
	v := verdictOn(set, r, f, path, queries)
	if v.Action == rules.Hold && v.Rule == r.approved {
		v.Action = rules.Allow
	}
	p.apply(d, v)
}

// verdictOn is what the rules say of a request with this path and these readings of its query. It makes the readings part of f.
func verdictOn(set *rules.Set, r *request, f *rules.Facts, path string, queries []map[string][]string) rules.Verdict {
	if r.evades(set) {
		return rules.Verdict{Action: rules.Deny, Words: overridden}
	}
	paths := []string{path}
	if set.LooksAt("path") {
		var few bool
		if paths, few = readings(path); !few || len(paths) > maxJudged {
			return rules.Verdict{Action: rules.Deny, Words: "the path can be read in too many ways; send it in its plain form"}
		}
	}
	f.Others = nil
	for _, path := range paths {
		for _, query := range queries {
			f.Others = append(f.Others, rules.Reading{Path: path, Query: query})
		}
	}
	f.Reading, f.Others = f.Others[0], f.Others[1:]
	return set.Decide(f)
}

// maxJudged is how many readings of a path rules are asked about.
const maxJudged = 64

// judgeTunnel lets the rules decide about a tunnel, of which they know where it leads and nothing of what is sent in it.
func (p *policy) judgeTunnel(d *decision, r *request, now time.Time) {
	set := p.rules[d.session.Profile]
	if set == nil || d.refusal != nil {
		return
	}
	p.apply(d, set.Decide(d.tunnelled(r, now)))
}

// facts are those that every request has.
func (d *decision) facts(r *request, now time.Time) *rules.Facts {
	return &rules.Facts{
		Worker: d.session.Worker, Profile: d.session.Profile, Session: d.session.ID, Subject: d.session.Subject, Source: r.source, Now: now,
		Host: d.to.host, Port: int(d.to.port), Method: r.method,
	}
}

// tunnelled are the facts of a tunnel.
func (d *decision) tunnelled(r *request, now time.Time) *rules.Facts {
	f := d.facts(r, now)
	f.Method, f.Opaque = http.MethodConnect, true
	return f
}

// forwarded are the facts of a request that would be forwarded, but for its path and query, which are beside them, and its
// headers.
func (d *decision) forwarded(r *request, now time.Time) (f *rules.Facts, target string) {
	f, target = d.facts(r, now), r.path
	if d.route != nil {
		f.Route = d.route.Name
		target = takeParameter(r.path, d.route.ParameterIn).rest // which holds a credential
	}
	if f.Credential = d.credential; d.swap != nil {
		f.Credential = d.swap.grant
	}
	return f, target
}

// apply makes a verdict part of the decision; a profile that is tried out only takes note of it.
func (p *policy) apply(d *decision, v rules.Verdict) {
	d.rule, d.verdict = v.Rule, v.Action
	if v.Action == rules.Allow {
		return
	}
	f := &refusal{reason: policyDenied, host: d.host, detail: v.Words, cause: v.Err}
	if v.Action == rules.Hold { // what cannot wait is refused
		f.reason = approvalNeeded
	}
	if d.route != nil {
		f.grant, f.header = d.route.Credential, d.route.HeaderIn
	}
	if p.profiles[d.session.Profile].DryRun {
		d.wouldRefuse = f
		return
	}
	if v.Action == rules.Hold {
		d.held = &v
	}
	d.refusal, d.swap = f, nil
}

// logDryRun writes the line of a request that the rules of its profile would have refused or held.
func (s *Server) logDryRun(ctx context.Context, d decision, requestID string) {
	if d.wouldRefuse.reason == approvalNeeded {
		s.log.LogAttrs(ctx, slog.LevelWarn, "dry run: request would be held", d.attributes(d.wouldRefuse, requestID)...)
		return
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "dry run: request would be refused", d.attributes(d.wouldRefuse, requestID)...)
}

// queryReadings returns the ways in which servers may read a query: parameters are separated by &, and to some by ; too.
func queryReadings(query string) []map[string][]string {
	all := []map[string][]string{parameterMap(query, "&")}
	if strings.Contains(query, ";") {
		all = append(all, parameterMap(query, "&;"))
	}
	return all
}

// parameterMap reads a query as forms are sent (WHATWG URL, application/x-www-form-urlencoded), but leaves bytes that are no
// UTF-8 as they are.
func parameterMap(query, separators string) map[string][]string {
	out := map[string][]string{}
	for pair := range strings.FieldsFuncSeq(query, func(c rune) bool { return strings.ContainsRune(separators, c) }) {
		name, value, _ := strings.Cut(pair, "=")
		name = percentDecode(strings.ReplaceAll(name, "+", " "))
		out[name] = append(out[name], percentDecode(strings.ReplaceAll(value, "+", " ")))
	}
	return out
}

// secretHeaders hold credentials whether a route says so or not.
var secretHeaders = map[string]bool{"api-key": true, "cookie": true, "private-token": true, "proxy-authorization": true, "x-goog-api-key": true}

// uncredentialed are the headers without those that hold credentials; lines of one name are joined (RFC 9110 section 5.3).
func (p *policy) uncredentialed(headers []header) map[string]string {
	out := make(map[string]string, len(headers))
	for _, h := range headers {
		if p.isCredential(h.name) || secretHeaders[canonical(h.name)] {
			continue
		}
		if before, ok := out[h.name]; ok {
			out[h.name] = before + ", " + h.value
		} else {
			out[h.name] = h.value
		}
	}
	return out
}
