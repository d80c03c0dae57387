package reliability

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
)

const clientID = "gate"

// authority is an authorization server that rotates refresh tokens, and the API that their access tokens are for. A spent
// refresh token that comes again revokes its family, all that came from one consent (RFC 9700 section 4.14.2); with grace,
// it gets the same answer again for a while.
type authority struct {
	*httptest.Server
	name         string
	clientSecret string
	grace        time.Duration
	latency      time.Duration // of an answer, half before the commit and half after

	mu       sync.Mutex
	life     time.Duration            // of access tokens
	lives    map[string]time.Duration // by grant, where it is another
	families map[string]*family       // by grant
	refresh  map[string]*refreshToken
	access   map[string]accessToken
	hold     map[string]chan struct{} // by grant: the next call waits for it before the commit
	held     map[string]chan struct{} // by grant: closed when that call is there
	stall    map[string]time.Duration // by grant: the next answer is kept back as long, after the commit
}

type family struct {
	grant     string
	presented map[string]int // by refresh token
	rotations int
	dead      bool
	lost      string // the fingerprint of what came for the refresh token that came again
}

type refreshToken struct {
	family *family
	spent  time.Time // zero: it is not
	answer map[string]any
}

type accessToken struct {
	family  *family
	expires time.Time
}

func newAuthority(t *testing.T, name string, grace time.Duration) *authority {
	a := &authority{
		name: name, clientSecret: "wlcs" + rand.Text(), grace: grace, lives: map[string]time.Duration{}, latency: 20 * time.Millisecond, life: 3 * time.Second,
		families: map[string]*family{}, refresh: map[string]*refreshToken{}, access: map[string]accessToken{},
		hold: map[string]chan struct{}{}, held: map[string]chan struct{}{}, stall: map[string]time.Duration{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", a.token)
	mux.HandleFunc("GET /api", a.api)
	a.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		a.CloseClientConnections() // calls of processes that were killed
		a.Close()
	})
	return a
}

func (a *authority) tokenURL() string { return a.URL + "/token" }

// consent is a new family for the grant, in place of the one it had.
func (a *authority) consent(grant string, life time.Duration) oauth.Token {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := &family{grant: grant, presented: map[string]int{}}
	a.families[grant] = f
	access, refresh := a.issue(f, life)
	return oauth.Token{Access: secret.New(access), Refresh: secret.New(refresh), Expiry: time.Now().Add(life)}
}

func (a *authority) issue(f *family, life time.Duration) (access, refresh string) {
	access, refresh = "wlat"+rand.Text(), "wlrt"+rand.Text()
	a.access[access] = accessToken{f, time.Now().Add(life)}
	a.refresh[refresh] = &refreshToken{family: f}
	return access, refresh
}

// token is RFC 6749 section 6. A client that has gone does not stop it.
func (a *authority) token(w http.ResponseWriter, r *http.Request) {
	presented := r.PostFormValue("refresh_token")
	if r.PostFormValue("client_id") != clientID || r.PostFormValue("client_secret") != a.clientSecret || r.PostFormValue("grant_type") != "refresh_token" {
		answer(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	<-time.After(a.latency / 2)
	if hold := a.arrived(presented); hold != nil {
		<-hold
	}
	status, body, stall := a.commit(presented)
	<-time.After(a.latency/2 + stall)
	answer(w, status, body)
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails when the client has gone
}

func (a *authority) arrived(presented string) (hold chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.refresh[presented]
	if r == nil || a.hold[r.family.grant] == nil {
		return nil
	}
	grant := r.family.grant
	hold = a.hold[grant]
	delete(a.hold, grant)
	close(a.held[grant])
	return hold
}

func (a *authority) commit(presented string) (status int, body map[string]any, stall time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	invalid := map[string]any{"error": "invalid_grant", "error_description": "the refresh token is not valid"}
	r := a.refresh[presented]
	if r == nil {
		return http.StatusBadRequest, invalid, 0
	}
	f := r.family
	f.presented[presented]++
	switch {
	case f.dead:
		return http.StatusBadRequest, invalid, 0
	case !r.spent.IsZero() && time.Since(r.spent) < a.grace:
		return http.StatusOK, r.answer, 0
	case !r.spent.IsZero():
		f.dead, f.lost = true, fingerprint(r.answer["refresh_token"].(string))
		return http.StatusBadRequest, invalid, 0
	}
	r.spent = time.Now()
	f.rotations++
	life := cmp.Or(a.lives[f.grant], a.life)
	access, refresh := a.issue(f, life)
	r.answer = map[string]any{"token_type": "Bearer", "access_token": access, "refresh_token": refresh, "expires_in": life.Seconds()}
	stall = a.stall[f.grant]
	delete(a.stall, f.grant)
	return http.StatusOK, r.answer, stall
}

// api wants a live access token.
func (a *authority) api(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a.mu.Lock()
	defer a.mu.Unlock()
	if t, ok := a.access[token]; !ok || t.family.dead || time.Now().After(t.expires) {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// holdNext keeps the next call for the grant, whose token it has not looked at, until release. held is closed when it is there.
func (a *authority) holdNext(grant string) (held chan struct{}, release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	hold, held := make(chan struct{}), make(chan struct{})
	a.hold[grant], a.held[grant] = hold, held
	return held, sync.OnceFunc(func() {
		a.mu.Lock()
		delete(a.hold, grant)
		a.mu.Unlock()
		close(hold)
	})
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// tally is what a family has seen.
type tally struct {
	tokens    int // refresh tokens that were presented
	times     int // so often altogether
	most      int // times one of them was
	rotations int
	dead      bool
	lost      string
}

func (a *authority) tally(grant string) tally {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.families[grant]
	t := tally{tokens: len(f.presented), rotations: f.rotations, dead: f.dead, lost: f.lost}
	for _, n := range f.presented {
		t.times, t.most = t.times+n, max(t.most, n)
	}
	return t
}

// fingerprint names a token without showing it.
func fingerprint(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:8])
}
