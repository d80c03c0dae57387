package extproc

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	rules "wayleave/policy"
)

// Recording is who is told of each decision that depends on what an operator configured, and of which facts it was. Credentials
// are never told, nor decisions made because of one. What a rule could have seen and is not told is marked as not known.
type Recording struct {
	// To must not block. Nil: nobody is told.
	To func(rules.Judged)
	// Headers, in lower case, and Query are the names of those whose values are told.
	Headers, Query []string
}

// maxTold is how much is told of what a worker sent, in bytes each for path, query and headers; what is longer is not known.
const maxTold = 8 << 10

// maxMethod is how long a method may be of which anything is told; nobody has use for a longer one.
const maxMethod = 100

// configured are the reasons of refusals that depend on the configuration and the request alone.
var configured = []string{policyDenied, approvalNeeded, hostNotAllowed, tokenEndpoint}

// record tells of a decision.
func (s *Server) record(d *decision, r *request) {
	if s.records.To == nil || d.answer != nil || d.to == (endpoint{}) || len(r.method) > maxMethod || d.refusal != nil && d.verdict == "" && !slices.Contains(configured, d.refusal.reason) {
		return
	}
	if (d.refusal != nil || d.wouldRefuse != nil) && r.twisted() { // it may be because of a header, which is not told
		return
	}
	j := rules.Judged{Time: s.now().UTC(), Revision: shortRevision(d.by.revision), Verdict: d.verdict, Rule: d.rule, DryRun: d.wouldRefuse != nil}
	atProxy := r.connectAuthority == ""
	if j.Verdict == rules.Hold && atProxy { // what cannot wait is refused
		j.Verdict = rules.Deny
	}
	if d.refusal != nil && j.Verdict != rules.Hold {
		j.Reason = d.refusal.reason
	}
	unasked := d.verdict == "" && d.refusal != nil // because of what the configuration says besides
	switch {
	case unasked && d.route != nil && d.route.choosy(): // it may be because of a credential
		return
	case unasked:
		j.Verdict = rules.Deny
	case j.Verdict == "":
		j.Verdict = rules.Allow
	}
	p := d.by
	switch {
	case atProxy && r.method != http.MethodConnect && r.scheme != "http": // which nothing allows
		return
	case !atProxy || r.method != http.MethodConnect:
		j.Facts = s.records.facts(p, d, r)
	case d.refusal != nil || d.tunnel: // of other hosts each request is told
		j.Facts = *d.tunnelled(r, time.Time{})
	default:
		return
	}
	if unasked && !j.Facts.Opaque { // before its credential was looked at
		j.Facts.Known["credential"] = []string{}
	}
	s.records.To(j)
}

// choosy reports whether requests are refused because of a credential that is missing, or is no placeholder.
func (r *Route) choosy() bool {
	return r.Absent == Refuse || r.Foreign == Refuse || r.Foreign == Replace
}

// facts are those of a request that are told.
func (c Recording) facts(p *policy, d *decision, r *request) rules.Facts {
	f, target := d.forwarded(r, time.Time{})
	path, query, _ := strings.Cut(target, "?")
	f.Known = map[string][]string{"headers": {}, "query": {}}
	if f.Path = path; !tellable(path) {
		f.Path, f.Known["path"] = "", []string{}
	}
	if values := named(queryReadings(query), c.Query); len(values) > 0 {
		f.Query, f.Known["query"] = values[0], c.Query
		for _, other := range values[1:] {
			f.Others = append(f.Others, rules.Reading{Path: f.Path, Query: other})
		}
	}
	if values := named([]map[string]string{p.uncredentialed(r.headers)}, c.Headers); len(values) > 0 {
		f.Headers, f.Known["headers"] = values[0], c.Headers
	}
	return *f
}

// named are the parts of these maps that have the names; nothing where some of it cannot be told.
func named[T string | []string](maps []map[string]T, names []string) (parts []map[string]T) {
	size := 0
	for _, m := range maps {
		part := map[string]T{}
		for _, name := range names {
			value, there := m[name]
			if !there {
				continue
			}
			part[name] = value
			text := fmt.Sprint(value)
			if size += len(text); size > maxTold || !tellable(text) {
				return nil
			}
		}
		if len(names) > 0 && !slices.ContainsFunc(parts, func(p map[string]T) bool { return reflect.DeepEqual(p, part) }) {
			parts = append(parts, part)
		}
	}
	return parts
}

// tellable reports whether what a worker sent can be told: it is text, of a reasonable length, and no placeholder is in it.
func tellable(s string) bool { return len(s) <= maxTold && utf8.ValidString(s) && !holdsMarker(s) }
