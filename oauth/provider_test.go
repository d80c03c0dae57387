package oauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/demo"
	"wayleave/oauth"
	"wayleave/secret"
)

// The whole life of a grant at a provider that rotates refresh tokens and punishes reuse.
func TestGrantAtAStrictProvider(t *testing.T) {
	for _, format := range []oauth.TokenFormat{oauth.FormatForm, oauth.FormatJSON} {
		t.Run(string(format), func(t *testing.T) {
			p := demo.NewProvider(demo.ProviderOptions{})
			srv := httptest.NewServer(p)
			defer srv.Close()
			now := time.Now()
			client := oauth.NewClient(oauth.Config{
				AuthorizeURL: srv.URL + "/authorize", TokenURL: srv.URL + "/token", RevokeURL: srv.URL + "/revoke",
				Issuer: srv.URL, ClientID: p.ClientID(), TokenFormat: format, RefreshScope: oauth.ScopeGranted, AllowInsecure: true, ExchangeSendsState: true,
			}, nil, func() time.Time { return now })

			const redirect = "http://127.0.0.1:4711/callback"
			state, pkce := oauth.NewState(), oauth.NewPKCE()
			location, err := demo.Approve(t.Context(), client.AuthorizationURL(state, pkce, redirect, []string{"b", "a"}))
			if err != nil {
				t.Fatal(err)
			}
			code, err := client.ParseCallback(location, state)
			if err != nil {
				t.Fatal(err)
			}
			tok, err := client.Exchange(t.Context(), code, state, pkce, redirect)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"a", "b"}, tok.Scopes); diff != "" || !tok.Expiry.Equal(now.Add(time.Hour)) || tok.Account != "operator@demo.test" {
				t.Errorf("expiry %v, account %q, scopes %q", tok.Expiry, tok.Account, tok.Scopes)
			}

			p.AllowScopes("a")
			next, err := client.Refresh(t.Context(), tok.Refresh, tok.Scopes, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"a"}, next.Scopes); diff != "" || next.Refresh.Equal(tok.Refresh) {
				t.Errorf("after a refresh that narrows: scopes %q", next.Scopes)
			}

			// An answer that is lost leaves the outcome open; asking again with the same token is what ends the grant.
			outcome := func(rt secret.Text) oauth.Outcome {
				_, err := client.Refresh(t.Context(), rt, nil, nil)
				e, ok := errors.AsType[*oauth.Error](err)
				if !ok {
					t.Fatalf("got %v, want an *oauth.Error", err)
				}
				return e.Outcome
			}
			p.LoseAnswers(1)
			if o := outcome(next.Refresh); o != oauth.Unknown {
				t.Errorf("answer lost: %v", o)
			}
			if o := outcome(next.Refresh); o != oauth.InvalidGrant {
				t.Errorf("presented again: %v", o)
			}
			if err := client.Revoke(t.Context(), next.Refresh); err != nil {
				t.Error(err)
			}
			if s := p.Stats(); s.Exchanges != 1 || s.Refreshes != 2 || s.Reuses != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// From the address of an API to a token, with nothing known before.
func TestFromAnAddressToAToken(t *testing.T) {
	d, err := demo.Start(demo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	open := oauth.DiscoverOptions{AllowInsecure: true}
	m, err := oauth.Discover(t.Context(), oauth.NewHTTPClient(d.CA.Pool()), d.APIURL+"/echo", open)
	if err != nil {
		t.Fatal(err)
	}
	if m.Issuer != d.ProviderURL || m.Resource != d.APIURL || !m.PKCE {
		t.Fatalf("%+v", m)
	}
	for _, style := range []oauth.AuthStyle{oauth.AuthNone, oauth.AuthBasic, oauth.AuthPost} {
		reg, err := oauth.Register(t.Context(), nil, m, oauth.ClientMetadata{Name: "Wayleave", RedirectURIs: []string{"http://127.0.0.1/callback"}, AuthStyle: style})
		if err != nil {
			t.Fatal(err)
		}
		cfg := m.Config(reg)
		if f := cfg.Validate(); f != nil || reg.AuthStyle != style {
			t.Fatalf("%s: %v", style, f)
		}
		client := oauth.NewClient(cfg, nil, nil)

		state, pkce := oauth.NewState(), oauth.NewPKCE()
		location, err := demo.Approve(t.Context(), client.AuthorizationURL(state, pkce, "http://127.0.0.1:4711/callback", m.Scopes))
		if err != nil {
			t.Fatal(err)
		}
		code, err := client.ParseCallback(location, state)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Exchange(t.Context(), code, state, pkce, "http://127.0.0.1:4711/callback"); err != nil {
			t.Error(err)
		}

		device, err := client.StartDevice(t.Context(), m.Scopes)
		if err != nil {
			t.Fatal(err)
		}
		if err := demo.ApproveDevice(t.Context(), device.VerificationURLComplete); err != nil {
			t.Fatal(err)
		}
		tok, err := client.AwaitDevice(t.Context(), device)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Refresh(t.Context(), tok.Refresh, tok.Scopes, nil); err != nil {
			t.Error(err)
		}
		if err := client.Revoke(t.Context(), tok.Access); err != nil {
			t.Error(err)
		}
	}
	if s := d.Provider.Stats(); s.MaxPresented() != 1 {
		t.Errorf("%+v", s)
	}
}

// What the gate gets without an operator, with a key that the provider really verifies.
func TestMachinesAtAStrictProvider(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := demo.NewProvider(demo.ProviderOptions{Clients: []demo.Client{{ID: "gate", Key: key.Public()}}})
	srv := httptest.NewServer(p)
	defer srv.Close()
	for _, kind := range []oauth.GrantType{oauth.GrantClient, oauth.GrantJWT} {
		cfg := oauth.Config{GrantType: kind, TokenURL: srv.URL + "/token", RevokeURL: srv.URL + "/revoke", ClientID: "gate", ClientKey: key, AuthStyle: oauth.AuthPrivateKeyJWT, AllowInsecure: true}
		if f := cfg.Validate(); f != nil || cfg.NeedsOperator() {
			t.Fatal(f)
		}
		client := oauth.NewClient(cfg, nil, nil)
		tok, err := client.Refresh(t.Context(), secret.Text{}, nil, []string{"a", "b"})
		if err != nil || !cmp.Equal(tok.Scopes, []string{"a", "b"}) || !tok.Refresh.IsZero() || tok.Account != "" {
			t.Fatalf("%s: %q, %v", kind, tok.Scopes, err)
		}
		own, err := client.TokenExchange(t.Context(), oauth.Exchange{Subject: tok.Access, Actor: "worker-1", Audience: "api", Scopes: []string{"a"}})
		if err != nil || !cmp.Equal(own.Scopes, []string{"a"}) || own.Expiry.After(tok.Expiry.Add(time.Second)) {
			t.Fatalf("%s: %q until %v, %v", kind, own.Scopes, own.Expiry, err)
		}
		if use := p.UseOf(own.Access.Reveal()); use != (demo.Use{Actor: "worker-1", Audience: "api"}) {
			t.Errorf("%+v", use)
		}
		if err := client.Revoke(t.Context(), own.Access); err != nil {
			t.Error(err)
		}
		if _, err := client.TokenExchange(t.Context(), oauth.Exchange{Subject: own.Access}); err == nil {
			t.Error("a revoked token was exchanged")
		}
	}
}
