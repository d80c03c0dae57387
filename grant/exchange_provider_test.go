package grant_test

import (
	"context"
	"crypto/ed25519"
	"net/http/httptest"
	"testing"
	"time"

	"wayleave/demo"
	"wayleave/grant"
	"wayleave/oauth"
	"wayleave/vault/vaulttest"
)

// From a key to a token of each worker's own, at a provider that verifies every signature on the way.
func TestWorkersTokensAtAStrictProvider(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := demo.NewProvider(demo.ProviderOptions{Clients: []demo.Client{{ID: "gate", Key: public}}})
	srv := httptest.NewServer(p)
	defer srv.Close()
	client := oauth.NewClient(oauth.Config{
		GrantType: oauth.GrantClient, TokenURL: srv.URL + "/token", ClientID: "gate", AuthStyle: oauth.AuthPrivateKeyJWT, ClientKey: private, AllowInsecure: true,
	}, nil, nil)

	keeper := grant.NewKeeper(vaulttest.NewMemory(), []grant.Spec{{Name: "fleet", Provider: "demo", Kind: grant.Machine, Scopes: []string{"a", "b"}, OAuth: client}}, grant.Options{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- keeper.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	x := grant.NewExchanger(keeper, map[string]grant.Exchange{"fleet": {OAuth: client, Audience: "api", Scopes: []string{"a"}, Actor: true}})
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, worker := range []string{"w1", "w2", "w1"} {
		got, err := x.Token(wait, "fleet", worker, []string{"a"})
		if err != nil {
			t.Fatal(err)
		}
		if use := p.UseOf(got.Access.Reveal()); use != (demo.Use{Actor: worker, Audience: "api"}) {
			t.Errorf("%s: %+v", worker, use)
		}
	}
	if s := p.Stats(); s.Mints != 1 || s.Trades != 2 {
		t.Errorf("%+v", s)
	}
}
