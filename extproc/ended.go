package extproc

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Ended is how something that was decided came to its end, as Envoy's access log tells when it is over: a request, a WebSocket with all
// that went over it, a tunnel. What is under way is not told of, nor what an Envoy that died had not told yet.
type Ended struct {
	// Decided is the decision as far as Envoy knows it, for a gate that does not any more: all but Took; At is when Envoy began. Its
	// token is the one that was sent last, and its Reason also why a request was not sent once more.
	Decided

	Node                     string // the Envoy
	Status                   int    // that the worker got; 0: it went away before there was one, or the tunnel was redirected
	Details, Flags           string // why it ended as it did, in Envoy's words and in its letters
	BytesReceived, BytesSent int64  // by Envoy from the worker, and to it, with the headers and what frames them, but without TLS
	Duration                 time.Duration
	Attempts                 int    // of a request at the upstream
	Upstream                 string // its address; not known of tunnels that a CONNECT opened
	Protocol                 string // the worker's
}

// StreamAccessLogs learns from Envoy how everything ended that was decided: for whoever is told of that, for tokens that a provider
// rejected, and to count what failed of what was let through. It also learns of handshakes that workers ended because they do not trust
// the certificate. It is envoy.service.accesslog.v3.AccessLogService.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	var node string
	for {
		var in emptypb.Empty // which leaves all as it came, for us to read
		if err := stream.RecvMsg(&in); err != nil {
			return err // io.EOF too: Envoy keeps the stream for as long as it has something to say
		}
		node = s.hear(node, in.ProtoReflect().GetUnknown())
	}
}

// hear reads a StreamAccessLogsMessage of the Envoy node, and returns the one that it names, if it does.
func (s *Server) hear(node string, message []byte) string {
	for p := range parts(message) {
		switch p.number {
		case 1: // of the first message of a stream
			node = string(partOf(partOf(p.b, 1).b, 1).b)
		case 2:
			for e := range parts(p.b) {
				s.requestEnded(node, requestEntry(e.b))
			}
		case 3:
			for e := range parts(p.b) {
				s.connectionEnded(node, connectionEntry(e.b))
			}
		}
	}
	return node
}

func (s *Server) requestEnded(node string, e entry) {
	noted := e.own
	if noted == nil {
		noted = e.proxy
	}
	x, verdict, answered := ended(node, &e, noted)
	if e.open && e.took >= 2*s.openFor { // it was told of before
		return
	}
	// Of what Envoy decided by a lease it tells when that has ended, or is open for some time: what is told of a decision is told then.
	news := x.Leased && (e.open || s.openFor == 0 || e.took < s.openFor)
	if news {
		s.counts.add(node, s.live.Load().by(x.Revision).revision, Count{Requests: 1})
	}
	if e.own != nil && verdict != "" && !e.open { // it was let through
		switch {
		case !rejection(e.status, e.details, answered):
			s.failed(node, x.Revision, e.status, e.details)
		case verdict == verdictSwap:
			s.tokens.Reject(x.Grant, x.Worker, x.Token)
		}
	}
	if s.ended == nil && !news || x.RequestID == "" {
		return
	}
	if x.Method == "" && e.method != 0 {
		x.Method = corev3.RequestMethod(e.method).String()
	}
	x.Host = shown(e.authority)
	if e.own != nil && !strings.Contains(x.Host, ":") {
		x.Host += ":" + strconv.Itoa(httpsPort)
	}
	x.Path = pathShown(&request{method: x.Method, path: e.path})
	x.Status, x.Details = int(e.status), printable(e.details)
	x.BytesReceived, x.BytesSent = int64(e.wireRead), int64(e.wireSent)
	x.Attempts = int(e.attempts)
	if e.protocol < uint64(len(protocols)) {
		x.Protocol = protocols[e.protocol]
	}
	if news && s.decided != nil {
		_ = s.decided(x.Decided) // it is out
	}
	if s.ended != nil && !e.open {
		s.ended(x)
	}
}

// connectionEnded is told of tunnels that were redirected, and of handshakes that failed.
func (s *Server) connectionEnded(node string, e entry) {
	x, _, _ := ended(node, &e, e.redirected)
	if x.RequestID == "" {
		s.counts.add(node, "", Count{Requests: 1, Errors: 1}) // a request would have come
		return
	}
	if s.ended == nil {
		return
	}
	x.Method = http.MethodConnect
	x.Host = shown(net.JoinHostPort(e.serverName, strconv.FormatUint(e.localPort, 10)))
	x.Details = printable(e.termination)
	x.BytesReceived, x.BytesSent = int64(e.tunnelRead), int64(e.tunnelSent)
	s.ended(x)
}

// ended has what all kinds of ends have, the verdict, and what the provider answered to the token, where Envoy noted that.
func ended(node string, e *entry, noted []byte) (x Ended, verdict, answered string) {
	var note, lane string
	for name, value := range texts(noted) {
		switch name {
		case metadataVerdict:
			verdict = value
		case fieldNote:
			note = value
		case fieldLane:
			lane = value
		case fieldAnswered:
			answered = value
		}
	}
	x = Ended{Node: node, Flags: e.flags, Duration: e.took, Upstream: e.upstream}
	x.Decided, _ = readNote(note)
	x.Leased = lane != ""
	x.At, x.Swapped, x.Answered = e.start, verdict == verdictSwap, verdict == "" && x.Reason == ""
	return x, verdict, answered
}

// protocols are HTTP's versions by their numbers in Envoy's log.
var protocols = [...]string{1: "HTTP/1.0", 2: "HTTP/1.1", 3: "HTTP/2", 4: "HTTP/3"}

// rejection reports whether the provider's answer was that it does not take the token.
func rejection(status uint64, details, answered string) bool {
	return status == http.StatusUnauthorized || answered == statusUnauthenticated || strings.HasPrefix(details, detailsTooLongAgain)
}
