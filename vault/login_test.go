package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/secret"
)

// loginServer is a Vault that knows log-ins and one document. It is called in place of the network, so that time in a
// synctest bubble passes while a client waits.
type loginServer struct {
	ttl, max time.Duration // of each token; max 0: renewed for ever

	mu       sync.Mutex
	tokens   map[string]*lease
	logins   int
	down     bool // answers 503
	refuse   bool // does not accept the secret id
	noPolicy bool // accepts tokens, but not for the document
	forgets  bool // does not know the tokens that it makes
	denied   int  // requests for the document refused
}

type lease struct{ made, ends time.Time }

func (s *loginServer) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := httptest.NewRecorder()
	s.serve(w, req)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

func (s *loginServer) serve(w *httptest.ResponseRecorder, req *http.Request) {
	answer := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(status int, text string) { answer(status, map[string]any{"errors": []string{text}}) }
	now := time.Now()
	token := req.Header.Get("X-Vault-Token")
	l := s.tokens[token]
	valid := l != nil && now.Before(l.ends)
	auth := func(token string, l *lease) {
		answer(200, map[string]any{"auth": map[string]any{"client_token": token, "renewable": true, "lease_duration": int(l.ends.Sub(now).Seconds())}})
	}
	switch path := strings.TrimPrefix(req.URL.Path, "/v1/"); {
	case s.down:
		refuse(503, "Vault is sealed")
	case path == "auth/approle/login":
		var body map[string]string
		raw, _ := io.ReadAll(req.Body)
		_ = json.Unmarshal(raw, &body)
		if s.refuse || body["secret_id"] != "sid" {
			refuse(400, "invalid role or secret ID")
			return
		}
		s.logins++
		token := fmt.Sprintf("s.%d", s.logins)
		l := &lease{now, now.Add(s.ttl)}
		if !s.forgets {
			s.tokens[token] = l
		}
		auth(token, l)
	case !valid:
		if strings.HasPrefix(path, "wayleave/") {
			s.denied++
		}
		refuse(403, "permission denied")
	case path == "auth/token/lookup-self":
		answer(200, map[string]any{"data": map[string]any{"ttl": int(l.ends.Sub(now).Seconds()), "expire_time": l.ends, "renewable": s.ttl != s.max}})
	case path == "auth/token/renew-self":
		l.ends = now.Add(s.ttl)
		if end := l.made.Add(s.max); s.max > 0 && l.ends.After(end) {
			l.ends = end
		}
		auth(token, l)
	case s.noPolicy:
		s.denied++
		refuse(403, "1 error occurred:\n\t* permission denied\n\n")
	case path == "wayleave/data/grants/a":
		answer(200, map[string]any{"data": map[string]any{"data": map[string]string{"k": "v"}, "metadata": map[string]int{"version": 7}}})
	default:
		refuse(404, "no handler for route")
	}
}

func (s *loginServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *loginServer) open(t *testing.T, auth Auth) *Client {
	t.Helper()
	c, err := open(t.Context(), Config{Address: "http://vault.test", Auth: auth}, nil, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func newLoginServer(ttl, max time.Duration) *loginServer {
	return &loginServer{ttl: ttl, max: max, tokens: map[string]*lease{}}
}

var appRole = Auth{Method: "approle", RoleID: "rid", SecretID: secret.New("sid")}

// Tokens that reach their maximum life end the watcher with a nil error; no request may notice.
func TestNoRefusalAcrossMaximumLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLoginServer(10*time.Second, 20*time.Second)
		c := s.open(t, appRole)
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil {
				t.Fatalf("after %d log-ins: %v", s.logins, err)
			}
		}
		s.set(func() {
			if s.denied > 0 || s.logins < 30 || s.logins > 60 {
				t.Errorf("%d refusals, %d log-ins in ten minutes with tokens of 20 s", s.denied, s.logins)
			}
		})
	})
}

// A server that is down while the token dies is asked again, ever more slowly, and service resumes without help.
func TestLogsInAgainAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLoginServer(time.Minute, 0)
		c := s.open(t, appRole)
		time.Sleep(30 * time.Minute)
		s.set(func() {
			if s.logins != 1 {
				t.Errorf("%d log-ins for a token that is renewed for ever, want 1", s.logins)
			}
			s.down = true
		})
		_, err := c.Get(t.Context(), "grants/a", &struct{}{})
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("during the outage: %v", err)
		}
		time.Sleep(time.Hour)
		s.set(func() { s.down = false })
		time.Sleep(time.Minute)
		if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil {
			t.Errorf("after the outage: %v", err)
		}
		s.set(func() {
			if s.denied > 0 {
				t.Errorf("%d requests went out with a dead token", s.denied)
			}
		})
	})
}

