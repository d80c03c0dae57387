package worker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"wayleave/secret"
)

// What a worker is given uses only [A-Za-z0-9._~-]: some clients do not percent-decode the user information of a proxy
// URL, and everything else would need escaping somewhere.
var (
	lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	tokenBase64 = base64.RawURLEncoding.Strict()
)

const (
	tokenVersion         = "wls1"
	placeholderMACLength = 16
)

// Errors of Verify.
var (
	// ErrUnknown says that the session was not issued by this ring, or by a key it has since forgotten, or is presented
	// under another session's id.
	ErrUnknown = errors.New("unknown session: start the worker again to get a new one")
	// ErrExpired says that the session was ours and is over.
	ErrExpired = errors.New("the session has expired: start the worker again to get a new one")
)

// Issue makes a session for worker under profile that ends ttl after now, and the token that proves it. The token is
// "wls1.<payload>.<mac>", both parts base64url: payload is the key id and the identity, joined by "|".
func (k *Keyring) Issue(worker, profile string, ttl time.Duration, now time.Time) (Session, secret.Text, error) {
	if err := checkNames(worker, profile); err != nil {
		return Session{}, secret.Text{}, err
	}
	var id [10]byte // 16 characters of base32
	rand.Read(id[:])
	s := Session{
		ID:      lowerBase32.EncodeToString(id[:]),
		Worker:  worker,
		Profile: profile,
		Expires: now.Add(ttl).UTC().Truncate(time.Second),
	}
	keys := k.keys.Load()
	payload := strconv.Itoa(int(keys.current)) + "|" + s.Identity()
	sum := mac(keys.byID[keys.current], "session", payload)
	token := tokenVersion + "." + tokenBase64.EncodeToString([]byte(payload)) + "." + tokenBase64.EncodeToString(sum)
	return s, secret.New(token), nil
}

// Verify returns the session that token proves, if it is the session called id and is not over at now.
// The error is ErrUnknown or ErrExpired.
func (k *Keyring) Verify(id string, token secret.Text, now time.Time) (Session, error) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 || parts[0] != tokenVersion {
		return Session{}, ErrUnknown
	}
	payload, err1 := tokenBase64.DecodeString(parts[1])
	presented, err2 := tokenBase64.DecodeString(parts[2])
	if err1 != nil || err2 != nil {
		return Session{}, ErrUnknown
	}
	kid, identity, _ := strings.Cut(string(payload), "|")
	n, err := strconv.ParseUint(kid, 10, 8)
	if err != nil {
		return Session{}, ErrUnknown
	}
	key := k.keys.Load().byID[byte(n)]
	if key == nil || !hmac.Equal(presented, mac(key, "session", string(payload))) {
		return Session{}, ErrUnknown
	}
	s, err := ParseIdentity(identity)
	if err != nil || s.ID != id {
		return Session{}, ErrUnknown
	}
	if s.Expired(now) {
		return Session{}, ErrExpired
	}
	return s, nil
}

// Placeholder is what the session holds instead of the credential: prefix (the shape the provider's clients look for),
// Marker, and base32 of the key id, the session id and a MAC over session and credential. The same session always has
// the same placeholder for a credential, as long as the key is current.
func (k *Keyring) Placeholder(sessionID, credential, prefix string) string {
	keys := k.keys.Load()
	return placeholder(keys.current, keys.byID[keys.current], sessionID, credential, prefix)
}

// IsPlaceholder reports whether value is, byte for byte, this session's placeholder for this credential.
func (k *Keyring) IsPlaceholder(value, sessionID, credential, prefix string) bool {
	// The first two base32 characters hold the key id, so that one MAC is enough to decide.
	id, ok := strings.CutPrefix(value, prefix+Marker)
	if !ok || len(id) < 2 {
		return false
	}
	var hint [1]byte
	if _, err := lowerBase32.Decode(hint[:], []byte(id[:2])); err != nil {
		return false
	}
	key := k.keys.Load().byID[hint[0]]
	if key == nil {
		return false
	}
	want := placeholder(hint[0], key, sessionID, credential, prefix)
	return subtle.ConstantTimeCompare([]byte(value), []byte(want)) == 1
}

func placeholder(kid byte, key []byte, sessionID, credential, prefix string) string {
	payload := make([]byte, 0, 1+sessionIDLength+placeholderMACLength)
	payload = append(payload, kid)
	payload = append(payload, sessionID...)
	payload = append(payload, mac(key, "placeholder", sessionID+"|"+credential)[:placeholderMACLength]...)
	return prefix + Marker + lowerBase32.EncodeToString(payload)
}

// mac is HMAC-SHA256 with the purpose in front, so that no token of one kind is ever valid as another.
func mac(key []byte, purpose, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(purpose + "\x00" + message))
	return h.Sum(nil)
}
