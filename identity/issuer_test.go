package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"wayleave/secret"
)

const audience = "https://gate.example.com"

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// issuerServer is an OpenID Connect issuer over TLS: discovery, keys, and tokens.
type issuerServer struct {
	*httptest.Server
	t testing.TB

	mu      sync.Mutex
	now     time.Time         // guarded by mu; the clock of the verifier
	keys    []jose.JSONWebKey // guarded by mu; published
	body    string            // guarded by mu; in place of the keys
	named   string            // guarded by mu; issuer of the discovery document
	keysAt  string            // guarded by mu; jwks_uri
	down    bool              // guarded by mu
	fetches int               // guarded by mu; of the keys
	block   chan struct{}     // guarded by mu; the keys are not answered before it is closed
}

func newIssuer(t testing.TB) *issuerServer {
	t.Helper()
	s := &issuerServer{t: t, now: start}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	s.named, s.keysAt = s.URL, s.URL+"/keys"
	return s
}

func (s *issuerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	block := s.block
	s.mu.Unlock()
	if block != nil && r.URL.Path == "/keys" {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": s.named, "jwks_uri": s.keysAt})
	case "/keys":
		s.fetches++
		if s.body != "" {
			_, _ = io.WriteString(w, s.body)
			return
		}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: s.keys})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *issuerServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *issuerServer) asked() (n int) {
	s.set(func() { n = s.fetches })
	return n
}

func (s *issuerServer) pass(d time.Duration) { s.set(func() { s.now = s.now.Add(d) }) }

func (s *issuerServer) clock() (now time.Time) {
	s.set(func() { now = s.now })
	return now
}

// publish makes the public halves of these signers the issuer's keys.
func (s *issuerServer) publish(signers ...*signer) {
	s.set(func() {
		s.keys = nil
		for _, k := range signers {
			s.keys = append(s.keys, k.public())
		}
	})
}

func (s *issuerServer) issuer(name string) Issuer {
	c := s.Client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return Issuer{Name: name, Issuer: s.URL, Audience: audience, HTTP: c}
}

func (s *issuerServer) verifier(change func(*Issuer)) *Verifier {
	i := s.issuer("ci")
	if change != nil {
		change(&i)
	}
	return NewVerifier([]Issuer{i}, Options{Now: s.clock})
}

// signer is a key that signs tokens.
type signer struct {
	t   testing.TB
	id  string
	alg jose.SignatureAlgorithm
	key any
}

func newSigner(t testing.TB, id string, alg jose.SignatureAlgorithm) *signer {
	t.Helper()
	k := &signer{t: t, id: id, alg: alg}
	var err error
	switch alg {
	case jose.ES256:
		k.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		k.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		k.key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, k.key, err = ed25519.GenerateKey(rand.Reader)
	default:
		k.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.key.(crypto.Signer).Public(), KeyID: k.id, Algorithm: string(k.alg), Use: "sig"}
}

// sign makes a token; the claims are those of a good one but for the changes, of which nil removes.
func (k *signer) sign(issuer string, changes map[string]any) secret.Text {
	k.t.Helper()
	claims := map[string]any{
		"iss": issuer, "sub": "repo:acme/app:ref:refs/heads/main", "aud": audience, "repository": "acme/app",
		"iat": start.Unix(), "nbf": start.Unix(), "exp": start.Add(time.Hour).Unix(),
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	options := (&jose.SignerOptions{}).WithType("JWT")
	if k.id != "" {
		options.WithHeader("kid", k.id)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: k.alg, Key: k.key}, options)
	if err != nil {
		k.t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		k.t.Fatal(err)
	}
	return secret.New(text)
}

// refusedWith checks that a token proves nothing, for this reason, in words that do not hold it.
func refusedWith(t testing.TB, err error, token secret.Text, reason Reason, says ...string) {
	t.Helper()
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok || refusal.Reason != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
	for _, s := range says {
		if !strings.Contains(refusal.Error(), s) {
			t.Errorf("%q does not say %q", refusal, s)
		}
	}
	if strings.Contains(refusal.Words, "\n") || strings.Contains(refusal.Error(), token.Reveal()) {
		t.Errorf("%q has several lines, or quotes the token", refusal)
	}
}

