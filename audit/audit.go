// Package audit owns the lasting account of what was done through a gate: which worker used which grant where, what was refused and
// why, and what operators changed. It says what a record holds and how records are found again; the file that they are kept in is
// package journal's.
//
// A record has nothing of what a request carried: no header, no query, no body, and of a token only a name that tells it from
// others.
package audit

import (
	"cmp"
	"strings"
	"time"
)

// Record is one thing that was done, or refused.
type Record struct {
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`
	Gate string    `json:"gate,omitempty"` // that wrote it

	// Outcome is Swapped, Passed, Answered or Refused of a request, and Done or Failed of an operator's action.
	Outcome Outcome `json:"outcome"`
	// Reason is the x-wayleave-reason of a refusal, and the error of what failed.
	Reason string `json:"reason,omitempty"`

	// Of requests.
	Worker   string `json:"worker,omitempty"`
	Session  string `json:"session,omitempty"`
	Grant    string `json:"grant,omitempty"`
	Route    string `json:"route,omitempty"`
	Host     string `json:"host,omitempty"` // with its port, unless that is 443
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`     // without its query
	Request  string `json:"request,omitempty"`  // id
	Source   string `json:"source,omitempty"`   // the worker's address
	Revision string `json:"revision,omitempty"` // of the configuration that was decided by, its first 12 digits
	Token    string `json:"token,omitempty"`    // tells the token that was sent from others of the grant; it is not made from it

	// Of operators.
	Actor  string `json:"actor,omitempty"`
	Role   string `json:"role,omitempty"`
	Via    string `json:"via,omitempty"`
	From   string `json:"from,omitempty"` // the address of the connection
	Action string `json:"action,omitempty"`
	Target string `json:"target,omitempty"`
}

// Kind is what a record is of.
type Kind string

// Kinds.
const (
	Request  Kind = "request"
	Tunnel   Kind = "tunnel" // a connection whose bytes pass untouched, or one that was refused
	Operator Kind = "operator"
)

// Outcome is what became of it.
type Outcome string

// Outcomes.
const (
	Swapped Outcome = "swapped"
	Passed  Outcome = "passed"
	Refused Outcome = "refused"
	// Answered by the gate itself, with nothing that is real: nothing went to the provider.
	Answered Outcome = "answered"
	Done     Outcome = "done"
	Failed   Outcome = "failed"
)

// Filter says which records somebody looks for. What is empty is not looked at.
type Filter struct {
	Kind    Kind
	Outcome Outcome
	Reason  string
	Worker  string
	Session string
	Grant   string
	Request string
	Actor   string
	Host    string // a part of it
	Text    string // a part of any text of the record, whatever its case
	From    time.Time
	To      time.Time
}

// Match reports whether the record is one of those.
func (f Filter) Match(r *Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(string(f.Kind), string(r.Kind)) && is(string(f.Outcome), string(r.Outcome)) && is(f.Reason, r.Reason) &&
		is(f.Worker, r.Worker) && is(f.Session, r.Session) && is(f.Grant, cmp.Or(r.Grant, r.grantTarget())) && is(f.Request, r.Request) && is(f.Actor, r.Actor) &&
		strings.Contains(r.Host, f.Host) &&
		(f.From.IsZero() || !r.Time.Before(f.From)) && (f.To.IsZero() || r.Time.Before(f.To)) &&
		(f.Text == "" || r.says(strings.ToLower(f.Text)))
}

// grantTarget is the grant that an operator did something to.
func (r *Record) grantTarget() string {
	if strings.HasPrefix(r.Action, "grant.") {
		return r.Target
	}
	return ""
}

// says reports whether some text of the record has this in it, which is in lower case.
func (r *Record) says(text string) bool {
	for _, s := range []string{r.Reason, r.Worker, r.Session, r.Grant, r.Route, r.Host, r.Method, r.Path, r.Request, r.Source, r.Actor, r.From, r.Action, r.Target, r.Token} {
		if strings.Contains(strings.ToLower(s), text) {
			return true
		}
	}
	return false
}
