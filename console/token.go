package console

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave/grant"
	"wayleave/operate"
	"wayleave/secret"
	"wayleave/vault"
	"wayleave/worker"
)

// tokenPath is the document of all API tokens: their digests, never themselves.
const tokenPath = "operators/tokens"

const tokenPrefix = "wlop_"

const tokensFor = 2 * time.Second // how long what was read of them is believed

// Token is an API token as it is shown.
type Token struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	By      string    `json:"by"` // who made it
}

type storedToken struct {
	Token
	SHA256 string `json:"sha256"`
}

// tokens are the API tokens, in the store.
type tokens struct {
	docs grant.Documents
	now  func() time.Time

	mu   sync.Mutex
	read time.Time              // guarded by mu
	all  map[string]storedToken // guarded by mu; not changed once read
}

// load reads them, unless that was done a moment ago. A store that does not answer leaves those known to be believed for a while
// longer.
func (t *tokens) load(ctx context.Context) (map[string]storedToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.all != nil && now.Sub(t.read) < tokensFor {
		return t.all, nil
	}
	all, _, err := t.get(ctx)
	if err != nil {
		return nil, err
	}
	t.read, t.all = now, all
	return all, nil
}

func (t *tokens) get(ctx context.Context) (map[string]storedToken, int, error) {
	all := map[string]storedToken{}
	version, err := t.docs.Get(ctx, tokenPath, &all)
	if errors.Is(err, vault.ErrNotFound) {
		err = nil
	}
	return all, version, err
}

// find is the token that was sent.
func (t *tokens) find(ctx context.Context, sent string) (Token, bool, error) {
	if !strings.HasPrefix(sent, tokenPrefix) {
		return Token{}, false, nil
	}
	all, err := t.load(ctx)
	if err != nil {
		return Token{}, false, err
	}
	sum := []byte(digest(sent))
	for _, k := range all {
		if subtle.ConstantTimeCompare(sum, []byte(k.SHA256)) == 1 {
			return k.Token, true, nil
		}
	}
	return Token{}, false, nil
}

// list is all of them by name.
func (t *tokens) list(ctx context.Context) ([]Token, error) {
	all, _, err := t.get(ctx)
	if err != nil {
		return nil, err
	}
	out := []Token{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name].Token)
	}
	return out, nil
}

// create makes a token, which is shown once.
func (t *tokens) create(ctx context.Context, name string, role Role, by string) (Token, secret.Text, error) {
	made := Token{Name: name, Role: role, Created: t.now().UTC().Truncate(time.Second), By: by}
	if !worker.ValidName(name) {
		return made, secret.Text{}, &operate.Refusal{Kind: operate.Misused, Words: fmt.Sprintf("%q is not a name: use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit", name)}
	}
	if !slices.Contains(roles, role) {
		return made, secret.Text{}, &operate.Refusal{Kind: operate.Misused, Words: fmt.Sprintf("there is no role %q; there are viewer, operator and admin", role)}
	}
	text := tokenPrefix + rand.Text() + rand.Text()
	err := t.change(ctx, func(all map[string]storedToken) error {
		if _, taken := all[name]; taken {
			return &operate.Refusal{Kind: operate.NotNow, Words: fmt.Sprintf("there is a token %s already; end it first, or choose another name", name)}
		}
		all[name] = storedToken{made, digest(text)}
		return nil
	})
	return made, secret.New(text), err
}

// end forgets a token.
func (t *tokens) end(ctx context.Context, name string) error {
	return t.change(ctx, func(all map[string]storedToken) error {
		if _, ok := all[name]; !ok {
			return &operate.Refusal{Kind: operate.NoSuch, Words: fmt.Sprintf("there is no token %q", name)}
		}
		delete(all, name)
		return nil
	})
}

const tokenTries = 5 // against other consoles

func (t *tokens) change(ctx context.Context, f func(map[string]storedToken) error) error {
	for try := 1; ; try++ {
		all, version, err := t.get(ctx)
		if err == nil {
			err = f(all)
		}
		if err != nil {
			return err
		}
		_, err = t.docs.Put(ctx, tokenPath, all, version)
		if errors.Is(err, vault.ErrConflict) && try < tokenTries {
			continue
		}
		if err == nil {
			t.mu.Lock()
			t.all = nil
			t.mu.Unlock()
		}
		return err
	}
}
