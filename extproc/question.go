package extproc

import (
	"errors"
	"strings"
	"unicode/utf8"

	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Envoy's question about a request is read by hand, as its log is: to make a message of it, with maps of structures for a few texts,
// takes longer than to decide. Numbers are those of envoy/service/ext_proc/v3/external_processor.proto.

// question is the first message of a stream.
type question struct {
	request
	kept     fields // that Envoy keeps of the request already; only a retry has any
	whole    bool   // the request has no body
	told     bool   // Envoy has said how it sends bodies
	ofAsked  bodyMode
	ofAnswer bodyMode

	other *extprocv3.ProcessingRequest // when it is about something else than the request's headers
}

var errQuestion = errors.New("a question of Envoy's that cannot be read")

// Tags of fields with a length, and of numbers.
const (
	tagNumber = 0
	tagBytes  = 2
	tagShift  = 3
)

// reader reads the fields of a message one after the other.
type reader struct {
	rest []byte
	tag  uint64 // of the field that was read: its number and its type
	n    uint64 // its value, or
	b    []byte
	bad  bool // it is no message
}

// next is false at the end, and at what is no field.
func (r *reader) next() bool {
	if len(r.rest) == 0 || r.bad {
		return false
	}
	number, kind, n := protowire.ConsumeTag(r.rest)
	if n < 0 {
		r.bad = true
		return false
	}
	r.rest = r.rest[n:]
	r.tag = uint64(number)<<tagShift | uint64(kind)
	switch kind {
	case protowire.BytesType:
		r.b, n = protowire.ConsumeBytes(r.rest)
	case protowire.VarintType:
		r.n, n = protowire.ConsumeVarint(r.rest)
	case protowire.Fixed32Type, protowire.Fixed64Type, protowire.StartGroupType, protowire.EndGroupType:
		fallthrough
	default: // of no field that we want
		n = protowire.ConsumeFieldValue(number, kind, r.rest)
	}
	if n < 0 {
		r.bad = true
		return false
	}
	r.rest = r.rest[n:]
	return true
}

// readQuestion reads a ProcessingRequest. It refuses what it cannot read to the end, and what says something twice.
func readQuestion(message []byte) (question, error) {
	var q question
	asked := false
	for r := (reader{rest: message}); ; {
		if !r.next() {
			if r.bad {
				return question{}, errQuestion
			}
			break
		}
		ok := true
		switch r.tag {
		case 2<<tagShift | tagBytes:
			ok, asked = !asked && q.readHeaders(r.b), true
		case 8<<tagShift | tagBytes:
			ok = q.kept == nil && q.readMetadata(r.b)
		case 9<<tagShift | tagBytes:
			ok = q.readAttributes(r.b)
		case 11<<tagShift | tagBytes:
			ok, q.told = !q.told && q.readConfig(r.b), true
		case 3<<tagShift | tagBytes, 4<<tagShift | tagBytes, 5<<tagShift | tagBytes, 6<<tagShift | tagBytes, 7<<tagShift | tagBytes:
			q.other = &extprocv3.ProcessingRequest{}
		}
		if !ok {
			return question{}, errQuestion
		}
	}
	if q.other != nil && asked {
		return question{}, errQuestion
	}
	if !asked {
		q.other = &extprocv3.ProcessingRequest{}
		if proto.Unmarshal(message, q.other) != nil {
			return question{}, errQuestion
		}
	}
	return q, nil
}

// readHeaders reads an HttpHeaders.
func (q *question) readHeaders(message []byte) bool {
	r := reader{rest: message}
	for r.next() {
		switch r.tag {
		case 1<<tagShift | tagBytes: // a HeaderMap
			if q.headers != nil {
				return false
			}
			list := reader{rest: r.b}
			q.headers = make([]header, 0, 16)
			for list.next() {
				if list.tag == 1<<tagShift|tagBytes && !q.readHeader(list.b) {
					return false
				}
			}
			if list.bad {
				return false
			}
		case 3<<tagShift | tagNumber:
			q.whole = r.n != 0
		}
	}
	return !r.bad
}

// readHeader reads a HeaderValue.
func (q *question) readHeader(message []byte) bool {
	var key, value, raw []byte
	r := reader{rest: message}
	for r.next() {
		switch r.tag {
		case 1<<tagShift | tagBytes:
			key = r.b
		case 2<<tagShift | tagBytes:
			value = r.b
		case 3<<tagShift | tagBytes:
			raw = r.b
		}
	}
	if r.bad || !utf8.Valid(key) || !utf8.Valid(value) {
		return false
	}
	if len(raw) > 0 {
		value = raw
	}
	name, ok := usualNames[string(key)]
	if !ok {
		name = strings.ToLower(string(key))
	}
	q.add(name, string(value))
	return true
}

// usualNames are those of headers that many requests have: to look one up takes no memory.
var usualNames = func() map[string]string {
	names := map[string]string{}
	for _, n := range []string{
		":method", ":authority", ":path", ":scheme", "accept", "accept-encoding", "accept-language", "anthropic-beta", "anthropic-version", "authorization",
		"cache-control", "connection", "content-length", "content-type", "cookie", "host", "origin", "priority", "te", "traceparent", "transfer-encoding",
		"user-agent", "x-api-key", "x-app", "x-envoy-external-address", "x-forwarded-proto", "x-request-id",
		"x-stainless-arch", "x-stainless-lang", "x-stainless-os", "x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime",
		"x-stainless-runtime-version", "x-stainless-timeout",
	} {
		names[n] = n
	}
	return names
}()

// readConfig reads a ProtocolConfiguration.
func (q *question) readConfig(message []byte) bool {
	r := reader{rest: message}
	for r.next() {
		switch r.tag {
		case 1<<tagShift | tagNumber:
			q.ofAsked = procv3.ProcessingMode_BodySendMode(int32(r.n)) //nolint:gosec // as protocol buffers have it
		case 2<<tagShift | tagNumber:
			q.ofAnswer = procv3.ProcessingMode_BodySendMode(int32(r.n)) //nolint:gosec // likewise
		}
	}
	return !r.bad
}

// readAttributes reads one entry of the map of attributes; all of ours are in one.
func (q *question) readAttributes(message []byte) bool {
	return entryOf(message, func(namespace, attributes []byte) bool {
		return string(namespace) != attributeNamespace || textsOf(attributes, func(name, value []byte) {
			switch string(name) {
			case attributeIdentity:
				q.identity = string(value)
			case attributeAuthority:
				q.connectAuthority = string(value)
			case attributeNode:
				q.node = string(value)
			case attributeSNI:
				q.serverName = string(value)
			case attributeSource:
				q.source = addressOf(string(value))
			}
		})
	})
}

// readMetadata reads a Metadata, of which our namespace is wanted.
func (q *question) readMetadata(message []byte) bool {
	q.kept = fields{}
	r := reader{rest: message}
	for r.next() {
		if r.tag == 1<<tagShift|tagBytes && !entryOf(r.b, func(namespace, kept []byte) bool {
			return string(namespace) != metadataNamespace || textsOf(kept, func(name, value []byte) { q.kept.set(string(name), string(value)) })
		}) {
			return false
		}
	}
	return !r.bad
}

// entryOf reads an entry of a map of messages by names.
func entryOf(message []byte, found func(name, value []byte) bool) bool {
	var name, value []byte
	r := reader{rest: message}
	for r.next() {
		switch r.tag {
		case 1<<tagShift | tagBytes:
			name = r.b
		case 2<<tagShift | tagBytes:
			if value != nil {
				return false
			}
			value = r.b
		}
	}
	return !r.bad && utf8.Valid(name) && found(name, value)
}

// textsOf reads a google.protobuf.Struct; what in it is no text is empty.
func textsOf(message []byte, found func(name, value []byte)) bool {
	r := reader{rest: message}
	for r.next() {
		if r.tag == 1<<tagShift|tagBytes && !entryOf(r.b, func(name, value []byte) bool {
			var text []byte
			v := reader{rest: value}
			for v.next() {
				if text = nil; v.tag == 3<<tagShift|tagBytes {
					text = v.b
				}
			}
			if v.bad || !utf8.Valid(text) {
				return false
			}
			found(name, text)
			return true
		}) {
			return false
		}
	}
	return !r.bad
}
