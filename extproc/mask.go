package extproc

import "bytes"

// masker replaces texts in a stream of bytes by asterisks, as many as the text has bytes, so that no length changes.
type masker struct {
	texts [][]byte // none of them empty
	held  []byte   // the end of what came, which may be the start of a text
	// hurried passes everything on at once, so that a text which is split between two chunks is not found: for streams
	// whose end is not announced with their last chunk.
	hurried bool
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
	keep := 0
	for _, text := range m.texts {
		keep = max(keep, overlap(out, text))
	}
	m.held = bytes.Clone(out[len(out)-keep:])
	return out[:len(out)-keep]
}

// overlap is how many bytes at the end of s are the start of text, without being all of it.
func overlap(s, text []byte) int {
	for n := min(len(s), len(text)-1); n > 0; n-- {
		if bytes.HasSuffix(s, text[:n]) {
			return n
		}
	}
	return 0
}
