package grant

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/oauth"
	"wayleave/secret"
)

// trader is a token endpoint that exchanges: it takes a second, and keeps what it was asked for.
type trader struct {
	life   time.Duration // of its tokens; 0: it names no end
	scopes []string      // in answers; nil: none named
	fail   func(n int) error

	mu    sync.Mutex
	asked []oauth.Exchange
	now   int // calls under way
	most  int // of now
}

func (tr *trader) TokenExchange(ctx context.Context, x oauth.Exchange) (oauth.Token, error) {
	tr.mu.Lock()
	tr.asked = append(tr.asked, x)
	n := len(tr.asked)
	tr.now++
	tr.most = max(tr.most, tr.now)
	tr.mu.Unlock()
	defer func() { tr.mu.Lock(); tr.now--; tr.mu.Unlock() }()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return oauth.Token{}, &oauth.Error{Outcome: oauth.Unknown, Err: ctx.Err()}
	}
	if tr.fail != nil {
		if err := tr.fail(n); err != nil {
			return oauth.Token{}, err
		}
	}
	t := oauth.Token{Access: secret.New(fmt.Sprintf("xt%s%d", mark, n)), Scopes: tr.scopes}
	if tr.life > 0 {
		t.Expiry = time.Now().Add(tr.life)
	}
	return t, nil
}

func (tr *trader) calls() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.asked)
}

// market is a connected grant with an exchange.
type market struct {
	*world
	*trader
	x *Exchanger
	k *Keeper
}

func newMarket(t *testing.T, tr *trader, edit func(*Exchange)) market {
	w := newWorld(t, 8*time.Hour)
	w.connect("files", "inference")
	k, _ := w.run(Options{})
	rule := Exchange{OAuth: tr, Audience: "api", Scopes: []string{"inference"}, Actor: true}
	if edit != nil {
		edit(&rule)
	}
	return market{w, tr, NewExchanger(k, map[string]Exchange{"claude": rule}), k}
}

// own gets a worker's token, and says how long that took.
func (m market) own(worker string, required ...string) (token string, took time.Duration) {
	m.Helper()
	start := time.Now()
	t, err := m.x.Token(m.Context(), "claude", worker, required)
	if err != nil {
		m.Fatal(err)
	}
	return strings.TrimPrefix(t.Access.Reveal(), "xt"+mark), time.Since(start)
}

func (m market) denied(worker string, want State, required ...string) *Unusable {
	m.Helper()
	_, err := m.x.Token(m.Context(), "claude", worker, required)
	u, ok := errors.AsType[*Unusable](err)
	if !ok || u.State != want || strings.Contains(u.Error(), mark) {
		m.Fatalf("%v, want a refusal with %s", err, want)
	}
	return u
}

func TestEachWorkerHasATokenOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: time.Hour}, nil)
		first, took := m.own("w1", "inference")
		if again, none := m.own("w1"); first != "1" || again != "1" || took != time.Second || none != 0 {
			t.Errorf("tokens %s and %s after %v and %v", first, again, took, none)
		}
		if other, _ := m.own("w2"); other != "2" {
			t.Errorf("another worker has token %s", other)
		}
		want := []oauth.Exchange{
			{Actor: "w1", Audience: "api", Scopes: []string{"inference"}},
			{Actor: "w2", Audience: "api", Scopes: []string{"inference"}},
		}
		for i := range m.asked {
			if m.asked[i].Subject.Reveal() != m.token(m.k).Access.Reveal() {
				t.Error("the subject is not the grant's token")
			}
			m.asked[i].Subject = secret.Text{}
		}
		if diff := cmp.Diff(want, m.asked); diff != "" {
			t.Error(diff)
		}
		// What the exchange was not asked for is missing, whatever the grant holds.
		if u := m.denied("w1", ScopeMissing, "files"); !cmp.Equal(u.Missing, []string{"files"}) || !strings.Contains(u.Error(), "exchange.scopes") {
			t.Errorf("%v", u)
		}
	})
}

func TestGrantsWithoutAnExchangePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.connect("files")
		k, _ := w.run(Options{})
		x := NewExchanger(k, nil)
		got, err := x.Token(t.Context(), "claude", "w1", []string{"files"})
		if err != nil || !got.Access.Equal(w.token(k).Access) {
			t.Error(err)
		}
		if _, err := x.Token(t.Context(), "nobody", "w1", nil); !errors.Is(err, ErrNotConfigured) {
			t.Error(err)
		}
	})
}

// Renewed ahead and in the background, so that nobody waits while there is a token.
func TestExchangedTokensAreRenewedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: 10 * time.Minute}, nil)
		m.own("w1")
		time.Sleep(9*time.Minute + time.Second)
		if token, took := m.own("w1"); token != "1" || took != 0 {
			t.Errorf("token %s after %v", token, took)
		}
		time.Sleep(2 * time.Second)
		if token, took := m.own("w1"); token != "2" || took != 0 || m.calls() != 2 {
			t.Errorf("token %s after %v, %d calls", token, took, m.calls())
		}
		time.Sleep(time.Hour)
		if token, took := m.own("w1"); token != "3" || took != time.Second {
			t.Errorf("token %s after %v", token, took)
		}
	})
}

func TestOneExchangeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: time.Hour}, nil)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, err := m.x.Token(t.Context(), "claude", "w1", nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if m.calls() != 1 || m.most != 1 {
			t.Errorf("%d calls, %d at a time", m.calls(), m.most)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := m.x.Token(ctx, "claude", "w2", nil); err == nil || m.calls() != 2 {
			t.Error("a request waits longer than it can")
		}
		time.Sleep(2 * time.Second)
		if token, took := m.own("w2"); token != "2" || took != 0 {
			t.Errorf("what the request began was in vain: token %s after %v", token, took)
		}
	})
}

// A token made from a consent that has been replaced or withdrawn is not used any more.
func TestExchangedTokensEndWithTheConsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: time.Hour}, nil)
		m.own("w1")
		m.connect("files", "inference")
		time.Sleep(10 * time.Second)
		if token, _ := m.own("w1"); token != "2" {
			t.Errorf("after a reconnect: token %s", token)
		}
		if err := Disconnect(t.Context(), m.docs, "claude"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		m.denied("w1", NeverConnected)
		m.connect("files", "inference")
		time.Sleep(10 * time.Second)
		if token, _ := m.own("w1"); token != "3" {
			t.Errorf("after a new connect: token %s", token)
		}
	})
}

// A refresh of the grant's own token leaves the workers' alone.
func TestExchangedTokensOutliveARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: 24 * time.Hour}, nil)
		m.own("w1")
		time.Sleep(9 * time.Hour)
		if token, _ := m.own("w1"); token != "1" || m.as.count() == 0 {
			t.Errorf("token %s after %d refreshes", token, m.as.count())
		}
	})
}

func TestFailedExchangesAreNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := &oauth.Error{Outcome: oauth.Refused, Status: 400, Code: "invalid_target"}
		tr := &trader{life: time.Hour, fail: func(n int) error {
			if n <= 3 {
				return refuse
			}
			return nil
		}}
		m := newMarket(t, tr, nil)
		u := m.denied("w1", RefreshUnavailable)
		if u.RetryAfter <= 0 || !strings.Contains(u.Error(), "audience") || !errors.Is(u, refuse) {
			t.Errorf("%v, retry after %v", u, u.RetryAfter)
		}
		for range 100 {
			m.denied("w1", RefreshUnavailable)
		}
		if m.calls() != 1 {
			t.Errorf("%d calls", m.calls())
		}
		start := time.Now()
		for m.calls() < 4 {
			time.Sleep(100 * time.Millisecond)
			m.x.Token(t.Context(), "claude", "w1", nil)
		}
		if token, _ := m.own("w1"); token != "4" || time.Since(start) < 4*time.Second {
			t.Errorf("token %s after %v", token, time.Since(start))
		}
	})
}

// A grant's token that was revoked is replaced when an exchange shows it, whatever servers call that.
func TestRevokedSubject(t *testing.T) {
	for code, outcome := range map[string]oauth.Outcome{"invalid_grant": oauth.InvalidGrant, "invalid_token": oauth.Refused, "invalid_request": oauth.Refused} {
		synctest.Test(t, func(t *testing.T) {
			tr := &trader{life: time.Hour}
			m := newMarket(t, tr, nil)
			m.own("w1")
			revoked := m.token(m.k).Access
			tr.fail = func(n int) error {
				tr.mu.Lock()
				defer tr.mu.Unlock()
				if tr.asked[n-1].Subject.Equal(revoked) {
					return &oauth.Error{Outcome: outcome, Status: 400, Code: code}
				}
				return nil
			}
			for _, worker := range []string{"w2", "w3"} {
				m.own(worker)
			}
			m.as.once(t, 1)
		})
	}
	// What is asked for wrongly is no fault of the grant's.
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{fail: func(int) error { return &oauth.Error{Outcome: oauth.Refused, Status: 400, Code: "invalid_request"} }}, nil)
		if u := m.denied("w1", RefreshUnavailable); !strings.Contains(u.Error(), "check audience") {
			t.Error(u)
		}
		m.as.once(t, 0)
	})
}

