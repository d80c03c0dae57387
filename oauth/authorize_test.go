package oauth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
)

var discardLog = log.New(io.Discard, "", 0)

func TestAuthorizationURL(t *testing.T) {
	c := NewClient(Config{
		AuthorizeURL:    "https://as.example/authorize?tenant=1",
		ClientID:        "id",
		RedirectURL:     "https://as.example/code",
		ScopeSeparator:  ",",
		AuthorizeParams: map[string]string{"access_type": "offline", "code_challenge_method": "plain", "client_id": "other"},
	}, nil, nil)
	p := PKCE{Verifier: secret.New("v"), Challenge: "chal"}
	for _, tt := range []struct{ redirect, want string }{
		{"", "https://as.example/code"},
		{"http://127.0.0.1:4711/callback", "http://127.0.0.1:4711/callback"},
	} {
		u, err := url.Parse(c.AuthorizationURL("st", p, tt.redirect, []string{"a", "b"}))
		if err != nil {
			t.Fatal(err)
		}
		want := url.Values{
			"tenant": {"1"}, "access_type": {"offline"}, "response_type": {"code"}, "client_id": {"id"}, "redirect_uri": {tt.want},
			"scope": {"a,b"}, "state": {"st"}, "code_challenge": {"chal"}, "code_challenge_method": {"S256"},
		}
		if diff := cmp.Diff(want, u.Query()); diff != "" || u.Host != "as.example" || u.Path != "/authorize" {
			t.Errorf("%s (-want +got):\n%s", u, diff)
		}
	}
}

func TestPKCEAndState(t *testing.T) {
	p, q := NewPKCE(), NewPKCE()
	sum := sha256.Sum256([]byte(p.Verifier.Reveal()))
	if p.Challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Error("the challenge is not S256 of the verifier")
	}
	if n := len(p.Verifier.Reveal()); n < 43 || n > 128 {
		t.Errorf("the verifier has %d characters; RFC 7636 §4.1 wants 43 to 128", n)
	}
	if first, second := NewState(), NewState(); p.Verifier.Equal(q.Verifier) || first == second {
		t.Error("not fresh")
	}
}

