package oauth

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
)

// Values that must never be seen outside a request.
const (
	oldRefresh   = "rt-old-3c1f0a9d7b"
	newRefresh   = "rt-new-88e2d4c6f0"
	newAccess    = "at-new-5b7a9c1e3d"
	clientSecret = "cs-2f4b6d8e0a"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// tokenServer is a token endpoint that keeps what it received and answers as reply says.
type tokenServer struct {
	*httptest.Server
	mu    sync.Mutex
	calls []call
}

type call struct {
	Type, Accept, Agent, Auth string
	Params                    map[string]string
}

func newTokenServer(t *testing.T, reply func(w http.ResponseWriter, c call)) *tokenServer {
	t.Helper()
	s := &tokenServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			t.Errorf("%s at the token endpoint", r.Method)
		}
		c := call{r.Header.Get("Content-Type"), r.Header.Get("Accept"), r.UserAgent(), r.Header.Get("Authorization"), map[string]string{}}
		body, _ := io.ReadAll(r.Body)
		if c.Type == "application/json" {
			if err := json.Unmarshal(body, &c.Params); err != nil {
				t.Errorf("body is not a JSON object of strings: %v", err)
			}
		} else if v, err := url.ParseQuery(string(body)); err != nil {
			t.Errorf("body is not a form: %v", err)
		} else {
			for k := range v {
				c.Params[k] = v.Get(k)
			}
		}
		s.mu.Lock()
		s.calls = append(s.calls, c)
		s.mu.Unlock()
		reply(w, c)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *tokenServer) received() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *tokenServer) config() Config {
	return Config{AuthorizeURL: s.URL + "/authorize", TokenURL: s.URL + "/token", ClientID: "wayleave-test", AllowInsecure: true}
}

func (s *tokenServer) client(edit func(*Config)) *Client {
	cfg := s.config()
	if edit != nil {
		edit(&cfg)
	}
	return NewClient(cfg, nil, func() time.Time { return noon })
}

func answerJSON(status int, body string) func(http.ResponseWriter, call) {
	return func(w http.ResponseWriter, _ call) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

const goodAnswer = `{"token_type":"Bearer","access_token":"` + newAccess + `","refresh_token":"` + newRefresh + `","expires_in":3600,"scope":"b a"}`

// asError fails unless err is an *Error that shows none of the secrets.
func asError(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want an *Error", err)
	}
	for _, s := range []string{oldRefresh, newRefresh, newAccess, clientSecret} {
		if strings.Contains(fmt.Sprintf("%v %+v %#v %v", err, *e, *e, e.Err), s) {
			t.Errorf("the error shows a secret (%.5s…)", s)
		}
	}
	return e
}

