package xds

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fickle is an HTTP/2 upstream that treats each stream as behave says.
type fickle struct {
	address string
	streams atomic.Int32 // requests whose headers were read
}

func newFickle(t *testing.T, ca *authority, behave func(nth int32, f *http2.Framer, stream uint32) (goOn bool)) *fickle {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ca.certificate(t, apiHost)}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	up := &fickle{address: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go up.serve(c, behave)
		}
	}()
	return up
}

func (up *fickle) serve(c net.Conn, behave func(int32, *http2.Framer, uint32) bool) {
	defer c.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	if f.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() && f.WriteSettingsAck() != nil {
				return
			}
		case *http2.HeadersFrame:
			if !behave(up.streams.Add(1), f, frame.StreamID) {
				return
			}
		}
	}
}

func answer200(f *http2.Framer, stream uint32) bool {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}) == nil
}

// A request that the upstream says it has not processed (RFC 9113 section 8.7) is sent again, and the worker sees nothing.
func TestRefusedStreamIsRetried(t *testing.T) {
	var up *fickle
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		up = newFickle(t, ca, func(nth int32, f *http2.Framer, stream uint32) bool {
			if nth == 1 {
				return f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) == nil
			}
			return answer200(f, stream)
		})
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
	}, nil)
	if a := post(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != http.StatusOK {
		t.Errorf("got %d %q", a.status, a.body)
	}
	if n := up.streams.Load(); n != 2 {
		t.Errorf("the upstream got %d requests", n)
	}
}

// A request that the upstream has read and may have acted upon is never sent twice.
func TestWhatWasReadIsNotRetried(t *testing.T) {
	for name, behave := range map[string]func(int32, *http2.Framer, uint32) bool{
		"stream reset": func(_ int32, f *http2.Framer, stream uint32) bool {
			return f.WriteRSTStream(stream, http2.ErrCodeInternal) == nil
		},
		"connection reset": func(int32, *http2.Framer, uint32) bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			var up *fickle
			s := start(t, func(c *Config) {
				ca := newAuthority(t)
				up = newFickle(t, ca, behave)
				c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
			}, nil)
			replied(t, post(t, s.worker("ann"), "https://"+apiHost+"/"), 503, "upstream_unreachable")
			if n := up.streams.Load(); n != 1 {
				t.Errorf("the upstream got the request %d times", n)
			}
		})
	}
}

func post(t *testing.T, c *http.Client, url string) testAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, req)
}
