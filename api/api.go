// Package api owns the operators' HTTP API as its clients see it: the JSON documents of what the command line does with grants,
// sessions and rollouts, and a Client. What a request does is package console's, which serves it; what may be done, package operate's.
//
//	wayleave grant … --api ── Client ──HTTP──▶ console ──▶ operate.Desk
package api

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave/approval"
	"wayleave/fleet"
	"wayleave/grant"
	"wayleave/operate"
	"wayleave/worker"
)

// Root is the path of the API at a console's address.
const Root = "/api/v1"

// Grants is a list of them.
type Grants struct {
	Grants  []grant.Summary `json:"grants"`
	Warning string          `json:"warning,omitempty"` // why the list is not all that could be said
}

// GrantDetail is one grant.
type GrantDetail struct {
	Grant   grant.Summary `json:"grant"`
	Account string        `json:"account,omitempty"` // to be connected, by the configuration
	Ways    []operate.Way `json:"ways,omitempty"`    // how it can be connected; none: it cannot
	Routes  []string      `json:"routes"`            // that send its credential
	Workers []string      `json:"workers"`           // that may use it
	Asked   string        `json:"asked,omitempty"`   // id of the refresh that was asked for; the grant's request is this one when it was carried out
	Warning string        `json:"warning,omitempty"`
}

// ConnectRequest says how to connect.
type ConnectRequest struct {
	Way operate.Way `json:"way,omitempty"` // code or device; the provider's usual one if not said
	// Where who asks waits for the browser, on loopback: http://127.0.0.1:PORT/callback. What arrives there is posted as the
	// answer. Providers that show their code on a page of their own do not come back, whatever is said here.
	Redirect string `json:"redirect,omitempty"`
}

// States of a Flow.
const (
	FlowWaiting   = "waiting" // for the operator
	FlowStoring   = "storing" // the provider's answer is being exchanged and stored
	FlowConnected = "connected"
	FlowFailed    = "failed"
)

// Flow is a connect that has begun. It has nothing secret but what the operator is to see.
type Flow struct {
	ID    string `json:"id"`
	Grant string `json:"grant"`
	Way   string `json:"way"` // code or device
	State string `json:"state"`
	Error string `json:"error,omitempty"` // of a failed one, or why an answer was not taken

	Account string          `json:"account,omitempty"`  // to be connected, by the configuration
	URL     string          `json:"url,omitempty"`      // the page to open
	Pasted  bool            `json:"pasted,omitempty"`   // its answer is to be pasted; else the browser comes back by itself
	Code    string          `json:"code,omitempty"`     // what to enter there, of a device flow
	EnterAt string          `json:"enter_at,omitempty"` // the page without the code in its address, of a device flow whose url has it
	Ends    time.Time       `json:"ends"`
	Stored  *operate.Stored `json:"stored,omitempty"` // what was connected
}

// AnswerRequest is what the consent page answered.
type AnswerRequest struct {
	Answer string `json:"answer"`
}

// RefreshRequest says how to refresh.
type RefreshRequest struct {
	NoWait bool `json:"no_wait,omitempty"` // answer when a gate is asked, with the id as asked
}

// DisconnectRequest says how to disconnect.
type DisconnectRequest struct {
	KeepValid   bool `json:"keep_valid,omitempty"`   // only forget the tokens, and leave them valid at the provider
	WaitSeconds int  `json:"wait_seconds,omitempty"` // how long to wait for a gate to revoke them, at most 600; 45 if not said
}

// Disconnected is what came of it.
type Disconnected struct {
	Grant string `json:"grant"`
	operate.Revocation
}

// ImportRequest has the one real credential that the API ever sees.
type ImportRequest struct {
	Value string `json:"value"` // a bare value, or the tokens as JSON in a string
}

// Sessions is a list of those that live.
type Sessions struct {
	Sessions []worker.Live `json:"sessions"`
}

// Approvals are the requests that wait for an operator, what became of those of the last hour, and the decisions that hold for later ones.
type Approvals struct {
	Approvals []approval.Approval `json:"approvals"` // those that wait in front, the oldest first; then the others, the newest first
	Kept      []approval.Kept     `json:"kept"`
	Warning   string              `json:"warning,omitempty"`
}

// DecisionRequest is what an operator decides about a request that waits.
type DecisionRequest struct {
	Verdict approval.Verdict `json:"verdict"`        // allow or deny
	For     string           `json:"for,omitempty"`  // how long it holds for later requests of the session that meet the same rule, such as 1h; empty: for this one only
	Note    string           `json:"note,omitempty"` // shown to a worker that is denied
}

// Rollouts is how far the rollout is, and which were before.
type Rollouts struct {
	operate.Rollouts
	Warning string `json:"warning,omitempty"`
}

// StartRequest is a configuration to roll out.
type StartRequest struct {
	Text  string   `json:"text"` // of the whole file, or of the part that gates share; in which steps is said by the gate's own file
	Note  string   `json:"note,omitempty"`
	Force []string `json:"force,omitempty"` // names of objections that are overruled
}

// LeadRequest goes with what is done to a rollout.
type LeadRequest struct {
	Note string `json:"note,omitempty"` // why; it is kept with the rollout
}

// Fleet is the gates and Envoys there are.
type Fleet struct {
	operate.Fleet
	Version string    `json:"version"` // of the gate that answers
	Since   time.Time `json:"since"`   // when its console started
	Warning string    `json:"warning,omitempty"`
}

// DrainRequest says how to drain.
type DrainRequest struct {
	Force bool `json:"force,omitempty"` // also the last Envoy that workers can come to
}

// Drained are the Envoys that are told not to listen.
type Drained struct {
	Drained []string `json:"drained"`
}

// Revisions are the configurations that are kept, the latest first, without their texts.
type Revisions struct {
	Revisions []fleet.Revision `json:"revisions"`
}

// LogLevels are how much the gate that answers logs.
type LogLevels struct {
	Parts map[string]LogLevel `json:"parts"` // by part of the gate
}

// LogLevel is how much a part of it logs.
type LogLevel struct {
	Level string    `json:"level"`          // debug, info, warn or error
	Until time.Time `json:"until,omitzero"` // when it is that of the file again; not there: it is
}

// LogRequest says how much is logged for a while.
type LogRequest struct {
	Levels map[string]string `json:"levels,omitempty"` // by part of the gate; of all parts for ""; none: those of the file
	For    string            `json:"for,omitempty"`    // how long, such as 10m, which it is if not said; a day at most
}

// Target is what an audit says of it.
func (r LogRequest) Target() string {
	var each []string
	for _, part := range slices.Sorted(maps.Keys(r.Levels)) {
		each = append(each, cmp.Or(part, "all")+"="+r.Levels[part])
	}
	return cmp.Or(strings.Join(each, " "), "as in the file")
}

// Problem is the answer to what could not be done.
type Problem struct {
	Status int    `json:"status"`
	Error  string `json:"error"`
	// Objections are why a rollout was not started; each can be overruled by its name.
	Objections []operate.Objection `json:"objections,omitempty"`
}
