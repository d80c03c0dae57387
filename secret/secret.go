// Package secret owns one idea: a string that cannot be printed.
//
// A Text shows "[secret]" to fmt, slog and encoding/json, whatever verb or handler is used and however deep
// inside another value it sits. Reveal is the only way out, and is called in three kinds of place: at the wire,
// at the store, and at the header. Where a secret comes from and who may hold it is left to other packages.
package secret

import (
	"crypto/subtle"
	"log/slog"
)

const redacted = "[secret]"

// Text is a secret string. The zero value is the empty secret.
//
// The string hangs behind a pointer because fmt cannot call methods on unexported fields: there it prints what
// reflection reaches, and below the top level it prints pointers as addresses.
type Text struct{ p *string }

// New wraps s.
func New(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{&s}
}

// Reveal returns the string itself. Every call is a place where a secret leaves our hands.
func (t Text) Reveal() string {
	if t.p == nil {
		return ""
	}
	return *t.p
}

// IsZero reports whether the secret is empty.
func (t Text) IsZero() bool { return t.p == nil }

// Equal reports whether both hold the same string, in time that depends only on the lengths.
func (t Text) Equal(o Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.Reveal()), []byte(o.Reveal())) == 1
}

// String implements fmt.Stringer; it never shows the secret.
func (Text) String() string { return redacted }

// GoString implements fmt.GoStringer; it never shows the secret.
func (Text) GoString() string { return redacted }

// LogValue implements slog.LogValuer; it never shows the secret.
func (Text) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler (JSON, YAML, flags); it never shows the secret.
// Whoever stores a secret on purpose calls Reveal.
func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
