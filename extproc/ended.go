package extproc

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
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
		in, err := stream.Recv()
		if err != nil {
			return err // io.EOF too: Envoy keeps the stream for as long as it has something to say
		}
		if id := in.GetIdentifier(); id != nil { // the first message of a stream has it
			node = id.GetNode().GetId()
		}
		for _, e := range in.GetHttpLogs().GetLogEntry() {
			s.requestEnded(node, e)
		}
		for _, e := range in.GetTcpLogs().GetLogEntry() {
			s.connectionEnded(node, e)
		}
	}
}

func (s *Server) requestEnded(node string, e *dataaccesslogv3.HTTPAccessLogEntry) {
	c := e.GetCommonProperties()
	f := fieldsOf(c.GetMetadata(), metadataNamespace)
	intercepted := f != nil
	if !intercepted {
		f = fieldsOf(c.GetMetadata(), namespaceProxy)
	}
	if was, swapped := sentBefore(f); intercepted && f[metadataVerdict] != nil { // it was let through
		switch {
		case !rejection(e.GetResponse()):
			s.failed(node, was.revision, e.GetResponse())
		case swapped:
			s.tokens.Reject(was.grant, was.worker, was.version)
		}
	}
	if s.ended == nil || f.text(fieldRequest) == "" {
		return
	}
	x := ended(node, c, f)
	q, a := e.GetRequest(), e.GetResponse()
	if m := q.GetRequestMethod(); x.Method == "" && m != corev3.RequestMethod_METHOD_UNSPECIFIED {
		x.Method = m.String()
	}
	x.Host = shown(q.GetAuthority())
	if intercepted && !strings.Contains(x.Host, ":") {
		x.Host += ":" + strconv.Itoa(httpsPort)
	}
	x.Path = pathShown(&request{method: x.Method, path: q.GetPath()})
	x.Status, x.Details = int(a.GetResponseCode().GetValue()), a.GetResponseCodeDetails()
	x.BytesReceived, x.BytesSent = int64(c.GetDownstreamWireBytesReceived()), int64(c.GetDownstreamWireBytesSent())
	x.Protocol = protocols[e.GetProtocolVersion()]
	s.ended(x)
}

// connectionEnded is told of tunnels that were redirected, and of handshakes that failed.
func (s *Server) connectionEnded(node string, e *dataaccesslogv3.TCPAccessLogEntry) {
	c := e.GetCommonProperties()
	f := fieldsOf(c.GetMetadata(), namespaceRedirected)
	if f.text(fieldRequest) == "" {
		s.counts.add(node, "", Count{Requests: 1, Errors: 1}) // a request would have come
		return
	}
	if s.ended == nil {
		return
	}
	x := ended(node, c, f)
	x.Method, x.Attempts = http.MethodConnect, 0 // Envoy says one, also of a tunnel that is refused
	x.Host = shown(net.JoinHostPort(c.GetTlsProperties().GetTlsSniHostname(), strconv.Itoa(int(c.GetDownstreamLocalAddress().GetSocketAddress().GetPortValue()))))
	x.Details = c.GetConnectionTerminationDetails()
	x.BytesReceived, x.BytesSent = int64(e.GetConnectionProperties().GetReceivedBytes()), int64(e.GetConnectionProperties().GetSentBytes())
	s.ended(x)
}

// ended has what all kinds of ends have.
func ended(node string, c *dataaccesslogv3.AccessLogCommon, f fields) Ended {
	verdict := f.text(metadataVerdict)
	x := Ended{
		Decided: Decided{
			At: c.GetStartTime().AsTime(), Swapped: verdict == verdictSwap, Answered: verdict == "" && f[fieldReason] == nil, Reason: f.text(fieldReason),
			Worker: f.text(fieldWorker), Session: f.text(fieldSession), Source: f.text(fieldSource), Method: f.text(fieldMethod), Route: f.text(fieldRoute), Grant: f.text(fieldGrant),
			Token: f.text(fieldVersion), Fingerprint: f.text(fieldFingerprint), Rule: f.text(fieldRule), RequestID: f.text(fieldRequest), Trace: f.text(fieldTrace), Revision: f.text(fieldRevision),
		},
		Node: node, Flags: flags(c.GetResponseFlags()), Duration: c.GetDuration().AsDuration(), Attempts: int(c.GetUpstreamRequestAttemptCount()),
	}
	if a := c.GetUpstreamRemoteAddress().GetSocketAddress(); a != nil {
		x.Upstream = net.JoinHostPort(a.GetAddress(), strconv.Itoa(int(a.GetPortValue())))
	}
	return x
}

// protocols are HTTP's versions by their names.
var protocols = map[dataaccesslogv3.HTTPAccessLogEntry_HTTPVersion]string{
	dataaccesslogv3.HTTPAccessLogEntry_HTTP10: "HTTP/1.0",
	dataaccesslogv3.HTTPAccessLogEntry_HTTP11: "HTTP/1.1",
	dataaccesslogv3.HTTPAccessLogEntry_HTTP2:  "HTTP/2",
	dataaccesslogv3.HTTPAccessLogEntry_HTTP3:  "HTTP/3",
}

// flags writes Envoy's response flags as its other logs do.
func flags(f *dataaccesslogv3.ResponseFlags) string {
	if f == nil {
		return ""
	}
	var all []string
	for _, x := range []struct {
		set     bool
		letters string
	}{
		{f.GetFailedLocalHealthcheck(), "LH"},
		{f.GetNoHealthyUpstream(), "UH"},
		{f.GetUpstreamRequestTimeout(), "UT"},
		{f.GetLocalReset(), "LR"},
		{f.GetUpstreamRemoteReset(), "UR"},
		{f.GetUpstreamConnectionFailure(), "UF"},
		{f.GetUpstreamConnectionTermination(), "UC"},
		{f.GetUpstreamOverflow(), "UO"},
		{f.GetNoRouteFound(), "NR"},
		{f.GetDelayInjected(), "DI"},
		{f.GetFaultInjected(), "FI"},
		{f.GetRateLimited(), "RL"},
		{f.GetUnauthorizedDetails() != nil, "UAEX"},
		{f.GetRateLimitServiceError(), "RLSE"},
		{f.GetDownstreamConnectionTermination(), "DC"},
		{f.GetUpstreamRetryLimitExceeded(), "URX"},
		{f.GetStreamIdleTimeout(), "SI"},
		{f.GetInvalidEnvoyRequestHeaders(), "IH"},
		{f.GetDownstreamProtocolError(), "DPE"},
		{f.GetUpstreamMaxStreamDurationReached(), "UMSDR"},
		{f.GetResponseFromCacheFilter(), "RFCF"},
		{f.GetNoFilterConfigFound(), "NFCF"},
		{f.GetDurationTimeout(), "DT"},
		{f.GetUpstreamProtocolError(), "UPE"},
		{f.GetNoClusterFound(), "NC"},
		{f.GetOverloadManager(), "OM"},
		{f.GetDnsResolutionFailure(), "DF"},
		{f.GetDownstreamRemoteReset(), "DR"},
	} {
		if x.set {
			all = append(all, x.letters)
		}
	}
	return strings.Join(all, ",")
}

// rejection reports whether the provider's answer was that it does not take the token.
func rejection(r *dataaccesslogv3.HTTPResponseProperties) bool {
	return r.GetResponseCode().GetValue() == http.StatusUnauthorized || strings.HasPrefix(r.GetResponseCodeDetails(), detailsTooLongAgain)
}
