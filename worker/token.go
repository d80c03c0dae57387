package worker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
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
	s := Session{Worker: worker, Profile: profile, Expires: now.Add(ttl).UTC().Truncate(time.Second)}
	s.ID = newSessionID(s.Expires)
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

// newSessionID is 16 characters of base32: when the session ends, in seconds since 1970, and 6 random bytes. The end is in
// it for PlaceholderOf, which knows nothing else of a session.
func newSessionID(ends time.Time) string {
	id := binary.BigEndian.AppendUint32(nil, uint32(ends.Unix()))
	var random [6]byte
	rand.Read(random[:])
	return lowerBase32.EncodeToString(append(id, random[:]...))
}

// endOf is when the session called id ends; the zero time if the id does not say.
func endOf(id string) time.Time {
	raw, err := lowerBase32.DecodeString(id)
	if err != nil || len(raw) < 4 {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint32(raw)), 0).UTC()
}

// Placeholder is what the session holds instead of the credential: prefix (the shape the provider's clients look for),
// Marker, and base32 of the key id, the session id and a MAC over session, worker and credential. The same session always
// has the same placeholder for a credential, as long as the key is current.
func (k *Keyring) Placeholder(s Session, credential, prefix string) string {
	keys := k.keys.Load()
	return placeholder(keys.current, keys.byID[keys.current], s, credential, prefix)
}

// IsPlaceholder reports whether value is, byte for byte, this session's placeholder for this credential.
func (k *Keyring) IsPlaceholder(value string, s Session, credential, prefix string) bool {
	// What is in front of the MAC names the key, so that one MAC is enough to decide.
	payload, ok := strings.CutPrefix(value, prefix+Marker)
	raw, err := lowerBase32.DecodeString(payload)
	if !ok || err != nil || len(raw) == 0 {
		return false
	}
	key := k.keys.Load().byID[raw[0]]
	if key == nil {
		return false
	}
	want := placeholder(raw[0], key, s, credential, prefix)
	return subtle.ConstantTimeCompare([]byte(value), []byte(want)) == 1
}

// PlaceholderOf returns the session of the worker whose placeholder for this credential value is, byte for byte: its ID
// and its end, which the MAC vouches for. It is for connections that prove a worker and no session; Profile is empty, and
// whether the session is over is for the caller to judge.
func (k *Keyring) PlaceholderOf(value, worker, credential, prefix string) (Session, bool) {
	payload, ok := strings.CutPrefix(value, prefix+Marker)
	raw, err := lowerBase32.DecodeString(payload)
	if !ok || err != nil || len(raw) != 1+sessionIDLength+placeholderMACLength {
		return Session{}, false
	}
	id := string(raw[1 : 1+sessionIDLength])
	s := Session{ID: id, Worker: worker, Expires: endOf(id)}
	return s, k.IsPlaceholder(value, s, credential, prefix)
}

func placeholder(kid byte, key []byte, s Session, credential, prefix string) string {
	payload := make([]byte, 0, 1+sessionIDLength+placeholderMACLength)
	payload = append(payload, kid)
	payload = append(payload, s.ID...)
	payload = append(payload, mac(key, "placeholder", s.ID+"|"+s.Worker+"|"+credential)[:placeholderMACLength]...)
	return prefix + Marker + lowerBase32.EncodeToString(payload)
}

// mac is HMAC-SHA256 with the purpose in front, so that no token of one kind is ever valid as another.
func mac(key []byte, purpose, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(purpose + "\x00" + message))
	return h.Sum(nil)
}