func TestParseCallback(t *testing.T) {
	const state = "st-1"
	tests := []struct {
		name, pasted, code string
		err                error  // nil with a code, or matched by errors.Is
		says               string // otherwise: part of the text
	}{
		{name: "address", pasted: "http://127.0.0.1:4711/callback?code=abc&state=st-1", code: "abc"},
		{name: "address in white space and quotes", pasted: "  'https://as.example/cb?state=st-1&code=a%2Fb%3D%3D'\n", code: "a/b=="},
		{name: "address without scheme", pasted: "localhost:1455/auth/callback?code=abc&scope=x&state=st-1", code: "abc"},
		{name: "fragment answer", pasted: "https://as.example/cb#code=abc&state=st-1", code: "abc"},
		{name: "state in the fragment", pasted: "https://as.example/cb?code=abc#st-1", code: "abc"},
		{name: "path and query", pasted: "/callback?code=abc&state=st-1", code: "abc"},
		{name: "query", pasted: "?code=abc&state=st-1", code: "abc"},
		{name: "query without mark", pasted: "code=abc&state=st-1", code: "abc"},
		{name: "code and state", pasted: "abc#st-1", code: "abc"},
		{name: "code", pasted: "abc", code: "abc"},
		{name: "code with an equals sign", pasted: "4/0Ab_cd==", code: "4/0Ab_cd=="},

		{name: "other state", pasted: "http://127.0.0.1/cb?code=abc&state=st-2", err: ErrStateMismatch},
		{name: "no state in an address", pasted: "http://127.0.0.1/cb?code=abc", err: ErrStateMismatch},
		{name: "empty state in an address", pasted: "http://127.0.0.1/cb?code=abc&state=#st-1", err: ErrStateMismatch},
		{name: "code and other state", pasted: "abc#st-2", err: ErrStateMismatch},
		{name: "code and empty state", pasted: "abc#", err: ErrStateMismatch},
		{name: "code and half a state", pasted: "abc#st", err: ErrStateMismatch},

		{name: "nothing", pasted: " \n", err: ErrNoCode},
		{name: "address without code", pasted: "https://as.example/cb", err: ErrNoCode},
		{name: "path without query", pasted: "/callback", err: ErrNoCode},
		{name: "empty code", pasted: "?code=&state=st-1", err: ErrNoCode},
		{name: "state only", pasted: "#st-1", err: ErrNoCode},
		{name: "two codes", pasted: "?code=a&code=b&state=st-1", err: ErrNoCode},
		{name: "two states", pasted: "?code=a&state=st-1&state=st-2", err: ErrNoCode},
		{name: "control characters", pasted: "?code=a%0d%0ab&state=st-1", err: ErrNoCode},
		{name: "white space inside", pasted: "ab c", err: ErrNoCode},
		{name: "bad escape", pasted: "?code=%zz&state=st-1", err: ErrNoCode},
		{name: "too long", pasted: strings.Repeat("a", maxCallback+1), err: ErrNoCode},

		{name: "denied", pasted: "http://127.0.0.1/cb?error=access_denied&error_description=no&state=st-1", says: "access_denied"},
		{name: "denied, with a code too", pasted: "http://127.0.0.1/cb?error=access_denied&code=abc&state=st-1", says: "access_denied"},
		{name: "error that is no code", pasted: "http://127.0.0.1/cb?error=%1b%5b2J", says: "an error without a readable code"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, err := parseCallback(tt.pasted, state, "")
			switch {
			case tt.code != "":
				if err != nil || code.Reveal() != tt.code {
					t.Errorf("got %q, %v; want %q", code.Reveal(), err, tt.code)
				}
			case tt.says != "":
				if err == nil || !strings.Contains(err.Error(), tt.says) || !code.IsZero() {
					t.Errorf("got %v, want one that says %q", err, tt.says)
				}
			case !errors.Is(err, tt.err) || !code.IsZero():
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

// An answer of another authorization server is not taken, not even its refusal (RFC 9207 §2.4).
func TestIssuerInCallback(t *testing.T) {
	for _, tt := range []struct {
		pasted, issuer string
		err            error
	}{
		{"?code=a&state=s&iss=https%3A%2F%2Fas.example", "https://as.example", nil},
		{"?code=a&state=s&iss=https%3A%2F%2Fas.example%2F", "https://as.example", ErrIssuerMismatch},
		{"?code=a&state=s&iss=", "https://as.example", ErrIssuerMismatch},
		{"?code=a&state=s&iss=https%3A%2F%2Fevil.example", "https://as.example", ErrIssuerMismatch},
		{"?error=access_denied&state=s&iss=https%3A%2F%2Fevil.example", "https://as.example", ErrIssuerMismatch},
		{"?error=access_denied&state=s&iss=https%3A%2F%2Fas.example", "https://as.example", ErrDenied},
		{"?code=a&state=s&iss=x&iss=https%3A%2F%2Fas.example", "https://as.example", ErrNoCode},
		{"?code=a&state=x&iss=https%3A%2F%2Fevil.example", "https://as.example", ErrStateMismatch},
		{"?code=a&state=s", "https://as.example", nil},
		{"?code=a&state=s&iss=https%3A%2F%2Fany.example", "", nil},
	} {
		c := NewClient(Config{Issuer: tt.issuer}, nil, nil)
		if _, err := c.ParseCallback(tt.pasted, "s"); !errors.Is(err, tt.err) {
			t.Errorf("%s, issuer %q: %v", tt.pasted, tt.issuer, err)
		}
	}
}

// Whatever is pasted: no panic, and a code only if it could be one.
func FuzzParseCallback(f *testing.F) {
	for _, s := range []string{"http://h/cb?code=a&state=s", "a#s", "a", "?error=access_denied", "code=a&state=s", "#code=a&state=s", "%", "a?b#c"} {
		f.Add(s, "s")
	}
	f.Fuzz(func(t *testing.T, pasted, state string) {
		code, err := parseCallback(pasted, state, "https://as.example")
		if (err == nil) == code.IsZero() {
			t.Fatalf("code and error do not agree: %v", err)
		}
		if err == nil && !isToken(code.Reveal()) {
			t.Fatalf("%q is no code", code.Reveal())
		}
		escaped := strings.ContainsAny(pasted, "%+") // a state may then look different
		if err == nil && strings.ContainsAny(pasted, "?#") && !escaped && !strings.Contains(pasted, state) {
			t.Fatal("a code that came with another state was accepted")
		}
	})
}

func TestValidate(t *testing.T) {
	good := Config{AuthorizeURL: "https://as.example/a", TokenURL: "https://as.example/t", ClientID: "id"}
	if f := good.Validate(); f != nil {
		t.Fatalf("a good configuration has faults: %v", f)
	}
	for _, tt := range []struct {
		name string
		edit func(*Config)
		keys []string
	}{
		{"empty", func(c *Config) { *c = Config{} }, []string{"authorize_url", "token_url", "client_id"}},
		{"http", func(c *Config) { c.TokenURL, c.RevokeURL = "http://as.example/t", "http://127.0.0.1/r" }, []string{"token_url", "revoke_url"}},
		{"loopback", func(c *Config) {
			c.TokenURL, c.AuthorizeURL, c.AllowInsecure = "http://localhost:1/t", "http://[::1]:1/a", true
		}, nil},
		{"fragment", func(c *Config) { c.TokenURL += "#x" }, []string{"token_url"}},
		{"redirect on loopback", func(c *Config) { c.RedirectURL = "http://localhost:1455/auth/callback" }, nil},
		{"redirect elsewhere", func(c *Config) { c.RedirectURL = "http://as.example/cb" }, []string{"redirect_url"}},
		{"unknown words", func(c *Config) { c.AuthStyle, c.TokenFormat, c.RefreshScope = "auto", "xml", "all" }, []string{"auth_style", "token_format", "refresh_scope"}},
		{"no secret", func(c *Config) { c.AuthStyle = AuthBasic }, []string{"auth_style"}},
		{"unused secret", func(c *Config) { c.ClientSecret = secret.New("x") }, []string{"auth_style"}},
		{"secret", func(c *Config) { c.AuthStyle, c.ClientSecret = AuthPost, secret.New("x") }, nil},
		{"our own parameters", func(c *Config) {
			c.AuthorizeParams = map[string]string{"scope": "x", "prompt": "consent"}
			c.TokenParams = map[string]string{"grant_type": "x", "audience": "y"}
			c.TokenHeaders = map[string]string{"host": "x", "bad name": "y", "x-bad": "a\nb", "x-good": "y"}
		}, []string{"authorize_params.scope", "token_params.grant_type", "token_headers.bad name", "token_headers.host", "token_headers.x-bad"}},
		{"codes", func(c *Config) { c.ErrorCodes = map[string]string{"a": "invalid_grant", "b": "nonsense"} }, []string{"error_codes.b"}},
		{"device", func(c *Config) { c.GrantType, c.AuthorizeURL = GrantDevice, "" }, []string{"device_url"}},
		{"device of codex", func(c *Config) { c.DeviceURL, c.DeviceFlow = "https://as.example/d", DeviceCodex }, []string{"device_verification_url", "device_redirect_url"}},
		{"client credentials", func(c *Config) {
			*c = Config{GrantType: GrantClient, TokenURL: c.TokenURL, ClientID: "id", AuthStyle: AuthPost, ClientSecret: secret.New("x")}
		}, nil},
		{"client credentials of nobody", func(c *Config) { c.GrantType = GrantClient }, []string{"auth_style"}},
		{"assertion", func(c *Config) {
			*c = Config{GrantType: GrantJWT, TokenURL: c.TokenURL, ClientKey: weakKey{}, Assertion: Assertion{Issuer: "sa@example"}}
		}, nil},
		{"assertion of nobody", func(c *Config) { c.GrantType, c.ClientID = GrantJWT, "" }, []string{"client_id", "grant_type"}},
		{"assertion that says too much", func(c *Config) {
			c.Assertion = Assertion{Lifetime: 2 * time.Hour, Claims: map[string]string{"exp": "1", "scope": "x"}}
		}, []string{"assertion.lifetime", "assertion.claims.exp"}},
		{"no key", func(c *Config) { c.AuthStyle = AuthPrivateKeyJWT }, []string{"auth_style"}},
		{"key", func(c *Config) { c.AuthStyle, c.ClientKey = AuthPrivateKeyJWT, weakKey{} }, nil},
		{"key and secret", func(c *Config) {
			c.AuthStyle, c.ClientKey, c.ClientSecret = AuthPrivateKeyJWT, weakKey{}, secret.New("x")
		}, []string{"auth_style"}},
		{"names", func(c *Config) { c.Issuer, c.Resource, c.RegistrationURL = "as.example", "/api", "x" }, []string{"registration_url", "issuer", "resource"}},
		{"unknown grant", func(c *Config) { c.GrantType, c.DeviceFlow = "password", "x" }, []string{"grant_type", "device_flow"}},
		{"rest", func(c *Config) { c.DefaultTTL, c.ScopeSeparator, c.UserAgent = -1, "\n", "a\r\nb" }, []string{"scope_separator", "user_agent", "default_ttl"}},
	} {
		c := good
		tt.edit(&c)
		var keys []string
		for _, f := range c.Validate() {
			keys = append(keys, f.Key)
			if f.Problem == "" || !strings.HasPrefix(f.Error(), f.Key+" ") {
				t.Errorf("%s: %v", tt.name, f)
			}
		}
		if diff := cmp.Diff(tt.keys, keys); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
