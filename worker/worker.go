// Package worker owns the question of who may use what: static worker tokens, the sessions they are exchanged for, the
// placeholders a session holds, the HTTP API that hands them out, and the environment a child process gets from them.
// What a placeholder is swapped for belongs to package grant, where it is swapped to package extproc, and what each
// provider's clients want to see to package provider.
//
//	worker token ──Registry──▶ Session (Keyring.Issue) ──Identity──▶ the connection's filter state
//	                             └──▶ Placeholder per credential ──▶ Environment of the child
//
// Everything a worker receives is worthless outside its own session, and none of it is a real credential.
package worker

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Marker stands inside every placeholder, so that a request still carrying one can be recognised by anything that can
// search a string, without keys.
const Marker = "wlplaceholder"

// Session is one worker's time-limited permission.
type Session struct {
	// ID is 24 characters of [a-z2-7], and says when the session was issued and when it ends; it is also the proxy user name.
	ID string
	// Worker and Profile are names as in the configuration: [a-z0-9][a-z0-9._-]{0,62}.
	Worker, Profile string
	// Expires is in UTC, in whole seconds; the session is over at that instant unless it was renewed, which the ledger knows.
	Expires time.Time
	// Subject is who the worker proved to be when it enrolled: the subject of its issuer's token, or its SPIFFE ID. Empty: it
	// proved a token of the gate's.
	Subject string
}

// Identity is the form in which a session crosses Envoy as filter state: id|worker|profile|expiry in unix seconds, and behind
// another | the subject in base64url, if there is one.
func (s Session) Identity() string {
	identity := s.ID + "|" + s.Worker + "|" + s.Profile + "|" + strconv.FormatInt(s.Expires.Unix(), 10)
	if s.Subject != "" {
		identity += "|" + tokenBase64.EncodeToString([]byte(s.Subject))
	}
	return identity
}

// Issued is when the session was issued, in whole seconds.
func (s Session) Issued() time.Time {
	issued, _ := times(s.ID)
	return time.Unix(issued, 0).UTC()
}

// addressIdentity begins what crosses Envoy in place of a session where a worker is known by its address alone. No session
// id is as short.
const addressIdentity = "address|"

// ParseAddress reads an identity that is the address of a worker, "address|" and an IP address, and reports whether it is one.
func ParseAddress(identity string) (netip.Addr, bool) {
	text, ok := strings.CutPrefix(identity, addressIdentity)
	address, err := netip.ParseAddr(text)
	return address.Unmap(), ok && err == nil
}

var errIdentity = errors.New("not an identity: want id|worker|profile|expiry and perhaps |subject")

// ParseIdentity is the inverse of Session.Identity. It accepts only what Identity writes, character for character.
func ParseIdentity(s string) (Session, error) {
	id, rest, _ := strings.Cut(s, "|")
	worker, rest, _ := strings.Cut(rest, "|")
	profile, rest, _ := strings.Cut(rest, "|")
	expiry, encoded, _ := strings.Cut(rest, "|")
	unix, err1 := strconv.ParseInt(expiry, 10, 64)
	subject, err2 := tokenBase64.DecodeString(encoded)
	if err1 != nil || err2 != nil || !validSessionID(id) || !ValidName(worker) || !ValidName(profile) {
		return Session{}, errIdentity
	}
	got := Session{ID: id, Worker: worker, Profile: profile, Expires: time.Unix(unix, 0).UTC(), Subject: string(subject)}
	if got.Identity() != s { // "+5", "007"
		return Session{}, errIdentity
	}
	return got, nil
}

// ValidName reports whether s may name a worker or a profile: [a-z0-9][a-z0-9._-]{0,62}. Names travel in tokens, filter
// state and logs, where nothing may need escaping.
func ValidName(s string) bool {
	if len(s) < 1 || len(s) > 63 || !lowerAlnum(s[0]) {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; !lowerAlnum(c) && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// ValidSessionID reports whether s may be the id of a session that lives now: what it says of itself is possible.
func ValidSessionID(s string, now time.Time) bool {
	issued, ends := times(s)
	since := now.Sub(time.Unix(issued, 0))
	return issued > 0 && ends >= issued && since >= -skew && since <= LongestSession
}

func validSessionID(s string) bool {
	if len(s) != sessionIDLength {
		return false
	}
	for i := range len(s) {
		if fiveBits(s[i]) < 0 {
			return false
		}
	}
	return true
}

func lowerAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// checkNames is what Issue asks of its arguments; a fault here is one of the configuration.
func checkNames(worker, profile string) error {
	for _, n := range []string{worker, profile} {
		if !ValidName(n) {
			return fmt.Errorf("%q is not a name: use lower-case letters, digits, '.', '_' and '-', at most 63", n)
		}
	}
	return nil
}
