package vault

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"wayleave/secret"
)

func TestSecretIDWarning(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		id   SecretID
		want string
	}{
		{SecretID{}, ""},
		{SecretID{Expires: now.Add(30 * 24 * time.Hour)}, ""},
		{SecretID{Expires: now.Add(time.Hour)}, "it ends in 1h0m0s"},
		{SecretID{Expires: now}, "it has expired"},
		{SecretID{Uses: 3}, "it ends after 3 more log-ins"},
	} {
		if got := tt.id.Warning(now); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.id, got, tt.want)
		}
	}
}

func TestSkew(t *testing.T) {
	asked := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		date string
		took time.Duration
		want time.Duration
	}{
		{"Sun, 01 Mar 2026 12:00:00 GMT", 0, time.Second}, // half a second, rounded
		{"Sun, 01 Mar 2026 12:00:00 GMT", time.Second, 0},
		{"Sun, 01 Mar 2026 12:05:00 GMT", time.Second, 5 * time.Minute},
		{"Sun, 01 Mar 2026 11:00:00 GMT", time.Second, -time.Hour},
		{"", 0, 0},
		{"yesterday", 0, 0},
	} {
		if got := Skew(tt.date, asked, asked.Add(tt.took)); got != tt.want {
			t.Errorf("%q after %v: %v, want %v", tt.date, tt.took, got, tt.want)
		}
	}
}

func jwtOf(claims string) secret.Text {
	return secret.New("e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln")
}

func TestAdvice(t *testing.T) {
	now := time.Unix(2000, 0)
	for _, tt := range []struct {
		name, claims, said, want string
	}{
		{"expired", `{"sub":"s","exp":1000}`, "token is expired", "it expired 16m40s ago"},
		{"expired with a fraction", `{"sub":"s","exp":1000.5}`, "", "it expired 16m40s ago"},
		{"an end that is no time", `{"sub":"s","exp":1e300}`, "", `subject "s"`},
		{"one audience", `{"sub":"s","aud":"a"}`, "invalid audience (aud) claim", `it is for "a"`},
		{"audiences", `{"sub":"s","aud":["a","b"]}`, "invalid audience (aud) claim", `it is for ["a" "b"]`},
		{"no audience", `{"sub":"s"}`, "invalid audience (aud) claim", `it is for ""`},
		{"long", `{"sub":"` + strings.Repeat("x", 5000) + `"}`, "", "xxx…"},
		{"controls", `{"sub":"a\u001b[31m"}`, "", `subject "a\x1b[31m"`},
		{"role", `{"sub":"s"}`, `role "r" could not be found`, `make the role "r" of auth/jwt`},
		{"not for Kubernetes", `{"sub":"s"}`, "permission denied", "is bound to"},
		{"no claims", `[]`, "", "not a JSON web token"},
	} {
		c := parseClaims(jwtOf(tt.claims))
		got := c.advice(Auth{Method: "jwt", Role: "r"}, tt.said, c.expired(now))
		if !strings.Contains(got, tt.want) || len(got) > 600 {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Whatever a file holds makes a message on one line.
func FuzzClaims(f *testing.F) {
	f.Add(`{"iss":"i","sub":"s","aud":["a"],"exp":1000}`, "role")
	f.Add(`{"aud":{"a":1},"exp":-1}`, "audience")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, claims, said string) {
		for _, token := range []secret.Text{jwtOf(claims), secret.New(claims)} {
			c := parseClaims(token)
			text := c.advice(Auth{Method: "kubernetes", Role: "r"}, said, c.expired(time.Unix(2000, 0)))
			if text == "" || strings.ContainsAny(text, "\n\r\x1b") || len(text) > 1000 {
				t.Errorf("%q", text)
			}
		}
	})
}
