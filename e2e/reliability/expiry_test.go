package reliability

import (
	"context"
	"sync"
	"testing"
	"time"

	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/secret"
)

// A thousand requests while the refresh is under way, and a thousand more when the token has expired: the first do not
// wait, the others wait for the one call, none fails.
func TestExpiry(t *testing.T) {
	t.Parallel()
	const crowd = 1000
	w := newWorld(t)
	g := w.connect(w.strict, "claude", 20*time.Second)
	w.strict.set(func() { w.strict.lives[g.Name] = time.Hour }) // of the next one, so that there is one refresh however long all takes
	k := grant.NewKeeper(w.bao.Gateway, []grant.Spec{{Name: g.Name, Provider: g.Provider, OAuth: oauth.NewClient(oauth.Config{
		TokenURL: g.TokenURL, ClientID: clientID, ClientSecret: secret.New(g.ClientSecret), AuthStyle: oauth.AuthPost, AllowInsecure: true,
	}, nil, nil)}}, grant.Options{Reread: reread})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	held, release := w.strict.holdNext(g.Name)
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var mu sync.Mutex
	got := map[string]int{}
	all := func() {
		var requests sync.WaitGroup
		for range crowd {
			requests.Go(func() {
				token, err := k.Token(ctx, g.Name, nil)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				got[token.Access.Reveal()]++
			})
		}
		requests.Wait()
	}
	first, err := k.Token(ctx, g.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-held
	all() // while nobody answers: it ends only because nobody waits
	if len(got) != 1 || got[first.Access.Reveal()] != crowd {
		t.Errorf("requests got %d tokens, or another than the present one", len(got))
	}
	clear(got)
	<-time.After(time.Until(first.Expires))
	time.AfterFunc(time.Second, release)
	all()
	if len(got) != 1 || got[first.Access.Reveal()] != 0 {
		t.Errorf("requests got %d tokens, or the one that has expired", len(got))
	}
	if f := w.strict.tally(g.Name); f.rotations != 1 || f.most != 1 {
		t.Errorf("%d refreshes, and the refresh token was presented %d times", f.rotations, f.most)
	}
	stop()
	running.Wait()
}
