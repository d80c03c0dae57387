package xds

import corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

// How much of a body Envoy takes before the other side has read it. Its own default is 256 MiB for each stream, which a
// slow reader then holds in memory; a window of this size still carries 10 MiB a second over a way of 100 ms.
const (
	streamWindow     = 1 << 20
	connectionWindow = 16 << 20
)

// http2Options is how HTTP/2 is spoken on either side.
func http2Options() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{
		InitialStreamWindowSize:     number(streamWindow),
		InitialConnectionWindowSize: number(connectionWindow),
		// A malformed message ends its stream (RFC 9113 section 8.1.1), not the connection that others share.
		OverrideStreamErrorOnInvalidHttpMessage: yes(),
	}
}

// http2ForWorkers also bounds how many streams there are at a time, and how long a header is.
func http2ForWorkers() *corev3.Http2ProtocolOptions {
	o := http2Options()
	o.MaxConcurrentStreams = number(streamsPerH2)
	// One header may be as long as all are together. A longer one ends the connection: HPACK cannot skip it.
	o.MaxHeaderFieldSizeKb = number(maxHeadersKiB)
	return o
}
