package console

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/worker"
)

// tokenPath is the document of all API tokens, and of whose they are: their digests, never themselves.
const tokenPath = "operators/tokens"

const tokenPrefix = "wlop_"

const (
	tokensFor   = 2 * time.Second // how long what was read of them is believed
	tokenDays   = 90              // how long a token is good, unless it is said
	mostDays    = 366
	tokensOfOne = 50                  // at most, of one operator
	tokenShown  = 30 * 24 * time.Hour // after its end, so that whoever wonders why it is refused finds it
)

// Token is an API token as it is shown.
type Token struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"` // it never has more than this
	By      string    `json:"by"`   // whose it is: who made it
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Now     Role      `json:"now,omitempty"` // what it may at present: no more than its operator; empty: nothing
}

type storedToken struct {
	Token
	SHA256 string `json:"sha256"`
	Owner  string `json:"owner"`            // actor.id
	Parent string `json:"parent,omitempty"` // the digest of the token that it was made with, with which it ends
}

// tokenBook is the document.
type tokenBook struct {
	Tokens map[string]storedToken `json:"tokens"` // by name
	// Owners are the operators who have tokens, by actor.id. What they are is known from their last log-in, and what that gives them
	// is said by the configuration of the moment.
	Owners map[string]owner `json:"owners"`
}

// owner is an operator as of the last log-in.
type owner struct {
	Is []string `json:"is,omitempty"` // actor.is
}

// tokens are the API tokens, in the store.
type tokens struct {
	docs grant.Documents
	now  func() time.Time
	// roleOf is what an operator may now.
	roleOf func(id string, is []string) Role

	asking singleflight.Group

	mu      sync.Mutex
	read    time.Time  // guarded by mu
	all     *tokenBook // guarded by mu; not changed once read
	changes int        // guarded by mu; made here
}

// load reads them, unless that was done a moment ago, once for all who want to know at the same time.
func (t *tokens) load(ctx context.Context) (*tokenBook, error) {
	now := t.now()
	t.mu.Lock()
	all, read, changes := t.all, t.read, t.changes
	t.mu.Unlock()
	if all != nil && now.Sub(read) < tokensFor {
		return all, nil
	}
	v, err, _ := t.asking.Do(strconv.Itoa(changes), func() (any, error) {
		all, _, err := t.get(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.changes == changes { // else it may be of before
			t.read, t.all = now, all
		}
		return all, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*tokenBook), nil
}

func (t *tokens) get(ctx context.Context) (*tokenBook, int, error) {
	var all tokenBook
	version, err := t.docs.Get(ctx, tokenPath, &vault.Packed{Value: &all})
	if errors.Is(err, vault.ErrNotFound) {
		err = nil
	}
	if all.Tokens == nil {
		all.Tokens, all.Owners = map[string]storedToken{}, map[string]owner{}
	}
	return &all, version, err
}

// may is what a token may now: what it was made for, and no more than whose it is.
func (t *tokens) may(all *tokenBook, k storedToken) Role {
	o, known := all.Owners[k.Owner]
	if !known || !t.now().Before(k.Expires) {
		return ""
	}
	return k.Role.within(t.roleOf(k.Owner, o.Is))
}

// find is whoever sent a token.
func (t *tokens) find(ctx context.Context, sent string) (a actor, known bool, err error) {
	if !strings.HasPrefix(sent, tokenPrefix) {
		return actor{}, false, nil
	}
	all, err := t.load(ctx)
	if err != nil {
		return actor{}, false, err
	}
	sum := []byte(digest(sent))
	for _, k := range all.Tokens {
		if subtle.ConstantTimeCompare(sum, []byte(k.SHA256)) != 1 {
			continue
		}
		a := actor{Name: k.Name + " of " + k.By, Role: t.may(all, k), Via: "token", id: k.Owner, is: all.Owners[k.Owner].Is, token: k.Name, key: k.SHA256, until: k.Expires}
		switch {
		case a.Role != "":
		case !t.now().Before(k.Expires):
			return a, true, fmt.Errorf("the token %s ended %s; make another", k.Name, k.Expires.Format(time.RFC3339))
		default:
			return a, true, fmt.Errorf("the token %s is of no use: %s may not come in any more; let somebody who may make one", k.Name, k.By)
		}
		return a, true, nil
	}
	return actor{}, false, nil
}

// list is who's tokens by name; an admin sees everybody's.
func (t *tokens) list(ctx context.Context, who actor) ([]Token, error) {
	all, _, err := t.get(ctx)
	if err != nil {
		return nil, err
	}
	out := []Token{}
	for _, name := range slices.Sorted(maps.Keys(all.Tokens)) {
		if k := all.Tokens[name]; who.owns(k) {
			k.Now = t.may(all, k)
			out = append(out, k.Token)
		}
	}
	return out, nil
}

// owns reports whether somebody may see and end a token. Who came with a token does not rule over one that may more.
func (a actor) owns(k storedToken) bool {
	return a.Role.may(Admin) || a.id != "" && a.id == k.Owner && (a.token == "" || a.Role.may(k.Role))
}

// create makes a token of who's, which is shown once. It ends after some days, 0: tokenDays; and one that is made with a token no
// later than that one.
func (t *tokens) create(ctx context.Context, who actor, name string, role Role, days int) (Token, secret.Text, error) {
	misused := func(format string, args ...any) (Token, secret.Text, error) {
		return Token{}, secret.Text{}, &operate.Refusal{Kind: operate.Misused, Words: fmt.Sprintf(format, args...)}
	}
	days = cmp.Or(days, tokenDays)
	switch {
	case !worker.ValidName(name):
		return misused("%q is not a name: use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit", name)
	case !slices.Contains(roles, role):
		return misused("there is no role %q; there are viewer, operator and admin", role)
	case !who.Role.may(role):
		return misused("a token of yours may no more than you, and you are %s", who.Role)
	case days < 1 || days > mostDays:
		return misused("a token is good for 1 to %d days", mostDays)
	}
	now := t.now().UTC().Truncate(time.Second)
	made := Token{Name: name, Role: role, Created: now, Expires: now.AddDate(0, 0, days), By: who.Name, Now: role}
	text := tokenPrefix + rand.Text() + rand.Text()
	err := t.change(ctx, func(all *tokenBook) error {
		if who.token != "" { // what somebody makes with one that is stolen ends with it
			parent, there := all.Tokens[who.token]
			if !there || parent.SHA256 != who.key {
				return &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("the token %s is ended, and makes no others", who.token)}
			}
			made.By = parent.By
			if made.Expires.After(who.until) {
				made.Expires = who.until
			}
		}
		mine := 0
		for _, k := range all.Tokens {
			if k.Owner == who.id {
				mine++
			}
		}
		if k, taken := all.Tokens[name]; taken && now.Before(k.Expires) {
			return &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("there is a token %s already; end it first, or choose another name", name)}
		}
		if mine >= tokensOfOne {
			return &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("you have %d tokens, and there may be no more of one operator; end some", mine)}
		}
		all.Tokens[name] = storedToken{made, digest(text), who.id, who.key}
		if _, known := all.Owners[who.id]; !known { // else it is as of the last log-in, which may be another than this one
			all.Owners[who.id] = owner{who.is}
		}
		return nil
	})
	return made, secret.New(text), err
}

