package demo

import (
	"crypto"
	"crypto/subtle"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Client is a registered client. With neither Secret nor Key it is a public one.
type Client struct {
	ID string
	// Secret for client_secret_basic and client_secret_post.
	Secret string
	// Key that its JWTs are verified with: private_key_jwt, the assertions of jwt-bearer, and actor tokens.
	Key crypto.PublicKey
	// RedirectURIs as in ProviderOptions.
	RedirectURIs []string
}

const (
	clientAssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	longestProof        = time.Hour // until the expiry of a JWT
)

func (c Client) confidential() bool { return c.Secret != "" || c.Key != nil }

func (c Client) registered(u *url.URL) bool {
	if slices.Contains(c.RedirectURIs, u.String()) {
		return true
	}
	if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
		return false
	}
	anyPort := *u
	anyPort.Host = u.Hostname()
	if strings.Contains(anyPort.Host, ":") {
		anyPort.Host = "[" + anyPort.Host + "]"
	}
	return slices.Contains(c.RedirectURIs, anyPort.String())
}

func (p *Provider) clientOf(id string) (Client, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.clients[id]
	return c, ok
}

// authenticate says who asks (RFC 6749 §2.3, RFC 7523 §2.2); the caller has locked.
func (p *Provider) authenticate(params map[string]string, base string) (c Client, code string) {
	c, ok := p.clients[params["client_id"]]
	if !ok {
		return c, "invalid_client"
	}
	assertion, typed := params["client_assertion"], params["client_assertion_type"] == clientAssertionType
	switch {
	case c.Key != nil && typed:
		claims, good := p.verify(c, assertion, base, p.opts.Now())
		ok = good && claims.Subject == c.ID
	case c.Secret != "":
		ok = subtle.ConstantTimeCompare([]byte(c.Secret), []byte(params["client_secret"])) == 1
	default:
		ok = c.Key == nil && params["client_secret"] == "" && assertion == ""
	}
	if !ok {
		return c, "invalid_client"
	}
	return c, ""
}

// verify checks a JWT that c signed for us (RFC 7523 §3). Each is good once. The caller has locked.
func (p *Provider) verify(c Client, text, base string, now time.Time) (jwt.Claims, bool) {
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA})
	var claims jwt.Claims
	if err != nil || c.Key == nil || token.Claims(c.Key, &claims) != nil {
		return claims, false
	}
	want := jwt.Expected{Issuer: c.ID, AnyAudience: jwt.Audience{base + "/token"}, Time: now}
	if claims.ValidateWithLeeway(want, time.Minute) != nil || claims.Expiry == nil || claims.Expiry.Time().After(now.Add(longestProof)) || claims.Subject == "" || claims.ID == "" {
		return claims, false
	}
	proof := c.ID + " " + claims.ID
	if p.proofs[proof] {
		return claims, false
	}
	p.proofs[proof] = true
	return claims, true
}

// base is the address that a request was sent to: the issuer, and what its endpoints begin with.
func base(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