// What goes over the wire is what the configuration says and nothing else.
func TestRequests(t *testing.T) {
	granted, requested := []string{"a", "b"}, []string{"b", "c"}
	refresh := func(c *Client) error {
		_, err := c.Refresh(t.Context(), secret.New(oldRefresh), granted, requested)
		return err
	}
	exchange := func(c *Client) error {
		_, err := c.Exchange(t.Context(), secret.New("the-code"), "the-state", PKCE{Verifier: secret.New("the-verifier")}, "http://127.0.0.1:9/cb")
		return err
	}
	const form, asJSON = "application/x-www-form-urlencoded", "application/json"
	tests := []struct {
		name string
		edit func(*Config)
		do   func(*Client) error
		want call
	}{
		{"refresh, defaults", nil, refresh,
			call{Type: form, Params: map[string]string{"grant_type": "refresh_token", "refresh_token": oldRefresh, "client_id": "wayleave-test"}}},
		{"refresh, granted scopes, json", func(c *Config) { c.RefreshScope, c.TokenFormat = ScopeGranted, FormatJSON }, refresh,
			call{Type: asJSON, Params: map[string]string{"grant_type": "refresh_token", "refresh_token": oldRefresh, "client_id": "wayleave-test", "scope": "a b"}}},
		{"refresh, requested scopes never wider than granted", func(c *Config) { c.RefreshScope, c.ScopeSeparator = ScopeRequested, "," }, refresh,
			call{Type: form, Params: map[string]string{"grant_type": "refresh_token", "refresh_token": oldRefresh, "client_id": "wayleave-test", "scope": "b"}}},
		{"refresh, basic", func(c *Config) {
			c.AuthStyle, c.ClientID, c.ClientSecret = AuthBasic, "id with:colon", secret.New("s/+cret")
		}, refresh,
			call{Type: form, Auth: "Basic aWQrd2l0aCUzQWNvbG9uOnMlMkYlMkJjcmV0", Params: map[string]string{"grant_type": "refresh_token", "refresh_token": oldRefresh}}},
		{"refresh, post", func(c *Config) { c.AuthStyle, c.ClientSecret = AuthPost, secret.New(clientSecret) }, refresh,
			call{Type: form, Params: map[string]string{"grant_type": "refresh_token", "refresh_token": oldRefresh, "client_id": "wayleave-test", "client_secret": clientSecret}}},
		{"exchange", nil, exchange,
			call{Type: form, Params: map[string]string{"grant_type": "authorization_code", "code": "the-code", "code_verifier": "the-verifier", "redirect_uri": "http://127.0.0.1:9/cb", "client_id": "wayleave-test"}}},
		{"exchange, json, state, further fields and headers that cannot replace ours", func(c *Config) {
			c.TokenFormat, c.ExchangeSendsState, c.UserAgent = FormatJSON, true, "acme/1"
			c.TokenParams = map[string]string{"audience": "x", "grant_type": "password"}
			c.TokenHeaders = map[string]string{"Content-Type": "text/plain", "User-Agent": "other"}
		}, exchange,
			call{Type: asJSON, Agent: "acme/1", Params: map[string]string{"grant_type": "authorization_code", "code": "the-code", "code_verifier": "the-verifier", "redirect_uri": "http://127.0.0.1:9/cb", "client_id": "wayleave-test", "state": "the-state", "audience": "x"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTokenServer(t, answerJSON(200, goodAnswer))
			if err := tt.do(s.client(tt.edit)); err != nil {
				t.Fatal(err)
			}
			tt.want.Accept = "application/json"
			if tt.want.Agent == "" {
				tt.want.Agent = "wayleave"
			}
			if diff := cmp.Diff([]call{tt.want}, s.received()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// What an answer, or its absence, means for the refresh token; and always after exactly one request.
func TestOutcomes(t *testing.T) {
	withCodes := func(c *Config) {
		c.ErrorCodes = map[string]string{"bad_refresh_token": "invalid_grant", "token_reused": "invalid_grant"}
	}
	tests := []struct {
		name string
		edit func(*Config)
		code int
		body string
		want Error
	}{
		{"400 invalid_grant", nil, 400, `{"error":"invalid_grant","error_description":"` + oldRefresh + `"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"401 invalid_grant", nil, 401, `{"error":"invalid_grant"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"401, translated code in an object", withCodes, 401, `{"error":{"code":"token_reused","type":"x","message":"m"}}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"200 with a translated error", withCodes, 200, `{"error":"bad_refresh_token"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"200 with an unknown error", nil, 200, `{"ok":false,"error":"bad_refresh_token"}`, Error{Outcome: Refused, Code: "bad_refresh_token"}},
		{"200, ok false", nil, 200, `{"ok":false}`, Error{Outcome: Refused}},
		{"200, an error of the server", nil, 200, `{"error":"server_error"}`, Error{Outcome: Unknown, Code: "server_error"}},
		{"403 invalid_grant, as Auth0", nil, 403, `{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"403 unauthorized_client", nil, 403, `{"error":"unauthorized_client"}`, Error{Outcome: Refused, Code: "unauthorized_client"}},
		{"400 with a byte order mark", nil, 400, "\ufeff" + `{"error":"invalid_grant"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 as a form", nil, 400, "error=invalid_grant&error_description=gone\n", Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"200 as a form", withCodes, 200, "error=bad_refresh_token&error_description=The+refresh+token", Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 page with a link", nil, 400, `<a href="?a=b&error=invalid_grant&c=d">`, Error{Outcome: Refused}},
		{"400 text with a link", nil, 400, "see /login?a=b&error=invalid_grant&c=d", Error{Outcome: Refused}},
		{"400 list of errors", nil, 400, `{"errors":[{"errorType":"invalid_grant","message":"Refresh token invalid"}],"success":false}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"200 list of errors", nil, 200, `{"errors":[{"code":"invalid_grant"}]}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 list of other things", nil, 400, `{"errors":["invalid_grant",{"errorType":"invalid_grant"}]}`, Error{Outcome: Refused}},
		{"400 error_code", withCodes, 400, `{"code":400,"error_code":"token_reused","msg":"m"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 code with a text", nil, 400, `{"error":"invalid_grant: Token is expired or invalid."}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 text with a code", nil, 400, `{"error":"no invalid_grant: look"}`, Error{Outcome: Refused}},
		{"400 of RFC 6749 in capitals", nil, 400, `{"error":"Invalid_Grant"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 code in capitals that nobody knows", nil, 400, `{"error":"BAD_TOKEN"}`, Error{Outcome: Refused, Code: "BAD_TOKEN"}},
		{"401 reason phrase", nil, 401, `{"statusCode":401,"error":"Unauthorized","message":"m"}`, Error{Outcome: Refused}},
		{"400 code as status", nil, 400, `{"status":"BAD_REFRESH_TOKEN","message":"missing or invalid refresh token","correlationId":"x"}`, Error{Outcome: Refused, Code: "BAD_REFRESH_TOKEN"}},
		{"400 code as status, translated", func(c *Config) { c.ErrorCodes = map[string]string{"BAD_REFRESH_TOKEN": "invalid_grant"} }, 400, `{"status":"BAD_REFRESH_TOKEN"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"401 code as code", nil, 401, `{"object":"error","status":401,"code":"invalid_grant"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 status that is no code", nil, 400, `{"status":"error","code":"400"}`, Error{Outcome: Refused}},
		{"500 code as status", nil, 500, `{"status":"invalid_grant"}`, Error{Outcome: Unknown}},
		{"200 status", nil, 200, `{"status":"all_right"}`, Error{Outcome: Unknown}},
		{"400 code in capitals", func(c *Config) { c.ErrorCodes = map[string]string{"BAD_TOKEN": "invalid_grant"} }, 400, `{"error":"BAD_TOKEN"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 an RFC code that means something else here", func(c *Config) { c.ErrorCodes = map[string]string{"invalid_request": "invalid_grant"} }, 400, `{"error":"invalid_request"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"400 the operator is wanted", nil, 400, `{"error":"interaction_required","suberror":"basic_action"}`, Error{Outcome: Refused, Code: "interaction_required"}},
		{"400 twice", nil, 400, `{"error":"invalid_request","error":"invalid_grant"}`, Error{Outcome: InvalidGrant, Code: "invalid_grant"}},
		{"425", nil, 425, ``, Error{Outcome: Refused}},
		{"200 only an identity token", nil, 200, `{"id_token":"a.b.c","token_type":"Bearer"}`, Error{Outcome: Unknown}},
		{"200 nested without token", nil, 200, `{"ok":true,"authed_user":{"id":"u"},"data":[]}`, Error{Outcome: Unknown}},
		{"200 page with a token", nil, 200, "<p>access_token=" + newAccess + "&refresh_token=" + newRefresh, Error{Outcome: Unknown}},
		{"404", nil, 404, `{"error":"invalid_grant"}`, Error{Outcome: Refused, Code: "invalid_grant"}},
		{"403 page", nil, 403, `<html>invalid_grant</html>`, Error{Outcome: Refused}},
		{"400 page", nil, 400, `<html>{"error":"invalid_grant"}</html>`, Error{Outcome: Refused}},
		{"400 text in the description", nil, 400, `{"error":"invalid_request","error_description":"invalid_grant"}`, Error{Outcome: Refused, Code: "invalid_request"}},
		{"400 nested where nobody looks", nil, 400, `{"detail":{"error":"invalid_grant"}}`, Error{Outcome: Refused}},
		{"400 other case", nil, 400, `{"Error":"invalid_grant"}`, Error{Outcome: Refused}},
		{"400 trailing garbage", nil, 400, `{"error":"invalid_grant"} x`, Error{Outcome: Refused}},
		{"429", nil, 429, `{"error":{"type":"rate_limit_error"}}`, Error{Outcome: Refused, Code: "rate_limit_error"}},
		{"429 invalid_grant", nil, 429, `{"error":"invalid_grant"}`, Error{Outcome: Refused, Code: "invalid_grant"}},
		{"401 invalid_client", nil, 401, `{"error":"invalid_client"}`, Error{Outcome: Refused, Code: "invalid_client"}},
		{"401 empty", nil, 401, ``, Error{Outcome: Refused}},
		{"500 invalid_grant", nil, 500, `{"error":"invalid_grant"}`, Error{Outcome: Unknown}},
		{"502 page", nil, 502, `<html>invalid_grant</html>`, Error{Outcome: Unknown}},
		{"503", nil, 503, ``, Error{Outcome: Unknown}},
		{"529", nil, 529, ``, Error{Outcome: Unknown}},
		{"408", nil, 408, `{"error":"invalid_grant"}`, Error{Outcome: Unknown}},
		{"409", nil, 409, ``, Error{Outcome: Unknown}},
		{"302", nil, 302, ``, Error{Outcome: Refused}},
		{"200 page", nil, 200, `<html>sign in</html>`, Error{Outcome: Unknown}},
		{"200 null", nil, 200, `null`, Error{Outcome: Unknown}},
		{"200 array", nil, 200, `[]`, Error{Outcome: Unknown}},
		{"200 cut off", nil, 200, goodAnswer[:len(goodAnswer)-3], Error{Outcome: Unknown}},
		{"200 without token", nil, 200, `{"refresh_token":"` + newRefresh + `","error":null}`, Error{Outcome: Unknown}},
		{"200 token of another type", nil, 200, `{"access_token":{"a":1}}`, Error{Outcome: Unknown}},
		{"the code is the token we sent", nil, 400, `{"error":"` + strings.ReplaceAll(oldRefresh, "-", "_") + oldRefresh + `"}`, Error{Outcome: Refused}},
		{"the code is a sentence", nil, 400, `{"error":"Bad Request: look"}`, Error{Outcome: Refused}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTokenServer(t, answerJSON(tt.code, tt.body))
			_, err := s.client(tt.edit).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
			e := asError(t, err)
			if e.Outcome != tt.want.Outcome || e.Code != tt.want.Code || e.Status != tt.code {
				t.Errorf("got %v, code %q, status %d; want %v, code %q, status %d", e.Outcome, e.Code, e.Status, tt.want.Outcome, tt.want.Code, tt.code)
			}
			if e.Hint == "" {
				t.Error("no hint")
			}
			if n := len(s.received()); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
}

func TestHintNamesTheSetting(t *testing.T) {
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{400, `{"error":"invalid_scope"}`, "refresh_scope (now omit)"},
		{400, `{"error":"invalid_request"}`, "refresh_scope (now omit)"},
		{400, `Invalid request format`, "token_format (now form)"},
		{415, ``, "token_format (now form)"},
		{401, `{"error":"invalid_client"}`, "auth_style (now none)"},
		{307, ``, "token_url"},
		{404, ``, "provider changed"},
		{403, `<html>`, "provider changed"},
		{403, `{"error":"unauthorized_client"}`, "auth_style (now none)"},
		{403, `{"error":"invalid_grant"}`, "connect again"},
		{400, `{"error":"interaction_required"}`, "connect again"},
		{403, `{"error":"unauthorized_client","error_description":"refresh_token is invalid"}`, "error_codes: {unauthorized_client: invalid_grant}"},
		{400, `{"error":"use_dpop_nonce"}`, "DPoP"},
		{400, `{"status":"BAD_REFRESH_TOKEN"}`, "error_codes: {BAD_REFRESH_TOKEN: invalid_grant}"},
		{400, `{"error":"token_expired"}`, "error_codes: {token_expired: invalid_grant}"},
		{401, `{"error":"bad_token"}`, "error_codes: {bad_token: invalid_grant}"},
		{200, `{"ok":false,"error":"invalid_refresh_token"}`, "error_codes: {invalid_refresh_token: invalid_grant}"},
		{400, `{"status":400,"message":"Invalid refresh token"}`, "connect again"},
		{400, `{"error":"expired_token"}`, "start again"},
		{200, `{"id_token":"a.b.c"}`, "add a scope of the API"},
		{429, ``, "user_agent"},
	} {
		s := newTokenServer(t, answerJSON(tt.status, tt.body))
		_, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
		if e := asError(t, err); !strings.Contains(e.Error(), tt.want) {
			t.Errorf("%d %s: %v: does not name %s", tt.status, tt.body, e, tt.want)
		}
	}
}

// A provider that registers clients forgets them, too.
func TestHintOfAForgottenClient(t *testing.T) {
	s := newTokenServer(t, answerJSON(401, `{"error":"invalid_client"}`))
	_, err := s.client(func(c *Config) { c.RegistrationURL = "https://as.example/register" }).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
	if e := asError(t, err); e.Outcome != Refused || !strings.Contains(e.Hint, "--register") {
		t.Error(e)
	}
}

// Of a client that acts for itself nobody is told to connect anything, whatever the provider says.
func TestHintsOfMachines(t *testing.T) {
	for _, grantType := range []GrantType{GrantClient, GrantJWT} {
		for _, tt := range []struct {
			status     int
			body, want string
		}{
			{400, `{"error":"invalid_grant"}`, "this machine's clock"},
			{400, `{"error":"interaction_required"}`, "what the provider lets the client do"},
			{400, `{"error":"invalid_request"}`, "token_format (now form)"},
			{400, ``, "token_format (now form)"},
			{401, ``, "auth_style"},
			{403, `{"error":"unauthorized_client"}`, "auth_style"},
			{400, `{"error":"account_disabled"}`, "look account_disabled up"},
			{400, `{"error":"invalid_target"}`, "resource"},
			{400, `{"error":"invalid_scope"}`, "scopes"},
			{400, `{"error":"unsupported_grant_type"}`, "grant_type (now " + string(grantType) + ")"},
			{503, ``, "try again later"},
		} {
			s := newTokenServer(t, answerJSON(tt.status, tt.body))
			_, err := s.client(func(c *Config) { c.GrantType, c.ClientKey = grantType, keys()["ES256"] }).Refresh(t.Context(), secret.Text{}, nil, nil)
			if e := asError(t, err); !strings.Contains(e.Hint, tt.want) || strings.Contains(e.Hint, "connect") || strings.Contains(e.Hint, "refresh token") {
				t.Errorf("%s: %d %s: %s", grantType, tt.status, tt.body, e.Hint)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   time.Duration
	}{
		{"", 0},
		{"120", 2 * time.Minute},
		{" 1.5 ", 1500 * time.Millisecond},
		{"0", 0},
		{"-5", 0},
		{"nan", 0},
		{"1e300", 24 * time.Hour},
		{noon.Add(time.Minute).Format(http.TimeFormat), time.Minute},
		{noon.Add(-time.Minute).Format(http.TimeFormat), 0},
		{noon.AddDate(100, 0, 0).Format(http.TimeFormat), 24 * time.Hour},
		{"soon", 0},
	} {
		for _, status := range []int{429, 503} {
			s := newTokenServer(t, func(w http.ResponseWriter, _ call) {
				w.Header().Set("Retry-After", tt.header)
				w.Header()["Date"] = nil
				w.WriteHeader(status)
			})
			_, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
			if e := asError(t, err); e.RetryAfter != tt.want {
				t.Errorf("%d, Retry-After %q: got %v, want %v", status, tt.header, e.RetryAfter, tt.want)
			}
		}
	}
}

// A date says what the provider's clock will show then, whatever ours shows.
func TestRetryAfterByTheProvidersClock(t *testing.T) {
	for _, ahead := range []time.Duration{-26 * time.Hour, 0, 26 * time.Hour} {
		s := newTokenServer(t, func(w http.ResponseWriter, _ call) {
			w.Header().Set("Date", noon.Add(ahead).Format(http.TimeFormat))
			w.Header().Set("Retry-After", noon.Add(ahead+time.Minute).Format(http.TimeFormat))
			w.WriteHeader(429)
		})
		_, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
		if e := asError(t, err); e.RetryAfter != time.Minute {
			t.Errorf("its clock is %v ahead: %v", ahead, e.RetryAfter)
		}
	}
}

// However a good answer travels, its tokens arrive: the refresh token in it is the only live one.
func TestAnswersOnTheWire(t *testing.T) {
	packed := func(body string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, body)
		z.Close()
		return b.Bytes()
	}
	for name, reply := range map[string]func(w http.ResponseWriter){
		"charset": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json; charset=ISO-8859-1")
			io.WriteString(w, goodAnswer)
		},
		"called a page": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, goodAnswer)
		},
		"a byte order mark": func(w http.ResponseWriter) { io.WriteString(w, "\ufeff"+goodAnswer) },
		"white space":       func(w http.ResponseWriter) { io.WriteString(w, "\r\n "+goodAnswer+"\n\n") },
		"packed":            func(w http.ResponseWriter) { w.Header().Set("Content-Encoding", "gzip"); w.Write(packed(goodAnswer)) },
		"packed, not said so": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(packed(goodAnswer))
		},
		"created":            func(w http.ResponseWriter) { w.WriteHeader(201); io.WriteString(w, goodAnswer) },
		"early hints before": func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(102); io.WriteString(w, goodAnswer) },
		"in pieces": func(w http.ResponseWriter) {
			for _, r := range goodAnswer {
				io.WriteString(w, string(r))
				w.(http.Flusher).Flush()
			}
		},
		"a form": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
			io.WriteString(w, "access_token="+newAccess+"&expires_in=3600&refresh_token="+newRefresh+"&scope=b+a&token_type=bearer\n")
		},
		"a form called JSON": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "access_token="+newAccess+"&expires_in=3600&refresh_token="+newRefresh+"&scope=b%20a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTokenServer(t, func(w http.ResponseWriter, _ call) { reply(w) })
			tok, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tok.Access.Reveal() != newAccess || tok.Refresh.Reveal() != newRefresh || !tok.Expiry.Equal(noon.Add(time.Hour)) || !cmp.Equal(tok.Scopes, []string{"a", "b"}) {
				t.Errorf("expires %v, scopes %q, notes %q", tok.Expiry, tok.Scopes, tok.Notes)
			}
		})
	}
	for name, body := range map[string][]byte{
		"packed, cut off":      packed(goodAnswer)[:40],
		"packed, no end":       packed(strings.Repeat(" ", 64<<20) + goodAnswer),
		"packed, a magic only": {0x1f, 0x8b},
	} {
		s := newTokenServer(t, func(w http.ResponseWriter, _ call) { w.Write(body) })
		_, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
		if e := asError(t, err); e.Outcome != Unknown || e.Err == nil {
			t.Errorf("%s: %v", name, e)
		}
	}
}

// HTTP/2 would send a request again by itself when a server ends a connection, and has servers that answer before they have
// read the request: one POST, on HTTP/1.1.
func TestTokenEndpointOverHTTP1(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 || !r.Close {
			t.Errorf("%s, close %v", r.Proto, r.Close)
		}
		io.WriteString(w, goodAnswer)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := NewClient(Config{TokenURL: s.URL, ClientID: "id"}, NewHTTPClient(roots), nil)
	if _, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, nil); err != nil {
		t.Error(err)
	}
}

// A definite invalid_scope is answered once, without scope; nothing else is ever sent twice.
func TestInvalidScopeIsRetriedOnceWithoutIt(t *testing.T) {
	granted := []string{"a"}
	withScope := func(c *Config) { c.RefreshScope = ScopeGranted }

	t.Run("a provider that takes no scope", func(t *testing.T) {
		s := newTokenServer(t, func(w http.ResponseWriter, c call) {
			if c.Params["scope"] != "" {
				answerJSON(400, `{"error":"invalid_scope"}`)(w, c)
				return
			}
			answerJSON(200, goodAnswer)(w, c)
		})
		tok, err := s.client(withScope).Refresh(t.Context(), secret.New(oldRefresh), granted, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.received()) != 2 || tok.Access.Reveal() != newAccess {
			t.Errorf("%d requests", len(s.received()))
		}
		if len(tok.Notes) != 1 || !strings.Contains(tok.Notes[0], "refresh_scope") {
			t.Errorf("notes %q do not name the setting", tok.Notes)
		}
	})
	t.Run("refused both times", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(400, `{"error":"invalid_scope"}`))
		_, err := s.client(withScope).Refresh(t.Context(), secret.New(oldRefresh), granted, nil)
		if e := asError(t, err); e.Outcome != Refused || len(s.received()) != 2 {
			t.Errorf("%v after %d requests", e.Outcome, len(s.received()))
		}
	})
	t.Run("no scope was sent", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(400, `{"error":"invalid_scope"}`))
		_, err := s.client(nil).Refresh(t.Context(), secret.New(oldRefresh), granted, nil)
		if asError(t, err); len(s.received()) != 1 {
			t.Errorf("%d requests, want 1", len(s.received()))
		}
	})
	t.Run("a 500 that mentions it", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(500, `{"error":"invalid_scope"}`))
		_, err := s.client(withScope).Refresh(t.Context(), secret.New(oldRefresh), granted, nil)
		if e := asError(t, err); e.Outcome != Unknown || len(s.received()) != 1 {
			t.Errorf("%v after %d requests, want unknown after 1", e.Outcome, len(s.received()))
		}
	})
}

// A redirect would carry the refresh token to another host.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		other := newTokenServer(t, answerJSON(200, goodAnswer))
		s := newTokenServer(t, func(w http.ResponseWriter, _ call) {
			w.Header().Set("Location", other.URL+"/token?"+oldRefresh)
			w.WriteHeader(status)
		})
		// Also with a client that would follow.
		for _, hc := range []*http.Client{nil, {}} {
			_, err := NewClient(s.config(), hc, nil).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
			if e := asError(t, err); e.Outcome != Refused {
				t.Errorf("%d: %v", status, e)
			}
		}
		if n := len(other.received()); n != 0 {
			t.Errorf("%d: the other host received %d requests", status, n)
		}
	}
}

