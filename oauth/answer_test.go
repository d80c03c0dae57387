package oauth

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func readBody(c Config, body string) (Token, *Error) {
	return c.read(answer{at: place{url: "https://h/t"}, sent: noon, status: 200, body: []byte(body)}, nil)
}

func TestLifetimes(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, tt := range []struct {
		json string // the expires_in member, or ""
		def  time.Duration
		want time.Duration // -1: zero time
		note bool
	}{
		{``, 0, -1, false},
		{``, time.Hour, time.Hour, false},
		{`"expires_in":null,`, time.Hour, time.Hour, false},
		{`"expires_in":"",`, time.Hour, time.Hour, false},
		{`"expires_in":"soon",`, time.Hour, time.Hour, false},
		{`"expires_in":true,`, 0, -1, false},
		{`"expires_in":{"s":1},`, 0, -1, false},
		{`"expires_in":"NaN",`, time.Hour, time.Hour, false},
		{`"expires_in":3600,`, time.Minute, time.Hour, false},
		{`"expires_in":"3600",`, 0, time.Hour, false},
		{`"expires_in":" 3600 ",`, 0, time.Hour, false},
		{`"expires_in":3600.5,`, 0, time.Hour + 500*time.Millisecond, false},
		{`"expires_in":"3.6e3",`, 0, time.Hour, false},
		{`"expires_in":2,`, time.Hour, 2 * time.Second, false},
		{`"expires_in":0,`, time.Hour, time.Minute, true},
		{`"expires_in":"0",`, 0, time.Minute, true},
		{`"expires_in":-1,`, 0, time.Minute, true},
		{`"expires_in":1e-9,`, 0, time.Minute, true},
		{`"expires_in":1e12,`, 0, year, true},
		{`"expires_in":1e999,`, 0, year, true},
		{`"expires_in":"Inf",`, 0, year, true},
		{`"expires_in":31536000,`, 0, year, false},
		{`"expires_in":1772370000,`, 0, time.Hour, true},      // 13:00
		{`"expires_in":"1772370000000",`, 0, time.Hour, true}, // in milliseconds
		{`"expires_in":1772360000,`, 0, year, true},           // 10:13, which is over
		{`"expires_in":3600,"ext_expires_in":7200,"expires_on":1,"expires_at":"x",`, 0, time.Hour, false},
		{`"expires_on":"1772370000",`, time.Minute, time.Hour, false},
		{`"expires_at":1772370000,`, time.Minute, time.Hour, false},
		{`"expires_at":1772370000000,`, 0, time.Hour, false},
		{`"expires_at":"2026-03-01T14:00:00+01:00",`, 0, time.Hour, false},
		{`"expires_at":1772360000,`, 0, time.Minute, true},
		{`"expires_at":3600,`, time.Hour, time.Hour, false},
		{`"expires_at":1e99,`, 0, year, true},
		{`"expires_at":"tomorrow",`, 0, -1, false},
		{`"expires_in":null,"expires_on":1772370000,`, 0, time.Hour, false},
	} {
		tok, err := readBody(Config{DefaultTTL: tt.def}, `{`+tt.json+`"access_token":"a"}`)
		if err != nil {
			t.Errorf("%s: %v", tt.json, err)
			continue
		}
		want := time.Time{}
		if tt.want >= 0 {
			want = noon.Add(tt.want)
		}
		if !tok.Expiry.Equal(want) || (len(tok.Notes) > 0) != tt.note {
			t.Errorf("%s (default %v): expiry %v, notes %q; want %v", tt.json, tt.def, tok.Expiry, tok.Notes, want)
		}
	}
}

// A point in time is one of the provider's clock.
func TestLifetimeByTheProvidersClock(t *testing.T) {
	a := answer{at: place{url: "https://h/t"}, sent: noon, status: 200, body: []byte(`{"access_token":"a","expires_at":"2026-03-02T13:00:00Z"}`)}
	a.header = http.Header{"Date": {noon.AddDate(0, 0, 1).Format(http.TimeFormat)}}
	if tok, err := (Config{}).read(a, nil); err != nil || !tok.Expiry.Equal(noon.Add(time.Hour)) {
		t.Errorf("%v, %v", tok.Expiry, err)
	}
}

