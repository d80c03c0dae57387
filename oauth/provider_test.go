package oauth_test

import (
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
				ClientID: p.ClientID(), TokenFormat: format, RefreshScope: oauth.ScopeGranted, AllowInsecure: true, ExchangeSendsState: true,
			}, nil, func() time.Time { return now })

			const redirect = "http://127.0.0.1:4711/callback"
			state, pkce := oauth.NewState(), oauth.NewPKCE()
			location, err := demo.Approve(t.Context(), client.AuthorizationURL(state, pkce, redirect, []string{"b", "a"}))
			if err != nil {
				t.Fatal(err)
			}
			code, err := oauth.ParseCallback(location, state)
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