func TestNetworkOutcomes(t *testing.T) {
	refresh := func(ctx context.Context, tokenURL string) *Error {
		t.Helper()
		c := NewClient(Config{TokenURL: tokenURL, ClientID: "x", AllowInsecure: true}, nil, nil)
		_, err := c.Refresh(ctx, secret.New(oldRefresh), nil, nil)
		return asError(t, err)
	}
	// raw is a server that handles one connection after it has read the request.
	raw := func(handle func(net.Conn)) string {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if _, err := conn.Read(make([]byte, 64<<10)); err == nil {
					handle(conn)
				}
				conn.Close()
			}
		}()
		return "http://" + l.Addr().String()
	}

	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if e := refresh(t.Context(), "http://"+l.Addr().String()); e.Outcome != NotSent || e.Err == nil {
			t.Errorf("got %v", e)
		}
	})
	t.Run("no such name", func(t *testing.T) {
		if e := refresh(t.Context(), "https://token.invalid/"); e.Outcome != NotSent {
			t.Errorf("got %v", e)
		}
	})
	t.Run("untrusted certificate", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = discardLog
		s.StartTLS()
		defer s.Close()
		if e := refresh(t.Context(), s.URL); e.Outcome != NotSent || !strings.Contains(e.Error(), "certificate") {
			t.Errorf("got %v", e)
		}
	})
	t.Run("given up before", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(200, goodAnswer))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if e := refresh(ctx, s.URL); e.Outcome != NotSent || !errors.Is(e, context.Canceled) || len(s.received()) != 0 {
			t.Errorf("got %v", e)
		}
	})
	t.Run("given up while waiting", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		s := newTokenServer(t, func(http.ResponseWriter, call) { cancel(); <-release })
		e := refresh(ctx, s.URL)
		close(release)
		if e.Outcome != Unknown || !errors.Is(e, context.Canceled) {
			t.Errorf("got %v", e)
		}
	})
	t.Run("reset", func(t *testing.T) {
		u := raw(func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })
		if e := refresh(t.Context(), u); e.Outcome != Unknown || e.Err == nil {
			t.Errorf("got %v", e)
		}
	})
	t.Run("closed", func(t *testing.T) {
		if e := refresh(t.Context(), raw(func(net.Conn) {})); e.Outcome != Unknown || !errors.Is(e, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", e)
		}
	})
	t.Run("not HTTP, and repeating the token", func(t *testing.T) {
		u := raw(func(c net.Conn) { io.WriteString(c, oldRefresh+" "+oldRefresh+"\r\n\r\n") })
		if e := refresh(t.Context(), u); e.Outcome != Unknown {
			t.Errorf("got %v", e)
		}
	})
	t.Run("body cut off", func(t *testing.T) {
		u := raw(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"+goodAnswer)
		})
		if e := refresh(t.Context(), u); e.Outcome != Unknown || e.Status != 0 {
			t.Errorf("got %v", e)
		}
	})
	t.Run("refusal cut off", func(t *testing.T) {
		u := raw(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 9999\r\n\r\n"+`{"error":"invalid_grant"}`)
		})
		if e := refresh(t.Context(), u); e.Outcome != Refused || e.Code != "" {
			t.Errorf("got %v", e)
		}
	})
}

