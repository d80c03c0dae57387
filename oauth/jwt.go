package oauth

import (
	"crypto/rand"
	"errors"
	"maps"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// How long the JWTs that we sign are good for. Each is made for one request, so that is a matter of clocks.
const (
	clockSkew          = 30 * time.Second // a JWT from the future is refused by servers whose clock is a second behind
	assertionLife      = time.Minute + clockSkew
	jwtBearerLife      = 5 * time.Minute
	longestJWTBearer   = time.Hour
	assertionTypeJWT   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	tokenTypeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	tokenTypeJWT       = "urn:ietf:params:oauth:token-type:jwt"
	grantDeviceCode    = "urn:ietf:params:oauth:grant-type:device_code"
	grantJWTBearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	grantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// clientAssertion is the client's proof of who it is, for one request (RFC 7523 §2.2 and §3).
func (c *Client) clientAssertion() (string, error) {
	return c.sign(map[string]any{"iss": c.cfg.ClientID, "sub": c.cfg.ClientID, "aud": or(c.cfg.Assertion.Audience, c.cfg.TokenURL)}, assertionLife)
}

// grantAssertion is the JWT that stands for the consent of grant_type jwt_bearer (RFC 7523 §2.1).
func (c *Client) grantAssertion() (string, error) {
	a := c.cfg.Assertion
	claims := map[string]any{}
	for k, v := range a.Claims {
		claims[k] = v
	}
	issuer := or(a.Issuer, c.cfg.ClientID)
	maps.Copy(claims, map[string]any{"iss": issuer, "sub": or(a.Subject, issuer), "aud": or(a.Audience, c.cfg.TokenURL)})
	life := a.Lifetime
	if life <= 0 {
		life = jwtBearerLife
	}
	return c.sign(claims, min(life+clockSkew, longestJWTBearer))
}

// actorToken names who acts (RFC 8693 §4.1): one of our workers.
func (c *Client) actorToken(actor string) (string, error) {
	return c.sign(map[string]any{"iss": c.cfg.ClientID, "sub": actor, "aud": c.cfg.TokenURL}, assertionLife)
}

// sign makes a JWT of claims, which get their times and an identifier of their own.
func (c *Client) sign(claims map[string]any, life time.Duration) (string, error) {
	if c.cfg.ClientKey == nil {
		return "", errNoKey
	}
	alg, err := algorithm(c.cfg.ClientKey)
	if err != nil {
		return "", err
	}
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if c.cfg.ClientKeyID != "" {
		opts.WithHeader("kid", c.cfg.ClientKeyID)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: c.cfg.ClientKey}, opts)
	if err != nil {
		return "", errors.New("the client's key does not sign: check client_key_file")
	}
	made := c.now().Add(-clockSkew)
	claims["iat"], claims["exp"], claims["jti"] = made.Unix(), made.Add(life).Unix(), rand.Text()
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", errors.New("the client's key does not sign: check client_key_file")
	}
	return text, nil
}
