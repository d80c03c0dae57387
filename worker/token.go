package worker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
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

const tokenVersion = "wls1"

// Why a session is not to be served: ErrUnknown is of Verify, the others are of Check.
var (
	// ErrUnknown says that the session was not issued by this ring, or by a key it has since forgotten, or is presented
	// under another session's id.
	ErrUnknown = errors.New("unknown session: start the worker again to get a new one")
	// ErrExpired says that the session was ours and is over.
	ErrExpired = errors.New("the session has expired: start the worker again to get a new one")
	// ErrRevoked says that an operator has ended it before its time.
	ErrRevoked = errors.New("the session was revoked: start the worker again to get a new one, if it may still run")
)

// Issue makes a session for worker under profile that ends ttl after now, and the token that proves it. The token is
// "wls1.<payload>.<mac>", both parts base64url: payload is the key id and the identity, joined by "|".
func (k *Keyring) Issue(worker, profile string, ttl time.Duration, now time.Time) (Session, secret.Text, error) {
	return k.IssueTo("", worker, profile, ttl, now)
}

// IssueTo is Issue for a worker that has proved to be subject.
func (k *Keyring) IssueTo(subject, worker, profile string, ttl time.Duration, now time.Time) (Session, secret.Text, error) {
	if err := checkNames(worker, profile); err != nil {
		return Session{}, secret.Text{}, err
	}
	s := Session{Worker: worker, Profile: profile, Expires: now.Add(ttl).UTC().Truncate(time.Second), Subject: subject}
	s.ID = newSessionID(now, s.Expires)
	keys := k.keys.Load()
	payload := strconv.Itoa(int(keys.current)) + "|" + s.Identity()
	sum := mac(keys.byID[keys.current], "session", payload)
	token := tokenVersion + "." + tokenBase64.EncodeToString([]byte(payload)) + "." + tokenBase64.EncodeToString(sum)
	return s, secret.New(token), nil
}

// Verify returns the session that token proves, if it is the session called id. The error is ErrUnknown. Whether the session is
// over is for the ledger to say.
func (k *Keyring) Verify(id string, token secret.Text) (Session, error) {
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
	return s, nil
}

// A session's id is 24 characters of base32: when it was issued and when it ends, in seconds since 1970, and 7 random bytes. The
// times are in it for connections that prove a worker and no session, where a placeholder is all there is, and for
// revocations that end what was issued before some moment.
const (
	sessionIDLength = 24
	sessionIDBytes  = sessionIDLength * 5 / 8
)

func newSessionID(issued, ends time.Time) string {
	id := binary.BigEndian.AppendUint32(nil, uint32(issued.Unix()))
	id = binary.BigEndian.AppendUint32(id, uint32(ends.Unix()))
	var random [sessionIDBytes - 8]byte
	rand.Read(random[:])
	return lowerBase32.EncodeToString(append(id, random[:]...))
}

// times returns what the session called id says of itself, in seconds since 1970; zeros if it is no id.
func times(id string) (issued, ends int64) {
	if !validSessionID(id) {
		return 0, 0
	}
	var bits uint64
	for i := range 12 {
		bits = bits<<5 | uint64(fiveBits(id[i])) //nolint:gosec // it is a valid one
	}
	bits = bits<<4 | uint64(fiveBits(id[12])>>1)       //nolint:gosec // the same
	return int64(bits >> 32), int64(bits & 0xffffffff) //nolint:gosec // 32 bits each
}

// endOf is when the session called id ends, unless it is renewed; the zero time if it is no id.
func endOf(id string) time.Time {
	_, ends := times(id)
	if ends == 0 {
		return time.Time{}
	}
	return time.Unix(ends, 0).UTC()
}

// appendSessionID appends the bytes of an id, of which only our own are asked for; what is none is as many zeros.
func appendSessionID(to []byte, id string) []byte {
	raw, err := lowerBase32.DecodeString(id)
	if err != nil || len(raw) != sessionIDBytes {
		raw = make([]byte, sessionIDBytes)
	}
	return append(to, raw...)
}

// fiveBits is what a character of lowerBase32 stands for, or -1.
func fiveBits(c byte) int {
	switch {
	case 'a' <= c && c <= 'z':
		return int(c - 'a')
	case '2' <= c && c <= '7':
		return int(c-'2') + 26
	}
	return -1
}

// mac is HMAC-SHA256 with the purpose in front, so that no token of one kind is ever valid as another.
func mac(key []byte, purpose, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(purpose + "\x00" + message))
	return h.Sum(nil)
}
