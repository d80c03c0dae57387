package console

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wayleave/config"
	"wayleave/operate"
	"wayleave/rollout"
	"wayleave/vault"
)

// contentPolicy lets a page do nothing but what it is made of. Browsers hold every redirect that answers a form to form-action, so
// no form may lead elsewhere: what leads to a consent page is a page of its own (templates/connect.html).
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'"

// protected is next with what is true of every request: it is for us, comes from one of our own pages if it changes anything,
// and its answer stays between us and the browser.
func (s *Server) protected(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	if err := cross.AddTrustedOrigin(s.URL.Scheme + "://" + s.URL.Host); err != nil {
		s.Log.Error("the console's own address is none", "err", err) // checked with the configuration
	}
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, http.StatusForbidden, errors.New("this was sent by a page of another site"))
	}))
	inner := cross.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.knowClient(r)
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		if s.secure() {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		switch {
		case s.called(r.Host):
			r.Host = s.URL.Host
		case s.Alias != nil && s.Alias(r.Host):
			// Cookies belong to a host: there must be one.
			if !s.secure() && (r.Method == http.MethodGet || r.Method == http.MethodHead) && !strings.HasPrefix(r.URL.Path, "/api/") {
				http.Redirect(w, r, s.URL.Scheme+"://"+s.URL.Host+r.URL.RequestURI(), http.StatusTemporaryRedirect)
				return
			}
		default: // a name that somebody made point here
			s.fail(w, r, http.StatusMisdirectedRequest, fmt.Errorf("this is the console at %s, and the request is for %.100q; where a reverse proxy is before it, that is to pass on the Host that the browser sent", s.URL, r.Host))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, operate.MaxImport+64<<10)
		inner.ServeHTTP(w, r)
	})
}

// called reports whether a request's Host is ours. Behind a reverse proxy it is the name alone that counts: some leave the port out, and some write
// that of https to it.
func (s *Server) called(host string) bool {
	at := url.URL{Host: host}
	return strings.EqualFold(host, s.URL.Host) ||
		s.secure() && strings.EqualFold(at.Hostname(), s.URL.Hostname()) && (at.Port() == "" || at.Port() == "443")
}

// isAPI reports whether a request is a program's.
func isAPI(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/api/") }

var errWhoAreYou = errors.New("log in first")

// authenticate says whose request this is. A log-in may go on under another id.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) (actor, error) {
	if header := r.Header.Get("Authorization"); header != "" && isAPI(r) {
		scheme, sent, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "bearer") {
			return actor{}, errWhoAreYou
		}
		if wait := s.limiter.Wait(source(r), s.now()); wait > 0 {
			return actor{}, tooMany(wait)
		}
		who, known, err := s.tokens.find(r.Context(), strings.TrimSpace(sent))
		if err == nil && !known {
			s.limiter.Failed(source(r), s.now())
			err = errors.New("there is no such token; make one")
		}
		return who, err
	}
	n, fresh, ok := s.logins.find(s.cookie(r, loginCookie), !isLive(r))
	if !ok {
		return actor{}, errWhoAreYou
	}
	if fresh != "" {
		s.setCookie(w, loginCookie, fresh)
	}
	return n.actor, nil
}

// stands reports whether somebody who was let in would still be. A store that does not answer shuts nobody out.
func (s *Server) stands(ctx context.Context, who actor) bool {
	if who.login != nil {
		return s.logins.live(who.login)
	}
	all, err := s.tokens.load(ctx)
	if err != nil {
		return true
	}
	return s.tokens.may(all, all.Tokens[who.token]) != ""
}

// isLive reports whether a page asks by itself, with nobody there.
func isLive(r *http.Request) bool { return r.URL.Query().Has("live") }

// tooMany is how long somebody has to wait.
type tooMany time.Duration

func (t tooMany) Error() string {
	return fmt.Sprintf("too many wrong log-ins from this address; try again in %d seconds", t.seconds())
}

func (t tooMany) seconds() int { return max(1, int(time.Duration(t).Round(time.Second).Seconds())) }

// guard is a handler that who has the role comes to.
type guard struct {
	needs Role
	http.Handler
}

// doors is everything there is, with who may come in.
type doors struct {
	*http.ServeMux
	needs map[string]Role // by pattern; "": everybody
}

