// Package audit owns the lasting account of what was done through a gate: which worker used which grant where, what was refused and
// why, and what operators changed. It says what a record holds and how records are found again; the file that they are kept in is
// package journal's.
//
// A record has nothing of what a request carried: no header, no query, no body, and of a token only a name that tells it from
// others.
package audit

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// FastLane is the one value of Record.Lane.
const FastLane = "fast"

// Record is one thing that was done, or refused.
type Record struct {
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`
	Gate string    `json:"gate,omitempty"` // that wrote it

	// Outcome is Swapped, Passed, Answered or Refused of a request, and Done or Failed of an operator's action.
	Outcome Outcome `json:"outcome"`
	// Reason is the x-wayleave-reason of a refusal, and the error of what failed.
	Reason string `json:"reason,omitempty"`
	// Cause is, where a placeholder was not the one that was due, how it differed: other_session, other_worker, other_credential, altered or
	// unknown_key; of a gap it is why records are missing.
	Cause string `json:"cause,omitempty"`
	// PlaceholderOf is the session of such a placeholder, if it has one.
	PlaceholderOf string `json:"placeholder_of,omitempty"`

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
	// Fingerprint is a keyed hash of the same token, by which one that somebody has found is looked up.
	Fingerprint string `json:"fingerprint,omitempty"`
	Rule        string `json:"rule,omitempty"`  // of the policy, that decided
	Trace       string `json:"trace,omitempty"` // id of the trace, where there is one
	// Lane is FastLane of a request that Envoy decided by what the gate had just decided of the same connection. Of such a one the gate hears when
	// it has ended.
	Lane string `json:"lane,omitempty"`

	// How it ended, as its Envoy told.
	Open       bool    `json:"open,omitempty"` // it had not when this was written: another line follows, unless its Envoy died
	Status     int     `json:"status,omitempty"`
	Received   int64   `json:"bytes_received,omitempty"` // from the worker
	Sent       int64   `json:"bytes_sent,omitempty"`     // to it
	DurationMS float64 `json:"duration_ms,omitempty"`
	Attempts   int     `json:"attempts,omitempty"`   // at the upstream
	Upstream   string  `json:"upstream,omitempty"`   // its address
	Protocol   string  `json:"protocol,omitempty"`   // the worker's
	Flags      string  `json:"flags,omitempty"`      // Envoy's words for what went wrong
	Details    string  `json:"details,omitempty"`    // Envoy's words for why it ended
	AfterOpen  bool    `json:"after_open,omitempty"` // a line that says that it is open came before, or may have
	Late       bool    `json:"late,omitempty"`       // it was counted as missing before

	// Of operators.
	Actor  string `json:"actor,omitempty"`
	Role   string `json:"role,omitempty"`
	Via    string `json:"via,omitempty"`
	From   string `json:"from,omitempty"` // the address of the connection
	Action string `json:"action,omitempty"`
	Target string `json:"target,omitempty"`

	// Of gaps.
	Dropped     uint64   `json:"dropped,omitempty"`     // records that are missing
	Requests    []string `json:"requests,omitempty"`    // ids of those, as far as they are known
	Sink        string   `json:"sink,omitempty"`        // that did not get Undelivered records, which the file has
	Undelivered uint64   `json:"undelivered,omitempty"` //

	// Where it is in the account.
	Run string `json:"run,omitempty"` // from a start of the gate to its end
	Seq uint64 `json:"seq,omitempty"` // 1, 2, … in a run; that of a gap comes after those that are missing
	// Prev is the hash of the line before, and Hash that of this one, where they are chained. They come last.
	Prev string `json:"prev,omitempty"`
	Hash string `json:"hash,omitempty"`
}

// Took is how long it took; 0: that is not known.
func (r *Record) Took() time.Duration {
	return time.Duration(r.DurationMS * float64(time.Millisecond))
}

// Kind is what a record is of.
type Kind string

// Kinds.
const (
	Request  Kind = "request"
	Tunnel   Kind = "tunnel" // a connection whose bytes pass untouched, or one that was refused
	Operator Kind = "operator"
	Gap      Kind = "gap" // that records are missing, here or in another place that gets them
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
	// Fingerprint is of the token that was sent.
	Fingerprint string
	Status      Statuses
	Open        bool   // only what has not ended
	Text        string // a part of any text of the record, whatever its case
	From        time.Time
	To          time.Time
	// After is where a search got to, which this one goes on from: only what is older.
	After Place
}

// Match reports whether the record is one of those.
func (f Filter) Match(r *Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(string(f.Kind), string(r.Kind)) && is(string(f.Outcome), string(r.Outcome)) && is(f.Reason, r.Reason) &&
		is(f.Worker, r.Worker) && is(f.Session, r.Session) && is(f.Grant, cmp.Or(r.Grant, r.grantTarget())) && is(f.Request, r.Request) && is(f.Actor, r.Actor) &&
		is(f.Fingerprint, r.Fingerprint) && f.Status.has(r.Status) && (!f.Open || r.Open) &&
		strings.Contains(r.Host, f.Host) &&
		(f.From.IsZero() || !r.Time.Before(f.From)) && (f.To.IsZero() || r.Time.Before(f.To)) &&
		(f.Text == "" || r.says(strings.ToLower(f.Text)))
}

// Statuses are some of HTTP's: one, or a class of them such as 5xx. Empty: all, and none.
type Statuses string

// ParseStatuses reads them.
func ParseStatuses(text string) (Statuses, error) {
	s := Statuses(strings.ToLower(text))
	if s == "" {
		return s, nil
	}
	for i, c := range s {
		if (c < '0' || c > '9') && (i == 0 || c != 'x') {
			return "", fmt.Errorf("%q is neither a status such as 429 nor a class of them such as 5xx", text)
		}
	}
	if len(s) != 3 || s[0] < '1' || s[0] > '5' || s[1] == 'x' && s[2] != 'x' {
		return "", fmt.Errorf("%q is neither a status such as 429 nor a class of them such as 5xx", text)
	}
	return s, nil
}

func (s Statuses) has(status int) bool {
	if s == "" {
		return true
	}
	got := strconv.Itoa(status)
	if len(got) != len(s) {
		return false
	}
	for i := range got {
		if s[i] != 'x' && s[i] != got[i] {
			return false
		}
	}
	return true
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
	for _, s := range []string{r.Reason, r.Cause, r.PlaceholderOf, r.Worker, r.Session, r.Grant, r.Route, r.Host, r.Method, r.Path, r.Request, r.Source, r.Actor, r.From, r.Action, r.Target, r.Token, r.Fingerprint, r.Rule, r.Trace, r.Details, r.Flags, r.Upstream} {
		if strings.Contains(strings.ToLower(s), text) {
			return true
		}
	}
	return false
}
