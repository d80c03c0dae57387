package extproc

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// answer goes on with a stream until the answer to its request has passed. Envoy sends the headers, then the body in
// pieces, then trailers if there are any, and waits for our word on each.
func (m *masker) answer(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		out, err := unchanged(in)
		if err != nil {
			return err
		}
		last := false
		switch phase := in.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			last = phase.ResponseHeaders.GetEndOfStream()
			m.hurried = endsInTrailers(phase.ResponseHeaders)
			m.present(stream.Context())
		case *extprocv3.ProcessingRequest_ResponseBody:
			last = phase.ResponseBody.GetEndOfStream()
			if passed := m.next(phase.ResponseBody.GetBody(), last); !bytes.Equal(passed, phase.ResponseBody.GetBody()) {
				out.GetResponseBody().Response = &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: passed}}}
			}
		case *extprocv3.ProcessingRequest_ResponseTrailers:
			last = true
			if len(m.held) > 0 {
				return status.Error(codes.Internal, "a body ended in trailers that were not announced, and its last bytes can no longer be passed on")
			}
		}
		if err := stream.Send(out); err != nil || last {
			return err
		}
	}
}

// endsInTrailers reports whether the last piece of the body will not be marked as such.
func endsInTrailers(h *extprocv3.HttpHeaders) bool {
	r := newRequest(h, nil)
	return r.has("trailer") || slices.ContainsFunc(r.values("content-type"), func(v string) bool { return strings.HasPrefix(v, "application/grpc") })
}