func TestVerify(t *testing.T) {
	for _, alg := range algorithms {
		for _, id := range []string{"k1", ""} {
			t.Run(fmt.Sprintf("%s with key id %q", alg, id), func(t *testing.T) {
				s, key := newIssuer(t), newSigner(t, id, alg)
				s.publish(newSigner(t, "other", jose.ES256), key)
				proof, err := s.verifier(nil).Verify(t.Context(), key.sign(s.URL, nil))
				if err != nil {
					t.Fatal(err)
				}
				if proof.Issuer != "ci" || proof.Subject != "repo:acme/app:ref:refs/heads/main" || proof.Claims["repository"] != "acme/app" {
					t.Errorf("got %+v", proof)
				}
			})
		}
	}
}

// A JWT-SVID as the standard has it: it names no issuer but by its trust domain, whose bundle has keys for it and for certificates.
func TestVerifySVIDs(t *testing.T) {
	s, svids, certificates := newIssuer(t), newSigner(t, "svids", jose.ES256), newSigner(t, "certificates", jose.ES256)
	s.set(func() {
		for key, use := range map[*signer]string{svids: "jwt-svid", certificates: "x509-svid"} {
			public := key.public()
			public.Use, public.Algorithm = use, ""
			s.keys = append(s.keys, public)
		}
	})
	v := s.verifier(func(i *Issuer) { i.Issuer, i.JWKSURL = "spiffe://example.org", s.URL+"/keys" })
	const agent = "spiffe://example.org/ns/builds/sa/agent"
	proof, err := v.Verify(t.Context(), svids.sign("", map[string]any{"iss": nil, "sub": agent}))
	if err != nil || proof.Issuer != "ci" || proof.Subject != agent {
		t.Errorf("got %+v, %v", proof, err)
	}
	for name, c := range map[string]struct {
		signer  *signer
		changes map[string]any
		reason  Reason
		says    string
	}{
		"a key for certificates": {certificates, map[string]any{"iss": nil, "sub": agent}, Invalid, "with a key that issuer ci does not have"},
		"another trust domain":   {svids, map[string]any{"iss": nil, "sub": "spiffe://example.com/ns/builds/sa/agent"}, UnknownIssuer, `"spiffe://example.com"`},
		"an issuer by name":      {svids, map[string]any{"iss": "https://example.org", "sub": agent}, UnknownIssuer, `"https://example.org"`},
		"no SPIFFE ID":           {svids, map[string]any{"iss": nil}, UnknownIssuer, "names no issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			s.pass(fetchFloor) // or a key that is not known is not looked for
			token := c.signer.sign("", c.changes)
			_, err := v.Verify(t.Context(), token)
			refusedWith(t, err, token, c.reason, c.says)
		})
	}
}

