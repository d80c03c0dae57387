package demo

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"time"
)

// Beginnings of the secrets the demo issues.
const (
	AccessPrefix  = "demo-at-"
	RefreshPrefix = "demo-rt-"
	codePrefix    = "demo-ac-"
	workerPrefix  = "demo-wt-"
	devicePrefix  = "demo-dc-"
	clientPrefix  = "demo-cs-"
)

func newSecret(prefix string) string {
	b := make([]byte, 16)
	rand.Read(b)
	return prefix + hex.EncodeToString(b)
}

// fingerprint names a secret without showing it.
func fingerprint(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// ledger is the table of tokens. A family is everything that came from one consent; presenting a refresh token that was
// spent already revokes the family (RFC 9700 §4.14.2). Its user locks.
type ledger struct {
	newSecret func(prefix string) string

	access    map[string]accessToken
	refresh   map[string]*refreshToken
	presented map[string]int // fingerprint of a refresh token → times
	reuses    int
	revoked   int // families
}

type family struct {
	client string // who may present its refresh tokens (RFC 6749 §6)
	scopes []string
	dead   bool

	consented bool // by an operator
}

type accessToken struct {
	family  *family
	scopes  []string
	expires time.Time
	use     Use
}

// Use is what an access token was exchanged for (RFC 8693). The zero value: it was not.
type Use struct{ Actor, Audience, Resource string }

type refreshToken struct {
	family *family
	spent  bool
}

// issued is one answer of the ledger.
type issued struct {
	access, refresh string // refresh is empty when the old one stays
	scopes          []string
	family          *family
}

func newLedger(newSecret func(prefix string) string) ledger {
	return ledger{newSecret: newSecret, access: map[string]accessToken{}, refresh: map[string]*refreshToken{}, presented: map[string]int{}}
}

// open starts a family.
func (l *ledger) open(client string, scopes []string, now time.Time, ttl time.Duration) issued {
	f := &family{client: client, scopes: scopes, consented: true}
	t := issued{refresh: l.newSecret(RefreshPrefix), scopes: scopes, family: f}
	l.refresh[t.refresh] = &refreshToken{family: f}
	t.access = l.mint(f, scopes, now, ttl)
	return t
}

// single issues an access token that nothing renews.
func (l *ledger) single(client string, scopes []string, now time.Time, ttl time.Duration) issued {
	f := &family{client: client, scopes: scopes}
	return issued{access: l.mint(f, scopes, now, ttl), scopes: scopes, family: f}
}

// trade issues an access token for another, which stays; it ends with the family of that one, and not after it. want is nil
// for the same scopes.
func (l *ledger) trade(subject string, want []string, use Use, now time.Time, ttl time.Duration) (t issued, code string) {
	held, live := l.scopesOf(subject, now)
	switch {
	case !live:
		return t, "invalid_request" // RFC 8693 §2.2.2
	case len(subtract(want, held)) > 0:
		return t, "invalid_scope"
	case want == nil:
		want = held
	}
	old := l.access[subject]
	t = issued{scopes: want, family: old.family, access: l.newSecret(AccessPrefix)}
	expires := now.Add(ttl)
	if old.expires.Before(expires) {
		expires = old.expires
	}
	l.access[t.access] = accessToken{family: old.family, scopes: want, expires: expires, use: use}
	return t, ""
}

func (l *ledger) mint(f *family, scopes []string, now time.Time, ttl time.Duration) string {
	a := l.newSecret(AccessPrefix)
	l.access[a] = accessToken{family: f, scopes: scopes, expires: now.Add(ttl)}
	return a
}

// renew spends a refresh token. want narrows the access token; nil is everything the family has, cut to what allowed
// lets through. code is an OAuth error code, or empty.
func (l *ledger) renew(client, token string, want []string, allowed func([]string) []string, rotate bool, now time.Time, ttl time.Duration) (t issued, code string) {
	r, ok := l.refresh[token]
	if ok {
		l.presented[fingerprint(token)]++
	}
	switch {
	case !ok || r.family.dead || r.family.client != client:
		return t, "invalid_grant"
	case r.spent:
		l.reuses++
		l.kill(r.family)
		return t, "invalid_grant"
	case len(subtract(want, r.family.scopes)) > 0:
		return t, "invalid_scope" // and unspent
	}
	if want == nil {
		want = r.family.scopes
	}
	t = issued{scopes: allowed(want), family: r.family}
	if rotate {
		r.spent = true
		t.refresh = l.newSecret(RefreshPrefix)
		l.refresh[t.refresh] = &refreshToken{family: r.family}
	}
	t.access = l.mint(r.family, t.scopes, now, ttl)
	return t, ""
}

func (l *ledger) kill(f *family) {
	if !f.dead {
		f.dead = true
		l.revoked++
	}
}

// scopesOf returns what an access token allows; ok is whether it is live.
func (l *ledger) scopesOf(access string, now time.Time) (scopes []string, ok bool) {
	a, ok := l.access[access]
	if !ok || a.family.dead || !now.Before(a.expires) {
		return nil, false
	}
	return a.scopes, true
}

// revoke ends a client's family, or an access token alone (RFC 7009 §2.1). code is for the token of another client.
func (l *ledger) revoke(client, token string) (code string) {
	r, isRefresh := l.refresh[token]
	a, isAccess := l.access[token]
	switch {
	case isRefresh && r.family.client == client:
		l.kill(r.family)
	case isAccess && a.family.client == client:
		delete(l.access, token)
	case isRefresh, isAccess:
		return "unauthorized_client"
	}
	return ""
}

func (l *ledger) families() []*family {
	all := map[*family]bool{}
	for r := range maps.Values(l.refresh) {
		all[r.family] = true
	}
	return slices.Collect(maps.Keys(all))
}

// subtract returns what of a is not in b.
func subtract(a, b []string) []string {
	var rest []string
	for _, s := range a {
		if !slices.Contains(b, s) {
			rest = append(rest, s)
		}
	}
	return rest
}
