package grant

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/vault/vaulttest"
)

// Whatever happens, in whatever order (answers of every kind, lost ones, kills, reconnects, disconnects, outages and lags of
// the store, clocks that are set), no replica ever serves a token that has expired, that lacks a required scope, or that is
// of an earlier consent than the present one.
func TestNeverServesAWrongToken(t *testing.T) {
	scripts := 6
	if testing.Short() {
		scripts = 2
	}
	for i := range scripts {
		script := make([]byte, 120)
		random := rand.New(rand.NewPCG(uint64(i), 1))
		for j := range script {
			script[j] = byte(random.Uint32())
		}
		if !t.Run(fmt.Sprint(i), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { play(t, script) }) }) {
			return
		}
	}
}

func FuzzNeverServesAWrongToken(f *testing.F) {
	f.Add([]byte{0, 9, 1, 0, 3, 1, 0, 60, 1, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 200 {
			t.Skip("too long")
		}
		synctest.Test(t, func(t *testing.T) { play(t, script) })
	})
}

// issued is the truth about one access token.
type issued struct {
	epoch  int
	scopes []string
	ends   time.Time
}

// oracle is a provider that knows the truth about its tokens and fails as it is told.
type oracle struct {
	mu     sync.Mutex
	epoch  int // consents so far
	scopes []string
	tokens map[string]issued
	live   string // refresh token
	next   byte   // how the next calls end
	n      int
}

const (
	oracleLife = 20 * time.Minute
	reread     = 20 * time.Second
)

var allScopes = []string{"files", "inference"}

// consent is a new one, of some of the scopes.
func (o *oracle) consent(scopes []string) oauth.Token {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.epoch++
	o.scopes = scopes
	t := o.issue(0)
	t.Scopes = scopes
	return t
}

// issue gives out a token as seen by a client whose clock is off by skew.
func (o *oracle) issue(skew time.Duration) oauth.Token {
	o.n++
	access := fmt.Sprintf("at%s%d", mark, o.n)
	o.live = fmt.Sprintf("rt%s%d", mark, o.n)
	o.tokens[access] = issued{o.epoch, o.scopes, time.Now().Add(oracleLife + skew.Abs())}
	return oauth.Token{Access: secret.New(access), Refresh: secret.New(o.live), Expiry: time.Now().Add(oracleLife + skew)}
}

func (o *oracle) refresh(refresh secret.Text, skew time.Duration) (oauth.Token, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch o.next % 8 {
	case 1:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.NotSent, Err: errors.New("no route")}
	case 2:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Refused, Status: 429, RetryAfter: 90 * time.Second}
	case 3:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Status: 503}
	}
	if refresh.Reveal() != o.live {
		return oauth.Token{}, &oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}
	}
	narrow := o.next%8 == 4 && len(o.scopes) > 0
	if narrow {
		o.scopes = o.scopes[:len(o.scopes)-1]
	}
	t := o.issue(skew)
	switch o.next % 8 {
	case 4:
		t.Scopes = append([]string{}, o.scopes...)
	case 5:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: errors.New("connection reset")}
	case 6:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Status: 200, Rotated: t.Refresh, Err: errors.New("no access token")}
	}
	return t, nil
}

// mortal is one process: its keeper, and what of it ends with a kill.
type mortal struct {
	Documents
	oracle *oracle
	spool  *shelf // outlives it
	keeper *Keeper

	mu     sync.Mutex
	dead   bool
	cut    bool                 // from the store
	skew   time.Duration        // by which its time of day is off
	skewed time.Time            // since when
	served map[string]time.Time // access tokens, and since when
	mended time.Time            // when cut last changed
	died   chan struct{}
	end    func()
}

func (m *mortal) is(f func() bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return f()
}

func (m *mortal) gone() bool { return m.is(func() bool { return m.dead || m.cut }) }

var errGone = fmt.Errorf("%w: cut off", vault.ErrUnavailable)

func (m *mortal) Get(ctx context.Context, path string, into any) (int, error) {
	if m.gone() {
		return 0, errGone
	}
	return m.Documents.Get(ctx, path, into)
}

func (m *mortal) Put(ctx context.Context, path string, doc any, cas int) (int, error) {
	if m.gone() {
		return 0, errGone
	}
	v, err := m.Documents.Put(ctx, path, doc, cas)
	if m.gone() {
		return 0, errGone
	}
	return v, err
}

func (m *mortal) Refresh(ctx context.Context, refresh secret.Text, _, _ []string) (oauth.Token, error) {
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: ctx.Err()}
	case <-m.died:
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: errGone}
	}
	m.mu.Lock()
	skew := m.skew
	m.mu.Unlock()
	t, err := m.oracle.refresh(refresh, skew)
	if m.is(func() bool { return m.dead }) {
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: errGone}
	}
	return t, err
}

func (m *mortal) Revoke(context.Context, secret.Text) error { return nil }

func (m *mortal) Keep(name string, data []byte) error {
	if m.is(func() bool { return m.dead }) {
		return errGone
	}
	return m.spool.Keep(name, data)
}

func (m *mortal) Read(name string) ([]byte, error) { return m.spool.Read(name) }

func (m *mortal) Drop(name string) error {
	if m.is(func() bool { return m.dead }) {
		return errGone
	}
	return m.spool.Drop(name)
}