// What a token must have, each with the reason that its lack is refused with.
func TestVerifyRefuses(t *testing.T) {
	at := func(d time.Duration) int64 { return start.Add(d).Unix() }
	for _, c := range []struct {
		name    string
		changes map[string]any
		reason  Reason // empty: accepted
		says    []string
	}{
		{"expired", map[string]any{"exp": at(-61 * time.Second)}, Expired, []string{"expired at 2026-03-01 11:58:59 UTC", "WAYLEAVE_TOKEN_FILE"}},
		{"expired within the skew", map[string]any{"exp": at(-59 * time.Second)}, "", nil},
		{"never expires", map[string]any{"exp": nil}, Invalid, []string{"never expires"}},
		{"expiry is no number", map[string]any{"exp": "tomorrow"}, Invalid, nil},
		{"not yet valid", map[string]any{"nbf": at(61 * time.Second)}, NotYetValid, []string{"clocks"}},
		{"not yet valid within the skew", map[string]any{"nbf": at(59 * time.Second)}, "", nil},
		{"made in the future", map[string]any{"iat": at(2 * time.Minute)}, NotYetValid, []string{"2026-03-01 12:00:00 UTC"}},
		{"no times but an end", map[string]any{"nbf": nil, "iat": nil}, "", nil},
		{"another audience", map[string]any{"aud": "sts.amazonaws.com"}, WrongAudience, []string{`"sts.amazonaws.com"`, `"` + audience + `"`}},
		{"an audience that begins alike", map[string]any{"aud": audience + "/"}, WrongAudience, nil},
		{"no audience", map[string]any{"aud": nil}, WrongAudience, nil},
		{"empty audience", map[string]any{"aud": []string{}}, WrongAudience, nil},
		{"several audiences", map[string]any{"aud": []string{"x", audience}}, "", nil},
		{"audience is no text", map[string]any{"aud": 7}, Invalid, nil},
		{"no subject", map[string]any{"sub": nil}, Invalid, []string{"no subject"}},
		{"a subject without end", map[string]any{"sub": strings.Repeat("s", longestSubject+1)}, Invalid, []string{"2049 bytes"}},
		{"another issuer", map[string]any{"iss": "https://elsewhere.example\n\x1b[2J"}, UnknownIssuer, []string{`"https://elsewhere.example\n\x1b[2J"`, "issuers"}},
		{"no issuer", map[string]any{"iss": nil}, UnknownIssuer, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, key := newIssuer(t), newSigner(t, "k1", jose.ES256)
			s.publish(key)
			token := key.sign(s.URL, c.changes)
			proof, err := s.verifier(nil).Verify(t.Context(), token)
			if c.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if proof.Subject != "" || proof.Claims != nil {
				t.Errorf("a refusal comes with %+v", proof)
			}
			refusedWith(t, err, token, c.reason, c.says...)
		})
	}
}

// An expired token is only called expired when it is genuine.
func TestVerifyBelievesNothingUnsigned(t *testing.T) {
	s, key := newIssuer(t), newSigner(t, "k1", jose.ES256)
	s.publish(key)
	forger := newSigner(t, "k1", jose.ES256)
	for _, changes := range []map[string]any{nil, {"exp": start.Add(-time.Hour).Unix()}, {"aud": "x"}} {
		token := forger.sign(s.URL, changes)
		_, err := s.verifier(nil).Verify(t.Context(), token)
		refusedWith(t, err, token, Invalid, "not signed by the issuer")
	}
	good := key.sign(s.URL, nil).Reveal()
	v := s.verifier(nil)
	for i := range good {
		altered := []byte(good)
		altered[i] = 'A'
		if altered[i] == good[i] {
			altered[i] = 'B'
		}
		// The last character of base64 may have bits that mean nothing.
		if _, err := v.Verify(t.Context(), secret.New(string(altered))); err == nil && i < len(good)-1 {
			t.Errorf("accepted with character %d altered: %q", i, altered)
		}
	}
}

func TestVerifyRefusesAlgorithms(t *testing.T) {
	s, key := newIssuer(t), newSigner(t, "k1", jose.RS256)
	s.publish(key)
	part := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimRight(jsonBase64(raw), "=")
	}
	claims := strings.Split(key.sign(s.URL, nil).Reveal(), ".")[1]
	public, err := key.public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: bytes.Repeat(public, 1)}, (&jose.SignerOptions{}).WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	confused, err := jwt.Signed(hmac).Claims(map[string]any{"iss": s.URL, "sub": "x", "aud": audience, "exp": start.Add(time.Hour).Unix()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	signature := strings.Split(key.sign(s.URL, nil).Reveal(), ".")[2]
	for name, token := range map[string]string{
		"none":                       part(map[string]string{"alg": "none"}) + "." + claims + ".",
		"None":                       part(map[string]string{"alg": "None"}) + "." + claims + ".",
		"none with a signature":      part(map[string]string{"alg": "none", "kid": "k1"}) + "." + claims + "." + signature,
		"HMAC with the public key":   confused,
		"no algorithm":               part(map[string]string{"kid": "k1"}) + "." + claims + "." + signature,
		"unknown critical header":    part(map[string]any{"alg": "RS256", "kid": "k1", "crit": []string{"x"}, "x": 1}) + "." + claims + "." + signature,
		"algorithm of another key":   part(map[string]string{"alg": "ES256", "kid": "k1"}) + "." + claims + "." + signature,
		"algorithm of the same kind": part(map[string]string{"alg": "PS256", "kid": "k1"}) + "." + claims + "." + signature,
		"a key of its own":           part(map[string]any{"alg": "RS256", "jwk": json.RawMessage(public)}) + "." + claims + "." + signature,
		"claims that are no JSON":    part(map[string]string{"alg": "RS256", "kid": "k1"}) + ".AAAA." + signature,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.verifier(nil).Verify(t.Context(), secret.New(token))
			refusedWith(t, err, secret.New(token), Invalid)
		})
	}
	for name, token := range map[string]string{
		"empty": "", "a token of ours": "wlworker_ABCDEF", "two parts": "ey.ey", "four parts": "ey.a.b.c", "JWE": "ey.a.b.c.d",
		"oversized": "ey" + strings.Repeat("A", maxToken) + ".a.b",
	} {
		if _, err := s.verifier(nil).Verify(t.Context(), secret.New(token)); !errors.Is(err, ErrNoJWT) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.asked() > len(algorithms) { // tokens that name no key of an accepted algorithm cost no fetch
		t.Errorf("the keys were fetched %d times", s.asked())
	}
}