// end forgets a token that who may end.
func (t *tokens) end(ctx context.Context, who actor, name string) error {
	return t.change(ctx, func(all *tokenBook) error {
		if k, ok := all.Tokens[name]; !ok || !who.owns(k) {
			return &operate.Refusal{Kind: operate.NoSuch, Words: fmt.Sprintf("there is no token %q of yours", name)}
		}
		delete(all.Tokens, name)
		return nil
	})
}

// know takes from somebody's log-in what their tokens may from now on, if they have any.
func (t *tokens) know(ctx context.Context, who actor) error {
	all, err := t.load(ctx)
	if err != nil {
		return err
	}
	if o, has := all.Owners[who.id]; !has || slices.Equal(o.Is, who.is) {
		return nil
	}
	return t.change(ctx, func(all *tokenBook) error {
		all.Owners[who.id] = owner{who.is}
		return nil
	})
}

// tidy forgets tokens that ended long ago, those made with one that is gone, and who has none.
func (b *tokenBook) tidy(now time.Time) {
	maps.DeleteFunc(b.Tokens, func(_ string, k storedToken) bool { return now.Sub(k.Expires) > tokenShown })
	for before := -1; before != len(b.Tokens); {
		before = len(b.Tokens)
		there := map[string]bool{"": true}
		for _, k := range b.Tokens {
			there[k.SHA256] = true
		}
		maps.DeleteFunc(b.Tokens, func(_ string, k storedToken) bool { return !there[k.Parent] })
	}
	have := map[string]bool{}
	for _, k := range b.Tokens {
		have[k.Owner] = true
	}
	maps.DeleteFunc(b.Owners, func(id string, _ owner) bool { return !have[id] })
}

const tokenTries = 5 // against other consoles

func (t *tokens) change(ctx context.Context, f func(*tokenBook) error) error {
	for try := 1; ; try++ {
		all, version, err := t.get(ctx)
		if err == nil {
			err = f(all)
		}
		if err != nil {
			return err
		}
		all.tidy(t.now())
		_, err = t.docs.Put(ctx, tokenPath, vault.Packed{Value: all}, version)
		if errors.Is(err, vault.ErrConflict) && try < tokenTries {
			continue
		}
		if err == nil {
			t.mu.Lock()
			t.all = nil
			t.changes++
			t.mu.Unlock()
		}
		return err
	}
}
