package demo

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
)

// This file is how a test or the demo script makes a Provider misbehave, and asks it what happened.

type knobs struct {
	accessTTL     time.Duration
	allow         []string // nil: every scope
	rotate        bool
	before, after time.Duration
	failures      int
	failure       failure
	losses        int
	down          bool
	denied        bool
	edit          func(params map[string]string, answer map[string]any)
}

// failure answers a token call in place of the provider and reports whether it did.
type failure func(w http.ResponseWriter, params map[string]string) bool

// call is what is to go wrong with one token call.
type call struct {
	before, after time.Duration
	fail          failure
	lose          bool
	edit          func(params map[string]string, answer map[string]any)
}

// SetAccessTTL sets the life of access tokens issued from now on.
func (p *Provider) SetAccessTTL(d time.Duration) { p.set(func(k *knobs) { k.accessTTL = d }) }

// AllowScopes sets which scopes are granted of those requested, at the consent and at each refresh. None: all are.
func (p *Provider) AllowScopes(scopes ...string) {
	p.set(func(k *knobs) { k.allow = slices.Clone(scopes) })
}

// SetRotation sets whether a refresh replaces the refresh token (the default) or answers without one and keeps the old.
func (p *Provider) SetRotation(on bool) { p.set(func(k *knobs) { k.rotate = on }) }

// SetLatency delays every token call, before and after tokens are spent and issued. A client that gives up in between
// does not stop it.
func (p *Provider) SetLatency(before, after time.Duration) {
	p.set(func(k *knobs) { k.before, k.after = before, after })
}

// FailNext makes the next n token calls fail with status and body, with nothing spent.
func (p *Provider) FailNext(n, status int, body string) {
	fail := func(w http.ResponseWriter, _ map[string]string) bool {
		if strings.HasPrefix(strings.TrimSpace(body), "{") {
			w.Header().Set("Content-Type", "application/json")
		} else {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
		return true
	}
	p.set(func(k *knobs) { k.failures, k.failure = n, fail })
}

// FailCalls asks fail about every token call, with the call's parameters: one that it answers, and then reports true,
// spends nothing. Nil ends that.
func (p *Provider) FailCalls(fail func(w http.ResponseWriter, params map[string]string) bool) {
	p.set(func(k *knobs) { k.failures, k.failure = math.MaxInt, fail })
}

// EditAnswers lets edit change every successful answer after tokens are spent and issued, or lose it by a panic with
// http.ErrAbortHandler. Nil ends that.
func (p *Provider) EditAnswers(edit func(params map[string]string, answer map[string]any)) {
	p.set(func(k *knobs) { k.edit = edit })
}

// SetDenied makes every authorization end with access_denied, as if the operator had refused.
func (p *Provider) SetDenied(denied bool) { p.set(func(k *knobs) { k.denied = denied }) }

// LoseAnswers makes the next n token calls spend and issue tokens and then reset the connection instead of answering.
func (p *Provider) LoseAnswers(n int) { p.set(func(k *knobs) { k.losses = n }) }

// SetDown makes every connection be reset as soon as a request is read.
func (p *Provider) SetDown(down bool) { p.set(func(k *knobs) { k.down = down }) }

// ExpireAccess ends every access token issued so far; refresh tokens stay.
func (p *Provider) ExpireAccess() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.ledger.access)
}

// RevokeAll ends every consent given so far.
func (p *Provider) RevokeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.ledger.families() {
		p.ledger.kill(f)
	}
}

// Issue gives a consent without a browser and returns its tokens.
func (p *Provider) Issue(scopes ...string) (access, refresh string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.ledger.open(p.opts.ClientID, slices.Clone(scopes), p.opts.Now(), p.knobs.accessTTL)
	return t.access, t.refresh
}

// Stats are counts since the start.
type Stats struct {
	TokenCalls int // requests at /token that were read, whatever came of them
	Exchanges  int // codes that became tokens
	Refreshes  int // refreshes that succeeded, also when the answer was lost on purpose
	Mints      int // tokens for client_credentials and jwt-bearer
	Trades     int // token exchanges (RFC 8693)
	Reuses     int // spent refresh tokens presented again
	Revoked    int // consents ended, by reuse or on request
	// Presented counts how often each refresh token came to a decision, by the hexadecimal SHA-256 of the token.
	Presented map[string]int
}

// MaxPresented returns how often the most presented refresh token was presented.
func (s Stats) MaxPresented() int {
	most := 0
	for _, n := range s.Presented {
		most = max(most, n)
	}
	return most
}

// Stats returns a snapshot.
func (p *Provider) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Reuses, s.Revoked, s.Presented = p.ledger.reuses, p.ledger.revoked, maps.Clone(p.ledger.presented)
	return s
}

// UseOf returns what a live access token was exchanged for.
func (p *Provider) UseOf(access string) Use {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ledger.access[access].use
}

// Requests returns the last requests received, oldest first.
func (p *Provider) Requests() []Request { return p.rec.requests() }

// Saw reports whether any request ever carried s in its address or a header; see API.Saw.
func (p *Provider) Saw(s string) bool { return p.rec.saw(s) }

func (p *Provider) set(change func(*knobs)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.knobs)
}

// planCall counts a token call and takes its faults from the knobs.
func (p *Provider) planCall() call {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.TokenCalls++
	k := &p.knobs
	c := call{before: k.before, after: k.after, edit: k.edit}
	switch {
	case k.failures > 0 && k.failure != nil:
		k.failures--
		c.fail = k.failure
	case k.losses > 0:
		k.losses--
		c.lose = true
	}
	return c
}

func (p *Provider) isDown() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.knobs.down
}

func (p *Provider) isDenied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.knobs.denied
}

func (p *Provider) allowed(scopes []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allowedLocked(scopes)
}

func (p *Provider) allowedLocked(scopes []string) []string {
	if len(p.knobs.allow) == 0 {
		return slices.Clone(scopes)
	}
	return subtract(scopes, subtract(scopes, p.knobs.allow))
}

func (p *Provider) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.done:
	}
}
