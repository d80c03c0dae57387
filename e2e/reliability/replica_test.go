package reliability

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/spool"
	"wayleave/vault"
)

// This file is the other process: a gate without Envoy. It is told what to do on its standard input and says on its standard
// output how far it is; its log goes to standard error.

const replicaEnv = "WAYLEAVE_RELIABILITY_REPLICA"

// settings come first on the standard input.
type settings struct {
	Vault                             login
	Grants                            []minded
	Spool                             string // directory
	CallTimeout, Lease, Reread, Ahead time.Duration
	Unchecked                         bool  // the store takes every write, whoever wrote in between
	Hold                              point // every grant stops here the first time, until told to go on
	Jump                              time.Duration
}

type login struct{ Address, RoleID, SecretID string }

type minded struct{ Name, Provider, TokenURL, ClientSecret string }

// point is a step of a refresh.
type point string

const (
	beforeLease point = "before the lease"
	afterLease  point = "after the lease"
	afterMark   point = "after the mark" // in the spool: the token is about to be presented
	inFlight    point = "in flight"      // the provider has the request; only the provider can tell
	afterAnswer point = "after the answer"
	afterSpool  point = "after the spool"
	afterCommit point = "after the commit"
)

// order follows on the standard input.
type order struct {
	Do    string // go, jump, use
	ID    int    // of a use: its answer has it too
	Grant string
	By    time.Duration
}

// event is one line of the standard output.
type event struct {
	What  string // at, answered, kept, stored, used
	Grant string
	Point point
	Token string // the fingerprint of the refresh token that came
	ID    int
	Code  int    // of a use: what the API answered; 0: no token
	Error string // of a use without a token
}

func replicaMain() int {
	in := json.NewDecoder(os.Stdin)
	r := &child{out: json.NewEncoder(os.Stdout), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		held: map[string]bool{}, answers: map[string]string{}, release: make(chan struct{})}
	if err := in.Decode(&r.settings); err != nil {
		r.log.Error("no settings", "err", err)
		return 2
	}
	r.jump.Store(int64(r.Jump))
	if err := r.run(in); err != nil {
		r.log.Error("ended", "err", err)
		return 1
	}
	return 0
}

type child struct {
	settings
	log     *slog.Logger
	keeper  *grant.Keeper
	jump    atomic.Int64  // how wrong the clock is, in nanoseconds
	release chan struct{} // closed when those that are held may go on
	goOn    sync.Once

	mu      sync.Mutex
	out     *json.Encoder
	held    map[string]bool
	answers map[string]string // by grant: the fingerprint of the refresh token that came and is not stored yet
}

func (r *child) run(in *json.Decoder) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	cfg := vault.Config{Address: r.Vault.Address, Auth: vault.Auth{Method: "approle", RoleID: r.Vault.RoleID, SecretID: secret.New(r.Vault.SecretID)}}
	store, err := vault.Open(ctx, cfg, r.log)
	for errors.Is(err, vault.ErrUnavailable) { // a gate waits too
		r.log.Warn("no vault yet", "err", err)
		<-time.After(100 * time.Millisecond)
		store, err = vault.Open(ctx, cfg, r.log)
	}
	if err != nil {
		return err
	}
	defer store.Close()
	key, err := spool.LoadKey(ctx, store)
	if err != nil {
		return err
	}
	dir, err := spool.Open(r.Spool, key)
	if err != nil {
		return err
	}
	defer dir.Close()

	now := func() time.Time { return time.Now().Add(time.Duration(r.jump.Load())) }
	var specs []grant.Spec
	for _, g := range r.Grants {
		client := oauth.NewClient(oauth.Config{
			TokenURL: g.TokenURL, ClientID: clientID, ClientSecret: secret.New(g.ClientSecret), AuthStyle: oauth.AuthPost, AllowInsecure: true,
		}, nil, now)
		specs = append(specs, grant.Spec{Name: g.Name, Provider: g.Provider, OAuth: watchedIssuer{client, r, g.Name}})
	}
	r.keeper = grant.NewKeeper(watchedStore{store, r}, specs, grant.Options{
		Holder: dir.ID(), Spool: watchedSpool{dir, r}, Log: r.log, Now: now, CallTimeout: r.CallTimeout, Lease: r.Lease, Reread: r.Reread, Ahead: r.Ahead,
	})
	go func() {
		defer stop()
		for {
			var o order
			if err := in.Decode(&o); err != nil { // also when whoever started us has gone
				return
			}
			r.obey(ctx, o)
		}
	}()
	return r.keeper.Run(ctx)
}