// Keys that do not sign, are too weak or would let who verifies sign are as if they were not there.
func TestVerifyRefusesKeys(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that is the point
	if err != nil {
		t.Fatal(err)
	}
	good := newSigner(t, "good", jose.ES256)
	for name, c := range map[string]struct {
		key    *signer
		change func(*jose.JSONWebKey)
	}{
		"weak RSA":              {&signer{t, "k1", jose.RS256, weak}, func(*jose.JSONWebKey) {}},
		"for encryption":        {newSigner(t, "k1", jose.RS256), func(k *jose.JSONWebKey) { k.Use = "enc" }},
		"for another algorithm": {newSigner(t, "k1", jose.RS256), func(k *jose.JSONWebKey) { k.Algorithm = "RS512" }},
		"another id":            {newSigner(t, "k1", jose.RS256), func(k *jose.JSONWebKey) { k.KeyID = "k2" }},
		"a private key":         {newSigner(t, "k1", jose.RS256), func(k *jose.JSONWebKey) { k.Key, k.KeyID = bytes.Repeat([]byte("k"), 32), "k1" }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIssuer(t)
			public := c.key.public()
			c.change(&public)
			s.set(func() { s.keys = []jose.JSONWebKey{public, good.public()} })
			token := c.key.sign(s.URL, nil)
			v := s.verifier(nil)
			_, err := v.Verify(t.Context(), token)
			refusedWith(t, err, token, Invalid, "does not have")
			if _, err := v.Verify(t.Context(), good.sign(s.URL, nil)); err != nil {
				t.Errorf("the good key beside it: %v", err)
			}
		})
	}
}