// Secrets travel in clear on loopback only, and there only by choice.
func TestInsecureEndpointsGetNothing(t *testing.T) {
	s := newTokenServer(t, answerJSON(200, goodAnswer))
	for _, tt := range []struct {
		url   string
		allow bool
	}{
		{s.URL, false},
		{"http://192.0.2.1/token", true},
		{"http://127.0.0.1.example.com/token", true},
		{"http://user:pass@127.0.0.1/token", true},
		{"ftp://127.0.0.1/token", true},
		{"/token", true},
		{"", true},
		{"https://", true},
	} {
		c := NewClient(Config{TokenURL: tt.url, RevokeURL: "http://192.0.2.1/", AllowInsecure: tt.allow}, nil, nil)
		_, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
		if e := asError(t, err); e.Outcome != NotSent {
			t.Errorf("%s: %v", tt.url, e)
		}
		if e := asError(t, c.Revoke(t.Context(), secret.New(oldRefresh))); e.Outcome != NotSent {
			t.Errorf("%s: revoke: %v", tt.url, e)
		}
	}
	if n := len(s.received()); n != 0 {
		t.Errorf("the server received %d requests", n)
	}
}

// A provider may have another endpoint for refreshes: refresh tokens go there and nowhere else, also without the scope that it refused, and
// codes to the token endpoint.
func TestRefreshEndpoint(t *testing.T) {
	codes := newTokenServer(t, answerJSON(200, goodAnswer))
	refreshes := newTokenServer(t, func(w http.ResponseWriter, c call) {
		if c.Params["scope"] != "" {
			answerJSON(400, `{"error":"invalid_scope"}`)(w, c)
			return
		}
		answerJSON(200, goodAnswer)(w, c)
	})
	c := codes.client(func(c *Config) { c.RefreshURL, c.RefreshScope = refreshes.config().TokenURL, ScopeRequested })
	if _, err := c.Exchange(t.Context(), secret.New("code"), "", NewPKCE(), ""); err != nil {
		t.Error(err)
	}
	if _, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, []string{"read"}); err != nil {
		t.Error(err)
	}
	if a, b := len(codes.received()), len(refreshes.received()); a != 1 || b != 2 {
		t.Errorf("%d at the token endpoint, %d at the refresh endpoint", a, b)
	}
	gone := newTokenServer(t, answerJSON(404, ``))
	_, err := codes.client(func(c *Config) { c.RefreshURL = gone.config().TokenURL }).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
	if e := asError(t, err); !strings.Contains(e.Error(), "refresh endpoint") || !strings.Contains(e.Hint, "refresh_url") {
		t.Error(err)
	}
}

