package console

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave/audit"
	"wayleave/operate"
)

// The audit is searched on the gate's own disk, which may take a while: the search says how far it got.
const (
	searchTime = 5 * time.Second
	shownAudit = 200
	mostAudit  = 1000
)

// AuditList is what a search of the audit found.
type AuditList struct {
	audit.Found
}

var auditParameters = []parameter{
	{"kind", "request, tunnel or operator; or gap: where records are missing"}, {"outcome", "swapped, passed, answered or refused; of operators' actions done or failed"}, {"reason", "only refusals for this reason"},
	{"worker", "only this worker's"}, {"session", "only this session's"}, {"grant", "only for this grant"}, {"host", "only where the host has this in it"},
	{"status", "only what was answered with this status, such as 429, or a class of them, such as 5xx"}, {"fingerprint", "only with the token that has this fingerprint"}, {"open", "true: only requests whose end is not known"},
	{"actor", "only what this operator did"}, {"request", "only the request with this id"}, {"text", "only where some text has this in it, whatever its case"},
	{"from", "only what began at this time or later (RFC 3339)"}, {"to", "only what began before this time (RFC 3339)"}, {"after", "only what is older than what was found before: what that answer has as next"}, {"limit", "how many at most, up to 1000; 200 if not said"},
}

func (s *Server) listAudit(c *call) (any, error) {
	f, limit, err := auditFilter(c.URL.Query())
	if err != nil {
		return nil, err
	}
	found, err := s.searchAudit(c.Context(), f, limit)
	return AuditList{found}, err
}

func (s *Server) searchAudit(ctx context.Context, f audit.Filter, limit int) (audit.Found, error) {
	if s.SearchAudit == nil {
		return audit.Found{}, &operate.Refusal{Kind: operate.NotNow, Words: "this gate keeps no audit: write audit.file into the configuration, and start it again"}
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	found, err := s.SearchAudit(ctx, f, limit)
	if errors.Is(err, audit.ErrPlace) {
		err = fmt.Errorf("%w: after %w", errBadRequest, err)
	}
	return found, err
}

// auditFilter reads what somebody looks for.
func auditFilter(q url.Values) (f audit.Filter, limit int, err error) {
	is := func(name string) string { return strings.TrimSpace(q.Get(name)) } // with what else was copied along
	f = audit.Filter{
		Kind: audit.Kind(is("kind")), Outcome: audit.Outcome(is("outcome")), Reason: is("reason"), Worker: is("worker"), Session: is("session"),
		Fingerprint: is("fingerprint"), Open: is("open") == "true", Grant: is("grant"), Host: is("host"), Actor: is("actor"), Request: is("request"), Text: q.Get("text"),
		After: audit.Place(is("after")),
	}
	for name, at := range map[string]*time.Time{"from": &f.From, "to": &f.To} {
		if *at, err = timeOf(is(name)); err != nil {
			return f, 0, fmt.Errorf("%w: %s is no time such as 2026-01-31T12:00:00Z", errBadRequest, name)
		}
	}
	if f.Status, err = audit.ParseStatuses(is("status")); err != nil {
		return f, 0, fmt.Errorf("%w: status: %w", errBadRequest, err)
	}
	limit = shownAudit
	if text := is("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > mostAudit {
			return f, 0, fmt.Errorf("%w: limit is not a number from 1 to %d", errBadRequest, mostAudit)
		}
	}
	return f, limit, nil
}

// timeOf reads a time as scripts write it, or as the field of a page does, which is in UTC; empty is none.
func timeOf(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var at time.Time
	var err error
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if at, err = time.Parse(layout, text); err == nil {
			break
		}
	}
	return at, err
}

// field is a time as the field of a page has it, which takes nothing else; empty for none.
func field(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format("2006-01-02T15:04:05")
}

type auditView struct {
	Filter   audit.Filter
	From, To string // as the fields have them
	Found    audit.Found
	None     string // why there is no audit
	Grants   []string
	Workers  []string
	Limit    int
	Older    string // the address of what is older; empty: there is no more
}

func (s *Server) auditPage(r *http.Request, _ actor) (string, string, any, error) {
	q := r.URL.Query()
	f, limit, err := auditFilter(q)
	if err != nil {
		return "", "", nil, err
	}
	v := auditView{Filter: f, From: field(f.From), To: field(f.To), Limit: limit, Grants: s.grantNames(), Workers: s.workerNames()}
	if s.SearchAudit == nil {
		v.None = "This gate keeps no audit. Write audit.file into the configuration, and start it again."
		return "Audit", "audit", v, nil
	}
	if v.Found, err = s.searchAudit(r.Context(), f, limit); v.Found.Next != "" {
		q.Set("after", string(v.Found.Next))
		v.Older = r.URL.Path + "?" + q.Encode()
	}
	return "Audit", "audit", v, err
}

func (s *Server) grantNames() []string { return slices.Sorted(maps.Keys(s.Desk().Config.Grants)) }

func (s *Server) workerNames() []string { return slices.Sorted(maps.Keys(s.Desk().Config.Workers)) }
