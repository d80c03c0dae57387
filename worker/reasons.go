package worker

import "net/http"

// Refusal is a reason for which the API refuses, as the documentation lists it.
type Refusal struct {
	// Reason is what programs read, in x-wayleave-reason and in the body.
	Reason string
	// Status is that of HTTP.
	Status int
	// Retry says that the same request may be answered later.
	Retry bool
	// What happened, and Next: who does what about it.
	What, Next string
}

// refusals is every reason of the API.
var refusals = []Refusal{
	{"unknown_worker", http.StatusUnauthorized, false, "the token is missing, or is that of no worker; 403: the worker of a session is configured no more", "worker: present its own token; else operator: add the worker"},
	{"identity_invalid", http.StatusUnauthorized, false, "the token is not one of the issuer it names, or lacks what a token must have", "worker: present the issuer's token, unchanged"},
	{"identity_expired", http.StatusUnauthorized, false, "the token is genuine and over", "worker: get a new one from its platform; a file that the platform replaces is read anew (`WAYLEAVE_TOKEN_FILE`)"},
	{"identity_not_yet_valid", http.StatusUnauthorized, false, "the token is genuine and of a time to come", "whoever runs the two machines: set their clocks right"},
	{"identity_wrong_audience", http.StatusUnauthorized, false, "the token is for somebody else", "worker: ask its platform for the audience that the message names"},
	{"issuer_unknown", http.StatusUnauthorized, false, "the token is of an issuer that the configuration does not have", "operator: add it to `issuers`"},
	{"issuer_unavailable", http.StatusServiceUnavailable, true, "the issuer's keys cannot be had, or Kubernetes cannot be asked", "worker: try again; operator, if it lasts: `wayleave doctor`, and the gate's log"},
	{"identity_not_admitted", http.StatusForbidden, false, "who the worker is was proved, and no worker of the configuration fits", "operator: add it to `workers`, or mend `from` there"},
	{"identity_ambiguous", http.StatusForbidden, false, "who the worker is was proved, and several workers of the configuration fit alike, by a claim that is a list", "operator: narrow `from` of one of them"},
	{"too_many_attempts", http.StatusTooManyRequests, true, "too many wrong tokens came from this address", "worker: present the right one, after the wait"},
	{"nothing_to_ask", http.StatusBadRequest, false, "the request asks for something; a session is what the profile says", "worker: send an empty body"},
	{"unknown_session", http.StatusUnauthorized, false, "what asks to renew or end a session is not that session", "worker: start again"},
	{"session_revoked", http.StatusForbidden, false, "an operator has ended the session, which is not renewed then", "worker: start again, if the operator agrees"},
	{"session_expired", http.StatusForbidden, false, "the session is over, and is not renewed then", "worker: start again"},
	{"unavailable", http.StatusServiceUnavailable, true, "the gate cannot issue a session", "worker: try again; operator, if it lasts: the gate's log"},
	{"no_such_request", http.StatusNotFound, false, "the gate itself answers nothing else", "worker: use it as a proxy"},
}

// Refusals returns every reason for which the API refuses, in the order of the documentation.
func Refusals() []Refusal { return refusals }

// statusOf is the status of a reason.
func statusOf(reason string) int {
	for _, r := range refusals {
		if r.Reason == reason {
			return r.Status
		}
	}
	panic("worker: " + reason + " is not among the reasons")
}
