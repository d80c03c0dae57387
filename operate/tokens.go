package operate

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"wayleave/oauth"
	"wayleave/secret"
	"wayleave/worker"
)

// importedTokens are tokens that were given out elsewhere.
type importedTokens struct {
	oauth.Token
	what   string // the file, in words
	preset string // of the provider that gave them out; "" when the file does not tell

	idToken string // "" when there is none
	client  string // id of the client that it was given to; "" when the file does not tell
}

// readTokens reads a token response (RFC 6749 section 5.1), Claude Code's credentials file or Codex's. A refresh token alone will do. Errors
// never repeat what is in it.
//
// When the end of an access token is not known, and a refresh token is there, it counts as ended: expires_in counts from an
// answer that came some time ago. The gate then refreshes at once, which also shows whether the refresh token is any good.
func readTokens(data []byte, now time.Time) (importedTokens, error) {
	var f struct {
		AccessToken  string          `json:"access_token"`
		RefreshToken string          `json:"refresh_token"`
		TokenType    string          `json:"token_type"`
		ExpiresIn    json.RawMessage `json:"expires_in"`
		Scope        scopes          `json:"scope"`
		IDToken      string          `json:"id_token"`
		Error        json.RawMessage `json:"error"`
		Type         string          `json:"type"`
		ClientID     string          `json:"client_id"`

		Claude *claudeCredentials `json:"claudeAiOauth"`
		Codex  *codexTokens       `json:"tokens"`
		APIKey *string            `json:"OPENAI_API_KEY"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return importedTokens{}, errors.New("it is not a JSON object of a token response, of Claude Code's .credentials.json or of Codex's auth.json")
	}
	var t importedTokens
	switch {
	case f.Claude != nil:
		t = f.Claude.tokens()
	case f.Codex != nil:
		t = f.Codex.tokens()
	case f.AccessToken != "" || f.RefreshToken != "" && f.Error == nil:
		if bound := strings.ToLower(f.TokenType); bound == "dpop" || bound == "mac" {
			return importedTokens{}, fmt.Errorf("its token_type is %s, and a token that is bound to a client's key cannot be used", bound)
		}
		t = importedTokens{what: "a token response", Token: oauth.Token{
			Access: secret.New(f.AccessToken), Refresh: secret.New(f.RefreshToken), Scopes: scopeList(f.Scope),
			Account: accountIn(f.IDToken),
		}, idToken: f.IDToken}
		if f.Type == "authorized_user" { // as Google's programs keep their log-ins, without an access token
			t.what, t.client = "a log-in of Google's", f.ClientID
		}
		if life := seconds(f.ExpiresIn); life > 0 && f.RefreshToken == "" {
			t.Expiry = now.Add(life)
		}
	case f.Error != nil:
		return importedTokens{}, errors.New("it is the answer to a request that was refused; there is no token in it")
	case f.APIKey != nil && *f.APIKey != "":
		return importedTokens{}, errors.New("it holds an API key and no log-in; import the key into a grant of preset openai-api")
	default:
		return importedTokens{}, errors.New("there is no access token in it: a token response has access_token, Claude Code's file claudeAiOauth, Codex's file tokens")
	}
	for _, token := range []secret.Text{t.Access, t.Refresh} {
		if strings.Contains(token.Reveal(), worker.Marker) {
			return importedTokens{}, errors.New("it holds placeholders of ours, as workers hold them; import the real tokens")
		}
	}
	switch access := t.Access.Reveal(); {
	case access == "" && t.Refresh.IsZero():
		return importedTokens{}, errors.New("there is no access token in it: was it logged out?")
	case strings.ContainsFunc(access, func(r rune) bool { return r <= ' ' || r > '~' }):
		return importedTokens{}, errors.New("its access token has characters that no header takes")
	}
	if t.Expiry.IsZero() && !t.Refresh.IsZero() {
		t.Expiry = now
	}
	if t.Refresh.IsZero() && !t.Expiry.IsZero() && !t.Expiry.After(now) {
		return importedTokens{}, errors.New("its access token has expired and there is no refresh token")
	}
	return t, nil
}

// claudeCredentials is the log-in in Claude Code's .credentials.json.
type claudeCredentials struct {
	AccessToken  string   `json:"accessToken"`
	RefreshToken string   `json:"refreshToken"`
	ExpiresAt    float64  `json:"expiresAt"` // milliseconds since 1970
	Scopes       []string `json:"scopes"`
}

func (c claudeCredentials) tokens() importedTokens {
	return importedTokens{what: "Claude Code's log-in", preset: "anthropic", Token: oauth.Token{
		Access: secret.New(c.AccessToken), Refresh: secret.New(c.RefreshToken), Scopes: scopeList(c.Scopes), Expiry: unixTime(c.ExpiresAt / 1000),
	}}
}

// codexTokens is the log-in in Codex's auth.json. Its access token is a JWT.
type codexTokens struct {
	IDToken      string `json:"id_token"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

func (c codexTokens) tokens() importedTokens {
	return importedTokens{what: "Codex's log-in", preset: "openai-codex", Token: oauth.Token{
		Access: secret.New(c.AccessToken), Refresh: secret.New(c.RefreshToken), Expiry: unixTime(claimsOf(c.AccessToken).Exp), Account: accountIn(c.IDToken),
	}, idToken: c.IDToken}
}

// claims are what of a JWT is of interest. Nothing is decided by them but what is shown, and when to refresh: nobody checks
// the signature.
type claims struct {
	Exp   float64 `json:"exp"` // seconds since 1970
	Email string  `json:"email"`
	Sub   string  `json:"sub"`
}

func claimsOf(jwt string) claims {
	var c claims
	if parts := strings.Split(jwt, "."); len(parts) == 3 {
		if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			_ = json.Unmarshal(payload, &c) // of another shape: nothing known
		}
	}
	return c
}

// accountIn is who an identity token is about, to be shown.
func accountIn(idToken string) string {
	c := claimsOf(idToken)
	for _, s := range []string{c.Email, c.Sub} {
		if s != "" && len(s) <= 200 && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return s
		}
	}
	return ""
}

// unixTime is a time between today's century's begin and its end; the zero time for any other number.
func unixTime(seconds float64) time.Time {
	if seconds <= 1e9 || seconds >= 4.2e9 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// seconds reads a number that some providers send as a string; 0 for anything else.
func seconds(raw json.RawMessage) time.Duration {
	n, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	if err != nil || math.IsNaN(n) || n <= 0 {
		return 0
	}
	return time.Duration(min(n, (365*24*time.Hour).Seconds()) * float64(time.Second))
}

// scopes are those of a token response: in one string, or in a list as some providers have it.
type scopes []string

func (s *scopes) UnmarshalJSON(text []byte) error {
	var one string
	if err := json.Unmarshal(text, &one); err == nil {
		*s = strings.Fields(one)
		return nil
	}
	var list []string
	_ = json.Unmarshal(text, &list) // anything else names none
	*s = list
	return nil
}

// scopeList is a list of scopes as an answer names them; nil when it names none, which is what was asked for.
func scopeList(scopes []string) []string {
	scopes = slices.DeleteFunc(slices.Clone(scopes), func(s string) bool {
		return s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
	})
	if len(scopes) == 0 {
		return nil
	}
	return scopes
}