// A revoked token costs one log-in, however many requests find out together; a policy that refuses costs few.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLoginServer(time.Hour, 0)
		c := s.open(t, appRole)
		get := func() error { _, err := c.Get(t.Context(), "grants/a", &struct{}{}); return err }

		s.set(func() { s.tokens = map[string]*lease{} })
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if err := get(); err != nil {
					t.Errorf("after the token was revoked: %v", err)
				}
			})
		}
		all.Wait()
		s.set(func() {
			if s.logins != 2 {
				t.Errorf("%d log-ins, want the first and one more", s.logins)
			}
		})

		time.Sleep(healEvery)
		s.set(func() { s.noPolicy = true; s.logins = 0 })
		for range 600 {
			err := get()
			if !errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"read" on wayleave/data/grants/a`) {
				t.Fatalf("without the policy: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		s.set(func() {
			if most := int(time.Minute/healEvery) + 1; s.logins > most {
				t.Errorf("%d log-ins in a minute of refusals, want at most %d", s.logins, most)
			}
			s.noPolicy, s.forgets, s.logins = false, true, 0
			s.tokens = map[string]*lease{}
		})
		for range 600 {
			if err := get(); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "does not accept our token") {
				t.Fatalf("with tokens that end at once: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		s.set(func() {
			if most := healsToken * (int(time.Minute/healEvery) + 1); s.logins > most || s.logins < 3 {
				t.Errorf("%d log-ins in a minute of tokens that end at once, want at most %d", s.logins, most)
			}
			s.forgets = false
			s.refuse = true
			s.tokens = map[string]*lease{}
		})
		time.Sleep(healEvery)
		if err := get(); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "secret id") {
			t.Errorf("with a withdrawn secret id: %v", err)
		}
		s.set(func() { s.down = true })
		if err := get(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("server down: %v", err)
		}
	})
}

func TestTokens(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ttl, max time.Duration
		alive    time.Duration // it works this long
		dead     bool          // and not longer
	}{
		{"renewed", time.Minute, 0, 24 * time.Hour, false},
		{"up to its maximum", time.Minute, time.Hour, 59 * time.Minute, true},
		{"not renewable", time.Hour, time.Hour, 59 * time.Minute, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newLoginServer(tt.ttl, tt.max)
				s.tokens["given"] = &lease{time.Now(), time.Now().Add(tt.ttl)}
				c := s.open(t, Auth{Method: "token", Token: secret.New("given")})
				time.Sleep(tt.alive)
				if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); err != nil {
					t.Errorf("after %v: %v", tt.alive, err)
				}
				if !tt.dead {
					return
				}
				time.Sleep(time.Hour)
				if _, err := c.Get(t.Context(), "grants/a", &struct{}{}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "token has expired") {
					t.Errorf("an hour later: %v", err)
				}
			})
		})
	}
}

func TestOpenErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			auth Auth
			down bool
			want error
			text string
		}{
			{"wrong secret id", Auth{Method: "approle", RoleID: "rid", SecretID: secret.New("hush-hush")}, false, ErrDenied, "not accepted at auth/approle/login"},
			{"no secret id", Auth{Method: "approle", RoleID: "rid"}, false, ErrDenied, "needs a role id and a secret id"},
			{"dead token", Auth{Method: "token", Token: secret.New("hush-hush")}, false, ErrDenied, "expired"},
			{"no token", Auth{Method: "token"}, false, ErrDenied, "no vault token"},
			{"unknown method", Auth{Method: "ldap"}, false, nil, "unknown vault auth method"},
			{"sealed", appRole, true, ErrUnavailable, "503"},
		} {
			s := newLoginServer(time.Minute, 0)
			s.down = tt.down
			_, err := open(t.Context(), Config{Address: "http://vault.test", Auth: tt.auth}, nil, s)
			if err == nil || !strings.Contains(err.Error(), tt.text) || (tt.want != nil && !errors.Is(err, tt.want)) {
				t.Errorf("%s: %v; want %v, %q", tt.name, err, tt.want, tt.text)
			}
			if err != nil && strings.Contains(err.Error(), "hush-hush") {
				t.Errorf("%s: the error shows the credential", tt.name)
			}
		}
	})
}

// A call never outlasts its deadline, retries included.
func TestDeadlineHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLoginServer(time.Hour, 0)
		var hang atomic.Bool
		c, err := open(t.Context(), Config{Address: "http://vault.test", Auth: appRole}, nil, roundTripper(func(req *http.Request) (*http.Response, error) {
			if hang.Load() {
				<-req.Context().Done()
				return nil, req.Context().Err()
			}
			return s.RoundTrip(req)
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		hang.Store(true)
		began := time.Now()
		_, err = c.Get(context.Background(), "grants/a", &struct{}{})
		if !errors.Is(err, ErrUnavailable) || time.Since(began) != callTimeout {
			t.Errorf("%v after %v, want %v after %v", err, time.Since(began), ErrUnavailable, callTimeout)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
