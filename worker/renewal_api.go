package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"wayleave/secret"
)

// Paths of the API for sessions that exist. Whoever knows a session's id and token may renew and end it, and nothing else.
const renewPath = sessionsPath + "/renew"

// wireRenewal is what a renewal answers.
type wireRenewal struct {
	API     string `json:"api"`
	Session struct {
		ID        string    `json:"id"`
		Expires   time.Time `json:"expires"`
		ExpiresIn int       `json:"expires_in"` // seconds: the clock of a worker may be wrong
	} `json:"session"`
}

// renew makes a session last longer: for the session_ttl of its profile from now, and never beyond its max_session. The token
// and the placeholders stay as they are, since nobody can change the environment of a program that runs.
func (a *api) renew(w http.ResponseWriter, r *http.Request) {
	s, ok := a.holder(w, r)
	if !ok {
		return
	}
	worker, known := a.Workers.Named(s.Worker)
	if !known || worker.Profile != s.Profile {
		a.refuseWith(w, r, http.StatusForbidden, "unknown_worker",
			fmt.Sprintf("the gate has no worker %s with the profile %s any more, so its session is not renewed: ask the gate's operator", s.Worker, s.Profile))
		return
	}
	now := a.Now()
	was, most := a.Sessions.Ends(s), s.Issued().Add(worker.MaxSession)
	ends := now.Add(worker.SessionTTL)
	if ends.After(most) {
		ends = most
	}
	if ends.After(was) {
		a.Sessions.Renew(s, ends)
		a.Log.Info("session renewed", "worker", s.Worker, "session", s.ID, "expires", a.Sessions.Ends(s), "source", source(r))
	}
	var answer wireRenewal
	answer.API, answer.Session.ID, answer.Session.Expires = apiVersion, s.ID, a.Sessions.Ends(s)
	answer.Session.ExpiresIn = int(answer.Session.Expires.Sub(now).Seconds())
	body, _ := json.Marshal(answer) // strings, times and a number only
	w.Header().Set("content-type", "application/json")
	w.Header().Set("cache-control", "no-store")
	w.Write(body)
}

// end ends a session before its time, as its worker does when its work is done.
func (a *api) end(w http.ResponseWriter, r *http.Request) {
	s, ok := a.holder(w, r)
	if !ok {
		return
	}
	a.Sessions.End(s)
	a.Log.Info("session ended by its worker", "worker", s.Worker, "session", s.ID, "source", source(r))
	w.WriteHeader(http.StatusNoContent)
}

// holder is the live session whose id and token a request presents, or an answer that says why there is none.
func (a *api) holder(w http.ResponseWriter, r *http.Request) (s Session, ok bool) {
	now, source := a.Now(), source(r)
	if wait := a.attempts.Wait(source, now); wait > 0 {
		w.Header().Set("retry-after", seconds(wait))
		a.refuse(w, r, "too_many_attempts", "too many wrong tokens came from this address: wait before trying again")
		return s, false
	}
	id, token, _ := r.BasicAuth()
	s, err := a.Sessions.Verify(id, secret.New(token))
	if err != nil {
		a.attempts.Failed(source, now)
		w.Header().Set("www-authenticate", `Basic realm="wayleave"`)
		a.refuse(w, r, "unknown_session", "this gate knows no session with this id and token: "+words(ErrUnknown))
		return s, false
	}
	switch err := a.Sessions.Check(s, now); {
	case errors.Is(err, ErrRevoked):
		a.refuse(w, r, "session_revoked", "an operator has ended the session: "+words(err))
		return s, false
	case err != nil:
		a.refuse(w, r, "session_expired", "the session is over: "+words(err))
		return s, false
	}
	return s, true
}

// words is what an error says to do.
func words(err error) string {
	_, next, _ := strings.Cut(err.Error(), ": ")
	return next
}
