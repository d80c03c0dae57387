package xds

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"golang.org/x/net/http2"
)

// What an HTTP/2 upstream sends beside its answers, or in a way of its own, costs nobody an answer.
func TestUpstreamsOfManyFrames(t *testing.T) {
	begun := func(f *http2.Framer, stream uint32) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte{0x88}, EndHeaders: true}) // :status 200
	}
	for name, next := range map[string]func(f *http2.Framer, frame http2.Frame) error{
		"pieces without content": func(f *http2.Framer, frame http2.Frame) error {
			data, is := frame.(*http2.DataFrame)
			if !is || len(data.Data()) == 0 && !data.StreamEnded() {
				return nil
			}
			if !data.StreamEnded() {
				read := uint32(len(data.Data())) //nolint:gosec // of a frame
				return errors.Join(f.WriteWindowUpdate(0, read), f.WriteWindowUpdate(data.StreamID, read))
			}
			err := begun(f, data.StreamID)
			for range 20 {
				err = errors.Join(err, f.WriteData(data.StreamID, false, nil))
			}
			return errors.Join(err, f.WriteData(data.StreamID, true, []byte("ok")))
		},
		"an answer, and that no more of the request is wanted": func(f *http2.Framer, frame http2.Frame) error { // RFC 9113 section 8.1
			if headers, is := frame.(*http2.HeadersFrame); is {
				return errors.Join(begun(f, headers.StreamID), f.WriteData(headers.StreamID, true, []byte("ok")), f.WriteRSTStream(headers.StreamID, http2.ErrCodeNo))
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var connections atomic.Int64
			s := start(t, func(c *Config) {
				ca := newAuthority(t)
				c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, byHand(t, ca, func(f *http2.Framer) func(http2.Frame) bool {
					connections.Add(1)
					return func(frame http2.Frame) bool { return next(f, frame) == nil }
				})
			}, nil)
			ann := s.worker("ann")
			for range 3 {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+apiHost+"/", strings.NewReader(strings.Repeat("x", 256<<10)))
				if err != nil {
					t.Fatal(err)
				}
				if a := do(t, ann, req); a.status != http.StatusOK || a.body != "ok" {
					t.Fatalf("got %d %q", a.status, a.body)
				}
			}
			if n := connections.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// A connection that may have died meanwhile is pinged before a request waits on it; a dead one is ended, and a request that does nothing is sent again.
func TestQuietConnectionIsPinged(t *testing.T) {
	const sooner = 20 // than the product does it
	var connections atomic.Int64
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, byHand(t, ca, func(f *http2.Framer) func(http2.Frame) bool {
			nth, requests := connections.Add(1), 0
			return func(frame http2.Frame) bool {
				headers, is := frame.(*http2.HeadersFrame)
				if !is {
					return true // no answer to a ping
				}
				requests++
				return nth == 1 && requests > 1 || answer200(f, headers.StreamID)
			}
		})
	}, func(r *Resources) {
		for _, c := range r.Clusters {
			for name, packed := range c.GetTypedExtensionProtocolOptions() {
				options := &upstreamhttpv3.HttpProtocolOptions{}
				if err := packed.UnmarshalTo(options); err != nil {
					t.Fatal(err)
				}
				pings := options.GetAutoConfig().GetHttp2ProtocolOptions().GetConnectionKeepalive()
				if pings.GetConnectionIdleInterval() == nil {
					continue
				}
				pings.ConnectionIdleInterval, pings.Timeout = seconds(upstreamQuiet/sooner), seconds(upstreamPong/sooner)
				c.TypedExtensionProtocolOptions[name] = pack(options)
			}
		}
	})
	ann := s.worker("ann")
	if a := get(t, ann, "https://"+apiHost+"/"); a.status != http.StatusOK {
		t.Fatalf("got %d", a.status)
	}
	time.Sleep(upstreamQuiet / sooner) // so long it is quiet
	if a := get(t, ann, "https://"+apiHost+"/"); a.status != http.StatusOK || connections.Load() != 2 {
		t.Errorf("got %d over %d connections", a.status, connections.Load())
	}
}