// Handle opens a door.
func (d doors) Handle(pattern string, h http.Handler) {
	g, _ := h.(guard)
	d.needs[pattern] = g.needs
	d.ServeMux.Handle(pattern, h)
}

// HandleFunc opens one to everybody.
func (d doors) HandleFunc(pattern string, f http.HandlerFunc) { d.Handle(pattern, f) }

// guarded lets in who has the role, and with a change only who has seen one of our pages. This is the one place where roles are
// looked at.
func (s *Server) guarded(needs Role, next func(http.ResponseWriter, *http.Request, actor)) http.Handler {
	return guard{needs, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := s.authenticate(w, r)
		if err != nil {
			s.unknown(w, r, err)
			return
		}
		if !who.Role.may(needs) {
			err := fmt.Errorf("this needs the role %s, and %s is %s", needs, who.Name, who.Role)
			s.did(who, from(r), r.Method+" "+r.URL.Path, "", err)
			s.fail(w, r, http.StatusForbidden, err)
			return
		}
		if who.login != nil && r.Method != http.MethodGet && r.Method != http.MethodHead {
			sent := r.Header.Get("X-Csrf-Token")
			if sent == "" && !isAPI(r) {
				sent = r.PostFormValue("csrf")
			}
			if subtle.ConstantTimeCompare([]byte(sent), []byte(who.login.csrf)) != 1 {
				s.fail(w, r, http.StatusForbidden, errors.New("this page is from an earlier log-in; open it again"))
				return
			}
		}
		next(w, r, who)
	})}
}

// unknown answers who is not logged in.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request, err error) {
	var wait tooMany
	switch {
	case errors.As(err, &wait):
		w.Header().Set("Retry-After", strconv.Itoa(wait.seconds()))
		s.fail(w, r, http.StatusTooManyRequests, err)
	case errors.Is(err, vault.ErrUnavailable):
		s.fail(w, r, http.StatusServiceUnavailable, err)
	case isAPI(r):
		w.Header().Set("WWW-Authenticate", `Bearer realm="wayleave"`)
		s.fail(w, r, http.StatusUnauthorized, err)
	case r.URL.Path == "/events": // no page, to which a log-in could lead
		s.fail(w, r, http.StatusUnauthorized, err)
	case r.Header.Get("HX-Request") != "":
		w.Header().Set("HX-Redirect", "/login")
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Redirect(w, r, "/login?"+url.Values{"next": {backFrom(r)}}.Encode(), http.StatusSeeOther)
	}
}

// backFrom is where somebody goes on after a log-in: the page they wanted, or the one whose form they sent.
func backFrom(r *http.Request) string {
	switch {
	case r.URL.Path == "/callback": // a code is nothing to keep
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return r.URL.RequestURI()
	default:
		if page, err := url.Parse(r.Referer()); err == nil && page.Host == r.Host {
			return page.RequestURI()
		}
	}
	return "/"
}

// statusOf is the HTTP status of a failure.
func statusOf(err error) int {
	var refusal *operate.Refusal
	var tooLarge *http.MaxBytesError
	var objections *operate.Objections
	var faults config.Faults
	switch {
	case errors.As(err, &refusal):
		return map[operate.Kind]int{operate.NoSuch: http.StatusNotFound, operate.Misused: http.StatusUnprocessableEntity, operate.Unusable: http.StatusUnprocessableEntity, operate.NotNow: http.StatusConflict}[refusal.Kind]
	case errors.As(err, &objections), errors.Is(err, rollout.ErrUnderWay), errors.Is(err, rollout.ErrSame):
		return http.StatusConflict
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errBadRequest), errors.As(err, &faults):
		return http.StatusBadRequest
	case errors.Is(err, vault.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusBadGateway
}

// did tells the audit.
func (s *Server) did(who actor, from, action, target string, err error) {
	e := Event{At: s.now(), Actor: cmp.Or(who.Name, "nobody"), Role: who.Role, Via: who.Via, From: from, Action: action, Target: target, Err: err}
	s.logEvent(e)
	if s.Audit != nil {
		s.Audit(e)
	}
}

func (s *Server) now() time.Time { return s.Now() }
