package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"wayleave/identity"
	"wayleave/secret"
	"wayleave/throttle"
)

// Paths of the API, below the prefix that Envoy routes here.
const (
	sessionsPath = "/.wayleave/v1/sessions"
	caPath       = "/.wayleave/v1/ca.pem"
	livePath     = "/.wayleave/livez"
)

// reasonHeader tells a refusal by us from one by anything between the worker and us.
const reasonHeader = "x-wayleave-reason"

// Wrong tokens that a source may send at once, and the time after which it may send one more.
const (
	burst  = 10
	refill = 2 * time.Second
)

// APIConfig is what the API needs. Every field but Now and Log is required.
type APIConfig struct {
	// Workers may enrol.
	Workers *Registry
	// Issuers verifies the tokens of the workers' platforms.
	Issuers *identity.Verifier
	// Sessions issues and keeps their sessions.
	Sessions *Sessions
	// Credentials renders what a session of s.Profile holds. It must not return a real credential.
	Credentials func(ctx context.Context, s Session) ([]Credential, error)
	// CA is the gate's certificate authority in PEM, as of now.
	CA func() []byte
	// Ports are those of the hosts that workers may reach, for who has to lead them there by port.
	Ports Ports
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log gets one line per session and per refusal; nil discards them.
	Log *slog.Logger
}

type api struct {
	APIConfig
	attempts *throttle.Limiter
}

// NewAPI returns the worker API:
//
//	POST /.wayleave/v1/sessions  Authorization: Bearer <token>  → 200 an enrolment, 401, 403, 429 or 503
//	POST /.wayleave/v1/sessions/renew  Authorization: Basic <session id and token>  → 200 its new end, 401, 403 or 429
//	DELETE /.wayleave/v1/sessions      the same  → 204: it is over
//	GET  /.wayleave/v1/ca.pem    the CA certificate, for whoever installs it by hand
//	GET  /.wayleave/livez        200 while the process answers
//
// It listens where only Envoy can reach it. It takes the last X-Forwarded-For entry, which Envoy writes, as the worker's address,
// and X-Forwarded-Client-Cert, which nobody else can, as the certificate that a worker has.
func NewAPI(c APIConfig) http.Handler {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	a := &api{APIConfig: c, attempts: throttle.New(burst, refill)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+sessionsPath, a.enrol)
	mux.HandleFunc("POST "+renewPath, a.renew)
	mux.HandleFunc("DELETE "+sessionsPath, a.end)
	mux.HandleFunc("GET "+caPath, a.ca)
	mux.HandleFunc("GET "+livePath, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", a.unknown)
	return mux
}

func (a *api) ca(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("content-type", "application/x-pem-file")
	w.Write(a.CA())
}

func (a *api) enrol(w http.ResponseWriter, r *http.Request) {
	now, source := a.Now(), source(r)
	if wait := a.attempts.Wait(source, now); wait > 0 {
		w.Header().Set("retry-after", seconds(wait))
		a.refuse(w, r, "too_many_attempts",
			"too many wrong worker tokens came from this address: correct the token, then wait before trying again")
		return
	}
	who, unknown := a.identify(r.Context(), r)
	if unknown != nil {
		if unknown.guess {
			a.attempts.Failed(source, now)
		}
		if unknown.after > 0 {
			w.Header().Set("retry-after", seconds(unknown.after))
		}
		if statusOf(unknown.reason) == http.StatusUnauthorized {
			w.Header().Set("www-authenticate", `Bearer realm="wayleave"`)
		}
		a.refuse(w, r, unknown.reason, unknown.message, unknown.attributes()...)
		return
	}
	// What a session may do comes from the configuration alone, so a request that asks for something is a
	// misunderstanding, and better said now than found out later.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
	if ask := strings.TrimSpace(string(body)); err != nil || ask != "" && ask != "{}" {
		a.refuse(w, r, "nothing_to_ask",
			"a session is what the worker's profile says, so nothing can be asked for: send an empty body")
		return
	}
	s, answer, err := a.session(r.Context(), who, now)
	if err != nil {
		a.Log.Error("session not issued", "worker", who.worker.Name, "err", err)
		w.Header().Set("retry-after", "5")
		a.refuse(w, r, "unavailable", "the gate cannot issue a session now: try again, and see its log if this lasts")
		return
	}
	a.Sessions.Issued(s, who.subject, source)
	a.Log.Info("session issued", "worker", s.Worker, "profile", s.Profile, "session", s.ID, "expires", s.Expires, "source", source, "issuer", who.issuer, "subject", who.subject)
	w.Header().Set("content-type", "application/json")
	w.Header().Set("cache-control", "no-store")
	w.Write(answer)
}

func (a *api) unknown(w http.ResponseWriter, r *http.Request) {
	status := statusOf("no_such_request")
	if r.URL.Path == sessionsPath || r.URL.Path == renewPath || r.URL.Path == caPath {
		status = http.StatusMethodNotAllowed
	}
	a.refuseWith(w, r, status, "no_such_request",
		"the gate itself answers POST "+sessionsPath+" and GET "+caPath+"; for anything else use it as the proxy of an https URL")
}

func (a *api) session(ctx context.Context, who caller, now time.Time) (s Session, answer []byte, err error) {
	w := who.worker
	s, token, err := a.Sessions.IssueTo(who.subject, w.Name, w.Profile, w.SessionTTL, a.Sessions.Moment(w.Name, now))
	if err != nil {
		return s, nil, err
	}
	credentials, err := a.Credentials(ctx, s)
	if err != nil {
		return s, nil, err
	}
	answer, err = Enrolment{Session: s, Lasts: s.Expires.Sub(now), Password: token, CA: a.CA(), Ports: a.Ports, Credentials: credentials}.marshal()
	return s, answer, err
}

// refuse answers with a reason of the table; more is for the log.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, reason, message string, more ...any) {
	a.refuseWith(w, r, statusOf(reason), reason, message, more...)
}

func (a *api) refuseWith(w http.ResponseWriter, r *http.Request, status int, reason, message string, more ...any) {
	id := r.Header.Get("x-request-id")
	a.Log.Warn("session refused", append([]any{"reason", reason, "source", source(r), "request_id", id}, more...)...)
	body, _ := json.Marshal(struct {
		Error     string `json:"error"`
		Message   string `json:"message"`
		RequestID string `json:"request_id,omitempty"`
	}{reason, message + " (more: wayleave explain " + reason + ")", id})
	w.Header().Set("content-type", "application/json")
	w.Header().Set("cache-control", "no-store")
	w.Header().Set(reasonHeader, reason)
	w.WriteHeader(status)
	w.Write(body)
}

// seconds is a duration as Retry-After has it.
func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

// bearer returns the token of an Authorization header, RFC 6750 section 2.1.
func bearer(r *http.Request) (token secret.Text, given bool) {
	scheme, value, _ := strings.Cut(r.Header.Get("authorization"), " ")
	value = strings.TrimSpace(value)
	if !strings.EqualFold(scheme, "bearer") || value == "" {
		return secret.Text{}, false
	}
	return secret.New(value), true
}

// source is the address a request comes from, without its port.
func source(r *http.Request) string {
	from := r.RemoteAddr
	if f := r.Header.Values("x-forwarded-for"); len(f) > 0 {
		last := f[len(f)-1]
		from = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	}
	if host, _, err := net.SplitHostPort(from); err == nil {
		return host
	}
	return from
}
