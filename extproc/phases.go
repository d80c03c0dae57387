package extproc

import (
	"bytes"
	"context"

	procv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// phases is what Envoy sends of one request and of its answer, and how far that has come.
//
// Each message is answered in its own kind: an answer of another kind Envoy takes as a fault, or worse, as one it was
// waiting for. The stream ends when no more is to be said, but never while a body may be on its way: Envoy 1.40 then loses
// or repeats parts of it and says nothing.
type phases struct {
	request, response bodyMode
	told              bool // Envoy has said which modes
	quiet             bool // nothing is on its way
	requestOver       bool
	responseBegun     bool
	responseOver      bool
	mask              *masker // nil: the answer passes as it is
	release           func()  // ends the count of the request; nil: it is not counted
	open              bool    // Envoy keeps the stream for as long as the request is under way

	send func(*extprocv3.ProcessingResponse) error // tells Envoy something before the answer
}

// bodyMode is how Envoy sends a body.
type bodyMode = procv3.ProcessingMode_BodySendMode

// begin is for a stream of which this is the first message.
func begin(q *question) *phases {
	p := &phases{request: q.ofAsked, response: q.ofAnswer, told: q.told}
	if q.other == nil {
		// Until we answer, the request goes no further, and so there is no answer to it either.
		p.quiet = q.whole || q.opensWebSocket() || p.told && p.request == procv3.ProcessingMode_NONE
	}
	return p
}

// canSearch reports whether all of the answer's body comes by, and can be passed on before it ends, if it ever does.
func (p *phases) canSearch() bool {
	return p.response == procv3.ProcessingMode_STREAMED || p.response == procv3.ProcessingMode_FULL_DUPLEX_STREAMED
}

// over reports whether the stream can end.
func (p *phases) over() bool {
	switch {
	case p.responseOver:
		return true
	case p.mask != nil || p.responseBegun:
		return false
	case p.response == procv3.ProcessingMode_FULL_DUPLEX_STREAMED: // what Envoy is just sending us of the answer would be lost
		return false
	}
	return p.quiet || p.requestOver && (p.response == procv3.ProcessingMode_NONE || buffers(p.response))
}

// buffers reports whether Envoy waits for the end of a body, or for much of it.
func buffers(m bodyMode) bool {
	return m == procv3.ProcessingMode_BUFFERED || m == procv3.ProcessingMode_BUFFERED_PARTIAL
}

// answer answers every message but the request's headers.
func (p *phases) answer(ctx context.Context, in *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	out, err := unchanged(in)
	if err != nil {
		return nil, err
	}
	switch phase := in.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestBody:
		p.requestOver = phase.RequestBody.GetEndOfStream()
		if p.request == procv3.ProcessingMode_FULL_DUPLEX_STREAMED {
			out.GetRequestBody().Response = piece(phase.RequestBody.GetBody(), p.requestOver)
		}
	case *extprocv3.ProcessingRequest_RequestTrailers:
		p.requestOver = true
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		p.responseBegun, p.responseOver = true, phase.ResponseHeaders.GetEndOfStream()
		if p.mask != nil {
			p.mask.hurried = endsInTrailers(phase.ResponseHeaders)
			p.mask.present(ctx)
		}
	case *extprocv3.ProcessingRequest_ResponseBody:
		body := phase.ResponseBody.GetBody()
		passed := body
		p.responseBegun, p.responseOver = true, phase.ResponseBody.GetEndOfStream()
		if p.mask != nil {
			passed = p.mask.next(body, p.responseOver)
		}
		switch {
		case p.response == procv3.ProcessingMode_FULL_DUPLEX_STREAMED:
			out.GetResponseBody().Response = piece(passed, p.responseOver)
		case !bytes.Equal(passed, body):
			out.GetResponseBody().Response = &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: passed}}}
		}
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		p.responseBegun, p.responseOver = true, true
		if p.mask != nil && len(p.mask.held) > 0 {
			return nil, status.Error(codes.Internal, "a body ended in trailers that were not announced, and its last bytes can no longer be passed on")
		}
	}
	return out, nil
}

// piece is a part of a body where Envoy forwards only what we send.
func piece(body []byte, last bool) *extprocv3.CommonResponse {
	return &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
		StreamedResponse: &extprocv3.StreamedBodyResponse{Body: body, EndOfStream: last},
	}}}
}
