package vault

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Packed is a document in one string, which is what Get and Put are given in place of a Value with many strings. OpenBao refuses
// a request with more than a thousand strings in it, names included, and all servers one of more than a megabyte, which thousands
// of sessions would be.
type Packed struct{ Value any }

// packed is the stored form.
type packed struct {
	Packed []byte `json:"packed"` // JSON, compressed with gzip
}

const maxUnpacked = 64 << 20

var errNotPacked = errors.New("not a document of this version of the gate")

// Fitting is a document that has too many strings only at times. It is Packed then, and plain while it has few, as by versions that knew it
// plain only.
type Fitting struct{ Value any }

// mostStrings is how many OpenBao takes in a document, less what a request has beside it.
const mostStrings = 900

// MarshalJSON implements json.Marshaler.
func (f Fitting) MarshalJSON() ([]byte, error) {
	raw, err := Encode(f.Value)
	if err != nil || CountStrings(raw) <= mostStrings {
		return raw, err
	}
	return Packed(f).MarshalJSON()
}

// UnmarshalJSON decodes into what Value points to.
func (f Fitting) UnmarshalJSON(text []byte) error {
	var of struct {
		Packed json.RawMessage `json:"packed"`
	}
	if json.Unmarshal(text, &of) == nil && bytes.HasPrefix(of.Packed, []byte(`"`)) {
		return Packed(f).UnmarshalJSON(text)
	}
	return json.Unmarshal(text, f.Value)
}

// CountStrings is how many strings a JSON text has, names included.
func CountStrings(text []byte) (n int) {
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		switch t, err := d.Token(); t.(type) {
		case string:
			n++
		case nil:
			if err != nil {
				return n
			}
		}
	}
}

// MarshalJSON implements json.Marshaler.
func (p Packed) MarshalJSON() ([]byte, error) {
	raw, err := Encode(p.Value)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err = z.Write(raw)
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	return json.Marshal(packed{b.Bytes()})
}

// UnmarshalJSON decodes into what Value points to.
func (p Packed) UnmarshalJSON(text []byte) error {
	var of packed
	if err := json.Unmarshal(text, &of); err != nil {
		return fmt.Errorf("%w: %w", errNotPacked, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(of.Packed))
	if err == nil {
		err = json.NewDecoder(io.LimitReader(z, maxUnpacked)).Decode(p.Value)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotPacked, err)
	}
	return nil
}
