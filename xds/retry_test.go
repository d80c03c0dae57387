package xds

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
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
	up := &fickle{}
	up.address = byHand(t, ca, func(f *http2.Framer) func(http2.Frame) bool {
		return func(frame http2.Frame) bool {
			headers, is := frame.(*http2.HeadersFrame)
			return !is || behave(up.streams.Add(1), f, headers.StreamID)
		}
	})
	return up
}

// byHand is the address of an HTTP/2 upstream that begins each connection as one does, and gives its further frames to what connection made for it,
// until that says to end it.
func byHand(t *testing.T, ca *authority, connection func(*http2.Framer) func(http2.Frame) (goOn bool)) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ca.certificate(t, apiHost)}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		if f.WriteSettings() != nil {
			return
		}
		for next := connection(f); ; {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			settings, is := frame.(*http2.SettingsFrame)
			switch {
			case is && !settings.IsAck() && f.WriteSettingsAck() != nil:
				return
			case !is && !next(frame):
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String()
}

func answer200(f *http2.Framer, stream uint32) bool {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}) == nil
}

// refuseFirst has not processed the first request.
func refuseFirst(nth int32, f *http2.Framer, stream uint32) bool {
	if nth == 1 {
		return f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) == nil
	}
	return answer200(f, stream)
}

// leaveFirst ends the connection in order, and says that it has not processed the first request.
func leaveFirst(nth int32, f *http2.Framer, stream uint32) bool {
	if nth == 1 {
		return f.WriteGoAway(0, http2.ErrCodeNo, nil) == nil
	}
	return answer200(f, stream)
}

// A request that the upstream says it has not processed (RFC 9113 section 8.7) is sent again, and the worker sees nothing.
func TestRefusedStreamIsRetried(t *testing.T) {
	for name, behave := range map[string]func(int32, *http2.Framer, uint32) bool{"the stream is refused": refuseFirst, "the connection ends before it": leaveFirst} {
		t.Run(name, func(t *testing.T) {
			var up *fickle
			s := start(t, func(c *Config) {
				ca := newAuthority(t)
				up = newFickle(t, ca, behave)
				c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
			}, nil)
			if a := post(t, s.worker("ann"), "https://"+apiHost+"/"); a.status != http.StatusOK {
				t.Errorf("got %d %q", a.status, a.body)
			}
			if n := up.streams.Load(); n != 2 {
				t.Errorf("the upstream got %d requests", n)
			}
		})
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
			a := post(t, s.worker("ann"), "https://"+apiHost+"/")
			replied(t, a, 503, "upstream_broke_off")
			if a.header.Get("x-should-retry") != "" {
				t.Error("the reply decides for the client whether to send it twice")
			}
			if n := up.streams.Load(); n != 1 {
				t.Errorf("the upstream got the request %d times", n)
			}
		})
	}
}