func (r *child) obey(ctx context.Context, o order) {
	switch o.Do {
	case "go":
		r.goOn.Do(func() { close(r.release) })
	case "jump":
		r.jump.Store(int64(o.By))
	case "use":
		go func() {
			e := event{What: "used", Grant: o.Grant, ID: o.ID}
			var err error
			if e.Code, err = r.use(ctx, o.Grant); err != nil {
				e.Error = err.Error()
			}
			r.say(e)
		}()
	}
}

// use is what a worker's request is to a grant: a token, sent to the API.
func (r *child) use(ctx context.Context, name string) (code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	t, err := r.keeper.Token(ctx, name, nil)
	if err != nil {
		return 0, err
	}
	for _, g := range r.Grants {
		if g.Name == name {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(g.TokenURL, "/token")+"/api", nil)
			if err != nil {
				return 0, err
			}
			req.Header.Set("Authorization", "Bearer "+t.Access.Reveal())
			resp, err := oauth.NewHTTPClient(nil).Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode, err
		}
	}
	return 0, fmt.Errorf("no grant %q", name)
}

func (r *child) say(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.out.Encode(e) // fails when whoever started us has gone
}

// at holds the grant if this is where.
func (r *child) at(name string, p point) {
	r.mu.Lock()
	hold := r.Hold == p && !r.held[name]
	if hold {
		r.held[name] = true
	}
	r.mu.Unlock()
	if hold {
		r.say(event{What: "at", Grant: name, Point: p})
		<-r.release
	}
}

func (r *child) answered(name, token string) {
	r.mu.Lock()
	r.answers[name] = token
	r.mu.Unlock()
	r.say(event{What: "answered", Grant: name, Token: token})
}

func (r *child) answerOf(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answers[name]
}

func (r *child) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.answers, name)
}

// watchedIssuer tells of answers.
type watchedIssuer struct {
	grant.Issuer
	r    *child
	name string
}

func (w watchedIssuer) Refresh(ctx context.Context, refresh secret.Text, granted, requested []string) (oauth.Token, error) {
	t, err := w.Issuer.Refresh(ctx, refresh, granted, requested)
	if err == nil {
		w.r.answered(w.name, fingerprint(t.Refresh.Reveal()))
		w.r.at(w.name, afterAnswer)
	}
	return t, err
}

// watchedSpool tells of what would survive a crash.
type watchedSpool struct {
	grant.Spool
	r *child
}

func (w watchedSpool) Keep(name string, data []byte) error {
	err := w.Spool.Keep(name, data)
	switch token := w.r.answerOf(name); {
	case err != nil:
	case token == "":
		w.r.at(name, afterMark)
	default:
		w.r.say(event{What: "kept", Grant: name, Token: token})
		w.r.at(name, afterSpool)
	}
	return err
}

// watchedStore tells of leases and of what is stored.
type watchedStore struct {
	grant.Documents
	r *child
}

func (w watchedStore) Put(ctx context.Context, path string, doc any, cas int) (int, error) {
	name, ok := strings.CutPrefix(path, "grants/")
	if !ok {
		return w.put(ctx, path, doc, cas)
	}
	leases := leased(doc)
	if leases {
		w.r.at(name, beforeLease)
	}
	version, err := w.put(ctx, path, doc, cas)
	switch {
	case err != nil:
	case leases:
		w.r.at(name, afterLease)
	case w.r.answerOf(name) != "":
		w.r.say(event{What: "stored", Grant: name, Token: w.r.answerOf(name)})
		w.r.forget(name)
		w.r.at(name, afterCommit)
	}
	return version, err
}

// put writes whatever is there, if the store is to be one without check-and-set.
func (w watchedStore) put(ctx context.Context, path string, doc any, cas int) (int, error) {
	for {
		version, err := w.Documents.Put(ctx, path, doc, cas)
		if !w.r.Unchecked || !errors.Is(err, vault.ErrConflict) {
			return version, err
		}
		if cas, err = w.Version(ctx, path); err != nil {
			return 0, err
		}
	}
}

// leased reports whether a grant document has a lease.
func leased(doc any) bool {
	var d struct {
		Lease json.RawMessage `json:"lease"`
	}
	raw, err := json.Marshal(doc)
	return err == nil && json.Unmarshal(raw, &d) == nil && len(d.Lease) > 0
}