// play lets the script happen to three replicas and asks them for tokens all along.
func play(t *testing.T, script []byte) {
	w := newWorldOn(t, vaulttest.NewMemory(), oracleLife)
	mem := w.docs.(*vaulttest.Memory)
	o := &oracle{tokens: map[string]issued{}}
	w.spec.Scopes = allScopes
	var stale bool
	var mu sync.Mutex
	mem.Inject(func(op, _ string) vaulttest.Fault {
		mu.Lock()
		defer mu.Unlock()
		return vaulttest.Fault{Stale: stale && op == "get"}
	})

	start := func(i int, spool *shelf) *mortal {
		m := &mortal{Documents: mem, oracle: o, spool: spool, served: map[string]time.Time{}, died: make(chan struct{})}
		spec := w.spec
		spec.OAuth = m
		m.keeper = NewKeeper(m, []Spec{spec}, Options{
			Holder: fmt.Sprint("replica", i), Spool: m, Drain: time.Millisecond, Reread: reread, Log: slog.New(slog.NewTextHandler(w.log, nil)),
			Now: func() time.Time {
				m.mu.Lock()
				defer m.mu.Unlock()
				return time.Now().Add(m.skew)
			},
		})
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.keeper.Run(ctx)
		}()
		m.end = func() {
			m.mu.Lock()
			if !m.dead {
				close(m.died)
			}
			m.dead = true
			m.mu.Unlock()
			cancel()
			<-done
		}
		return m
	}
	replicas := make([]*mortal, 3)
	for i := range replicas {
		replicas[i] = start(i, &shelf{})
	}
	defer func() {
		for _, m := range replicas {
			m.end()
		}
	}()

	epoch, since, mended := 0, time.Now(), time.Time{} // of the present consent; 0 when there is none
	connect := func(scopes []string) {
		tok := o.consent(scopes)
		if s, err := Connect(t.Context(), mem, w.spec, tok, time.Now()); err != nil && s.Name == "" {
			t.Fatal(err)
		}
		epoch, since = o.epoch, time.Now()
	}
	check := func(arg byte) {
		m, required := replicas[int(arg)%len(replicas)], allScopes[:int(arg/3)%(len(allScopes)+1)]
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		tok, err := m.keeper.Token(ctx, "claude", required)
		if err != nil {
			return
		}
		o.mu.Lock()
		truth, known := o.tokens[tok.Access.Reveal()]
		o.mu.Unlock()
		// What was seen before the clock was set is judged right; for the rest there is no other clock to go by.
		now := time.Now()
		m.mu.Lock()
		first, again := m.served[tok.Access.Reveal()]
		if !again {
			first = now
			m.served[tok.Access.Reveal()] = now
		}
		if first.After(m.skewed) {
			truth.ends = truth.ends.Add(m.skew.Abs())
		}
		m.mu.Unlock()
		const readsWithin = reread + 2*time.Second // what the store has, if it can
		sighted := m.is(func() bool { return !m.cut && now.Sub(m.mended) > readsWithin }) && !stale && now.Sub(mended) > readsWithin
		switch {
		case !known:
			t.Errorf("a token that nobody issued")
		case now.After(truth.ends):
			t.Errorf("a token that expired %v ago", now.Sub(truth.ends))
		case len(oauth.MissingScopes(truth.scopes, required)) > 0:
			t.Errorf("a token of %q where %q is required", truth.scopes, required)
		case truth.epoch != epoch && sighted && now.Sub(since) > readsWithin:
			t.Errorf("a token of consent %d, %v after consent %d", truth.epoch, now.Sub(since), epoch)
		}
	}

	connect(allScopes)
	for i := 0; i+1 < len(script) && !t.Failed(); i += 2 {
		arg := script[i+1]
		m := replicas[int(arg)%len(replicas)]
		switch script[i] % 14 {
		case 0, 1, 2:
			time.Sleep(time.Duration(arg) * 5 * time.Second)
		case 3:
			time.Sleep(time.Duration(arg) * 10 * time.Millisecond)
		case 4, 5, 6:
			o.mu.Lock()
			o.next = arg
			o.mu.Unlock()
		case 7, 8:
			at := slices.Index(replicas, m)
			m.end()
			replicas[at] = start(at, m.spool)
		case 9:
			connect(allScopes[:int(arg)%(len(allScopes)+1)])
		case 10:
			m.mu.Lock()
			m.cut, m.mended = !m.cut, time.Now()
			m.mu.Unlock()
		case 11:
			m.mu.Lock()
			m.skew, m.skewed = time.Duration(int(arg)%21-10)*time.Minute, time.Now()
			m.mu.Unlock()
		case 12:
			if arg%4 == 0 {
				if err := Disconnect(t.Context(), mem, "claude"); err != nil {
					t.Fatal(err)
				}
				epoch, since = 0, time.Now()
			} else {
				_, _ = Ask(t.Context(), mem, "claude", []Request{AskRefresh, AskRefresh, AskRefresh, AskRevoke}[arg%4], time.Now())
			}
		case 13:
			mu.Lock()
			stale, mended = !stale, time.Now()
			mu.Unlock()
		}
		for r := range byte(len(replicas)) {
			check(r + 3*(arg%3))
		}
	}
}