func TestRefreshWithoutTokenSendsNothing(t *testing.T) {
	s := newTokenServer(t, answerJSON(200, goodAnswer))
	_, err := s.client(nil).Refresh(t.Context(), secret.Text{}, nil, nil)
	if e := asError(t, err); e.Outcome != NotSent || len(s.received()) != 0 {
		t.Errorf("got %v", e)
	}
}

func TestRevoke(t *testing.T) {
	s := newTokenServer(t, answerJSON(200, ``))
	c := s.client(func(c *Config) { c.RevokeURL = c.TokenURL })
	if err := c.Revoke(t.Context(), secret.New(oldRefresh)); err != nil {
		t.Fatal(err)
	}
	if got := s.received()[0].Params; !cmp.Equal(got, map[string]string{"token": oldRefresh, "client_id": "wayleave-test"}) {
		t.Error("wrong parameters")
	}
	asJSON := s.client(func(c *Config) { c.RevokeURL, c.RevokeFormat = c.TokenURL, FormatJSON })
	if err := asJSON.Revoke(t.Context(), secret.New(oldRefresh)); err != nil || s.received()[1].Type != "application/json" || !c.CanRevoke() || s.client(nil).CanRevoke() {
		t.Errorf("as JSON: %v", err)
	}
	if err := s.client(nil).Revoke(t.Context(), secret.New(oldRefresh)); err != nil || len(s.received()) != 2 {
		t.Errorf("without a revocation endpoint: %v", err)
	}
	for _, tt := range []struct {
		status int
		body   string
		says   string // empty: revoked
	}{
		{204, ``, ""},
		{400, `{"error":"invalid_token","error_description":"Token expired or revoked"}`, ""}, // Google's, also after the refresh token took it along
		{400, `{"error":"invalid_grant"}`, ""},
		{401, `{"error":"invalid_token"}`, "status 401"},
		{400, `{"error":"unsupported_token_type"}`, "withdraw the consent"},
		{401, `{"error":"invalid_client"}`, "auth_style"},
		{404, ``, "revoke_url"},
		{302, ``, "revoke_url"},
		{503, ``, "try again later"},
	} {
		s := newTokenServer(t, answerJSON(tt.status, tt.body))
		err := s.client(func(c *Config) { c.RevokeURL = c.TokenURL }).Revoke(t.Context(), secret.New(oldRefresh))
		if tt.says == "" && err != nil || tt.says != "" && !strings.Contains(asError(t, err).Error(), tt.says) {
			t.Errorf("%d %s: %v", tt.status, tt.body, err)
		}
	}
}

// Proxy variables of the process point at the gate itself or at somebody who should not see tokens.
func TestOwnHTTPClientHasNoProxy(t *testing.T) {
	tr := NewHTTPClient(nil).Transport.(*http.Transport)
	if tr.Proxy != nil {
		t.Error("the transport asks for a proxy")
	}
}
