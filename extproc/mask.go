package extproc

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"wayleave/grant"
)

// masker replaces texts in a stream of bytes by asterisks, as many as the text has bytes, so that no length changes.
type masker struct {
	texts [][]byte // none of them empty
	held  []byte   // the end of what came, which may be the start of a text
	// hurried passes everything on at once, so that a text which is split between two chunks is not found: for streams
	// whose end is not announced with their last chunk.
	hurried bool
	present func(context.Context) // adds the grant's present token
}

// next takes a chunk and returns what can be passed on: all there is, when it is the last.
func (m *masker) next(chunk []byte, last bool) []byte {
	out := chunk
	if len(m.held) > 0 {
		out = append(m.held, chunk...)
		m.held = nil
	}
	cloned := len(out) != len(chunk)
	for _, text := range m.texts {
		for at := 0; ; {
			i := bytes.Index(out[at:], text)
			if i < 0 {
				break
			}
			if !cloned { // the chunk is the caller's
				out, cloned = bytes.Clone(out), true
			}
			at += i
			for range text {
				out[at] = '*'
				at++
			}
		}
	}
	if last || m.hurried {
		return out
	}
	keep := m.open(out)
	m.held = bytes.Clone(out[len(out)-keep:])
	return out[:len(out)-keep]
}

// open is how many bytes at the end of s may be the start of a text: of those of which tokens are made, as many as can be. Whether they are the start of this
// one does not count, or whoever has an upstream repeat guesses would see by what is held how far a guess is right.
func (m *masker) open(s []byte) int {
	longest := 0
	for _, text := range m.texts {
		longest = max(longest, len(text))
	}
	n := 0
	for n < min(len(s), longest-1) && m.inTexts(s[len(s)-1-n]) {
		n++
	}
	return n
}

// inTexts reports whether a byte is one of those of which tokens are made (RFC 6750 section 2.1), or of a text: guesses show which others a token has, and not where.
func (m *masker) inTexts(c byte) bool {
	switch {
	case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9', strings.IndexByte("-._~+/=", c) >= 0:
		return true
	}
	return slices.ContainsFunc(m.texts, func(text []byte) bool { return bytes.IndexByte(text, c) >= 0 })
}

// masker is for the answer to a request that was swapped: it knows the token in the form it was sent in and by itself.
// After a 401 the request may have been sent again with another one, which is then the grant's present one.
func (s *Server) masker(d decision, t grant.Token) *masker {
	m := &masker{}
	m.add(d.swap.out, t)
	m.present = func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if now, err := s.tokens.Token(ctx, d.swap.grant, d.session.Worker, nil); err == nil && now.Version != t.Version {
			m.add(d.swap.out, now)
		}
	}
	return m
}

func (m *masker) add(out outgoing, t grant.Token) {
	token := t.Access.Reveal()
	m.texts = append(m.texts, []byte(token))
	if out.basic {
		_, credential, _ := strings.Cut(out.value(token), " ")
		m.texts = append(m.texts, []byte(credential))
	}
}

// endsInTrailers reports whether the last piece of the body will not be marked as such.
func endsInTrailers(h *extprocv3.HttpHeaders) bool {
	r := newRequest(h)
	return r.has("trailer") || slices.ContainsFunc(r.values("content-type"), func(v string) bool { return strings.HasPrefix(v, "application/grpc") })
}