func TestKeysRotate(t *testing.T) {
	s := newIssuer(t)
	one, two := newSigner(t, "1", jose.ES256), newSigner(t, "2", jose.ES256)
	s.publish(one)
	v := s.verifier(nil)
	verify := func(k *signer) error {
		_, err := v.Verify(t.Context(), k.sign(s.URL, nil))
		return err
	}
	if s.asked() != 0 {
		t.Fatal("fetched before there was a token")
	}
	for range 5 {
		if err := verify(one); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.asked(); n != 1 {
		t.Fatalf("fetched %d times for five tokens", n)
	}
	// A new key is found when its first token comes, but not by everybody who names one that does not exist.
	refusedWith(t, verify(two), two.sign(s.URL, nil), Unavailable)
	s.pass(fetchFloor)
	refusedWith(t, verify(two), two.sign(s.URL, nil), Invalid)
	s.publish(one, two)
	err := verify(two)
	refusedWith(t, err, two.sign(s.URL, nil), Unavailable, errTooOften.Error())
	if refusal, _ := errors.AsType[*Refusal](err); refusal.After != fetchFloor {
		t.Errorf("try again after %v", refusal.After)
	}
	if n := s.asked(); n != 2 {
		t.Fatalf("fetched %d times", n)
	}
	if err := verify(one); err != nil {
		t.Errorf("the known key while the other cannot be fetched: %v", err)
	}
	s.pass(fetchFloor)
	if err := verify(two); err != nil {
		t.Fatal(err)
	}
	// One that was taken away is noticed, without a token that waits for it.
	s.publish(two)
	s.pass(keysFresh)
	if err := verify(one); err != nil {
		t.Errorf("a token waited for keys that were good a moment ago: %v", err)
	}
	s.await(v)
	s.pass(fetchFloor)
	refusedWith(t, verify(one), one.sign(s.URL, nil), Invalid)
}

// A key in the place of one with the same name, or with none as some issuers have theirs, is found when its first token comes.
func TestKeysAreReplaced(t *testing.T) {
	for _, name := range []string{"", "signing-key"} {
		s := newIssuer(t)
		one, two := newSigner(t, name, jose.ES256), newSigner(t, name, jose.ES256)
		s.publish(one)
		v := s.verifier(nil)
		verify := func(k *signer) error {
			_, err := v.Verify(t.Context(), k.sign(s.URL, nil))
			return err
		}
		if err := verify(one); err != nil {
			t.Fatal(err)
		}
		s.publish(two)
		s.pass(fetchFloor)
		if err := verify(two); err != nil {
			t.Fatalf("named %q: %v", name, err)
		}
		// Whoever signs by themselves has them fetched no more often than who names what does not exist.
		forged := one.sign(s.URL, nil)
		for range 3 {
			refusedWith(t, verify(one), forged, Invalid, "not signed by the issuer")
		}
		s.pass(fetchFloor)
		for range 3 {
			refusedWith(t, verify(one), forged, Invalid, "not signed by the issuer")
		}
		if n := s.asked(); n != 3 {
			t.Errorf("named %q: fetched %d times", name, n)
		}
		s.set(func() { s.down = true })
		s.pass(fetchFloor)
		refusedWith(t, verify(one), forged, Unavailable, "answers 502") // it may be of a key that we do not know yet
		if err := verify(two); err != nil {
			t.Errorf("named %q: the issuer is down: %v", name, err)
		}
	}
}

// await waits until the verifier's keys are those of now.
func (s *issuerServer) await(v *Verifier) {
	s.t.Helper()
	keys, patience := v.issuers[0].keys, time.After(time.Minute)
	for tick := time.NewTicker(time.Millisecond); ; {
		keys.mu.Lock()
		fresh := keys.fetched.Equal(s.clock())
		keys.mu.Unlock()
		if fresh {
			return
		}
		select {
		case <-tick.C:
		case <-patience:
			s.t.Fatal("the keys were not fetched again")
		}
	}
}

// While the issuer is down its keys go on being used, for a day.
func TestIssuerIsDown(t *testing.T) {
	s, key := newIssuer(t), newSigner(t, "1", jose.ES256)
	s.publish(key)
	v := s.verifier(nil)
	verify := func() error {
		_, err := v.Verify(t.Context(), key.sign(s.URL, map[string]any{"exp": s.clock().Add(time.Hour).Unix()}))
		return err
	}
	s.set(func() { s.down = true })
	err := verify()
	refusedWith(t, err, key.sign(s.URL, nil), Unavailable, "answers 502", "try again")
	s.set(func() { s.down = false })
	refusedWith(t, verify(), key.sign(s.URL, nil), Unavailable, "answers 502")
	s.pass(fetchFloor)
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.down = true })
	for range 23 {
		s.pass(time.Hour)
		if err := verify(); err != nil {
			t.Fatal(err)
		}
	}
	s.pass(time.Hour)
	refusedWith(t, verify(), key.sign(s.URL, nil), Unavailable)
	s.set(func() { s.down = false })
	s.pass(fetchFloor)
	if err := verify(); err != nil {
		t.Error(err)
	}
}