func TestExchangeErrorsNameTheNextStep(t *testing.T) {
	for _, tt := range []struct {
		err  error
		says string
	}{
		{&oauth.Error{Outcome: oauth.InvalidGrant, Status: 400, Code: "invalid_grant"}, "wayleave grant connect g"},
		{&oauth.Error{Outcome: oauth.Refused, Status: 400, Code: "invalid_token"}, "wayleave grant connect g"},
		{&oauth.Error{Outcome: oauth.Refused, Status: 400, Code: "invalid_scope"}, "scopes"},
		{&oauth.Error{Outcome: oauth.Refused, Status: 401, Code: "invalid_client"}, "auth_style"},
		{&oauth.Error{Outcome: oauth.Refused, Status: 400, Code: "unsupported_grant_type"}, "exchange"},
		{&oauth.Error{Outcome: oauth.Unknown, Status: 503, RetryAfter: time.Hour}, "wait"},
		{&oauth.Error{Outcome: oauth.Refused, Status: 404}, "RFC 8693"},
		{errors.New("x"), "RFC 8693"},
	} {
		u := exchangeRefused(exchangeKey{"g", "w"}, tt.err)
		if !strings.Contains(u.Error(), tt.says) || u.State != RefreshUnavailable || !errors.Is(u, tt.err) {
			t.Errorf("%v", u)
		}
	}
}

func TestExchangedLifeAndScopes(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		own, subject time.Time
		want         time.Duration
	}{
		{now.Add(2 * time.Hour), now.Add(time.Hour), 2 * time.Hour},
		{time.Time{}, now.Add(time.Minute), time.Minute},
		{time.Time{}, now.Add(8 * time.Hour), longestExchanged},
		{time.Time{}, time.Time{}, longestExchanged},
		{now, now.Add(time.Hour), shortestUse},
		{now.Add(-time.Hour), time.Time{}, shortestUse},
	} {
		if got := lifeOf(tt.own, tt.subject, now); got != tt.want {
			t.Errorf("%v, %v: %v, want %v", tt.own, tt.subject, got, tt.want)
		}
	}
	for _, tt := range []struct{ answered, asked, subject, want []string }{
		{[]string{"a"}, []string{"b"}, []string{"c"}, []string{"a"}},
		{nil, []string{"b", "a"}, []string{"c"}, []string{"a", "b"}},
		{nil, nil, []string{"c"}, []string{"c"}},
		{[]string{}, nil, []string{"c"}, []string{}},
	} {
		if got := exchangedScopes(tt.answered, tt.asked, tt.subject); !cmp.Equal(got, tt.want) {
			t.Errorf("%v: %v", tt, got)
		}
	}
}

// Memory is bounded, and what is in use stays.
func TestExchangerForgets(t *testing.T) {
	x := NewExchanger(&Keeper{}, nil)
	for i := range maxExchanged {
		e := x.entry(exchangeKey{"g", fmt.Sprint(i)}, 0)
		e.ends, e.used = time.Hour, time.Duration(i+10)
	}
	x.entries[exchangeKey{"g", "0"}].flight = make(chan struct{})
	x.entries[exchangeKey{"g", "5"}].used = 1
	x.entry(exchangeKey{"g", "new"}, 20)
	if len(x.entries) != maxExchanged || x.entries[exchangeKey{"g", "0"}] == nil || x.entries[exchangeKey{"g", "5"}] != nil {
		t.Errorf("%d entries", len(x.entries))
	}
	x.entry(exchangeKey{"g", "later"}, 2*time.Hour)
	if len(x.entries) != 2 { // the one in flight, and this
		t.Errorf("%d entries", len(x.entries))
	}
}

// After a change of its rule a grant's workers get other tokens, also one who waits meanwhile; the tokens of other grants stay.
func TestExchangeRulesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMarket(t, &trader{life: time.Hour}, nil)
		rule, _ := m.x.rule("claude")
		m.own("w1")
		m.x.Update(map[string]Exchange{"claude": rule})
		if same, took := m.own("w1"); same != "1" || took != 0 {
			t.Errorf("without a change: token %s after %v", same, took)
		}
		waiting := make(chan string)
		go func() {
			token, _ := m.own("w2")
			waiting <- token
		}()
		synctest.Wait()
		before, err := m.x.Token(t.Context(), "claude", "w1", nil)
		if err != nil {
			t.Fatal(err)
		}
		rule.Audience = "other"
		m.x.Update(map[string]Exchange{"claude": rule})
		if got := <-waiting; got != "3" || m.asked[2].Audience != "other" || m.asked[2].Actor != "w2" {
			t.Errorf("who waited has token %s, got by %+v", got, m.asked)
		}
		if got, took := m.own("w1"); got != "4" || took != time.Second {
			t.Errorf("token %s after %v", got, took)
		}
		m.x.Reject("claude", "w1", before.Version) // it comes late, and is not of this one
		if got, took := m.own("w1"); got != "4" || took != 0 {
			t.Errorf("after a rejection of the old token: %s after %v", got, took)
		}
		m.x.Update(nil)
		if got, err := m.x.Token(t.Context(), "claude", "w1", nil); err != nil || !got.Access.Equal(m.token(m.k).Access) {
			t.Errorf("without a rule: %v", err)
		}
		if len(m.x.entries) != 0 {
			t.Errorf("%d tokens are kept", len(m.x.entries))
		}
	})
}
