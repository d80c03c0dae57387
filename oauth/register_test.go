package oauth

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
)

const redirect = "http://127.0.0.1/callback"

func TestRegister(t *testing.T) {
	for _, tt := range []struct {
		name   string
		m      Metadata
		r      ClientMetadata
		status int
		answer string
		sent   map[string]any
		want   Registration
		notes  int
	}{
		{
			name: "public where the server does PKCE", m: Metadata{PKCE: true, AuthStyles: []AuthStyle{AuthBasic, AuthNone}},
			r:      ClientMetadata{Name: "Wayleave", RedirectURIs: []string{redirect}, Scopes: []string{"a", "b"}},
			answer: `{"client_id":"c1","redirect_uris":["` + redirect + `"],"grant_types":["authorization_code","refresh_token"],"token_endpoint_auth_method":"none"}`,
			sent: map[string]any{
				"client_name": "Wayleave", "redirect_uris": []any{redirect}, "grant_types": []any{"authorization_code", "refresh_token"},
				"response_types": []any{"code"}, "token_endpoint_auth_method": "none", "scope": "a b", "application_type": "native",
			},
			want: Registration{ClientID: "c1", AuthStyle: AuthNone},
		},
		{
			name: "with a secret where it does not", m: Metadata{AuthStyles: []AuthStyle{AuthNone, AuthPost, AuthBasic}},
			r: ClientMetadata{RedirectURIs: []string{"https://gate.example/callback"}}, status: 201,
			answer: `{"client_id":"c1","client_secret":"` + clientSecret + `","client_secret_expires_at":0}`,
			sent: map[string]any{
				"client_name": "", "redirect_uris": []any{"https://gate.example/callback"}, "grant_types": []any{"authorization_code", "refresh_token"},
				"response_types": []any{"code"}, "token_endpoint_auth_method": "client_secret_basic",
			},
			want: Registration{ClientID: "c1", AuthStyle: AuthBasic, ClientSecret: secret.New(clientSecret)},
		},
		{
			name: "for a machine, as asked", m: Metadata{PKCE: true, AuthStyles: []AuthStyle{AuthNone, AuthPost}},
			r:      ClientMetadata{GrantTypes: []string{"client_credentials"}, AuthStyle: AuthPost},
			answer: `{"client_id":"c1","client_secret":"` + clientSecret + `","client_secret_expires_at":1900000000,"token_endpoint_auth_method":"client_secret_post"}`,
			sent: map[string]any{
				"client_name": "", "grant_types": []any{"client_credentials"}, "response_types": []any{}, "token_endpoint_auth_method": "client_secret_post",
			},
			want:  Registration{ClientID: "c1", AuthStyle: AuthPost, ClientSecret: secret.New(clientSecret), SecretExpires: time.Unix(1900000000, 0)},
			notes: 1,
		},
		{
			name: "the server decides", m: Metadata{PKCE: true, AuthStyles: []AuthStyle{AuthNone}},
			r:      ClientMetadata{RedirectURIs: []string{redirect}},
			answer: `{"client_id":"c1","client_secret":"` + clientSecret + `","token_endpoint_auth_method":"client_secret_post","grant_types":["authorization_code"]}`,
			sent: map[string]any{
				"client_name": "", "redirect_uris": []any{redirect}, "grant_types": []any{"authorization_code", "refresh_token"},
				"response_types": []any{"code"}, "token_endpoint_auth_method": "none", "application_type": "native",
			},
			want: Registration{ClientID: "c1", AuthStyle: AuthPost, ClientSecret: secret.New(clientSecret)}, notes: 2,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sent map[string]any
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if err := json.NewDecoder(r.Body).Decode(&sent); err != nil || r.Header.Get("Content-Type") != "application/json" {
					t.Error(err)
				}
				if tt.status != 0 {
					w.WriteHeader(tt.status)
				}
				io.WriteString(w, tt.answer)
			}))
			defer s.Close()
			tt.m.RegistrationURL, tt.m.opts = s.URL+"/register", DiscoverOptions{AllowInsecure: true}
			got, err := Register(t.Context(), nil, tt.m, tt.r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.sent, sent); diff != "" {
				t.Errorf("sent (-want +got):\n%s", diff)
			}
			if len(got.Notes) != tt.notes || strings.Contains(fmt.Sprintf("%+v", got), clientSecret) {
				t.Errorf("notes %q", got.Notes)
			}
			got.Notes = nil
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			tt.m.TokenURL, tt.m.AuthorizeURL = s.URL+"/t", s.URL+"/a"
			if f := tt.m.Config(got).Validate(); f != nil {
				t.Errorf("the configuration made of it: %v", f)
			}
		})
	}
}

