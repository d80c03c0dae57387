package oauth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"wayleave/secret"
)

// keys are one of each kind, made once: RSA takes its time.
var keys = sync.OnceValue(func() map[jose.SignatureAlgorithm]crypto.Signer {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		return must(k, err)
	}
	r, err := rsa.GenerateKey(rand.Reader, minRSA)
	_, ed, edErr := ed25519.GenerateKey(rand.Reader)
	return map[jose.SignatureAlgorithm]crypto.Signer{
		jose.RS256: must(r, err), jose.ES256: ec(elliptic.P256()), jose.ES384: ec(elliptic.P384()), jose.ES512: ec(elliptic.P521()), jose.EdDSA: must(ed, edErr),
	}
})

// claimsOf verifies a JWT and returns what it says.
func claimsOf(t *testing.T, text string, alg jose.SignatureAlgorithm) (claims map[string]any, header jose.Header) {
	t.Helper()
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{alg})
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Claims(keys()[alg].Public(), &claims); err != nil {
		t.Fatal(err)
	}
	return claims, token.Headers[0]
}

// Some servers want to be named by their issuer, others by their token endpoint; and their clocks differ from ours.
func TestClientAssertionAudienceAndClock(t *testing.T) {
	for _, audience := range []string{"", "https://as.example/"} {
		s := newTokenServer(t, answerJSON(200, goodAnswer))
		c := s.client(func(c *Config) {
			c.AuthStyle, c.ClientKey, c.Assertion.Audience = AuthPrivateKeyJWT, keys()[jose.ES256], audience
		})
		if _, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, nil); err != nil {
			t.Fatal(err)
		}
		claims, _ := claimsOf(t, s.received()[0].Params["client_assertion"], jose.ES256)
		for _, ahead := range []time.Duration{-20 * time.Second, 0, 50 * time.Second} {
			there := float64(noon.Add(ahead).Unix())
			if claims["iat"].(float64) > there || claims["exp"].(float64) <= there || claims["nbf"] != nil {
				t.Errorf("a clock %v ahead of ours refuses %v", ahead, claims)
			}
		}
		if want := or(audience, s.URL+"/token"); claims["aud"] != want {
			t.Errorf("aud %v, want %s", claims["aud"], want)
		}
	}
}

func TestPrivateKeyJWT(t *testing.T) {
	for alg, key := range keys() {
		s := newTokenServer(t, answerJSON(200, goodAnswer))
		c := s.client(func(c *Config) { c.AuthStyle, c.ClientKey, c.ClientKeyID = AuthPrivateKeyJWT, key, "k1" })
		for range 2 {
			if _, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		first, second := s.received()[0], s.received()[1]
		claims, header := claimsOf(t, first.Params["client_assertion"], alg)
		id, _ := claims["jti"].(string)
		want := map[string]any{
			"iss": "wayleave-test", "sub": "wayleave-test", "aud": s.URL + "/token", "jti": id,
			"iat": float64(noon.Add(-clockSkew).Unix()), "exp": float64(noon.Add(time.Minute).Unix()),
		}
		if diff := cmp.Diff(want, claims); diff != "" || len(id) < 16 || header.KeyID != "k1" || header.Algorithm != string(alg) {
			t.Errorf("%s: %+v (-want +got):\n%s", alg, header, diff)
		}
		if again, _ := claimsOf(t, second.Params["client_assertion"], alg); again["jti"] == id {
			t.Error("one JWT for two requests")
		}
		if first.Auth != "" || first.Params["client_secret"] != "" || first.Params["client_assertion_type"] != assertionTypeJWT || first.Params["client_id"] != "wayleave-test" {
			t.Errorf("%v", first)
		}
	}
}

func TestWithoutAKeyNothingIsSent(t *testing.T) {
	s := newTokenServer(t, answerJSON(200, goodAnswer))
	for _, edit := range []func(*Config){
		func(c *Config) { c.AuthStyle = AuthPrivateKeyJWT },
		func(c *Config) { c.GrantType = GrantJWT },
		func(c *Config) { c.GrantType, c.ClientKey = GrantJWT, weakKey{} },
	} {
		_, err := s.client(edit).Refresh(t.Context(), secret.New(oldRefresh), nil, nil)
		if e := asError(t, err); e.Outcome != NotSent || len(s.received()) != 0 {
			t.Errorf("got %v", e)
		}
	}
	_, err := s.client(nil).TokenExchange(t.Context(), Exchange{Subject: secret.New("x"), Actor: "w"})
	if e := asError(t, err); e.Outcome != NotSent || len(s.received()) != 0 {
		t.Errorf("got %v", e)
	}
}

type weakKey struct{ crypto.Signer }

func TestMint(t *testing.T) {
	t.Run("client_credentials", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(200, goodAnswer))
		c := s.client(func(c *Config) {
			c.GrantType, c.AuthStyle, c.ClientSecret, c.Resource = GrantClient, AuthPost, secret.New(clientSecret), "https://api.example/"
		})
		tok, err := c.Refresh(t.Context(), secret.Text{}, nil, []string{"b", "a"})
		if err != nil || !tok.Refresh.IsZero() || tok.Access.Reveal() != newAccess {
			t.Fatal(err)
		}
		want := map[string]string{"grant_type": "client_credentials", "scope": "b a", "resource": "https://api.example/", "client_id": "wayleave-test", "client_secret": clientSecret}
		if diff := cmp.Diff(want, s.received()[0].Params); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("jwt_bearer", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(200, goodAnswer))
		c := s.client(func(c *Config) {
			c.GrantType, c.ClientKey, c.ClientID = GrantJWT, keys()[jose.RS256], ""
			c.Assertion = Assertion{Issuer: "sa@example", Subject: "user@example", Audience: "https://as.example", Lifetime: 10 * time.Minute, Claims: map[string]string{"scope": "x y", "iss": "other"}}
		})
		if _, err := c.Refresh(t.Context(), secret.New(oldRefresh), nil, nil); err != nil {
			t.Fatal(err)
		}
		got := s.received()[0].Params
		claims, _ := claimsOf(t, got["assertion"], jose.RS256)
		want := map[string]any{
			"iss": "sa@example", "sub": "user@example", "aud": "https://as.example", "scope": "x y", "jti": claims["jti"],
			"iat": float64(noon.Add(-clockSkew).Unix()), "exp": float64(noon.Add(10 * time.Minute).Unix()),
		}
		if diff := cmp.Diff(want, claims); diff != "" {
			t.Error(diff)
		}
		if len(got) != 2 || got["grant_type"] != grantJWTBearer {
			t.Errorf("%v", got)
		}
	})
	t.Run("one request, whatever comes", func(t *testing.T) {
		s := newTokenServer(t, answerJSON(400, `{"error":"invalid_scope"}`))
		c := s.client(func(c *Config) {
			c.GrantType, c.AuthStyle, c.ClientSecret = GrantClient, AuthBasic, secret.New(clientSecret)
		})
		_, err := c.Refresh(t.Context(), secret.Text{}, nil, []string{"a"})
		if e := asError(t, err); e.Kind() != KindInvalidScope || len(s.received()) != 1 {
			t.Errorf("%v after %d requests", e, len(s.received()))
		}
	})
}

