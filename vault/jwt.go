package vault

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"wayleave/secret"
)

// jwt is the proof of the methods jwt and kubernetes, which differ in who judges the token: the server itself by the
// issuer's keys, or Kubernetes by its TokenReview API.
func (a Auth) jwt() (proof, error) {
	what := "JWT"
	if a.Method == "kubernetes" {
		what = "service-account token"
	}
	if a.Role == "" {
		return proof{}, errors.New("method " + a.Method + " needs a role: write vault.auth.role")
	}
	token, err := credential(what, a.JWT, a.JWTFile)
	if err != nil {
		return proof{}, err
	}
	claims := parseClaims(token)
	expired := claims.expired(time.Now())
	return proof{
		what:    what,
		body:    map[string]any{"role": a.Role, "jwt": token.Reveal()},
		expired: expired,
		advice:  func(said string) string { return claims.advice(a, said, expired) },
	}, nil
}

// claims are the parts of a JSON web token (RFC 7519 section 4.1) that say where it may be used. Nobody has checked its
// signature: they are for messages.
type claims struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Audience json.RawMessage `json:"aud"` // a string or a list
	Expires  float64         `json:"exp"` // seconds since 1970; 0: never
}

// parseClaims returns no claims for what is no token.
func parseClaims(token secret.Text) (c claims) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return claims{}
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &c) != nil {
		return claims{}
	}
	return c
}

// expired is how long ago the token ended, 0 if it has not. What is no time is taken for no end.
func (c claims) expired(now time.Time) time.Duration {
	const farthest = 1 << 40 // seconds; beyond it time.Unix means something else
	if c.Expires <= 0 || c.Expires > farthest {
		return 0
	}
	return max(0, now.Sub(time.Unix(int64(c.Expires), 0)).Round(time.Second))
}

// advice names the next step after the server refused the token with the words said.
func (c claims) advice(a Auth, said string, expired time.Duration) string {
	said = strings.ToLower(said)
	role := fmt.Sprintf("the role %q of auth/%s", a.Role, cmp.Or(a.Mount, a.Method))
	switch {
	case c.Subject == "" && c.Issuer == "":
		return "it is not a JSON web token: look at what writes it"
	case expired > 0:
		return fmt.Sprintf("it expired %v ago: see that whatever replaces it still runs", expired)
	case strings.Contains(said, "audience"):
		return fmt.Sprintf("it is for %s: ask for one with an audience that %s is bound to, or bind the role to this one", short(c.audiences()), role)
	case strings.Contains(said, "role") && (strings.Contains(said, "not be found") || strings.Contains(said, "invalid role")):
		return fmt.Sprintf("make %s, or name another in vault.auth.role", role)
	case strings.Contains(said, "fetching keys"):
		return fmt.Sprintf("the server could not fetch the issuer's keys: mend the configuration of auth/%s, or the server's way there", cmp.Or(a.Mount, a.Method))
	case strings.Contains(said, "signature"):
		return fmt.Sprintf("no key that the server knows has signed it: compare its issuer %s with the configuration of auth/%s", short(c.Issuer), cmp.Or(a.Mount, a.Method))
	}
	advice := fmt.Sprintf("compare issuer %s and subject %s of the token with what %s is bound to", short(c.Issuer), short(c.Subject), role)
	if a.Method == "kubernetes" && said == "permission denied" {
		advice += "; if they fit, the server could not ask Kubernetes, and its own log says why"
	}
	return advice
}

// audiences are whom the token is for.
func (c claims) audiences() any {
	var one string
	var many []string
	if json.Unmarshal(c.Audience, &one) == nil {
		return one
	}
	if json.Unmarshal(c.Audience, &many) == nil {
		return many
	}
	return ""
}

// short quotes what a message may show of a claim.
func short(claim any) string {
	const enough = 120
	text := fmt.Sprintf("%q", claim)
	if len(text) > enough {
		text = strings.ToValidUTF8(text[:enough], "") + "…"
	}
	return text
}
