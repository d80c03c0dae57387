package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"

	"wayleave/loopback"
)

// How an issuer's keys are kept: it publishes a key before it signs with it, and takes one away that is not to be trusted.
const (
	keysFresh    = 10 * time.Minute // and then they are fetched again, when there is a token to verify
	keysUsable   = 24 * time.Hour   // while they cannot be fetched
	fetchFloor   = 10 * time.Second // between two fetches: anybody can name a key that does not exist
	fetchTimeout = 15 * time.Second
	patience     = 4 * time.Second // of a token that waits for them: Envoy asks another gate after 5 s
	maxDocument  = 1 << 20
	minRSA       = 2048 // bits (RFC 7518 section 3.3)
)

// keySet is the keys of one issuer. Where they cannot be fetched, those it has go on being used.
type keySet struct {
	issuer Issuer
	now    func() time.Time
	log    *slog.Logger
	flight singleflight.Group

	mu      sync.Mutex
	keys    []jose.JSONWebKey // guarded by mu; replaced, never changed
	fetched time.Time         // guarded by mu; when they were
	tried   time.Time         // guarded by mu; when a fetch last ended
	failure error             // guarded by mu; of that fetch
}

func newKeySet(i Issuer, o Options) *keySet { return &keySet{issuer: i, now: o.Now, log: o.Log} }

// find returns the keys that may have signed a token whose header has this key id, if any, and algorithm.
func (s *keySet) find(ctx context.Context, id, algorithm string) ([]jose.JSONWebKey, *Refusal) {
	found, age := s.look(id, algorithm)
	if len(found) > 0 && age < keysUsable {
		if age >= keysFresh && s.mayFetch() <= 0 {
			s.flight.DoChan("", s.refresh) // those it has are good meanwhile
		}
		return found, nil
	}
	if wait := s.mayFetch(); wait > 0 {
		return nil, s.unavailable(wait, s.whyNot())
	}
	if r := s.fetch(ctx); r != nil {
		return nil, r
	}
	if found, _ = s.look(id, algorithm); len(found) == 0 {
		return nil, &Refusal{Reason: Invalid, Words: fmt.Sprintf("its token is signed with a key that issuer %s does not have: present a token of that issuer, unchanged", s.issuer.Name)}
	}
	return found, nil
}

// fetch has the keys fetched, with others who want them.
func (s *keySet) fetch(ctx context.Context) *Refusal {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case done := <-s.flight.DoChan("", s.refresh):
		if done.Err != nil {
			return s.unavailable(fetchFloor, done.Err)
		}
		return nil
	case <-ctx.Done():
		return s.unavailable(time.Second, errors.New("no answer yet"))
	}
}

func (s *keySet) unavailable(after time.Duration, cause error) *Refusal {
	return &Refusal{
		Reason: Unavailable, After: after, Cause: cause,
		Words: fmt.Sprintf("the keys of issuer %s cannot be had at the moment, so its token cannot be verified: try again, and if it lasts ask the gate's operator, whose log has the cause", s.issuer.Name),
	}
}

// look returns the keys it has, and how old they are.
func (s *keySet) look(id, algorithm string) (found []jose.JSONWebKey, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if (id == "" || k.KeyID == id) && (k.Algorithm == "" || k.Algorithm == algorithm) {
			found = append(found, k)
		}
	}
	return found, s.now().Sub(s.fetched)
}

// asOf is when the keys were fetched.
func (s *keySet) asOf() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetched
}

// mayFetch is how long nobody may fetch them again.
func (s *keySet) mayFetch() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tried.Add(fetchFloor).Sub(s.now())
}

var errTooOften = errors.New("they were fetched just now, and the key is not among them")

func (s *keySet) whyNot() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		return errTooOften
	}
	return s.failure
}

// refresh fetches the keys. No caller's patience ends it, since others wait for the same.
func (s *keySet) refresh() (any, error) {
	if s.mayFetch() > 0 { // somebody else has, since the caller looked
		s.mu.Lock()
		defer s.mu.Unlock()
		return nil, s.failure
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, err := fetchKeys(ctx, s.issuer)
	if err != nil {
		s.log.Warn("the keys of an issuer cannot be fetched", "issuer", s.issuer.Name, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried, s.failure = s.now(), err
	if err == nil {
		s.keys, s.fetched = keys, s.tried
	}
	return nil, err
}

// fetchKeys reads the discovery document (OpenID Connect Discovery section 4) where it must, and the keys.
func fetchKeys(ctx context.Context, i Issuer) ([]jose.JSONWebKey, error) {
	at := i.JWKSURL
	if at == "" {
		var document struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		from := strings.TrimSuffix(i.Issuer, "/") + "/.well-known/openid-configuration"
		if err := getJSON(ctx, i.HTTP, from, &document); err != nil {
			return nil, err
		}
		if document.Issuer != i.Issuer {
			return nil, fmt.Errorf("%s says its issuer is %s, not %s: write that in issuers.%s.issuer, or jwks_url beside it", from, quote(document.Issuer), quote(i.Issuer), i.Name)
		}
		if fault := AddressFault(document.Keys); fault != "" {
			return nil, fmt.Errorf("the jwks_uri that %s names %s: write jwks_url in issuers.%s", from, fault, i.Name)
		}
		at = document.Keys
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := getJSON(ctx, i.HTTP, at, &set); err != nil {
		return nil, err
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		// Those we cannot use are for others (RFC 7517 section 5).
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) == nil && verifies(k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s has no key that signs and is strong enough (RSA of %d bits, EC, Ed25519)", at, minRSA)
	}
	return keys, nil
}

// verifies reports whether a key is the public half of one that signs.
func verifies(k jose.JSONWebKey) bool {
	switch k.Use {
	case "", "sig", "jwt-svid": // the last in a trust bundle of SPIFFE's
	default:
		return false
	}
	if !k.Valid() {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

// AddressFault says why an address may not be asked about who somebody is; empty when it may.
func AddressFault(address string) string {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return "is not a full address such as https://host/path"
	case u.User != nil || u.Fragment != "":
		return "must not have a user, a password or a fragment"
	case u.Scheme == "https", u.Scheme == "http" && loopback.Host(u.Hostname()):
		return ""
	}
	return "must be https: plain http is for loopback only"
}

func getJSON(ctx context.Context, c *http.Client, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", address, err)
	}
	req.Header.Set("accept", "application/json")
	return answer(c, req, http.StatusOK, into)
}

// answer sends a request and reads JSON from its answer. Errors quote nothing of it.
func answer(c *http.Client, req *http.Request, status int, into any) error {
	resp, err := c.Do(req)
	if err != nil {
		return err // it names the address
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		return &statusError{req.URL.Redacted(), resp.StatusCode}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading %s: %w", req.URL.Redacted(), err)
	case len(body) > maxDocument:
		return fmt.Errorf("%s is longer than %d bytes", req.URL.Redacted(), maxDocument)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s is not the JSON that was asked for", req.URL.Redacted())
	}
	return nil
}

type statusError struct {
	address string
	status  int
}

func (e *statusError) Error() string { return fmt.Sprintf("%s answers %d", e.address, e.status) }