func TestTokenExchange(t *testing.T) {
	s := newTokenServer(t, answerJSON(200, `{"access_token":"`+newAccess+`","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":60,"refresh_token":"`+newRefresh+`"}`))
	c := s.client(func(c *Config) { c.ClientKey, c.Resource = keys()[jose.ES256], "https://not.this" })
	tok, err := c.TokenExchange(t.Context(), Exchange{Subject: secret.New(oldRefresh), Actor: "worker-1", Audience: "api", Resource: "https://api.example", Scopes: []string{"a"}})
	if err != nil || !tok.Refresh.IsZero() || tok.Expiry != noon.Add(time.Minute) {
		t.Fatalf("%v, %v", tok.Expiry, err)
	}
	got := s.received()[0].Params
	claims, _ := claimsOf(t, got["actor_token"], jose.ES256)
	if claims["iss"] != "wayleave-test" || claims["sub"] != "worker-1" || claims["aud"] != s.URL+"/token" {
		t.Errorf("%v", claims)
	}
	delete(got, "actor_token")
	want := map[string]string{
		"grant_type": grantTokenExchange, "subject_token": oldRefresh, "subject_token_type": tokenTypeAccess, "requested_token_type": tokenTypeAccess,
		"actor_token_type": tokenTypeJWT, "audience": "api", "resource": "https://api.example", "scope": "a", "client_id": "wayleave-test",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	if _, err := c.TokenExchange(t.Context(), Exchange{}); asError(t, err).Outcome != NotSent || len(s.received()) != 1 {
		t.Errorf("without a subject: %v", err)
	}
	other := newTokenServer(t, answerJSON(200, `{"access_token":"`+newAccess+`","issued_token_type":"urn:ietf:params:oauth:token-type:id_token","token_type":"N_A"}`))
	_, err = other.client(nil).TokenExchange(t.Context(), Exchange{Subject: secret.New(oldRefresh)})
	if e := asError(t, err); e.Kind() != KindBadAnswer {
		t.Errorf("%v", e)
	}
	refusing := newTokenServer(t, answerJSON(400, `{"error":"invalid_target","error_description":"`+oldRefresh+`"}`))
	_, err = refusing.client(nil).TokenExchange(t.Context(), Exchange{Subject: secret.New(oldRefresh)})
	if e := asError(t, err); e.Kind() != KindInvalidRequest || !strings.Contains(e.Hint, "audience") {
		t.Errorf("%v", e)
	}
}

// pemOf writes a key in its two forms.
func pemOf(t *testing.T, key crypto.Signer) (list [][]byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	list = append(list, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	switch k := key.(type) {
	case *rsa.PrivateKey:
		list = append(list, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		list = append(list, block, append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}}), block...))
	}
	return list
}

func TestParseKey(t *testing.T) {
	for alg, key := range keys() {
		for _, data := range pemOf(t, key) {
			got, err := ParseKey(append([]byte("a comment\n"), data...))
			if err != nil {
				t.Errorf("%s: %v", alg, err)
				continue
			}
			if a, err := algorithm(got); a != alg || err != nil {
				t.Errorf("%s became %s", alg, a)
			}
		}
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	private := string(pemOf(t, keys()[jose.RS256])[0])
	for name, data := range map[string]string{
		"nothing":     "",
		"text":        "MIIEvQIBADAN",
		"public key":  "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"cut off":     private[:len(private)/2],
		"nonsense":    strings.Replace(private, "MII", "AAA", 1),
		"encrypted":   "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
		"encrypted 1": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
		"curve":       string(pemOf(t, p224)[0]),
	} {
		key, err := ParseKey([]byte(data))
		if err == nil || key != nil {
			t.Errorf("%s was accepted", name)
			continue
		}
		if lines := strings.Split(data, "\n"); len(lines) > 2 && strings.Contains(err.Error(), lines[1]) {
			t.Errorf("%s: the error quotes the file", name)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParseKey(data)
		if (err == nil) == (key == nil) {
			t.Fatal("key and error do not agree")
		}
		if err == nil {
			if _, err := algorithm(key); err != nil {
				t.Fatal(err)
			}
		} else if len(data) > 20 && bytes.Contains([]byte(err.Error()), data) {
			t.Fatal("the error quotes the file")
		}
	})
}
