package grant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault/vaulttest"
)

// mark is in every token of these tests, and may be in nothing that people or workers read.
const mark = "-secret-"

// authority is an authorization server with refresh token rotation and reuse detection: a refresh token presented twice
// revokes the family (RFC 9700 section 4.14.2).
type authority struct {
	life    time.Duration // of access tokens
	latency time.Duration
	// Decide about the nth call, from 1: fail refuses it before the token is looked at, lose breaks the connection after.
	fail, lose func(n int) error
	scopes     []string // in answers; nil: none named
	keeps      bool     // no rotation: answers have no refresh token
	machine    bool     // asks for no refresh token and gives none

	mu        sync.Mutex
	calls     int
	tokens    int
	live      string
	presented map[string]int
	revoked   bool
}

func newAuthority(life time.Duration) *authority {
	return &authority{life: life, latency: 300 * time.Millisecond, presented: map[string]int{}}
}

// set changes the script while replicas run.
func (a *authority) set(f func(*authority)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(a)
}

// grant is what an operator gets from consenting: a new family.
func (a *authority) grant(scopes ...string) oauth.Token {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = false
	t := a.issue()
	t.Scopes, t.Refresh = scopes, secret.New(a.live)
	return t
}

func (a *authority) issue() oauth.Token {
	a.tokens++
	t := oauth.Token{Access: secret.New(fmt.Sprintf("at%s%d", mark, a.tokens)), Scopes: a.scopes, Expiry: time.Now().Add(a.life), Account: "pat@example.com"}
	if !a.keeps || a.live == "" {
		a.live = fmt.Sprintf("rt%s%d", mark, a.tokens)
		t.Refresh = secret.New(a.live)
	}
	return t
}

func (a *authority) Refresh(ctx context.Context, refresh secret.Text, _, _ []string) (oauth.Token, error) {
	if err := ctx.Err(); err != nil {
		return oauth.Token{}, &oauth.Error{Outcome: oauth.NotSent, Err: err}
	}
	sent := time.Now()
	a.mu.Lock()
	a.calls++
	n, latency := a.calls, a.latency
	a.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: ctx.Err()}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		if err := a.fail(n); err != nil {
			return oauth.Token{}, err
		}
	}
	if a.machine {
		a.tokens++
		return oauth.Token{Access: secret.New(fmt.Sprintf("at%s%d", mark, a.tokens)), Expiry: sent.Add(a.life)}, nil
	}
	rt := refresh.Reveal()
	a.presented[rt]++
	if rt != a.live || a.revoked {
		a.revoked = true
		return oauth.Token{}, &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
	}
	t := a.issue()
	t.Expiry = sent.Add(a.life)
	if a.lose != nil {
		if err := a.lose(n); err != nil {
			return oauth.Token{}, err
		}
	}
	return t, nil
}

func (a *authority) Revoke(context.Context, secret.Text) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = true
	return nil
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// once fails the test unless each refresh token was presented at most once, and in n calls altogether.
func (a *authority) once(t *testing.T, n int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls != n {
		t.Errorf("%d token endpoint calls, want %d", a.calls, n)
	}
	for rt, n := range a.presented {
		if n > 1 {
			t.Errorf("refresh token %s was presented %d times", strings.TrimPrefix(rt, "rt"+mark), n)
		}
	}
	if a.revoked {
		t.Error("the family was revoked")
	}
}

// world is one store, one provider and one configured grant named "claude". Whatever is logged, or stored for people,
// is searched for tokens at the end.
type world struct {
	*testing.T
	docs Documents
	mem  *vaulttest.Memory // docs, or nil
	as   *authority
	spec Spec
	log  *syncBuffer
}

func newWorld(t *testing.T, life time.Duration) *world {
	mem := vaulttest.NewMemory()
	w := newWorldOn(t, mem, life)
	w.mem = mem
	return w
}

func newWorldOn(t *testing.T, docs Documents, life time.Duration) *world {
	as := newAuthority(life)
	w := &world{T: t, docs: docs, as: as, log: &syncBuffer{},
		spec: Spec{Name: "claude", Provider: "anthropic", Scopes: []string{"files", "inference"}, OAuth: as}}
	t.Cleanup(func() {
		if strings.Contains(w.log.String(), mark) {
			t.Error("a token was logged")
		}
		if t.Failed() {
			t.Log("\n" + w.log.String())
		}
	})
	return w
}

// connect is the operator's part.
func (w *world) connect(scopes ...string) Summary {
	w.Helper()
	return w.load(w.as.grant(scopes...))
}

// load stores tokens as an operator's connect or import does.
func (w *world) load(t oauth.Token) Summary {
	w.Helper()
	s, err := Connect(w.Context(), w.docs, w.spec, t, time.Now())
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// keeper makes a replica that is not started yet.
func (w *world) keeper(o Options) *Keeper {
	o.Log = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return NewKeeper(w.docs, []Spec{w.spec}, o)
}

// run makes a replica and starts it.
func (w *world) run(o Options) (k *Keeper, stop func() error) {
	k = w.keeper(o)
	return k, w.start(k)
}

// start starts a replica. stop ends it and returns what Run returned.
func (w *world) start(k *Keeper) (stop func() error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	w.Cleanup(func() { stop() })
	return stop
}

// token gets a token, or fails the test.
func (w *world) token(k *Keeper, required ...string) Token {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	t, err := k.Token(ctx, w.spec.Name, required)
	if err != nil {
		w.Fatalf("Token: %v", err)
	}
	return t
}

// refused gets a refusal, checks its text, and fails the test unless the state is want.
func (w *world) refused(k *Keeper, want State, required ...string) *Unusable {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	_, err := k.Token(ctx, w.spec.Name, required)
	u, ok := errors.AsType[*Unusable](err)
	if !ok || u.State != want {
		w.Fatalf("Token: %v, want a refusal with %s", err, want)
	}
	if strings.Contains(u.Error(), mark) {
		w.Error("a refusal holds a token")
	}
	if operator := u.State != RefreshUnavailable && u.State != VaultUnavailable; operator != strings.Contains(u.Error(), "`wayleave grant connect claude`") || operator != (u.RetryAfter == 0) {
		w.Errorf("refusal does not fit %s: %v, retry after %v", u.State, u, u.RetryAfter)
	}
	return u
}

// stored reads the grant document.
func (w *world) stored() record {
	w.Helper()
	r, _, err := getRecord(w.Context(), w.docs, w.spec.Name)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// status reads the status document.
func (w *world) status() Summary {
	w.Helper()
	var raw json.RawMessage
	if _, err := w.docs.Get(w.Context(), statusPath(w.spec.Name), &raw); err != nil {
		w.Fatal(err)
	}
	if bytes.Contains(raw, []byte(mark)) {
		w.Error("the status document holds a token")
	}
	s, err := getStatus(w.Context(), w.docs, w.spec.Name)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// logged reports how many log lines have all these parts.
func (w *world) logged(parts ...string) (n int) {
	for line := range strings.Lines(w.log.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			n++
		}
	}
	return n
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
