package console

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// logins are the browsers that are logged in. They are in memory: whoever restarts the gate logs in again.
type logins struct {
	idle, life time.Duration
	now        func() time.Time

	mu    sync.Mutex
	byKey map[string]*login // guarded by mu
	link  string            // guarded by mu; the digest of the one-time link's token, "" for none
}

// login is one browser's. Its id is the key, which stays, and a secret, which does not: an id that somebody took is of no use after a
// while, or the browser's own is not, which its operator notices. What may change is guarded by the mutex of logins.
type login struct {
	key     string
	actor   actor
	csrf    string // must come with everything that changes something
	created time.Time
	used    time.Time
	notice  notice // what came of the last form, until it has been shown

	// Digests of secrets, so that memory dumps let nobody in.

	secret, next, former string    // next was sent, and has not come back yet; former is what it was in the place of
	rotated              time.Time // when the newest of them was made
	formerEnds           time.Time
}

// A browser that is used gets another secret this often. The one before is good for a while more, for what is on the way.
const (
	rotateEvery = 15 * time.Minute
	formerFor   = time.Minute
)

// notice is a sentence for whoever sent a form.
type notice struct {
	Text   string
	Failed bool
	Secret string // shown once, beside the text
}

// So many browsers may be logged in, in all and of one operator.
const (
	maxLogins   = 10_000
	loginsOfOne = 50
)

// makeRoom leaves room for one more of somebody in m: the oldest gives way, of their own when there are so many of them, else of all.
func makeRoom[T any](m map[string]T, ofOne, ofAll int, look func(T) (mine bool, at time.Time)) {
	var oldest, own string
	var since, ownSince time.Time
	mine := 0
	for key, x := range m {
		is, at := look(x)
		if oldest == "" || at.Before(since) {
			oldest, since = key, at
		}
		if is {
			mine++
			if own == "" || at.Before(ownSince) {
				own, ownSince = key, at
			}
		}
	}
	switch {
	case mine >= ofOne:
		delete(m, own)
	case len(m) >= ofAll:
		delete(m, oldest)
	}
}

func newLogins(idle, life time.Duration, now func() time.Time) *logins {
	return &logins{idle: idle, life: life, now: now, byKey: map[string]*login{}}
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// begin logs somebody in under an id that nobody has seen, and forgets the log-in called old.
func (l *logins) begin(a actor, old string) (id string) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.called(old, now); n != nil {
		delete(l.byKey, n.key)
	}
	makeRoom(l.byKey, loginsOfOne, maxLogins, func(other *login) (bool, time.Time) { return other.actor.id == a.id, other.used })
	n := &login{key: rand.Text(), csrf: rand.Text(), created: now, used: now}
	a.login = n
	n.actor = a
	n.secret, id = n.rotate(now)
	l.byKey[n.key] = n
	return id
}

// mark tells the pages that were made for it from others.
func (n *login) mark() string { return digest(n.csrf)[:8] }

// rotate makes another secret.
func (n *login) rotate(now time.Time) (hashed, id string) {
	secret := rand.Text()
	n.rotated = now
	return digest(secret), n.key + "." + secret
}

// called is the log-in of an id, nil when there is none. mu is held.
func (l *logins) called(id string, now time.Time) *login {
	key, secret, _ := strings.Cut(id, ".")
	n := l.byKey[key]
	if n == nil {
		return nil
	}
	switch digest(secret) {
	case n.secret:
	case n.next:
		n.secret, n.next, n.former, n.formerEnds = n.next, "", n.secret, now.Add(formerFor)
	case n.former:
		if !now.Before(n.formerEnds) {
			return nil
		}
	default:
		return nil
	}
	if l.over(n, now) {
		delete(l.byKey, n.key)
		return nil
	}
	return n
}

// follow ends the log-ins of somebody who is not at the identity provider any more what they were then.
func (l *logins) follow(a actor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.byKey, func(_ string, n *login) bool { return n.actor.id == a.id && !slices.Equal(n.actor.is, a.is) })
}

func (l *logins) over(n *login, now time.Time) bool {
	return now.Sub(n.used) >= l.idle || now.Sub(n.created) >= l.life
}

// find is the log-in called id. use says that somebody is there, and not only a page that is open: then fresh is what it is to be called
// from now on, if it is time for that.
func (l *logins) find(id string, use bool) (n *login, fresh string, ok bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	n = l.called(id, now)
	if n == nil {
		return nil, "", false
	}
	if use {
		n.used = now
		if now.Sub(n.rotated) >= rotateEvery {
			n.next, fresh = n.rotate(now)
		}
	}
	return n, fresh, true
}

// end forgets a log-in.
func (l *logins) end(n *login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byKey, n.key)
}

// tell keeps a notice for the next page.
func (l *logins) tell(n *login, what notice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.notice = what
}

// told is the notice that was kept, once.
func (l *logins) told(n *login) notice {
	l.mu.Lock()
	defer l.mu.Unlock()
	what := n.notice
	n.notice = notice{}
	return what
}

// live reports whether a log-in still stands.
func (l *logins) live(n *login) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.byKey[n.key]
	return ok && !l.over(known, l.now())
}

// arm makes the token of a one-time link, in place of any earlier one.
func (l *logins) arm() (token string) {
	token = rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.link = digest(token)
	return token
}

// spend reports whether token is that of the link, which is good once.
func (l *logins) spend(token string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link == "" || subtle.ConstantTimeCompare([]byte(l.link), []byte(digest(token))) != 1 {
		return false
	}
	l.link = ""
	return true
}

// newLink makes a new one-time link and says so.
func (s *Server) newLink() {
	u := *s.URL
	u.Path, u.RawQuery = "/login", "token="+s.logins.arm()
	s.NewLink(u.String())
}

// secure reports whether browsers reach us over TLS.
func (s *Server) secure() bool { return s.URL.Scheme == "https" }

// cookieName has the prefix that makes browsers refuse the cookie from anybody but this host over TLS, where there is TLS; and
// the port, as browsers send a host's cookies to all of its ports (RFC 6265 section 8.5), so that consoles beside each other
// leave each other's alone.
func (s *Server) cookieName(name string) string {
	if s.secure() {
		return "__Host-" + name + "-" + cmp.Or(s.URL.Port(), "443")
	}
	return name + "-" + cmp.Or(s.URL.Port(), "80")
}

const (
	loginCookie = "wayleave"       // a log-in
	askedCookie = "wayleave-asked" // a log-in at the identity provider that has begun
	nextCookie  = "wayleave-next"  // where somebody wanted to go, who has to open a link first; for a while
)

const nextFor = 10 * time.Minute

// setCookie sets a cookie for the browser's session. Lax: it must come along when the provider sends the browser back.
func (s *Server) setCookie(w http.ResponseWriter, name, value string) {
	c := &http.Cookie{
		Name: s.cookieName(name), Value: value, Path: "/", HttpOnly: true, Secure: s.secure(), SameSite: http.SameSiteLaxMode,
	}
	switch {
	case value == "":
		c.MaxAge = -1
	case name == nextCookie:
		c.MaxAge = int(nextFor.Seconds())
	}
	http.SetCookie(w, c)
}

func (s *Server) cookie(r *http.Request, name string) string {
	c, err := r.Cookie(s.cookieName(name))
	if err != nil {
		return ""
	}
	return c.Value
}

// maxLocal bounds what is kept of whoever only begins to log in.
const maxLocal = 2 << 10

// local is an address of this console, or the first page for everything else: nobody is sent elsewhere after a log-in.
func local(path string) string {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t") || len(path) > maxLocal {
		return "/"
	}
	return path
}