func TestRegisterRefuses(t *testing.T) {
	ok := Metadata{AuthStyles: []AuthStyle{AuthNone, AuthBasic}, PKCE: true, opts: DiscoverOptions{AllowInsecure: true}}
	for _, tt := range []struct {
		name, answer string
		status       int
		outcome      Outcome
		code         string
	}{
		{"refused", `{"error":"invalid_redirect_uri","error_description":"` + planted + `"}`, 400, Refused, "invalid_redirect_uri"},
		{"refused in a strange way", `{"error":"invalid_grant"}`, 400, Refused, "invalid_grant"},
		{"not allowed", planted, 403, Refused, ""},
		{"failed", planted, 500, Unknown, ""},
		{"redirected", ``, 307, Refused, ""},
		{"page", `<html>` + planted, 200, Unknown, ""},
		{"no client", `{"client_secret":"` + planted + `"}`, 201, Unknown, ""},
		{"a client id that cannot be shown", `{"client_id":"` + planted + `\n"}`, 201, Unknown, ""},
		{"no secret", `{"client_id":"` + planted + `","token_endpoint_auth_method":"client_secret_basic"}`, 201, Unknown, ""},
		{"a method we do not speak", `{"client_id":"` + planted + `","token_endpoint_auth_method":"tls_client_auth"}`, 201, Unknown, ""},
		{"other redirects", `{"client_id":"` + planted + `","redirect_uris":["https://` + planted + `.example"]}`, 201, Unknown, ""},
	} {
		requests := 0
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests++
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.answer)
		}))
		ok.RegistrationURL = s.URL
		_, err := Register(t.Context(), nil, ok, ClientMetadata{RedirectURIs: []string{redirect}})
		s.Close()
		e := asError(t, err)
		if e.Outcome != tt.outcome || e.Code != tt.code || requests != 1 || e.Hint == "" {
			t.Errorf("%s: %v, code %q after %d requests", tt.name, e.Outcome, e.Code, requests)
		}
		if text := fmt.Sprintf("%v %+v", e, *e); strings.Contains(text, planted) || !strings.HasPrefix(e.Error(), "registration endpoint 127.0.0.1") {
			t.Errorf("%s: %s", tt.name, text)
		}
	}
	for name, m := range map[string]Metadata{
		"no endpoint":            {AuthStyles: []AuthStyle{AuthNone}},
		"no method in common":    {RegistrationURL: "https://as.example/r", AuthStyles: []AuthStyle{AuthPrivateKeyJWT}},
		"endpoint over http":     {RegistrationURL: "http://as.example/r", AuthStyles: []AuthStyle{AuthNone}},
		"endpoint on this host":  {RegistrationURL: "https://127.0.0.1/r", AuthStyles: []AuthStyle{AuthNone}},
		"name that leads inside": {RegistrationURL: "https://ip6-localhost/r", AuthStyles: []AuthStyle{AuthNone}},
	} {
		_, err := Register(t.Context(), nil, m, ClientMetadata{})
		if e := asError(t, err); e.Outcome != NotSent {
			t.Errorf("%s: %v", name, e)
		}
	}
}

// Whatever the server answers: no panic, a client only if it can be used, an error that repeats nothing.
func FuzzReadRegistration(f *testing.F) {
	f.Add(201, `{"client_id":"c1","client_secret":"s","client_secret_expires_at":"1900000000"}`)
	f.Add(200, `{"client_id":"c1","token_endpoint_auth_method":"none","grant_types":["x"],"redirect_uris":[1]}`)
	f.Add(400, `{"error":"invalid_redirect_uri"}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		status = 200 + (status%400+400)%400
		a := answer{at: place{name: "registration endpoint", url: "https://as.example/r"}, status: status, body: []byte(body)}
		r, err := readRegistration(a, ClientMetadata{AuthStyle: AuthNone, RedirectURIs: []string{redirect}, GrantTypes: []string{"authorization_code"}})
		if err != nil {
			if err.Outcome == InvalidGrant || len(body) > 80 && strings.Contains(err.Error(), body) {
				t.Fatalf("%v", err)
			}
			return
		}
		if status/100 != 2 || r.ClientID == "" || !slices.Contains(authStyles, r.AuthStyle) || (r.AuthStyle == AuthNone) != r.ClientSecret.IsZero() {
			t.Fatalf("%+v", r)
		}
	})
}
