package worker

import (
	"crypto/hmac"
	"crypto/sha256"
	"strings"
)

// A placeholder is a prefix (the shape the provider's clients look for), Marker, two characters for the key's id, and 64 for
// 40 bytes: the session's id, five bytes each of the hashes of worker and credential, and a MAC over these. So the key alone
// tells whose it is and for what, and one that was altered from one that is merely somebody else's. No bits are left over.
const (
	tagLength            = 5
	placeholderMACLength = 15
	sealedLength         = sessionIDBytes + 2*tagLength
	placeholderTail      = 2 + (sealedLength+placeholderMACLength)*8/5 // characters behind Marker
)

// Mismatch says why a placeholder is not the one that was due. It is for the log: whoever sent the placeholder is not told.
type Mismatch string

const (
	OtherSession    Mismatch = "other_session"    // of another session of the same worker
	OtherWorker     Mismatch = "other_worker"     // of a session of another worker
	OtherCredential Mismatch = "other_credential" // of the same session, for another credential: for other hosts
	Altered         Mismatch = "altered"          // not as any key of ours made it
	UnknownKey      Mismatch = "unknown_key"      // of a key that was forgotten, or that never was ours
)

// Placeholder is what the session holds instead of the credential. The same session always has the same placeholder for a
// credential, as long as the key is current.
func (k *Keyring) Placeholder(s Session, credential, prefix string) string {
	keys := k.keys.Load()
	raw := make([]byte, 0, sealedLength+placeholderMACLength)
	raw = appendSessionID(raw, s.ID)
	raw = appendTag(raw, "worker", s.Worker)
	raw = appendTag(raw, "credential", credential)
	raw = append(raw, mac(keys.byID[keys.current], "placeholder", string(raw))[:placeholderMACLength]...)
	return prefix + Marker + lowerBase32.EncodeToString([]byte{keys.current}) + lowerBase32.EncodeToString(raw)
}

// Recognize says whose placeholder value is, by ID and end, which the MAC vouches for, and in what it differs, if it does, from
// the session's placeholder for the credential, byte for byte. A session without ID stands for any of its worker's, for
// connections that prove a worker and no session. Of a placeholder that is altered or of an unknown key, owner means
// nothing. Whether the owner's session is over is for the ledger to say.
func (k *Keyring) Recognize(value string, s Session, credential, prefix string) (owner Session, why Mismatch) {
	front, kid, raw, ok := openPlaceholder(value)
	if !ok {
		return Session{}, Altered
	}
	owner.ID = lowerBase32.EncodeToString(raw[:sessionIDBytes])
	owner.Expires = endOf(owner.ID)
	key := k.keys.Load().byID[kid]
	switch {
	case key == nil && owner.ID != s.ID && strings.HasSuffix(front, Marker): // a session's own key is known as long as it lives
		return Session{}, UnknownKey
	case key == nil:
		return Session{}, Altered
	case !sealedBy(key, raw):
		return Session{}, Altered
	}
	var want []byte
	want = appendTag(want, "worker", s.Worker)
	want = appendTag(want, "credential", credential)
	tags := raw[sessionIDBytes:sealedLength]
	switch {
	case string(tags[:tagLength]) != string(want[:tagLength]):
		return owner, OtherWorker
	case s.ID != "" && owner.ID != s.ID:
		return owner, OtherSession
	case string(tags[tagLength:]) != string(want[tagLength:]):
		return owner, OtherCredential
	case len(front) != len(prefix)+len(Marker) || !strings.HasPrefix(front, prefix) || !strings.HasSuffix(front, Marker):
		return owner, Altered
	}
	owner.Worker = s.Worker
	return owner, ""
}

// Damaged reports whether value ends as a placeholder of ours does, so that it is one although its marker may be gone.
func (k *Keyring) Damaged(value string) bool {
	_, kid, raw, ok := openPlaceholder(value)
	if !ok {
		return false
	}
	key := k.keys.Load().byID[kid]
	return key != nil && sealedBy(key, raw)
}

// openPlaceholder takes a placeholder apart, from its end, where every part has its length.
func openPlaceholder(value string) (front string, kid byte, raw []byte, ok bool) {
	at := len(value) - placeholderTail
	if at < 0 {
		return "", 0, nil, false
	}
	front, tail := value[:at], value[at:]
	for i := len(tail) - 1; i >= 0; i-- { // other bearers mostly end here, before anything is decoded
		if fiveBits(tail[i]) < 0 {
			return "", 0, nil, false
		}
	}
	high, low := fiveBits(tail[0]), fiveBits(tail[1])
	raw, err := lowerBase32.DecodeString(tail[2:])
	if err != nil || low&3 != 0 { // bits that are none of the key's id
		return "", 0, nil, false
	}
	return front, byte(high<<3 | low>>2), raw, true
}

func sealedBy(key, raw []byte) bool {
	return hmac.Equal(raw[sealedLength:], mac(key, "placeholder", string(raw[:sealedLength]))[:placeholderMACLength])
}

// appendTag appends what stands for a name in a placeholder.
func appendTag(to []byte, purpose, name string) []byte {
	sum := sha256.Sum256([]byte(purpose + "\x00" + name))
	return append(to, sum[:tagLength]...)
}