// A GET or a HEAD does nothing (RFC 9110 section 9.2.1), so one that may have been read is sent again: most often it has not been, but came as the upstream
// closed a connection that was idle.
func TestReadsAreRetried(t *testing.T) {
	frames := func(broken func(*http2.Framer, uint32) bool) func(*testing.T, *authority) *fickle {
		return func(t *testing.T, ca *authority) *fickle {
			return newFickle(t, ca, func(nth int32, f *http2.Framer, stream uint32) bool {
				if nth == 2 || nth == 4 { // 3 is the second again
					return broken(f, stream)
				}
				return answer200(f, stream)
			})
		}
	}
	for name, upstream := range map[string]func(*testing.T, *authority) *fickle{
		"stream reset": frames(func(f *http2.Framer, stream uint32) bool {
			return f.WriteRSTStream(stream, http2.ErrCodeInternal) == nil
		}),
		"connection reset": frames(func(*http2.Framer, uint32) bool { return false }),
		"the end of an idle connection": func(t *testing.T, ca *authority) *fickle {
			return newFickle1(t, ca, func(up *fickle, nth int32, _, c net.Conn) {
				r := bufio.NewReader(c)
				if up.answerOne(r, c) && nth <= 2 {
					_, _ = http.ReadRequest(r)
					up.streams.Add(1)
					return
				}
				for up.answerOne(r, c) {
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var up *fickle
			s := start(t, func(c *Config) {
				ca := newAuthority(t)
				up = upstream(t, ca)
				c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
			}, nil)
			ann := s.worker("ann")                                                             // of another connection another thread of Envoy would take care, with upstream connections of its own
			for _, method := range []string{http.MethodGet, http.MethodGet, http.MethodHead} { // the second is lost, and the third
				req, err := http.NewRequestWithContext(t.Context(), method, "https://"+apiHost+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				if a := do(t, ann, req); a.status != http.StatusOK {
					t.Errorf("%s: got %d %q", method, a.status, a.body)
				}
			}
			if n := up.streams.Load(); n != 5 {
				t.Errorf("the upstream got %d requests", n)
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

// newFickle1 is an HTTP/1.1 upstream that treats each connection as behave says.
func newFickle1(t *testing.T, ca *authority, behave func(up *fickle, nth int32, raw, c net.Conn)) *fickle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	settings := &tls.Config{Certificates: []tls.Certificate{ca.certificate(t, apiHost)}}
	up := &fickle{address: l.Addr().String()}
	var accepted atomic.Int32
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				behave(up, accepted.Add(1), raw, tls.Server(raw, settings))
			}()
		}
	}()
	return up
}

// answerOne reads a request with its body and answers it.
func (up *fickle) answerOne(r *bufio.Reader, c net.Conn) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	up.streams.Add(1)
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return false
	}
	_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
	return err == nil
}

// Connections that end before a request is on them are the gate's to replace: the worker sees nothing of it.
func TestLostConnectionsAreReplaced(t *testing.T) {
	closed := make(chan struct{}, 100) // a connection has ended on both sides
	for name, behave := range map[string]func(up *fickle, nth int32, raw, c net.Conn){
		"the first is closed before TLS": func(up *fickle, nth int32, _, c net.Conn) {
			for r := bufio.NewReader(c); nth > 1 && up.answerOne(r, c); {
			}
		},
		"the first is reset before TLS": func(up *fickle, nth int32, raw, c net.Conn) {
			if nth == 1 {
				_ = raw.(*net.TCPConn).SetLinger(0)
				return
			}
			for r := bufio.NewReader(c); up.answerOne(r, c); {
			}
		},
		"each is closed after an answer": func(up *fickle, _ int32, raw, c net.Conn) {
			up.answerOne(bufio.NewReader(c), c)
			_ = raw.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, raw) // until Envoy has closed it too
			closed <- struct{}{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var up *fickle
			s := start(t, func(c *Config) {
				ca := newAuthority(t)
				up = newFickle1(t, ca, behave)
				c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
			}, nil)
			client := s.worker("ann")
			const requests = 10
			for range requests {
				if a := post(t, client, "https://"+apiHost+"/"); a.status != http.StatusOK {
					t.Fatalf("got %d %q", a.status, a.body)
				}
				if strings.HasPrefix(name, "each") {
					<-closed
				}
			}
			if n := up.streams.Load(); n != requests {
				t.Errorf("the upstream got %d requests", n)
			}
		})
	}
}

// However many requests wait for a connection that is lost, each of them is sent again: Envoy's own limit is three.
func TestManyAreRetriedAtOnce(t *testing.T) {
	const requests = 30
	var up *fickle
	var decided atomic.Int32
	waiting := make(chan struct{})
	s := start(t, func(c *Config) {
		ca := newAuthority(t)
		up = newFickle1(t, ca, func(up *fickle, nth int32, raw, c net.Conn) {
			if nth == 1 {
				<-waiting
				_ = raw.(*net.TCPConn).SetLinger(0)
				return
			}
			for r := bufio.NewReader(c); up.answerOne(r, c); {
			}
		})
		c.UpstreamCA, c.Routes[0].ConnectTo = ca.pem, up.address
	}, nil)
	s.gate.decide = func(r request) *extprocv3.ProcessingResponse {
		if decided.Add(1) == requests {
			close(waiting)
		}
		return swap(r.identity)
	}
	client := s.worker("ann")
	failures := make(chan error, requests)
	for range requests {
		go func() {
			resp, err := client.Post("https://"+apiHost+"/", "text/plain", strings.NewReader("body"))
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
			}
			failures <- err
		}()
	}
	for range requests {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if n := up.streams.Load(); n != requests {
		t.Errorf("the upstream got %d requests", n)
	}
}