func TestRefreshTokenLifetimes(t *testing.T) {
	for _, tt := range []struct {
		json string
		want time.Duration // 0: not known
	}{
		{``, 0},
		{`"refresh_token_expires_in":15724800,`, 182 * 24 * time.Hour},
		{`"refresh_token_expires_in":"86399",`, 86399 * time.Second},
		{`"refresh_expires_in":1800,`, 30 * time.Minute},
		{`"refresh_expires_in":0,`, 0}, // Keycloak's for ever
		{`"x_refresh_token_expires_in":8726400,`, 101 * 24 * time.Hour},
		{`"refresh_token_expires_in":-5,`, 0},
		{`"refresh_token_expires_in":1e99,`, 0},
		{`"refresh_token_expires_in":"never",`, 0},
	} {
		tok, err := readBody(Config{}, `{`+tt.json+`"access_token":"a","expires_in":9}`)
		if err != nil || tok.RefreshExpiry.IsZero() != (tt.want == 0) || tt.want != 0 && !tok.RefreshExpiry.Equal(noon.Add(tt.want)) {
			t.Errorf("%s: %v, %v", tt.json, tok.RefreshExpiry, err)
		}
	}
}

// Where the tokens are in an answer, and which are taken when there are several.
func TestNestedAnswers(t *testing.T) {
	const nested = `{"access_token":"person","refresh_token":"r-person","expires_in":60,"scope":"c"}`
	for _, tt := range []struct{ name, body, access, refresh string }{
		{"of a person", `{"ok":true,"app_id":"x","authed_user":` + nested + `}`, "person", "r-person"},
		{"of a person, beside an empty one", `{"ok":true,"access_token":"","authed_user":` + nested + `}`, "person", "r-person"},
		{"of a person, beside an app's without scopes", `{"ok":true,"access_token":"bot","scope":"","authed_user":` + nested + `}`, "person", "r-person"},
		{"of an app, beside a person", `{"ok":true,"access_token":"bot","refresh_token":"r-bot","scope":"a","authed_user":` + nested + `}`, "bot", "r-bot"},
		{"of an app, beside a person without token", `{"ok":true,"access_token":"bot","refresh_token":"r-bot","scope":"","authed_user":{"id":"u"}}`, "bot", "r-bot"},
		{"all of it", `{"code":0,"error":"","data":` + nested + `}`, "person", "r-person"},
		{"something else", `{"access_token":"top","refresh_token":"r-top","data":{"access_token":{}}}`, "top", "r-top"},
		{"twice the same", `{"access_token":"first","access_token":"top","refresh_token":"r-top"}`, "top", "r-top"},
	} {
		tok, err := readBody(Config{}, tt.body)
		if err != nil || tok.Access.Reveal() != tt.access || tok.Refresh.Reveal() != tt.refresh {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil && tt.access == "person" && (!cmp.Equal(tok.Scopes, []string{"c"}) || !tok.Expiry.Equal(noon.Add(time.Minute))) {
			t.Errorf("%s: %+v", tt.name, tok)
		}
	}
}

// Tokens of other types are what they are: used, and said.
func TestTokenTypes(t *testing.T) {
	for _, tt := range []struct {
		json string
		note bool
	}{
		{`"token_type":"bearer",`, false}, {`"token_type":"BEARER",`, false}, {`"token_type":null,`, false}, {`"token_type":"N_A",`, true},
		{`"token_type":"DPoP",`, true}, {`"token_type":"mac",`, true}, {`"token_type":"user",`, true}, {`"token_type":["bearer"],`, false},
	} {
		tok, err := readBody(Config{}, `{`+tt.json+`"access_token":"a","expires_in":9}`)
		if err != nil || len(tok.Notes) > 0 != tt.note {
			t.Errorf("%s: %q, %v", tt.json, tok.Notes, err)
		}
	}
}

// Absent and empty mean unchanged; narrower means narrower.
func TestScopesOfAnAnswer(t *testing.T) {
	for _, tt := range []struct {
		json, separator string
		want            []string
		note            bool
	}{
		{``, "", nil, false},
		{`"scope":null,`, "", nil, false},
		{`"scope":"",`, "", nil, true},
		{`"scope":"  ",`, "", nil, true},
		{`"scope":[],`, "", nil, true},
		{`"scope":17,`, "", nil, true},
		{`"scope":"b a b",`, "", []string{"a", "b"}, false},
		{`"scope":"user:inference",`, "", []string{"user:inference"}, false},
		{`"scope":["b","a"],`, "", []string{"a", "b"}, false},
		{`"scopes":["b","a"],`, "", []string{"a", "b"}, false},
		{`"scopes":"b a",`, "", []string{"a", "b"}, false},
		{`"scope":"a","scopes":["a","b"],`, "", []string{"a"}, false},
		{`"scope":"repo,gist read:org",`, ",", []string{"gist", "read:org", "repo"}, false},
		{`"scope":"a,b",`, "", []string{"a,b"}, false},
		{`"scope":"a b\"c d\\e",`, "", []string{"a"}, true},
		{`"scope":"b\u00e4d",`, "", []string{}, true},
	} {
		tok, err := readBody(Config{ScopeSeparator: tt.separator}, `{`+tt.json+`"access_token":"a","expires_in":9}`)
		if err != nil {
			t.Errorf("%s: %v", tt.json, err)
			continue
		}
		if diff := cmp.Diff(tt.want, tok.Scopes); diff != "" || (len(tok.Notes) > 0) != tt.note {
			t.Errorf("%s: notes %q, scopes (-want +got):\n%s", tt.json, tok.Notes, diff)
		}
	}
}

// Scopes that a listed one brings along are granted too, at any remove and also in a circle.
func TestImpliedScopes(t *testing.T) {
	implied := map[string][]string{"admin:org": {"write:org"}, "write:org": {"read:org", "admin:org"}, "user": {"user:email"}}
	for _, tt := range []struct{ scopes, want []string }{
		{[]string{"admin:org"}, []string{"admin:org", "write:org", "read:org"}},
		{[]string{"gist", "read:org"}, []string{"gist", "read:org"}},
		{[]string{"user", "user:mail"}, []string{"user", "user:mail", "user:email"}},
		{nil, nil},
	} {
		shared := append(slices.Clone(tt.scopes), "another's")[:len(tt.scopes)]
		if got := WithImplied(shared, implied); !slices.Equal(got, tt.want) || len(shared) > 0 && shared[:len(shared)+1][len(shared)] != "another's" {
			t.Errorf("%q: %q, want %q", tt.scopes, got, tt.want)
		}
	}
}

// No refresh token in the answer means that the one we have stays.
func TestAbsentRefreshTokenIsZero(t *testing.T) {
	for _, member := range []string{``, `,"refresh_token":""`, `,"refresh_token":null`, `,"refresh_token":false`} {
		tok, err := readBody(Config{}, `{"access_token":"a"`+member+`}`)
		if err != nil || !tok.Refresh.IsZero() {
			t.Errorf("%s: %v", member, err)
		}
	}
}

// A token that cannot stand in a header as it is, is not taken: it would split the header.
func TestUnusableTokensAreRefused(t *testing.T) {
	for _, bad := range []string{"a b", "a\\n", "a\\r\\nx-evil: 1", "a\\u0000", "\\ta", "a\\u007f", "t\\u00f6ken", "a\\ud800"} {
		if _, err := readBody(Config{}, `{"access_token":"`+bad+`"}`); err == nil || err.Outcome != Unknown {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Whatever else is wrong with an answer, the refresh token in it is the only live one.
func TestRotatedTokenIsNeverLost(t *testing.T) {
	for _, body := range []string{
		`{"refresh_token":"rt-2"}`,
		`{"access_token":"","refresh_token":"rt-2"}`,
		`{"access_token":"a\r\nx-evil: 1","refresh_token":"rt-2"}`,
		`{"access_token":{"a":1},"refresh_token":"rt-2"}`,
	} {
		if _, err := readBody(Config{}, body); err == nil || err.Rotated.Reveal() != "rt-2" || strings.Contains(fmt.Sprintf("%v %+v", err, *err), "rt-2") {
			t.Errorf("%s: %v", body, err)
		}
	}
	for _, odd := range []string{"a b", "a\\r\\n", "t\u00f6ken"} {
		tok, err := readBody(Config{}, `{"access_token":"good","refresh_token":"`+odd+`"}`)
		if err != nil || tok.Refresh.IsZero() {
			t.Errorf("%s: %v", odd, err)
		}
	}
}

func TestAccount(t *testing.T) {
	id := func(claims string) string {
		return `"x.` + base64.RawURLEncoding.EncodeToString([]byte(claims)) + `.y"`
	}
	for _, tt := range []struct{ json, want string }{
		{`"account":{"uuid":"u-1","email_address":"op@example.com"}`, "op@example.com"},
		{`"account":{"uuid":"u-1"}`, "u-1"},
		{`"account":"op"`, ""},
		{`"id_token":` + id(`{"email":"op@example.com","sub":"1"}`), "op@example.com"},
		{`"id_token":` + id(`{"sub":"1"}`), "1"},
		{`"id_token":` + id(`[]`), ""},
		{`"id_token":"a.!.c"`, ""},
		{`"id_token":"abc"`, ""},
		{`"account":{"email_address":"\u001b[2J"}`, ""},
		{`"account":{"email_address":"` + strings.Repeat("x", 999) + `"}`, ""},
	} {
		tok, err := readBody(Config{}, `{"access_token":"a",`+tt.json+`}`)
		if err != nil || tok.Account != tt.want {
			t.Errorf("%s: got %q, %v; want %q", tt.json, tok.Account, err, tt.want)
		}
	}
}

func TestMissingScopes(t *testing.T) {
	for _, tt := range []struct{ have, want, missing []string }{
		{nil, nil, nil},
		{nil, []string{"b", "a", "b"}, []string{"a", "b"}},
		{[]string{"a", "b"}, []string{"b"}, nil},
		{[]string{"a"}, []string{"A", "a", "aa"}, []string{"A", "aa"}},
	} {
		if diff := cmp.Diff(tt.missing, MissingScopes(tt.have, tt.want)); diff != "" {
			t.Errorf("have %q, want %q (-want +got):\n%s", tt.have, tt.want, diff)
		}
	}
}

func TestScopeAtRefresh(t *testing.T) {
	for _, tt := range []struct {
		mode               RefreshScope
		granted, requested []string
		want               string
	}{
		{"", []string{"a"}, []string{"a"}, ""},
		{ScopeOmit, []string{"a"}, []string{"a"}, ""},
		{ScopeGranted, []string{"a", "b"}, []string{"c"}, "a b"},
		{ScopeGranted, nil, []string{"c"}, ""},
		{ScopeRequested, []string{"a", "b"}, []string{"b", "c"}, "b"},
		{ScopeRequested, nil, []string{"b", "c"}, "b c"},
		{ScopeRequested, []string{}, []string{"b"}, ""},
		{ScopeRequested, []string{"api://x/use"}, []string{"api://x/.default", "offline_access", "mail"}, "api://x/.default offline_access"},
	} {
		if got := (Config{RefreshScope: tt.mode}).scopeAtRefresh(tt.granted, tt.requested); got != tt.want {
			t.Errorf("%s, granted %q, requested %q: got %q, want %q", tt.mode, tt.granted, tt.requested, got, tt.want)
		}
	}
}

// Whatever the endpoint answers: no panic, a token only if usable, an error that repeats nothing.
func FuzzRead(f *testing.F) {
	f.Add(200, goodAnswer, "")
	f.Add(200, `{"ok":false,"error":{"code":"x"}}`, ",")
	f.Add(400, `{"error":"invalid_grant"}`, " ")
	f.Add(500, `{"error":"invalid_grant"}`, "")
	f.Add(200, `{"access_token":"a","expires_in":1e999,"scope":["a",1]}`, "")
	f.Add(200, "access_token=a&refresh_token=b&expires_at=1772370000", "")
	f.Add(200, `{"authed_user":{"access_token":"a","expires_on":"1e99"}}`, "")
	f.Add(403, `{"errors":[{"errorType":"invalid_grant: x"}]}`, "")
	f.Fuzz(func(t *testing.T, status int, body, separator string) {
		status = 200 + (status%400+400)%400
		cfg := Config{ScopeSeparator: separator, ErrorCodes: map[string]string{"x": "invalid_grant"}}
		tok, err := cfg.read(answer{at: place{url: "https://h/t"}, sent: noon, status: status, body: []byte(body)}, []string{oldRefresh})
		if err != nil {
			if strings.Contains(fmt.Sprintf("%v%+v", err, *err), oldRefresh) {
				t.Fatal("the error repeats what we sent")
			}
			if err.Outcome == InvalidGrant && (err.Code != "invalid_grant" || status >= 300 && status != 400 && status != 401 && status != 403) {
				t.Fatalf("status %d, code %q counts as an invalid grant", status, err.Code)
			}
			return
		}
		if status/100 != 2 || tok.Access.IsZero() || !isToken(tok.Access.Reveal()) {
			t.Fatal("an unusable token was taken")
		}
		if !tok.Expiry.IsZero() && (!tok.Expiry.After(noon) || tok.Expiry.After(noon.Add(longestLife))) {
			t.Fatalf("expiry %v", tok.Expiry)
		}
	})
}

// Scopes are sorted, unique and well-formed, and writing them and reading them again changes nothing.
func FuzzScopes(f *testing.F) {
	f.Add("user:inference user:profile", " ")
	f.Add("repo,gist read:org", ",")
	f.Add("a\x00b \" \\", "")
	f.Fuzz(func(t *testing.T, list, separator string) {
		scopes, _ := splitScopes(list, separator)
		if !slices.IsSorted(scopes) || len(slices.Compact(slices.Clone(scopes))) != len(scopes) {
			t.Fatalf("not a sorted set: %q", scopes)
		}
		for _, s := range scopes {
			if !isScope(s) {
				t.Fatalf("%q is no scope", s)
			}
		}
		if len(scopes) == 0 {
			return
		}
		again, dropped := splitScopes(strings.Join(scopes, " "), separator)
		if dropped != 0 || !slices.Equal(again, scopes) {
			t.Fatalf("%q became %q", scopes, again)
		}
	})
}
