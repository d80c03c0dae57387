package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-jose/go-jose/v4"

	"wayleave/secret"
)

// Whatever call is made, with whatever in the answer: no error, hint or note repeats what was sent, or what came, save an
// error code.
func TestNothingIsRepeated(t *testing.T) {
	sent := []string{oldRefresh, clientSecret, deviceCode, "ac-5d7f9b1c3e", "cv-0a2c4e6f8b"}
	answers := []reply{
		{status: 400, body: `{"error":"invalid_grant","error_description":"` + planted + oldRefresh + `","error_uri":"https://` + planted + `"}`},
		{status: 400, body: `{"error":"` + planted + `"}`},
		{status: 401, body: `{"error":{"code":"` + planted + `","message":"` + planted + `"}}`},
		{status: 403, body: `<html>` + planted + clientSecret},
		{status: 429, body: planted, header: planted},
		{status: 500, body: planted},
		{status: 200, body: planted},
		{status: 200, body: `{"error":"x ` + planted + `"}`},
		{status: 200, body: `{"access_token":"a ` + planted + `","refresh_token":"` + planted + `"}`},
		{status: 200, body: `{"access_token":"` + newAccess + `","token_type":"` + planted + `","scope":"` + planted + "\\u0001" + `","expires_in":-1,"refresh_token":"` + planted + `"}`},
		{status: 200, body: `{"access_token":"` + newAccess + `","issued_token_type":"` + planted + `"}`},
		{status: 200, body: `{"user_code":"` + planted + `\u0000","verification_uri":"` + planted + `"}`},
		{err: fmt.Errorf("malformed HTTP response %q", planted+oldRefresh)},
	}
	calls := map[string]func(context.Context, *Client) (Token, error){
		"exchange": func(ctx context.Context, c *Client) (Token, error) {
			return c.Exchange(ctx, secret.New(sent[3]), "st", PKCE{Verifier: secret.New(sent[4])}, redirect)
		},
		"refresh": func(ctx context.Context, c *Client) (Token, error) {
			return c.Refresh(ctx, secret.New(oldRefresh), nil, nil)
		},
		"mint": func(ctx context.Context, c *Client) (Token, error) {
			c.cfg.GrantType = GrantJWT
			return c.Refresh(ctx, secret.Text{}, nil, nil)
		},
		"revoke": func(ctx context.Context, c *Client) (Token, error) {
			return Token{}, c.Revoke(ctx, secret.New(oldRefresh))
		},
		"token exchange": func(ctx context.Context, c *Client) (Token, error) {
			return c.TokenExchange(ctx, Exchange{Subject: secret.New(oldRefresh), Actor: "w"})
		},
		"device": func(ctx context.Context, c *Client) (Token, error) {
			_, err := c.StartDevice(ctx, nil)
			return Token{}, err
		},
		"poll": func(ctx context.Context, c *Client) (Token, error) {
			return c.AwaitDevice(ctx, Device{code: secret.New(deviceCode), UserCode: "WDJB", interval: 1, Expires: noon.AddDate(999, 0, 0)})
		},
		"poll of codex": func(ctx context.Context, c *Client) (Token, error) {
			c.cfg.DeviceFlow = DeviceCodex
			return c.AwaitDevice(ctx, Device{code: secret.New(deviceCode), UserCode: "WDJB", interval: 1, Expires: noon.AddDate(999, 0, 0)})
		},
	}
	for name, call := range calls {
		for _, a := range answers {
			synctest.Test(t, func(t *testing.T) {
				refused := reply{status: 400, body: `{"error":"access_denied"}`} // ends a poll that goes on
				c := NewClient(Config{
					TokenURL: "https://as.example/t", RevokeURL: "https://as.example/r", DeviceURL: "https://as.example/usercode",
					ClientID: "id", AuthStyle: AuthPost, ClientSecret: secret.New(clientSecret), ClientKey: keys()[jose.EdDSA],
				}, &http.Client{Transport: &script{t: t, replies: []reply{a, refused}}}, nil)
				tok, err := call(t.Context(), c)
				text := fmt.Sprintf("%v %+v %q", err, err, tok.Notes)
				if e, ok := errors.AsType[*Error](err); ok {
					text += fmt.Sprintf("%+v %v", *e, e.Err)
				}
				for _, s := range append(sent, planted) {
					if strings.Contains(text, s) {
						t.Errorf("%s, %d %s: %s", name, a.status, a.body, text)
					}
				}
			})
		}
	}
}
