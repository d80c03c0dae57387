package operate

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave/config"
	"wayleave/worker"
)

// jwt is an unsigned one, with these claims.
func jwt(claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
}

func TestReadTokens(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	codex := jwt(map[string]any{"exp": in(time.Hour).Unix()})
	for _, tt := range []struct {
		name, data      string
		access, refresh string
		scopes          []string
		expiry          time.Time
		account, preset string
	}{
		{
			"a response that counts from then: refreshed at once", `{"access_token":"at-1","refresh_token":"rt-1","token_type":"Bearer","expires_in":3600,"scope":"read write"}`,
			"at-1", "rt-1", []string{"read", "write"}, now, "", "",
		},
		{"without a refresh token it counts from now", `{"access_token":"at-1","expires_in":"3600"}`, "at-1", "", nil, in(time.Hour), "", ""},
		{"one that never ends", `{"access_token":"at-1","scope":""}`, "at-1", "", nil, time.Time{}, "", ""},
		{"scopes in a list, of a type of its own", `{"access_token":"at-1","token_type":"bot","scope":["read","write"]}`, "at-1", "", []string{"read", "write"}, time.Time{}, "", ""},
		{"scopes that are none", `{"access_token":"at-1","scope":17}`, "at-1", "", nil, time.Time{}, "", ""},
		{"an expires_in that is none", `{"access_token":"at-1","expires_in":null}`, "at-1", "", nil, time.Time{}, "", ""},
		{
			"with an identity", fmt.Sprintf(`{"access_token":"at-1","id_token":%q}`, jwt(map[string]any{"email": "a@b.example", "sub": "1"})),
			"at-1", "", nil, time.Time{}, "a@b.example", "",
		},
		{
			"Claude Code", fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"at-1","refreshToken":"rt-1","expiresAt":%d,"scopes":["user:inference","user:profile"],"subscriptionType":"max"}}`, in(8*time.Hour).UnixMilli()),
			"at-1", "rt-1", []string{"user:inference", "user:profile"}, in(8 * time.Hour), "", "anthropic",
		},
		{
			"Claude Code long ago", fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"at-1","refreshToken":"rt-1","expiresAt":%d}}`, in(-time.Hour).UnixMilli()),
			"at-1", "rt-1", nil, in(-time.Hour), "", "anthropic",
		},
		{
			"Codex", fmt.Sprintf(`{"OPENAI_API_KEY":null,"tokens":{"id_token":%q,"access_token":%q,"refresh_token":"rt-1","account_id":"x"},"last_refresh":"2026-11-24T00:00:00Z"}`, jwt(map[string]any{"email": "a@b.example"}), codex),
			codex, "rt-1", nil, in(time.Hour), "a@b.example", "openai-codex",
		},
		{"a refresh token alone", `{"refresh_token":"rt-1"}`, "", "rt-1", nil, now, "", ""},
		{"Google's programs", `{"client_id":"c","client_secret":"s","refresh_token":"rt-1","type":"authorized_user"}`, "", "rt-1", nil, now, "", ""},
		{"Codex with a token that says nothing", `{"tokens":{"access_token":"at-1","refresh_token":"rt-1","id_token":"x.y.z"}}`, "at-1", "rt-1", nil, now, "", "openai-codex"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readTokens([]byte(tt.data), now)
			if err != nil {
				t.Fatal(err)
			}
			if got.Access.Reveal() != tt.access || got.Refresh.Reveal() != tt.refresh || !slices.Equal(got.Scopes, tt.scopes) ||
				!got.Expiry.Equal(tt.expiry) || got.Account != tt.account || got.preset != tt.preset {
				t.Errorf("got %q %q %q %v %q %q", got.Access.Reveal(), got.Refresh.Reveal(), got.Scopes, got.Expiry, got.Account, got.preset)
			}
		})
	}
	for _, tt := range []struct{ name, data, says string }{
		{"nothing", "", "not a JSON object"},
		{"a bare token", "hunter2-hunter2", "not a JSON object"},
		{"an array", `["hunter2-hunter2"]`, "not a JSON object"},
		{"another object", `{"hello":"hunter2-hunter2"}`, "no access token in it"},
		{"a refusal", `{"error":"invalid_grant","error_description":"hunter2-hunter2"}`, "refused"},
		{"another kind of token", `{"access_token":"hunter2-hunter2","token_type":"mac"}`, "bound to a client's key"},
		{"another kind of token", `{"access_token":"hunter2-hunter2","token_type":"DPoP"}`, "bound to a client's key"},
		{"a log-out", `{"claudeAiOauth":{"accessToken":"","refreshToken":""}}`, "logged out"},
		{"a log-in by key", `{"OPENAI_API_KEY":"hunter2-hunter2","tokens":null}`, "openai-api"},
		{"a token with a line break", `{"access_token":"hunter2\nhunter2"}`, "no header takes"},
		{"a placeholder", `{"access_token":"sk-ant-oat01-` + worker.Marker + `abc"}`, "placeholders of ours"},
		{"a refresh token that is a placeholder", `{"access_token":"hunter2-hunter2","refresh_token":"` + worker.Marker + `abc"}`, "placeholders of ours"},
		{"expired for good", fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"hunter2-hunter2","expiresAt":%d}}`, in(-time.Hour).UnixMilli()), "no refresh token"},
	} {
		if _, err := readTokens([]byte(tt.data), now); err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v; want %q", tt.name, err, tt.says)
		}
	}
}

// A refresh token is good for the client that it was given to.
func TestImportOfAnotherClient(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte("providers: {google: {client_id: ours, auth_style: none}}\ngrants: {g: {provider: google}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := Desk{Config: cfg, Specs: Specs(cfg), Now: time.Now}
	for client, says := range map[string]string{"ours": "", "another": "of another client"} {
		got, _, err := d.Read("g", []byte(`{"client_id":"`+client+`","refresh_token":"hunter2","type":"authorized_user"}`))
		if says == "" && (err != nil || got.Refresh.Reveal() != "hunter2") || says != "" && (err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("client %s: %v", client, err)
		}
	}
}

// Scopes of an imported response are read as the provider writes them.
func TestImportedScopes(t *testing.T) {
	cfg, err := config.Parse("wayleave.yaml", []byte("providers: {github: {client_id: us, grant_type: device_code, auth_style: none}}\ngrants: {g: {provider: github}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := Desk{Config: cfg, Specs: Specs(cfg), Now: time.Now}
	for scope, want := range map[string][]string{"repo,gist": {"gist", "repo"}, "read:org admin:gpg_key": {"admin:gpg_key", "read:org"}, "": nil} {
		got, _, err := d.Read("g", []byte(`{"access_token":"at-1","scope":"`+scope+`"}`))
		if err != nil || (got.Scopes == nil) != (want == nil) || slices.ContainsFunc(want, func(s string) bool { return !slices.Contains(got.Scopes, s) }) || slices.Contains(got.Scopes, "repo,gist") {
			t.Errorf("%q: %q, %v; want %q", scope, got.Scopes, err, want)
		}
	}
}

// Whatever the file, there is a token that fits a header, or an error that does not repeat it.
func FuzzReadTokens(f *testing.F) {
	f.Add(`{"access_token":"at-1234567","refresh_token":"rt-1","expires_in":3600,"scope":"read write"}`)
	f.Add(`{"claudeAiOauth":{"accessToken":"at-1234567","refreshToken":"rt-1","expiresAt":1796000000000,"scopes":["a"]}}`)
	f.Add(`{"tokens":{"id_token":"a.eyJlbWFpbCI6ImEifQ.c","access_token":"at-1234567","refresh_token":"rt-1"}}`)
	f.Add(`{"expires_in":"1e999"}`)
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data string) {
		got, err := readTokens([]byte(data), now)
		if err != nil {
			if len(data) > 40 && strings.Contains(err.Error(), data[:20]) {
				t.Errorf("the error repeats the file: %v", err)
			}
			return
		}
		access := got.Access.Reveal()
		if access == "" || strings.ContainsFunc(access, func(r rune) bool { return r <= ' ' || r > '~' }) || got.Scopes != nil && len(got.Scopes) == 0 {
			t.Errorf("%q, %q", access, got.Scopes)
		}
	})
}