// Many tokens that come at once are one fetch, and one who goes away does not end it.
func TestOneFetchForMany(t *testing.T) {
	s, key := newIssuer(t), newSigner(t, "1", jose.ES256)
	s.publish(key)
	v := s.verifier(nil)
	open := make(chan struct{})
	s.set(func() { s.block = open })
	token := key.sign(s.URL, nil)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := contextThatIsOver(t)
	defer cancel()
	_, err := v.Verify(ctx, token)
	refusedWith(t, err, token, Unavailable, "no answer yet")
	close(open)
	all.Wait()
	if n := s.asked(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestDiscoveryRefuses(t *testing.T) {
	key := newSigner(t, "1", jose.ES256)
	for name, c := range map[string]struct {
		change func(*issuerServer)
		says   string
	}{
		"another issuer":       {func(s *issuerServer) { s.named = s.URL + "/" }, "write that in issuers.ci.issuer"},
		"keys in the clear":    {func(s *issuerServer) { s.keysAt = "http://keys.example/" }, "must be https"},
		"keys at no address":   {func(s *issuerServer) { s.keysAt = "" }, "full address"},
		"keys elsewhere":       {func(s *issuerServer) { s.keysAt = s.URL + "/none" }, "answers 404"},
		"keys are no JSON":     {func(s *issuerServer) { s.body = "<html>" }, "not the JSON"},
		"no keys":              {func(s *issuerServer) { s.body = `{"keys":[]}` }, "no key that signs"},
		"keys nobody can use":  {func(s *issuerServer) { s.body = `{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"new"},7,{}]}` }, "no key that signs"},
		"keys without an end":  {func(s *issuerServer) { s.body = strings.Repeat(" ", maxDocument) + `{"keys":[]}` }, "longer than"},
		"it cannot be reached": {func(s *issuerServer) { s.Close() }, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIssuer(t)
			s.publish(key)
			v := s.verifier(nil)
			s.set(func() { c.change(s) })
			token := key.sign(s.URL, nil)
			_, err := v.Verify(t.Context(), token)
			refusedWith(t, err, token, Unavailable, c.says)
		})
	}
	t.Run("certificate of nobody we know", func(t *testing.T) {
		s := newIssuer(t)
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		token := key.sign(s.URL, nil)
		_, err := s.verifier(func(i *Issuer) { i.HTTP = &http.Client{} }).Verify(t.Context(), token)
		refusedWith(t, err, token, Unavailable, "certificate")
	})
	t.Run("keys where the configuration says", func(t *testing.T) {
		s := newIssuer(t)
		s.publish(key)
		v := s.verifier(func(i *Issuer) { i.Issuer, i.JWKSURL = "kubernetes/serviceaccount", s.keysAt })
		if _, err := v.Verify(t.Context(), key.sign("kubernetes/serviceaccount", nil)); err != nil {
			t.Error(err)
		}
	})
}

func TestProbe(t *testing.T) {
	s := newIssuer(t)
	s.publish(newSigner(t, "1", jose.ES256))
	v := s.verifier(nil)
	if failed := v.Probe(t.Context()); len(failed) > 0 {
		t.Error(failed)
	}
	s.set(func() { s.down = true })
	if failed := v.Probe(t.Context()); failed["ci"] == nil {
		t.Error("nothing is said of an issuer that is down")
	}
}

// Clusters that nobody gave a name have the same one; their keys tell them apart.
func TestIssuersShareAName(t *testing.T) {
	const name = "https://kubernetes.default.svc.cluster.local"
	one, two, three := newIssuer(t), newIssuer(t), newIssuer(t)
	keys := map[*issuerServer]*signer{}
	var all []Issuer
	for i, s := range []*issuerServer{one, two, three} {
		keys[s] = newSigner(t, fmt.Sprint("k", i), jose.ES256)
		s.publish(keys[s])
		at := s.issuer(fmt.Sprint("cluster", i))
		at.Issuer, at.JWKSURL = name, s.keysAt
		all = append(all, at)
	}
	v := NewVerifier(all, Options{Now: one.clock})
	proof, err := v.Verify(t.Context(), keys[two].sign(name, nil))
	if err != nil || proof.Issuer != "cluster1" {
		t.Fatalf("%+v, %v", proof, err)
	}
	one.pass(fetchFloor)
	three.set(func() { three.down = true })
	expired := keys[two].sign(name, map[string]any{"exp": start.Add(-time.Hour).Unix()})
	_, err = v.Verify(t.Context(), expired)
	refusedWith(t, err, expired, Unavailable) // it may be the third's
	one.pass(fetchFloor)
	three.set(func() { three.down = false })
	_, err = v.Verify(t.Context(), expired)
	refusedWith(t, err, expired, Expired, "cluster1")
}
